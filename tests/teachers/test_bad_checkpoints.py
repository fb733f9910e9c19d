"""Checkpoints that are not whole, or not what they say: one line with value, rule and remedy, and exit code 2."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from distill import cli
from teachers.errors import UserError
from teachers.families import resolve
from teachers.headers import INDEX
from teachers.source import BUNDLED
from teachers.vocabulary import read_tokenizer
from tests.golden.places import COPIES, checkpoint_of

SHARD = "model-00002-of-00002.safetensors"
DOWN = "model.transformer.blocks.1.ff_out.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"


def edit(path, **values):
    content = json.loads(path.read_text("utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}), "utf-8")


def edit_map(folder, **places):
    index = json.loads((folder / INDEX).read_text("utf-8"))
    edit(folder / INDEX, weight_map=index["weight_map"] | places)


def tensors(folder, change):
    """Put other tensors into the second shard, and say so in the index."""
    held = load_file(folder / SHARD)
    change(held)
    save_file(held, folder / SHARD, {"format": "pt"})
    index = json.loads((folder / INDEX).read_text("utf-8"))
    others = {name: shard for name, shard in index["weight_map"].items() if shard != SHARD}
    edit(folder / INDEX, weight_map=others | dict.fromkeys(held, SHARD))


def damage(**values):
    """Of config.json; ... removes a key."""
    return lambda folder: edit(folder / "config.json", **values)


def only_pickle(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")


def other_tokenizer(folder):
    AutoTokenizer.from_pretrained(BUNDLED / "teacher").save_pretrained(folder)


KINDS = {
    "unknown family": (damage(model_type="lladda"), ["'lladda'", "LLaDAModelLM", "did you mean 'llada'?", "correct"]),
    "no family": (
        damage(model_type=..., architectures=...),
        ["no model_type", "activation_type", "correct"],
    ),
    "missing key": (
        lambda folder: tensors(folder, lambda held: held.pop(DOWN)),
        [DOWN, "none", "(64, 88)", "download"],
    ),
    "extra key": (
        lambda folder: tensors(folder, lambda held: held.update(extra=torch.zeros(3))),
        ["extra", "(3,)", "asks for none", "download"],
    ),
    "wrong shape": (
        lambda folder: tensors(folder, lambda held: held.update({DOWN: torch.zeros(64, 80)})),
        [DOWN, "(64, 80)", "(64, 88)", "download"],
    ),
    "missing shard": (lambda folder: (folder / SHARD).unlink(), [SHARD, "is missing", "download"]),
    "index that lies": (
        lambda folder: edit_map(folder, **{DOWN: "model-00001-of-00002.safetensors"}),
        [DOWN, "is in model-00001", f"it is in {SHARD}", "download"],
    ),
    "index that invents": (lambda folder: edit_map(folder, more=SHARD), ["more", "none of its shards", "download"]),
    "index that leaves": (lambda folder: edit_map(folder, **{DOWN: f"../{SHARD}"}), [f"'../{SHARD}'", "plain name"]),
    "no index": (lambda folder: (folder / INDEX).unlink(), ["model-00001", INDEX, "download"]),
    "pickle": (only_pickle, ["pytorch_model.bin", "pickle", "safetensors"]),
    "LFS weights": (lambda folder: (folder / SHARD).write_text(POINTER), [SHARD, "LFS pointer", "git lfs pull"]),
    "LFS tokenizer": (lambda folder: (folder / "tokenizer.json").write_text(POINTER), ["LFS pointer", "git lfs pull"]),
    "LFS config": (lambda folder: (folder / "config.json").write_text(POINTER), ["LFS pointer", "git lfs pull"]),
    "cut off": (
        lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-9]),
        [SHARD, "its header says", "download"],
    ),
    "adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), ["an adapter", "merge it"]),
    "not finite": (
        lambda folder: tensors(folder, lambda held: held[DOWN].fill_(torch.nan)),
        [DOWN, "not finite", "damaged"],
    ),
    "width of another model": (
        damage(d_model=128),
        ["(64,)", "asks for (128,)", "20 more tensors", "download"],
    ),
    "fewer layers": (damage(n_layers=1), ["blocks.1", "asks for none", "download"]),
    "a billion layers": (damage(n_layers=10**9), ["n_layers 1000000000", "at most", "put the release's"]),
    "no layers": (damage(n_layers=...), ["has no n_layers", "put the release's config.json back"]),
    "negative": (damage(n_heads=-4), ["n_heads -4", "at least 1", "put the release's"]),
    "a word": (damage(d_model="wide"), ["d_model 'wide'", "whole number", "put the release's"]),
    "heads": (damage(n_heads=5, n_kv_heads=5), ["64", "not a multiple", "heads (5)", "put the release's"]),
    "kv heads": (damage(n_kv_heads=3), ["num_key_value_heads 3", "divide", "put the release's"]),
    "epsilon": (damage(rms_norm_eps=float("nan")), ["rms_norm_eps nan", "above 0", "put the release's"]),
    "another network": (damage(alibi=True), ["alibi True", "null or false"]),
    "mask outside": (damage(mask_token_id=256), ["mask", "256", "vocabulary"]),
    "negative mask": (damage(mask_token_id=-1), ["mask_token_id -1", "at least 0", "put the release's"]),
    "tokenizer of another model": (other_tokenizer, ["tokenizer has 260 entries", "has 256", "give the tokenizer"]),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "JSON object"]),
    "section": (damage(fewstep=[1]), ["fewstep [1]", "must be a section"]),
}
"""What is wrong → how it is made of LLaDA's golden checkpoint, and what the line says."""


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(checkpoint_of(COPIES, "llada"), tmp_path / "llada"))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "corpus.txt").write_text("t1 t2 t3 t4 t5 t6 t7 t8\n" * 40, "utf-8")
    (tmp_path / "config.yaml").write_text(
        "teacher: {path: x}\nobjective: {name: integral_kl, rollout: {steps: [2]}}\n"
        "train: {updates: 1, batch: 2, student: {lr: 1e-3}, critic: {lr: 1e-3}}\n"
        f"data: {{path: {tmp_path / 'corpus.txt'}, length: 8}}\n",
        "utf-8",
    )
    return tmp_path / "config.yaml"


def run(*words):
    """The real command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fewstep", *(str(word) for word in words)])
        try:
            cli.main()
        except SystemExit as done:
            return done.code or 0
    return 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_checkpoint_is_one_line(kind, folder, config, tmp_path, capfd):
    break_it, parts = KINDS[kind]
    break_it(folder)
    assert run("distill", config, f"teacher.path={folder}", "--run", tmp_path / "run") == 2
    said = capfd.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    assert all(part in errors[0] for part in parts), errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "not finite"])
def test_teachers_says_the_same_without_a_weight(kind, folder, capfd):
    break_it, parts = KINDS[kind]
    break_it(folder)
    assert run("teachers", folder) == 2
    said = capfd.readouterr()
    assert not said.out
    assert all(part in said.err for part in parts), said.err


def test_a_whole_one_is_refused_by_none_of_this(folder, capfd):
    assert run("teachers", folder) == 0
    assert "LlamaForCausalLM" in capfd.readouterr().out
    assert resolve(str(folder)).load(read_tokenizer(folder)).spec.mask_id == 246


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_parameters": {"rope_type": "yarnn", "rope_theta": 1e4, "factor": 2}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": -2}}, "factor is -2"),
        ({"rope_parameters": 3}, "an object with a rope_type"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"head_dim": 15}, "head_dim"),
        ({"hidden_act": "nope"}, "nope"),
        ({"num_hidden_layers": 9, "layer_types": None}, "none where its config.json asks for"),
        ({"num_hidden_layers": 1, "layer_types": None}, "where its config.json asks for none"),
        ({"tie_word_embeddings": False}, "lm_head.weight of shape none"),
    ],
)
def test_a_stock_config_that_contradicts_itself_or_the_weights(changes, says, tmp_path):
    folder = Path(shutil.copytree(BUNDLED / "teacher", tmp_path / "teacher"))
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError) as caught:
        resolve(str(folder)).outline()
    assert says in str(caught.value)


def test_what_older_versions_wrote_beside_the_weights_is_left_alone(tmp_path):
    folder = Path(shutil.copytree(BUNDLED / "teacher", tmp_path / "teacher"))
    path = folder / "model.safetensors"
    held = load_file(path) | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "score.weight": torch.ones(2),
    }
    save_file(held, path, {"format": "pt"})
    checkpoint = resolve(str(folder))
    assert checkpoint.load().spec == resolve("bundled:teacher").load().spec
    assert checkpoint.family.traits(checkpoint, checkpoint.outline()).unread == ("score.weight",)
    save_file(held | {"model.layers.0.self_attn.q_proj.bias": torch.ones(4)}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"q_proj.bias of shape \(4,\) where its config.json asks for none"):
        checkpoint.load()
