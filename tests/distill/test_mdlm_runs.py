"""MDLM through the commands, with nothing but what names the teacher changed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from distill.commands.distil import distil
from distill.commands.evaluate import evaluate_command
from distill.commands.export import export_command
from distill.commands.generate import generate_command
from distill.config import DistillConfig, load_config
from distill.models import open_student
from distill.runtime.checkpoints import best_checkpoint
from distill.runtime.run_folder import RunFolder
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.families.stock.loading import create_denoiser
from tests.distill.runs import ROOT

GOLDEN = ROOT / "tests" / "golden" / "mdlm" / "checkpoint"
LETTERS = [chr(33 + number) for number in range(82)]
JUDGE = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=16,
    intermediate_size=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """What comes with an MDLM teacher: its tokenizer, which has no mask, a judge over it, and text."""
    folder = tmp_path_factory.mktemp("beside")
    words = {token: number for number, token in enumerate([*LETTERS, "<|endoftext|>"])}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    judge = create_denoiser("qwen3", JUDGE, DenoiserSpec(83, 84, 64, 82, shift=True, attention="causal"))
    judge.save(folder / "judge")
    for name in ("tokenizer", "judge"):
        tokenizer.save_pretrained(folder / name)
    picked = torch.randint(82, (40, 200), generator=torch.Generator().manual_seed(0)).tolist()
    (folder / "text.txt").write_text("\n".join("".join(LETTERS[i] for i in line) for line in picked), "utf-8")
    return folder


def smoke(beside, *overrides, teacher=GOLDEN):
    return load_config(
        DistillConfig, ROOT / "configs" / "smoke.yaml",
        [
            f"teacher.path={teacher}", f"teacher.tokenizer={beside / 'tokenizer'}",
            f"evaluate.judge={beside / 'judge'}", f"evaluate.data={beside / 'text.txt'}", "train.updates=20",
            "evaluate.every=20", *overrides,
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(beside, tmp_path_factory):
    return distil(smoke(beside), tmp_path_factory.mktemp("mdlm") / "run")


def test_it_is_distilled_and_evaluated(run):
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert sum("student/loss" in line for line in losses) == 20
    path = evaluate_command(run, overrides=["samples=8", "steps=[1,4]", "teacher_steps=8"])
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["model"], row["steps"]) for row in rows] == [
        ("teacher", 1), ("teacher", 4), ("teacher", 8), ("student", 1), ("student", 4)
    ]  # fmt: skip
    assert all(10 < row["judge_perplexity"] < 1000 for row in rows)
    assert "[PAD]" not in (run / "samples.txt").read_text("utf-8")


def test_the_student_is_written_as_the_teacher_is_and_reads_back(run, tmp_path):
    out = export_command(run, tmp_path / "student", steps=4)
    student = best_checkpoint(RunFolder.open(run)) / "student-ema" / "model.safetensors"
    released, trained, exported = (
        load_file(p) for p in (GOLDEN / "model.safetensors", student, out / "model.safetensors")
    )
    assert released.keys() == trained.keys() == exported.keys()
    assert all(torch.equal(trained[name], exported[name]) for name in trained)
    assert not torch.equal(
        released["backbone.output_layer.linear.weight"], exported["backbone.output_layer.linear.weight"]
    )
    config = json.loads((GOLDEN / "config.json").read_text("utf-8"))
    written = json.loads((out / "config.json").read_text("utf-8"))
    assert written == config
    opened = open_student(out)
    assert (opened.canvas_length, opened.steps, opened.denoiser.spec.eos_id) == (32, 4, 82)
    canvas = Canvas.blank(2, 24, 83)
    assert torch.equal(
        opened.denoiser.log_probs(canvas), load_denoiser(str(out)).requires_grad_(False).log_probs(canvas)
    )
    texts = [generate_command(str(name), steps=4, num=3, seed=1) for name in (run, out)]
    assert texts[0] == texts[1]
    assert all(len(text.replace("\n\n", "\n")) >= 16 for text in texts[0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.block_size=4"], ["teacher.block_size is set", "leave it out"]),
        (["teacher.shift=true"], ["teacher.shift is set", "leave it out"]),
    ],
)
def test_what_the_family_can_not_do_is_refused_on_its_config_alone(overrides, words, beside, tmp_path):
    (tmp_path / "teacher").mkdir()
    shutil.copy(GOLDEN / "config.json", tmp_path / "teacher")  # no weights: to load them would be another error
    with pytest.raises(UserError) as refusal:
        distil(smoke(beside, *overrides, teacher=tmp_path / "teacher"), tmp_path / "run")
    for word in words:
        assert word in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_an_int8_format_it_has_not(run, tmp_path):
    with pytest.raises(UserError, match="int8"):
        export_command(run, tmp_path / "int8", "int8")
    assert not (tmp_path / "int8").exists()


def test_a_discriminator_reads_its_hidden_states(beside, tmp_path):
    overrides = ["objective.name=didi_instruct", "objective.ratio.blocks=1", "train.updates=2", "evaluate.every=null"]
    config = smoke(
        beside, *overrides, "train.gradient_checkpointing=true", "teacher_samples=8", "teacher_sample_steps=4"
    )
    folder = distil(config, tmp_path / "run")
    assert resolve(str(best_checkpoint(RunFolder.open(folder)) / "student-ema")).family.name == "mdlm"


def test_a_tokenizer_with_which_the_mask_would_be_text(beside, tmp_path):
    with pytest.raises(UserError, match=r"259 entries but model .* has 83 and, as the last one, its mask"):
        distil(smoke(beside, "teacher.tokenizer=bundled:teacher"), tmp_path / "run")


def test_without_a_tokenizer_the_error_says_what_to_set(beside, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"holds no tokenizer; set teacher.tokenizer to a folder .*openai-community/gpt2@"
    ):
        distil(smoke(beside, "teacher.tokenizer=null"), tmp_path / "run")
