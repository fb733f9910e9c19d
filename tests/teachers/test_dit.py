"""The diffusion transformer as a denoiser, shown on MDLM: what it does beside what its family's does, and its files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from safetensors.torch import load_file, save_file
from torch.nn import functional

from students.student import enable_gradient_checkpointing, trainable_copy
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve

GOLDEN = Path(__file__).parents[1] / "golden" / "mdlm" / "checkpoint"
MASK = 83


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def reference():
    return load_file(GOLDEN.parent / "reference.safetensors")


@pytest.fixture
def mdlm():
    return load_denoiser(str(GOLDEN)).requires_grad_(False)


@pytest.fixture
def folder(tmp_path):
    """A copy, to change."""
    shutil.copytree(GOLDEN, tmp_path / "mdlm")
    return tmp_path / "mdlm"


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


# --- what a denoiser does --------------------------------------------------------------------------------------------


def test_the_spec_is_the_configs(mdlm):
    spec = mdlm.spec
    assert (spec.mask_id, spec.vocabulary, spec.length, spec.attention, spec.shift) == (83, 84, 24, "full", False)
    assert not spec.time_conditioned
    rows = Canvas.blank(1, 40, MASK)
    assert mdlm.log_probs(rows).shape == (1, 40, 84), "nothing in the network bounds the length"


def test_padding_on_either_side_changes_nothing(mdlm, reference):
    tokens = reference["half.input_ids"]
    alone, padding = mdlm.log_probs(Canvas.of(tokens, MASK)), torch.full((2, 5), 7)
    real = torch.ones_like(tokens, dtype=torch.bool)
    for left in (True, False):
        parts = [(padding, torch.zeros_like(padding, dtype=torch.bool)), (tokens, real)]
        rows, seen = (torch.cat(part, 1) for part in zip(*(parts if left else parts[::-1]), strict=True))
        padded = mdlm.log_probs(Canvas.of(rows, MASK, seen))
        close(padded[:, 5:] if left else padded[:, :24], alone, atol=1e-5)
        assert (mdlm.log_probs(Canvas.of(rows, MASK))[seen][:, :MASK] - alone.flatten(0, 1)[:, :MASK]).abs().max() > 0.1


def test_features_head_and_selection_agree(mdlm, reference):
    canvas = Canvas.of(reference["half.input_ids"], MASK)
    close(mdlm.log_probs(canvas, canvas.open), mdlm.log_probs(canvas)[canvas.open], atol=0)
    blank = Canvas.blank(3, 24, MASK)
    close(mdlm.head(mdlm.features_at(blank, blank.open)), mdlm.log_probs(blank).flatten(0, 1), atol=1e-5)


def test_embeddings_are_what_the_first_block_reads(mdlm, reference):
    canvas = Canvas.of(reference["half.input_ids"], MASK)
    read = mdlm.token_embeddings()[canvas.tokens]
    assert torch.equal(mdlm.hidden_states(canvas, read), mdlm.hidden_states(canvas))
    assert not torch.equal(mdlm.hidden_states(canvas, read * 1.5), mdlm.hidden_states(canvas))


def test_a_network_that_reads_time_is_given_it(folder, reference):
    edit(folder, time_conditioning=True)
    timed, tokens = load_denoiser(str(folder)).requires_grad_(False), reference["half.input_ids"]
    assert timed.spec.time_conditioned
    at = [timed.log_probs(Canvas.of(tokens, MASK, time=torch.full((2,), t))) for t in (0.2, 0.5)]
    assert (at[0] - at[1])[..., :MASK].abs().max() > 1e-3
    close(timed.log_probs(Canvas.of(tokens, MASK)), at[1], atol=1e-6)  # half of the positions are open
    sigma = -torch.log1p(torch.tensor([-0.999 * 0.2] * 2))
    hidden = timed.transformer(timed.transformer.vocab_embed(tokens), sigma)
    close(timed.head(hidden), at[0], atol=1e-6)


@pytest.mark.parametrize("linear", [functional.linear, zero3_linear_wrap], ids=["torch's", "DeepSpeed's"])
def test_checkpointed_gradients_are_the_same(mdlm, reference, monkeypatch, linear):
    monkeypatch.setattr(functional, "linear", linear)
    canvas, gradients, passes = Canvas.of(reference["half.input_ids"], MASK), [], []
    for checkpointing in (False, True, "products"):
        network = trainable_copy(mdlm)
        if checkpointing:
            enable_gradient_checkpointing(network, checkpointing)
            network.blocks()[0].register_forward_pre_hook(lambda *_: passes.append(1))
        network.log_probs(canvas)[..., :MASK].square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert len(passes) == 4, "the block is passed again in either's backward pass"
    for one, *others in zip(*gradients, strict=True):
        for other in others:
            close(one, other, atol=1e-6)
    assert all(bool(g.any()) for g in gradients[0]), "every weight moves the output"


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_student_is_written_as_the_teacher_was(mdlm, tmp_path):
    student = trainable_copy(mdlm)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01)
    student.save(tmp_path / "one")
    back = load_denoiser(str(tmp_path / "one"))
    back.save(tmp_path / "two")
    assert back.spec == student.spec
    assert (tmp_path / "one/config.json").read_text() == (tmp_path / "two/config.json").read_text()
    released, one, two = (load_file(f / "model.safetensors") for f in (GOLDEN, tmp_path / "one", tmp_path / "two"))
    assert released.keys() == one.keys() == two.keys()
    for name, parameter in student.transformer.state_dict().items():
        assert torch.equal(one[f"backbone.{name}"], parameter)
        assert torch.equal(two[f"backbone.{name}"], parameter)
    config, written = (json.loads((f / "config.json").read_text()) for f in (GOLDEN, tmp_path / "one"))
    assert written == config


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "blocks.1.mlp.2.bias of shape none"),
        ("surplus", "asks for none"),
        ("shape", "n_heads"),
        ("nan", "norm1.weight that are not finite"),
        ("cut", "model.safetensors has .* bytes and its header says"),
        ("gone", "holds no weights; it must have model.safetensors"),
        ("pickle", "pickle"),
        ("size", "hidden_dim None"),
    ],
)
def test_damage_is_one_line(damage, words, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if damage == "missing":
        del tensors["backbone.blocks.1.mlp.2.bias"]
    elif damage == "surplus":
        tensors["backbone.more"] = torch.zeros(1)
    elif damage == "nan":
        tensors["backbone.blocks.0.norm1.weight"][3] = torch.nan
    save_file(tensors, path)
    if damage == "shape":
        edit(folder, n_heads=8)
        words = "rotary_emb.inv_freq"
    elif damage == "size":
        edit(folder, hidden_dim=None)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage in ("gone", "pickle"):
        path.unlink()
    if damage == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match=words) as refusal:
        load_denoiser(str(folder))
    assert "\n" not in str(refusal.value)


def test_code_that_comes_with_a_release_never_runs(folder):
    (folder / "modeling_mdlm.py").write_text("raise SystemExit('it ran')", "utf-8")
    assert load_denoiser(str(folder)).spec.mask_id == MASK
    assert resolve(str(folder)).config["auto_map"], "the release names code of its own"
