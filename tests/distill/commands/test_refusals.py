"""Every mistake a person can make at the keyboard: exit code 2, one line that says what to do, nothing left behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml

from distill import cli
from distill.config import DataConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from distill.runtime.run_folder import LOCK
from teachers.denoiser import DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from tests.forks import ROOT, fewstep
from tests.networks import shape

LENGTH = 16
SHAPE = shape(32, intermediate_size=32, tie_word_embeddings=False)
TEXT = "the cat sat on the mat and looked at the moon. " * 8


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny teacher, a judge of another vocabulary, a corpus, two configs and a finished run of two updates."""
    home = tmp_path_factory.mktemp("bad-input")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home / "cache"))
        # the process group that the commands open here is left through its environment
        patch.setenv("LOCAL_RANK", "0")
        (home / "corpus.txt").write_text(TEXT, "utf-8")
        _model(home / "teacher", 259, "full", home)
        _model(home / "judge", 280, "causal", home)
        optimizer = {"lr": 1e-3}
        train = {"updates": 2, "batch": 2, "student": optimizer}
        distil = {
            "teacher": {"path": str(home / "teacher")},
            "objective": {"name": "integral_kl", "rollout": {"steps": [2]}},
            "data": {"path": str(home / "corpus.txt"), "length": LENGTH},
            "train": {**train, "critic": {"lr": 1e-3}},
        }
        pretrain = {
            "model": {"shape": SHAPE},
            "tokenizer": {"vocabulary": 259},
            "data": {"path": str(home / "corpus.txt"), "length": LENGTH},
            "train": train,
        }
        (home / "distill.yaml").write_text(yaml.safe_dump(distil), "utf-8")
        (home / "pretrain.yaml").write_text(yaml.safe_dump(pretrain), "utf-8")
        for command in ("distill", "pretrain"):
            # DeepSpeed trains once in the life of a process, so what must succeed gets one of its own
            fewstep(command, home / f"{command}.yaml", "--run", home / f"run-{command}")
        yield home


def _model(folder, vocabulary, attention, home):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(
        TokenizerConfig(vocabulary=vocabulary), DataConfig(path=str(home / "corpus.txt"), length=LENGTH)
    )
    spec = DenoiserSpec(
        mask_id=tokenizer.mask_token_id,
        vocabulary=len(tokenizer),
        max_length=LENGTH,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        attention=attention,
        shift=attention == "causal",
    )
    create_denoiser("qwen3", SHAPE, spec).save(folder)
    tokenizer.save_pretrained(folder)


def command_line(home, command, *arguments, config=None):
    """Run the real command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fewstep", command, str(config or home / f"{command}.yaml"), *arguments])
        try:
            cli.main()
        except SystemExit as exit_:
            return exit_.code or None
    return None


def contents(folder):
    """Everything under a folder, to the byte; but not who holds a run's lock."""
    paths = (p for p in sorted(Path(folder).rglob("*")) if p.name != LOCK)
    return {p: p.read_bytes() if p.is_file() else None for p in paths}


@pytest.fixture
def refused(home, tmp_path, capfd):
    """Run a command that must be refused, check all that is common to refusals, and return the line."""

    def run(command, *arguments, says=(), out=None, config=None):
        out = out or tmp_path / "out"
        before = contents(tmp_path)
        capfd.readouterr()
        code = command_line(home, command, *arguments, "--run", str(out), config=config)
        said = capfd.readouterr()
        assert code == 2, said.err
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said.err
        assert "Traceback" not in said.err + said.out
        # the whole message is in that one line, and the last thing said
        assert said.err.rstrip("\n").splitlines()[-1] == errors[0]
        for part in says:
            assert str(part) in errors[0], errors[0]
        assert contents(tmp_path) == before
        return errors[0]

    return run


BOTH = pytest.mark.parametrize("command", ["distill", "pretrain"])


def test_the_commands_work_when_nothing_is_wrong(home):
    # else the refusals below could be of something they do not name
    assert (home / "run-distill/checkpoints/update-00000002/manifest.json").is_file()
    assert (home / "run-pretrain/model/model.safetensors").is_file()


def test_the_installed_command_exits_with_2_and_no_traceback(home, tmp_path):
    narrow = {"COLUMNS": "40"}  # must not wrap the line either
    words = ["pretrain", str(home / "pretrain.yaml"), "train.batch=-3", "--run", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "distill", *words], cwd=ROOT, env=os.environ | narrow, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: train.batch is -3: input should be greater than 0\n"
    assert not (tmp_path / "out").exists()


# --- config --------------------------------------------------------------------------------------------------------


@BOTH
def test_misspelt_key(command, refused):
    refused(command, "train.student.wieght_decay=1", says=["train.student.wieght_decay", "'weight_decay'", "allows"])


def test_malformed_yaml(refused, tmp_path):
    (tmp_path / "broken.yaml").write_text("teacher: [1\n", "utf-8")
    refused("distill", config=tmp_path / "broken.yaml", says=["broken.yaml", "YAML"])


def test_square_brackets_in_a_message_are_shown_as_they_are(refused):
    # rich would read them as markup: drop the first, and fail with a traceback on the second
    refused("distill", "train.precision=[bold]", says=["['bold']"])
    refused("distill", "data.path=/no/[/such]/file.txt", says=["/no/[/such]/file.txt"])


# --- corpus --------------------------------------------------------------------------------------------------------


@BOTH
def test_missing_corpus(command, refused, tmp_path):
    refused(command, f"data.path={tmp_path}/none.txt", says=[f"{tmp_path}/none.txt", "does not exist"])


@BOTH
def test_empty_corpus(command, refused, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n", "utf-8")
    refused(command, f"data.path={tmp_path}/empty.txt", says=["empty.txt", "holds no text"])


@BOTH
def test_fewer_tokens_than_length(command, refused, tmp_path):
    (tmp_path / "short.txt").write_text("too short", "utf-8")
    refused(command, f"data.path={tmp_path}/short.txt", says=["short.txt", "10 tokens", f"data.length {LENGTH}"])


@BOTH
def test_too_little_to_hold_out(command, refused, tmp_path):
    (tmp_path / "short.txt").write_text("a text of twenty-odd", "utf-8")
    refused(command, f"data.path={tmp_path}/short.txt", says=["21 tokens", "data.heldout"])


# --- models --------------------------------------------------------------------------------------------------------


def test_tokenizer_of_another_model(refused, home):
    refused("distill", f"teacher.tokenizer={home}/judge", says=["tokenizer has 280", "259", "trained with"])


def test_mask_that_the_tokenizer_does_not_have(refused):
    refused("distill", "teacher.mask_id=7", says=["7", "mask token is 1", "set mask_id"])


def test_block_attention_without_blocks(refused):
    refused("distill", "teacher.attention=block", says=["'block'", "block_size"])


def test_a_model_that_can_not_be_made(refused):
    refused("pretrain", "model.shape.hidden_sise=8", says=["model.shape.hidden_sise", "'hidden_size'"])
    refused("pretrain", "model.shape.num_attention_heads=0", says=["model.shape"])
    refused("pretrain", "model.shape.hidden_size=2.5", says=["model.shape", "hidden_size", "2.5"])


def test_truncated_teacher(refused, home, tmp_path):
    shutil.copytree(home / "teacher", tmp_path / "teacher")
    weights = tmp_path / "teacher/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    says = [weights, f"has {len(whole) // 2} bytes", f"its header says {len(whole)}", "not whole: download it again"]
    refused("distill", f"teacher.path={tmp_path}/teacher", says=says)


def test_autoregressive_teacher(refused, home):
    refused("distill", f"teacher.path={home}/judge", says=[home / "judge", "autoregressive", "fewstep convert"])


def test_rows_longer_than_the_teacher(refused):
    refused("distill", "data.length=32", says=["data.length 32", str(LENGTH), "smaller"])


def test_student_of_another_vocabulary(refused, home):
    refused("distill", f"student.init={home}/judge", says=[home / "judge", "280", "259"])


def test_judge_of_another_vocabulary(refused, home):
    refused(
        "distill",
        "evaluate.every=1",
        f"evaluate.judge={home}/judge",
        says=[home / "judge", "280", "259", "evaluate.retokenize"],
    )


def test_model_to_convert_with_another_vocabulary(refused, home):
    words = [f"model.init={home}/judge", f"tokenizer.path={home}/teacher"]
    refused("pretrain", *words, says=[home / "judge", "280", "259", "tokenizer"])


# --- output folder -------------------------------------------------------------------------------------------------


@BOTH
def test_output_folder_that_is_not_empty(command, refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("keep me")
    refused(command, says=[tmp_path / "out", "not an empty folder", "name a new one"])


@BOTH
def test_output_folder_in_the_home_folder(command, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("keep me")
    refused(command, out="~/out", says=[tmp_path / "out", "not an empty folder"])


@BOTH
def test_output_folder_that_is_a_file(command, refused, tmp_path):
    (tmp_path / "out").write_text("keep me")
    refused(command, says=[tmp_path / "out", "not an empty folder"])


@BOTH
def test_output_folder_that_cannot_be_written(command, refused, tmp_path):
    # below a regular file not even root can make a folder
    (tmp_path / "file").write_text("keep me")
    out = tmp_path / "file/sub/run"
    refused(command, out=out, says=[out, "cannot write to", "name a folder you may write to"])


# --- resuming ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(home, tmp_path):
    """A copy of the run, to damage."""
    return Path(shutil.copytree(home / "run-distill", tmp_path / "run"))


def test_damaged_checkpoint(refused, run_folder):
    (path,) = (run_folder / "checkpoints/update-00000002").glob("student-ema/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    says = ["update-00000002", "damaged", path.name, "remove that folder"]
    refused("distill", "--resume", out=run_folder, says=says)


def test_resuming_what_is_no_run(refused, tmp_path):
    refused("distill", "--resume", says=[tmp_path / "out", "not a run folder"])


def test_resuming_with_another_config(refused, run_folder):
    refused("distill", "train.student.lr=0.5", "--resume", out=run_folder, says=["train.student.lr", "0.5", "0.001"])


@pytest.mark.parametrize("content", ["", "train: [1\n", "just text"])
def test_resuming_a_run_with_a_damaged_config(content, refused, run_folder):
    (run_folder / "config.yaml").write_text(content, "utf-8")
    refused("distill", "--resume", out=run_folder, says=["config.yaml"])
