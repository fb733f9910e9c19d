"""The diffusion transformers through the commands and the facade: what is made of them, and what is refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import fewstep
from distill.commands.distil import distil
from distill.commands.evaluate import evaluate_command
from distill.commands.export import export_command
from distill.commands.generate import generate_command
from distill.config import DistillConfig, load_config
from distill.finished import open_student
from distill.runtime.checkpoints import best_checkpoint
from distill.runtime.run_folder import RunFolder
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.families.stock.loading import create_denoiser
from tests.distill.runs import ROOT
from tests.golden.places import COPIES, checkpoint_of

FAMILIES = {"mdlm": 84, "bd3lm-full": 64}
"""Name → V; the others are in tests/test_families_end_to_end.py."""
MDLM, DUO, DIDI = (checkpoint_of(COPIES, name) for name in ("mdlm", "duo", "didi-instruct"))
JUDGE = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=16,
    intermediate_size=16,
)  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """What a teacher is used with: its tokenizer, which has no mask, a judge over it, and text."""

    folder: Path

    def overrides(self) -> list[str]:
        """Of a config that uses them."""
        return [
            f"teacher.tokenizer={self.folder / 'tokenizer'}", f"evaluate.judge={self.folder / 'judge'}",
            f"evaluate.data={self.folder / 'text.txt'}",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """What goes with a vocabulary of V entries, the mask being the last."""
    made: dict[int, Beside] = {}

    def of(vocabulary: int) -> Beside:
        if vocabulary not in made:
            made[vocabulary] = Beside(write_beside(tmp_path_factory.mktemp("beside"), vocabulary))
        return made[vocabulary]

    return of


def write_beside(folder, vocabulary):
    letters = [chr(33 + number) for number in range(vocabulary - 2)]
    words = {token: number for number, token in enumerate([*letters, "<|endoftext|>"])}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    spec = DenoiserSpec(vocabulary - 1, vocabulary, 64, vocabulary - 2, shift=True, attention="causal")
    create_denoiser("qwen3", JUDGE, spec).save(folder / "judge")
    for name in ("tokenizer", "judge"):
        tokenizer.save_pretrained(folder / name)
    picked = torch.randint(len(letters), (40, 200), generator=torch.Generator().manual_seed(0)).tolist()
    (folder / "text.txt").write_text("\n".join("".join(letters[i] for i in line) for line in picked), "utf-8")
    return folder


def smoke(beside, *overrides, teacher=MDLM):
    return load_config(
        DistillConfig, ROOT / "configs" / "smoke.yaml",
        [f"teacher.path={teacher}", *beside.overrides(), "train.updates=20", "evaluate.every=20", *overrides],
    )  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, beside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    return distil(smoke(beside(FAMILIES[request.param]), teacher=checkpoint_of(COPIES, request.param)), folder)


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
    out, teacher = export_command(run, tmp_path / "student", steps=4), checkpoint_of(COPIES, run.name)
    student = best_checkpoint(RunFolder.open(run)) / "student-ema" / "model.safetensors"
    released, trained, exported = (
        load_file(p) for p in (teacher / "model.safetensors", student, out / "model.safetensors")
    )
    assert released.keys() == trained.keys() == exported.keys()
    assert all(torch.equal(trained[name], exported[name]) for name in trained)
    head = next(name for name in released if name.endswith("output_layer.linear.weight"))
    assert not torch.equal(released[head], exported[head])
    config, written = (json.loads((folder / "config.json").read_text("utf-8")) for folder in (teacher, out))
    assert written == config
    opened, vocabulary = open_student(out), FAMILIES[run.name]
    assert (opened.canvas_length, opened.steps, opened.denoiser.spec.eos_id) == (32, 4, vocabulary - 2)
    canvas = Canvas.blank(2, 24, vocabulary - 1)
    assert torch.equal(
        opened.denoiser.log_probs(canvas), load_denoiser(str(out)).requires_grad_(False).log_probs(canvas)
    )
    texts = [generate_command(str(name), steps=4, num=3, seed=1) for name in (run, out)]
    assert texts[0] == texts[1]
    assert all(len(text.replace("\n\n", "\n")) >= 16 for text in texts[0])


# --- what is asked of one of them, shown on MDLM ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.block_size=4"], ["teacher.block_size is set", "leave it out"]),
        (["teacher.shift=true"], ["teacher.shift is set", "leave it out"]),
        (["teacher.time_conditioned=true"], ["teacher.time_conditioned is set", "leave it out"]),
    ],
)
def test_what_the_checkpoint_says_is_not_said_again(overrides, words, beside, tmp_path):
    (tmp_path / "teacher").mkdir()
    shutil.copy(MDLM / "config.json", tmp_path / "teacher")  # no weights: to load them would be another error
    with pytest.raises(UserError) as refusal:
        distil(smoke(beside(84), *overrides, teacher=tmp_path / "teacher"), tmp_path / "run")
    for word in words:
        assert word in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_an_int8_format_it_has_not(tmp_path, with_tokenizer):
    with pytest.raises(UserError, match="int8"):
        export_command(with_tokenizer(MDLM), tmp_path / "int8", "int8")
    assert not (tmp_path / "int8").exists()


def test_a_discriminator_reads_its_hidden_states(beside, tmp_path):
    overrides = ["objective.name=didi_instruct", "objective.ratio.blocks=1", "train.updates=2", "evaluate.every=null"]
    config = smoke(
        beside(84), *overrides, "train.gradient_checkpointing=true", "teacher_samples=8", "teacher_sample_steps=4"
    )
    folder = distil(config, tmp_path / "run")
    assert resolve(str(best_checkpoint(RunFolder.open(folder)) / "student-ema")).family.name == "mdlm"


def test_one_base_carries_the_student_and_its_critic_as_adapters(beside, tmp_path):
    few = ["train.updates=3", "evaluate.every=null", "train.gradient_checkpointing=true"]
    adapters = ["student.adapter.rank=2", "objective.ratio.adapter.rank=2"]
    folder = distil(smoke(beside(84), *few, *adapters), tmp_path / "run")
    kept = best_checkpoint(RunFolder.open(folder)) / "student-ema"
    assert (kept / "adapter_config.json").is_file()
    out = export_command(folder, tmp_path / "merged")
    released, exported = (load_file(p / "model.safetensors") for p in (MDLM, out))
    moved = {name for name in released if not torch.equal(released[name], exported[name])}
    assert "backbone.blocks.0.attn_qkv.weight" in moved
    assert all(name.endswith(".weight") for name in moved)
    assert "backbone.output_layer.linear.weight" not in moved, "no adapter sits on the head"


def test_a_tokenizer_with_which_the_mask_would_be_text(beside, tmp_path):
    with pytest.raises(UserError, match=r"259 entries but model .* has 83 and, as the last one, its mask"):
        distil(smoke(beside(84), "teacher.tokenizer=bundled:teacher"), tmp_path / "run")


def test_without_a_tokenizer_the_error_says_what_to_set(beside, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"holds no tokenizer; set teacher.tokenizer to a folder .*openai-community/gpt2@"
    ):
        distil(smoke(beside(84), "teacher.tokenizer=null"), tmp_path / "run")


# --- the facade ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_tokenizer(beside, tmp_path):
    """A release's folder with its tokenizer in it."""

    def of(released):
        folder = shutil.copytree(released, tmp_path / "release")
        vocabulary = resolve(str(released)).family.layout(resolve(str(released)), {}).shape.vocabulary
        return shutil.copytree(beside(vocabulary).folder / "tokenizer", folder, dirs_exist_ok=True)

    return of


def test_probabilities_need_no_tokenizer_and_text_does(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    teacher = fewstep.load_teacher(MDLM)
    assert teacher.log_probs([[83, 4, 83]]).shape == (1, 3, 84)
    for refused in (teacher.generate, lambda: teacher.tokenizer):
        with pytest.raises(UserError, match=r"holds no tokenizer; set teacher.tokenizer"):
            refused()
    with pytest.raises(UserError, match="nowhere"):
        fewstep.load_teacher(MDLM, tokenizer="nowhere")


def test_a_model_without_masks_gives_its_law_and_nothing_else(beside, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    teacher = fewstep.load_teacher(DUO)
    law = teacher.log_probs([[63, 4, 63]], t=0.5)
    assert law.isfinite().all(), "every entry is a state"
    assert teacher.spec.mask_id == 64
    with pytest.raises(UserError, match="t is not given"):
        teacher.log_probs([[63, 4, 63]])
    with pytest.raises(UserError, match="no mask token, which samplers fill"):
        teacher.generate()
    with pytest.raises(UserError, match="no mask token, which samplers fill"):
        fewstep.evaluate(None, fewstep.load_teacher(DUO, tokenizer=beside(64).folder / "tokenizer"))
    refusals = [
        lambda: distil(smoke(beside(64), teacher=DUO), tmp_path / "run"),
        lambda: distil(smoke(beside(84), f"student.init={DUO}"), tmp_path / "run"),
        lambda: evaluate_command(None, student=str(DUO), out=tmp_path / "out"),
        lambda: generate_command(str(DUO)),
        lambda: export_command(DUO, tmp_path / "out"),
    ]
    for refused in refusals:
        with pytest.raises(UserError, match=r"a DUO checkpoint, without absorbing process, but .* model with a mask"):
            refused()
    assert not (tmp_path / "run").exists()


def test_a_released_discriminator_guides_its_student(beside, with_tokenizer, tmp_path):
    folder = str(with_tokenizer(DIDI))
    card = (export_command(Path(folder), tmp_path / "exported") / "README.md").read_text("utf-8")
    assert "It holds no discriminator" in card
    texts = [
        generate_command(folder, steps=4, num=3, seed=1, length=14, sampler=name) for name in ("rgas", "ancestral")
    ]
    assert texts[0] != texts[1]
    student = fewstep.load_student(folder)
    guided = student.generate(num=3, steps=4, seed=1, length=14, sampler="rgas")
    assert guided.texts == texts[0]
    judge = beside(48).folder / "judge"
    few = ["samples=8", "steps=[4]", "temperatures=null", "length=14", "sampler=rgas", f"judge={judge}"]
    path = evaluate_command(None, student=folder, out=tmp_path / "out", overrides=few)
    (row,) = json.loads(path.read_text("utf-8"))["rows"]
    assert row["critic_nfe"] > 0
    figures = fewstep.evaluate(student, steps=[4], samples=8, temperatures=None, length=14, sampler="rgas", judge=judge)
    assert figures.rows[0].critic_nfe == row["critic_nfe"]
    with pytest.raises(UserError, match=r"asks a trained discriminator, and there is none.*DiDi-Instruct's does"):
        generate_command(str(with_tokenizer_but_no_discriminator(folder)), sampler="rgas")


def with_tokenizer_but_no_discriminator(folder):
    (Path(folder) / "discriminator.safetensors").unlink()
    return folder
