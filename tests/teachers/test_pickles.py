"""Pickled releases: refused where they are read, converted by one command, and nothing in them ever runs."""

import json
import shutil
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file

from distill.commands.unpickle import unpickle_command
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from tests.golden.places import COPIES, SHARED, checkpoint_of

SEDD, MDLM, DIDI = (checkpoint_of(COPIES, name) for name in ("sedd", "mdlm", "didi-instruct"))


def pickled(released, folder, content, name="pytorch_model.bin"):
    """A release's folder whose weights are a pickle."""
    folder.mkdir(exist_ok=True)
    shutil.copy(released / "config.json", folder)
    torch.save(content, folder / name)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert all(ours[name].dtype == expected[name].dtype for name in expected)


def test_a_pickle_is_refused_with_the_command_and_converted_by_it(tmp_path):
    folder = pickled(SEDD, tmp_path / "release", OrderedDict(weights(SEDD)))
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match=rf"only as a pickle, .*fewstep unpickle {folder} --out NEW"):
        load_denoiser(str(folder))
    out = unpickle_command(str(folder), tmp_path / "new")
    assert_equal(weights(out), weights(SEDD))
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((out / "config.json").read_text("utf-8")) == json.loads((SEDD / "config.json").read_text("utf-8"))
    assert load_denoiser(str(out)).spec == load_denoiser(str(SEDD)).spec
    with pytest.raises(UserError, match=r"has model.safetensors already; there is nothing to convert"):
        unpickle_command(str(out), tmp_path / "again")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        unpickle_command(str(folder), out)


def test_the_whole_release(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the whole cases are not here")
    out = unpickle_command(str(SHARED / "sedd" / "checkpoint"), tmp_path / "new")
    assert_equal(weights(out), weights(SHARED / "sedd" / "checkpoint-safetensors"))


def test_of_a_training_checkpoint_the_averages_are_taken(tmp_path):
    averages = weights(MDLM)
    network = load_denoiser(str(MDLM)).network
    order = [f"backbone.{name}" for name, _ in network.named_parameters()]
    state = OrderedDict((f"backbone.{name}", torch.zeros_like(t)) for name, t in network.state_dict().items())
    state["backbone.rotary_emb.inv_freq"] = averages["backbone.rotary_emb.inv_freq"]
    ema = {"decay": 0.9999, "shadow_params": [averages[name] for name in order]}
    content = {"epoch": 1, "state_dict": state, "ema": ema}
    assert_equal(
        weights(unpickle_command(str(pickled(MDLM, tmp_path / "a", content, "best.ckpt")), tmp_path / "new")), averages
    )
    ema["shadow_params"].pop()
    with pytest.raises(UserError, match=r"29 averaged parameters under ema.shadow_params and 30 parameters"):
        unpickle_command(str(pickled(MDLM, tmp_path / "b", content, "best.ckpt")), tmp_path / "other")
    assert not list((tmp_path / "other").glob("*"))
    assert not list(tmp_path.glob(".partial*"))


def test_a_student_comes_with_its_discriminator(tmp_path):
    critic = load_file(DIDI / "discriminator.safetensors")
    state = {f"student_ema.{name}": tensor for name, tensor in weights(DIDI).items()}
    state |= {f"discriminator.{name}": tensor for name, tensor in critic.items()}
    state |= {f"backbone.{name}": torch.zeros_like(tensor) for name, tensor in weights(DIDI).items()}
    out = unpickle_command(
        str(pickled(DIDI, tmp_path / "release", {"state_dict": state}, "last.ckpt")), tmp_path / "new"
    )
    assert_equal(weights(out), weights(DIDI))
    assert_equal(load_file(out / "discriminator.safetensors"), critic)
    checkpoint = resolve(str(out))
    assert checkpoint.family.discriminator(checkpoint) is not None


def test_one_tensor_under_two_names(tmp_path):
    table = torch.randn(4, 2)
    out = unpickle_command(
        str(pickled(SEDD, tmp_path / "release", {"head": table, "embedding": table})), tmp_path / "new"
    )
    assert_equal(weights(out), {"head": table, "embedding": table})


class Trap:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return (open, ("/nowhere/it-ran", "w"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": Trap()}, "holds more than tensors and plain containers, which could run code"),
        ({"epoch": 3}, "holds no state dict of tensors (epoch)"),
        (torch.zeros(3), "holds no state dict of tensors (Tensor)"),
    ],
)
def test_what_is_no_weights_is_refused(content, words, tmp_path):
    folder = pickled(SEDD, tmp_path / "release", content)
    with pytest.raises(UserError) as refusal:
        unpickle_command(str(folder), tmp_path / "new")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_which_file_it_is_must_be_plain(tmp_path):
    folder = pickled(SEDD, tmp_path / "release", {"a": torch.zeros(1)}, "one.ckpt")
    torch.save({"a": torch.zeros(2)}, folder / "two.ckpt")
    with pytest.raises(UserError, match=r"2 pickles \(one.ckpt, two.ckpt\); leave the one"):
        unpickle_command(str(folder), tmp_path / "new")
    torch.save({"a": torch.zeros(3)}, folder / "pytorch_model.bin")
    assert len(weights(unpickle_command(str(folder), tmp_path / "new"))["a"]) == 3
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json, and a pickle does not say"):
        unpickle_command(str(folder), tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="holds no pickle"):
        unpickle_command(str(tmp_path / "empty"), tmp_path / "other")


def test_a_pointer_or_half_a_file_is_one_line(tmp_path):
    folder = pickled(SEDD, tmp_path / "release", {"a": torch.zeros(100)})
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="it is damaged, or holds more than tensors"):
        unpickle_command(str(folder), tmp_path / "new")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "utf-8")
    with pytest.raises(UserError, match="Git LFS pointer"):
        unpickle_command(str(folder), tmp_path / "new")
