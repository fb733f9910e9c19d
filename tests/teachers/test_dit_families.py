"""What each family on the diffusion transformer makes of its config.json, and what it writes back."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.prefix import split
from tests.golden.places import COPIES, checkpoint_of

NAMES = ["mdlm", "sedd", "bd3lm", "bd3lm-full", "duo", "sdtt", "didi-instruct"]
PREFIXES = {"sedd": "", "didi-instruct": ""}


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a family's checkpoint, with values in its config.json, dotted; None takes a key away."""

    def of(name, **values):
        folder = shutil.copytree(checkpoint_of(COPIES, name), tmp_path / name)
        path = folder / "config.json"
        config = json.loads(path.read_text("utf-8"))
        for key, value in values.items():
            *sections, last = key.split("__")
            section = config
            for part in sections:
                section = section[part]
            section[last] = value
            if value is None:
                del section[last]
        path.write_text(json.dumps(config), "utf-8")
        return folder

    return of


def config_of(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def close(one, other):
    """Weights that lie elsewhere in memory are multiplied in another order."""
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert all(one[name].dtype == other[name].dtype for name in other)


# --- the way back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_written_as_it_was_released(name, tmp_path):
    released = checkpoint_of(COPIES, name)
    load_denoiser(str(released)).save(tmp_path)
    assert_equal(weights_of(tmp_path), weights_of(released))
    assert config_of(tmp_path) == config_of(released)
    assert resolve(str(tmp_path)).family is resolve(str(released)).family


def test_a_prefix_that_stands_twice_stays_so(copy_of, tmp_path):
    folder = copy_of("sdtt")
    once = weights_of(folder)
    save_file({f"backbone.{name}": tensor for name, tensor in once.items()}, folder / "model.safetensors")
    twice = load_denoiser(str(folder))
    canvas = Canvas.blank(1, 20, 63)
    close(twice.log_probs(canvas), load_denoiser(str(checkpoint_of(COPIES, "sdtt"))).log_probs(canvas))
    twice.save(tmp_path / "out")
    assert_equal(weights_of(tmp_path / "out"), weights_of(folder))


def test_types_and_code_of_a_release_come_back(copy_of, tmp_path):
    folder = copy_of("bd3lm")
    kept = "backbone.blocks.0.norm1.weight"
    tensors = {name: t if name == kept or not t.ndim else t.bfloat16() for name, t in weights_of(folder).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "modeling_bd3lm.py").write_text("raise SystemExit('it ran')", "utf-8")
    denoiser = load_denoiser(str(folder))
    denoiser.save(tmp_path / "run")
    run = weights_of(tmp_path / "run")
    assert {tensor.dtype for tensor in run.values()} == {torch.float32}
    for source in (denoiser, load_denoiser(str(tmp_path / "run"))):
        source.save(tmp_path / "export", released=True)
        assert_equal(weights_of(tmp_path / "export"), tensors)
        assert config_of(tmp_path / "export") == config_of(folder)
        assert (tmp_path / "export" / "modeling_bd3lm.py").read_text("utf-8") == "raise SystemExit('it ran')"
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(1e-4)
    denoiser.save(tmp_path / "student", released=True)
    canvas, before = Canvas.blank(1, 8, 83), denoiser.transformer.output_layer.linear.weight.clone()
    written = load_denoiser(str(tmp_path / "student")).log_probs(canvas)
    with denoiser.as_read():
        close(denoiser.log_probs(canvas), written)
    assert torch.equal(denoiser.transformer.output_layer.linear.weight, before)


def test_scalars_beside_the_network_are_kept(tmp_path):
    load_denoiser(str(checkpoint_of(COPIES, "bd3lm"))).save(tmp_path)
    assert {name for name in weights_of(tmp_path) if "." not in name} == {"sampling_eps_min", "sampling_eps_max"}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("bd3lm", {"block_size": 8}),
        ("bd3lm", {"attention": "full"}),
        ("bd3lm-full", {"block_size": 5}),
        ("didi-instruct", {"time_conditioned": True}),
        ("mdlm", {"mask_id": 7}),
    ],
)
def test_what_was_set_is_written_and_read_again(name, setting, tmp_path):
    denoiser = load_denoiser(str(checkpoint_of(COPIES, name)), **setting)
    denoiser.save(tmp_path)
    written = config_of(tmp_path)
    assert written.pop("fewstep") == setting
    assert written == config_of(checkpoint_of(COPIES, name))
    again = load_denoiser(str(tmp_path))
    assert again.spec == denoiser.spec
    canvas = Canvas.blank(2, 20, denoiser.spec.mask_id)
    close(again.log_probs(canvas), denoiser.log_probs(canvas))
    assert denoiser.spec != load_denoiser(str(checkpoint_of(COPIES, name))).spec


# --- what a config.json says -----------------------------------------------------------------------------------------


def test_specs():
    specs = {name: load_denoiser(str(checkpoint_of(COPIES, name))).spec for name in NAMES}
    assert {name: spec.mask_id for name, spec in specs.items()} == {
        "mdlm": 83, "sedd": 59, "bd3lm": 83, "bd3lm-full": 63, "duo": 64, "sdtt": 63, "didi-instruct": 47
    }  # fmt: skip
    assert {name: spec.length for name, spec in specs.items()} == {
        "mdlm": 24, "sedd": 16, "bd3lm": 24, "bd3lm-full": 20, "duo": 20, "sdtt": 20, "didi-instruct": 14
    }  # fmt: skip
    assert [name for name, spec in specs.items() if spec.time_conditioned] == ["sedd", "duo"]
    assert {name: spec.block_size for name, spec in specs.items() if spec.attention != "full"} == {"bd3lm": 4}
    assert not any(spec.shift for spec in specs.values())


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("bd3lm", {"adaln": False}, "adaln false: blocks without modulation"),
        ("bd3lm", {"time_conditioning": True}, "time_conditioning true: each block would have a time"),
        ("bd3lm", {"causal": True}, "causal true: an autoregressive model"),
        ("bd3lm-full", {"causal": True}, "causal true: an autoregressive model"),
        ("bd3lm", {"block_size": None}, "has block_size None"),
        ("bd3lm", {"cross_attn": "yes"}, "cross_attn 'yes'; it must be true or false"),
        ("duo", {"causal": True}, "causal true: an autoregressive model"),
        ("didi-instruct", {"algo__causal_attention": True}, "algo.causal_attention true: an autoregressive model"),
        ("sedd", {"graph__type": "uniform"}, "graph.type 'uniform', which is not computed here; it must be 'absorb'"),
        ("sedd", {"noise__type": "geometric"}, "noise.type 'geometric', which is not computed here"),
        ("sdtt", {"model__type": "dimamba"}, "model.type 'dimamba', which is not computed here"),
        ("sdtt", {"model__n_heads": "${heads}"}, r"model.n_heads '\$\{heads\}'; it must be a whole number"),
        ("sdtt", {"model__n_blocks": 3}, "weights of 2 blocks where its config.json asks for 3"),
        ("didi-instruct", {"vocab_size": 50}, "has a size of|asks for"),
        *[(name, {"cond_dim": None}, "has cond_dim None; it must be a whole number") for name in ("bd3lm", "duo")],
        *[(name, {"model__cond_dim": None}, "has model.cond_dim None") for name in ("sedd", "sdtt")],
    ],
)
def test_a_config_is_honoured_or_refused(name, values, words, copy_of):
    with pytest.raises(UserError, match=words) as refusal:
        load_denoiser(str(copy_of(name, **values)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("name", "key"), [("sdtt", "time_conditioning"), ("didi-instruct", "algo__time_conditioning")])
def test_a_network_that_reads_time_by_its_config(name, key, copy_of):
    timed = load_denoiser(str(copy_of(name, **{key: True})))
    assert timed.spec.time_conditioned
    tokens = torch.full((2, 12), timed.spec.mask_id)
    read = timed.log_probs(Canvas.of(tokens, timed.spec.mask_id, time=torch.tensor([0.2, 0.9])))
    assert not torch.equal(read[0], read[1])


def test_sizes_that_a_config_does_not_say_are_those_of_the_weights(copy_of):
    bare = dict.fromkeys(
        ("model__hidden_size", "model__cond_dim", "model__n_blocks", "model__n_heads", "model__length")
    )
    denoiser = load_denoiser(str(copy_of("didi-instruct", **bare)))
    released = load_denoiser(str(checkpoint_of(COPIES, "didi-instruct")))
    assert (denoiser.spec.length, released.spec.length) == (1024, 14)
    canvas = Canvas.blank(1, 10, 47)
    close(denoiser.log_probs(canvas), released.log_probs(canvas))


def test_prefixes_are_not_guessed(copy_of):
    folder = copy_of("mdlm")
    tensors = weights_of(folder)
    save_file({name.removeprefix("backbone."): t for name, t in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"weights of 0 blocks where its config.json asks for 2"):
        load_denoiser(str(folder))
    folder = copy_of("sdtt")
    save_file({f"model.{name}": t for name, t in weights_of(folder).items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.backbone.vocab_embed.embedding; SDTT's releases have backbone"):
        load_denoiser(str(folder))


# --- attention in blocks ---------------------------------------------------------------------------------------------


def test_blocks_are_read_at_the_size_that_is_asked_for():
    name = str(checkpoint_of(COPIES, "bd3lm"))
    reference = load_file(COPIES / "bd3lm" / "reference.safetensors")
    canvas = Canvas.of(reference["half.input_ids"], 83)
    released, whole, wide = (
        load_denoiser(name, **options) for options in ({}, {"block_size": 24}, {"attention": "full"})
    )
    torch.testing.assert_close(whole.log_probs(canvas), wide.log_probs(canvas), atol=1e-5, rtol=0)
    assert (released.log_probs(canvas) - wide.log_probs(canvas))[..., :83].abs().max() > 0.1
    later = canvas.tokens.clone()
    later[:, 8:] = 5
    read = [released.log_probs(Canvas.of(tokens, 83))[:, :8] for tokens in (canvas.tokens, later)]
    torch.testing.assert_close(*read, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"block_size is 4 and attention 'full', which has no blocks"):
        load_denoiser(name, attention="full", block_size=4)


def test_the_training_form_gives_each_block_what_sampling_gives_it():
    denoiser = load_denoiser(str(checkpoint_of(COPIES, "bd3lm"))).requires_grad_(False)
    reference = load_file(COPIES / "bd3lm" / "reference.safetensors")
    noised, clean = reference["half.input_ids"], reference["x0.input_ids"]
    together = denoiser.features(split(Canvas.of(noised, 83), clean, 4)).view(*noised.shape, -1)
    for block in range(6):
        here = slice(4 * block, 4 * block + 4)
        written = torch.cat([clean[:, : here.start], noised[:, here]], 1)
        alone = denoiser.features(Canvas.of(written, 83))[:, here]
        torch.testing.assert_close(together[:, here], alone, atol=1e-4, rtol=0)


def test_padding_before_and_behind_blocks():
    denoiser = load_denoiser(str(checkpoint_of(COPIES, "bd3lm"))).requires_grad_(False)
    reference = load_file(COPIES / "bd3lm" / "reference.safetensors")
    noised, pad = reference["half.input_ids"][:, :16], torch.full((2, 3), 7)
    plain = denoiser.features(Canvas.of(noised, 83))
    for parts in (lambda row, filler: [filler, row], lambda row, filler: [row, filler]):
        tokens = torch.cat(parts(noised, pad), 1)
        real = torch.cat(parts(torch.ones_like(noised), torch.zeros_like(pad)), 1).bool()
        padded = denoiser.features(Canvas.of(tokens, 83, real))
        torch.testing.assert_close(padded[real].view_as(plain), plain, atol=1e-4, rtol=0)


# --- the two readings of DiDi-Instruct -------------------------------------------------------------------------------


def test_a_network_with_two_readings_reads_time_when_it_is_told():
    name = str(checkpoint_of(COPIES, "didi-instruct"))
    plain, timed = load_denoiser(name), load_denoiser(name, time_conditioned=True)
    canvas = Canvas.of(torch.full((2, 14), 47), 47, time=torch.tensor([0.3, 0.8]))
    close(plain.timed().log_probs(canvas), timed.log_probs(canvas))
    assert timed.timed() is timed
    assert (plain.log_probs(canvas) - timed.log_probs(canvas))[..., :47].abs().max() > 1e-3
    assert torch.equal(*plain.log_probs(canvas))
    mdlm = load_denoiser(str(checkpoint_of(COPIES, "mdlm")))
    assert mdlm.timed() is mdlm


@pytest.mark.parametrize("damage", ["weight_u", "nan", "cut", "blocks"])
def test_a_damaged_discriminator_is_one_line(damage, copy_of):
    folder = copy_of("didi-instruct")
    path = folder / "discriminator.safetensors"
    tensors = load_file(path)
    if damage == "weight_u":
        del tensors["output_layer.main.2.weight_u"]
    elif damage == "nan":
        tensors["output_layer.main.0.weight_orig"][0] = torch.nan
    elif damage == "blocks":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.1")}
    save_file(tensors, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    checkpoint = resolve(str(folder))
    with pytest.raises(UserError) as refusal:
        checkpoint.family.discriminator(checkpoint)
    assert "\n" not in str(refusal.value)
