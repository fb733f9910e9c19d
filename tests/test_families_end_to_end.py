"""Every family through the commands, nothing changed but the teacher: distilled, evaluated, written, read again."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import fewstep
from distill.commands.distil import distil
from distill.commands.evaluate import evaluate_command
from distill.commands.export import export_command
from distill.commands.generate import generate_command
from distill.commands.oracle import oracle_command
from distill.config import DistillConfig, validate
from distill.data.tokenizers import load_tokenizer
from distill.finished import open_student
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import FAMILIES, resolve
from teachers.families.language import LANGUAGE
from teachers.families.stock.loading import create_denoiser
from tests.golden.places import COPIES, checkpoint_of
from tests.networks import shape
from tests.teachers.test_golden_language import NAMED

CONFIG = {
    "teacher": {"path": "bundled:teacher"},
    "objective": {"name": "integral_kl", "rollout": {"name": "k_step", "steps": [2]}},
    "length": 16,
    "teacher_samples": 8,
    "teacher_sample_steps": 16,
    "train": {"updates": 20, "batch": 2, "precision": "float32", "student": {"lr": 1e-4}, "critic": {"lr": 1e-4}},
    "evaluate": {"judge": "bundled:judge", "retokenize": True, "steps": [1, 4], "teacher_steps": 4, "samples": 4},
}  # fmt: skip
RELEASED = {family.name for family in LANGUAGE}
LETTERS = [chr(33 + number) for number in range(93)]
NAMES = [family.name for family in FAMILIES if "absorbing process" in family.capabilities]
WITHOUT_CASE = ("dream-block",)


def letters(entries):
    """A tokenizer for releases that bring none."""
    words = {token: number for number, token in enumerate([*LETTERS[: entries - 1], "<|endoftext|>"])}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|endoftext|>")


def oracle(folder):
    """A source, and a network to distil from it: what of a config has to say so."""
    oracle_command("markov", folder / "teacher", tokens=5, length=16, rows=8, heldout=8)
    source = resolve(str(folder / "teacher")).load().spec
    create_denoiser("qwen3", shape(), DenoiserSpec(source.mask_id, source.vocabulary, 16)).save(folder / "start")
    load_tokenizer(folder / "teacher").save_pretrained(folder / "start")
    return {
        "teacher": {"path": str(folder / "teacher")},
        "student": {"init": str(folder / "start")},
        "evaluate": {**CONFIG["evaluate"], "judge": str(folder / "teacher"), "retokenize": False},
    }


def changes(name, folder):
    """What of a config names a family's checkpoint."""
    if name == "oracle":
        return oracle(folder)
    if name == "stock":
        return {}
    if name in WITHOUT_CASE:
        pytest.skip(f"{name} has no golden checkpoint")
    teacher = checkpoint_of(COPIES, name)
    if name not in RELEASED:
        shutil.copytree(teacher, folder / "teacher")
        letters(resolve(str(teacher)).load().spec.vocabulary - 1).save_pretrained(folder / "teacher")
        teacher = folder / "teacher"
    return {"teacher": {"path": str(teacher), **NAMED.get(name, {})}}


@pytest.mark.parametrize("name", NAMES)
def test_a_family_from_its_checkpoint_to_an_export_that_loads(name, tmp_path):
    torch.manual_seed(0)
    config = CONFIG | changes(name, tmp_path)
    run = distil(validate(DistillConfig, config), tmp_path / "run")
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert losses[-1]["update"] == 20

    rows = json.loads(evaluate_command(run).read_text("utf-8"))["rows"]
    assert {(row["model"], row["steps"]) for row in rows} == {(m, s) for m in ("teacher", "student") for s in (1, 4)}
    assert all(row["judge_perplexity"] > 1 for row in rows)

    exported = export_command(run, tmp_path / "exported", steps=4)
    texts = [generate_command(str(folder), steps=4, num=2, seed=1) for folder in (run, exported)]
    assert texts[0] == texts[1]

    trained, student = open_student(run), fewstep.load_student(exported)
    teacher = fewstep.load_teacher(exported)
    tokens = torch.full((2, 16), student.spec.mask_id)
    law = student.log_probs(tokens)
    assert torch.equal(law, teacher.log_probs(tokens))
    blank = Canvas.blank(2, 16, student.spec.mask_id)
    torch.testing.assert_close(trained.denoiser.log_probs(blank), law, atol=1e-5, rtol=0)


def test_what_is_of_no_absorbing_process_is_refused_before_anything_is_loaded(tmp_path):
    refused = [family.name for family in FAMILIES if "absorbing process" not in family.capabilities]
    assert refused == ["duo"]
    with pytest.raises(UserError, match=r"without absorbing process"):
        distil(validate(DistillConfig, CONFIG | changes("duo", tmp_path)), tmp_path / "run")
