from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from distill.commands.export import export_command
from distill.config import DataConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from distill.finished import open_student
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from distill.training.checkpoint import Checkpointer
from students.samplers import Ancestral, written_sampler
from students.samplers.dilated import Dilated
from students.samplers.threshold import Threshold
from students.student import Ema
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from tests.networks import shape

LENGTH = 12
SHAPE = shape()
ROW = dict(
    model="student", sampler="ancestral", steps=8, nfe=7.25, nfe_median=7.0, nfe_p95=8.0, critic_nfe=0.0, samples=64,
    judge_perplexity=123.456, judge_perplexity_ci=[120.0, 127.0], unigram_entropy=4.25, bigram_entropy=6.5,
    distinct_2=0.5, seconds=2.0, tokens_per_second=4096.0,
)  # fmt: skip


def make_denoiser(attention="full"):
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=16))
    spec = DenoiserSpec(tokenizer.mask_token_id, len(tokenizer), 16, tokenizer.eos_token_id, attention=attention)
    return create_denoiser("qwen3", dict(SHAPE), spec), tokenizer


def make_run(path: Path, checkpoint: bool = True, sampler: str | None = None) -> Path:
    config = {
        "teacher": {"path": "somebody/teacher", "revision": "0" * 40, "process": "cosine"},
        "objective": {"name": "integral_kl"},
        "length": LENGTH,
    } | ({} if sampler is None else {"sampler": sampler})
    run = RunFolder(path)
    run.create(yaml.safe_dump(config))
    denoiser, tokenizer = make_denoiser()
    tokenizer.save_pretrained(run.tokenizer)
    if checkpoint:
        checkpointer = Checkpointer(run, World(0, 1, torch.device("cpu")), keep=2)
        checkpointer.begin(7, {}, Ema([], 0.9), denoiser, None, {})
        assert checkpointer.settle() is None
    return path


@pytest.mark.parametrize("compress", [None, "int8", "int4"])
def test_a_runs_averaged_student_is_exported(tmp_path, compress):
    run = make_run(tmp_path / "run")
    folder = export_command(run, tmp_path / "out", compress, steps=6)
    student = open_student(run).denoiser.model.state_dict()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["max_denoising_steps"] == 6
    assert generation["canvas_length"] == LENGTH
    assert generation["noise_schedule"] == "cosine"
    card = (folder / "README.md").read_text()
    assert "fewstep evaluate run" in card  # not measured, and how to
    assert "7 updates of `integral_kl` distillation; teacher `somebody/teacher`" in card
    assert ("quantization_config" in json.loads((folder / "config.json").read_text())) == (compress is not None)
    if compress is None:
        exported = open_student(folder)
        assert (exported.steps, exported.canvas_length, exported.schedule) == (6, LENGTH, "cosine")
        assert all(torch.equal(student[k], v) for k, v in exported.denoiser.model.state_dict().items())


def test_a_student_is_exported_for_the_length_that_it_was_measured_at(tmp_path):
    run = make_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8")) | {"evaluate": {"length": LENGTH + 2}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_student(run).canvas_length == LENGTH + 2


def test_a_model_folder_is_exported_and_a_compressed_one_is_not(tmp_path):
    denoiser, tokenizer = make_denoiser()
    denoiser.save(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    folder = export_command(tmp_path / "model", tmp_path / "out", "int8")
    assert "model folder `model`" in (folder / "README.md").read_text()
    with pytest.raises(UserError, match="compressed already"):
        export_command(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"name": "dilated"}, Dilated()),
        ({"name": "threshold", "threshold": 0.7, "of-another-version": 1}, Threshold(threshold=0.7)),
        ("dilated", Dilated()),
        ({"name": "rgas"}, Ancestral()),  # no export has its critic
        ({"name": "of-another-version"}, Ancestral()),
    ],
)
def test_the_sampler_of_the_run_goes_with_the_export(tmp_path, written, meant):
    run = make_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"evaluate": {"sampler": written}}))
    assert open_student(run).sampler == meant
    folder = export_command(run, tmp_path / "out")
    assert open_student(folder).sampler == meant
    assert f"With fewstep, {meant.label} sampler" in (folder / "README.md").read_text()


def test_a_damaged_sampler_is_named():
    with pytest.raises(UserError, match="'threshold' was written with threshold = 7"):
        written_sampler({"name": "threshold", "threshold": 7})
    assert written_sampler(["?"]) == written_sampler(None) == Ancestral()


def test_the_card_has_the_measured_table(tmp_path):
    run = make_run(tmp_path / "run")
    evaluation = {
        "rows": [ROW],
        "judge": {"name": "bundled:judge", "parameters": 2_000_000, "retokenized": False},
        "sampling": dict(
            sampler="ancestral",
            sampler_settings={},
            draw="exact",
            precision="float32",
            process="log-linear",
            samples=64,
            length=12,
            batch=64,
            seed=0,
            bootstrap=10,
            device="cpu",
            torch="2",
        ),
        "reference": None,
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    card = (export_command(run, tmp_path / "out", "int8") / "README.md").read_text()
    assert re.search(r"^\| student \| 8 \|.* 123\.5 \|.* 4\.250 \| 6\.500 \|", card, re.MULTILINE)
    assert "of the float32 weights" in card
    assert "Not measured" not in card
    (run / "evaluation.json").write_text(json.dumps(evaluation)[:-20])
    with pytest.raises(UserError, match="not a whole evaluation"):
        export_command(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_existing_folder_is_refused_and_untouched(tmp_path):
    run = make_run(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export_command(run, out)
    assert [p.name for p in out.iterdir()] == ["precious"]
    assert (out / "precious").read_text() == "mine"
    (out / "precious").unlink()
    assert (export_command(run, out) / "config.json").is_file()  # an empty one serves
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]


def test_a_truncated_checkpoint_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    weights = next(run.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"damaged: student-ema/model\.safetensors has"):
        export_command(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_does_not_reload_leaves_no_folder(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr("students.export.LARGEST_KL", 0.0)  # no compression is this good
    with pytest.raises(UserError, match="export without --compress"):
        export_command(run, tmp_path / "out", "int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(compress="int9"), r"compress 'int9' is unknown; did you mean 'int8'\?; allowed are int8, int4,"),
        (dict(steps=0), "steps 0 is outside 1 to 1048576; give a number within"),
        (dict(run="dilated", steps=13), "steps 13 is outside 1 to 12, the tokens of a canvas"),
        (dict(run="nowhere"), "nowhere is not a folder"),
        (dict(run="."), "neither a run folder"),
        (dict(run="young"), "no checkpoint yet"),
        (dict(run="judge"), "autoregressive"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path, change, message):
    make_run(tmp_path / "run")
    make_run(tmp_path / "dilated", sampler="dilated")
    make_run(tmp_path / "young", checkpoint=False)
    judge, tokenizer = make_denoiser("causal")
    judge.save(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    arguments = dict(run="run", compress=None, steps=8) | change
    with pytest.raises(UserError, match=message):
        export_command(tmp_path / arguments["run"], tmp_path / "out", arguments["compress"], arguments["steps"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "extra", "message"),
    [
        (
            "mixtral",
            {"num_local_experts": 2},
            "MixtralForCausalLM has weights in model.*experts.*, which is no linear layer",
        ),
        ("gpt2", None, "GPT2LMHeadModel has no linear layers but the head; export it without --compress"),
    ],
)
@pytest.mark.parametrize("compress", ["int8", "int4"])
def test_weights_that_are_in_no_linear_layer_are_refused_in_one_line(tmp_path, model_type, extra, message, compress):
    _, tokenizer = make_denoiser()
    spec = DenoiserSpec(tokenizer.mask_token_id, len(tokenizer), 16, tokenizer.eos_token_id)
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"} | (extra or {})
    if extra is None:
        shape = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    create_denoiser(model_type, shape, spec).save(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        export_command(tmp_path / "model", tmp_path / "out", compress)
    assert not (tmp_path / "out").exists()


def test_the_default_of_steps_is_a_cap(tmp_path):
    _, tokenizer = make_denoiser()
    spec = DenoiserSpec(tokenizer.mask_token_id, len(tokenizer), 4, tokenizer.eos_token_id)
    create_denoiser("qwen3", dict(SHAPE), spec).save(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    folder = export_command(tmp_path / "short", tmp_path / "out")
    assert json.loads((folder / "generation_config.json").read_text())["max_denoising_steps"] == 4


def test_a_runs_student_is_sampled_as_it_was_trained_for(tmp_path):
    run = make_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    measured = {"evaluate": {"sampler": {"name": "threshold"}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config | measured))  # as older runs have it
    assert open_student(run).sampler == Threshold()
    (run / "config.yaml").write_text(yaml.safe_dump(config | measured | {"sampler": {"name": "dilated"}}))
    assert open_student(run).sampler == Dilated()
