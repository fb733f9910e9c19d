from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from distill.config import DataConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from students.card import snippet
from students.export import check_export, export_student
from students.samplers import Ancestral, Dilated, TopK
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser
from teachers.families.stock.denoiser import StockDenoiser
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from tests.networks import shape

# 1.77 M parameters: the shape for which int8 must be at most 0.35 of float32, and int4 at most 0.22
SHAPE = shape(192, 4, num_attention_heads=3, head_dim=64, intermediate_size=576)
TINY = shape(16, 2)
ROOT = Path(__file__).parents[2]
# a stranger's program: stock classes only, each card's own snippet, and proof that nothing of this project was loaded
STRANGER = """\
import os, re, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
canvas, *folders = map(Path, sys.argv[1:])
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).mask_token_id == model.config.mask_token_id
    with torch.no_grad():
        torch.save(model(torch.load(canvas), use_cache=False).logits, folder.with_suffix(".logits"))
    os.chdir(folder)
    scope = {}
    exec(re.search(r"```python\\n(.*?)```", Path("README.md").read_text(), re.DOTALL).group(1), scope)
    assert scope["canvas"].shape == (1, 16)
    assert not (scope["canvas"] == model.config.mask_token_id).any()
ours = {"teachers", "students", "objectives", "distill"} & {name.split(".")[0] for name in sys.modules}
assert not ours, ours
"""


def make(shape=TINY, seed=0, **spec) -> tuple[StockDenoiser, object]:
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=16))
    torch.manual_seed(seed)
    values = dict(
        mask_id=tokenizer.mask_token_id, vocabulary=len(tokenizer), max_length=16,
        eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id,
    )  # fmt: skip
    denoiser = create_denoiser("qwen3", dict(shape), DenoiserSpec(**values | spec))
    with torch.no_grad():  # random initialisation is nearly uniform; make the logits say something
        denoiser.model.get_input_embeddings().weight.mul_(10)
    return denoiser.requires_grad_(False).eval(), tokenizer


def run_elsewhere(program: str, *arguments: Path, cwd: Path) -> str:
    # safe path: neither the working directory nor the repository is importable from there
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(("compress", "largest_kl", "largest_size"), [("int8", 1e-3, 0.35), ("int4", 0.1, 0.22)])
def test_both_exports_work_in_a_new_process_and_the_compressed_is_smaller(tmp_path, compress, largest_kl, largest_size):
    denoiser, tokenizer = make(SHAPE)
    canvas = torch.randint(259, (2, 16), generator=torch.Generator().manual_seed(1))
    canvas[:, ::2] = denoiser.spec.mask_id
    torch.save(canvas, tmp_path / "canvas")
    float32 = export_student(denoiser, tokenizer, tmp_path / "float32", 8, None, "not measured")
    packed = export_student(denoiser, tokenizer, tmp_path / "packed", 5, compress, "not measured")
    printed = run_elsewhere(STRANGER, tmp_path / "canvas", float32, packed, cwd=tmp_path)
    assert printed.strip()  # the snippets print their text

    expected = denoiser.model(canvas).logits
    torch.testing.assert_close(torch.load(tmp_path / "float32.logits"), expected, rtol=0, atol=1e-5)
    found = torch.load(tmp_path / "packed.logits")
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    assert 0 < float((p.exp() * (p - q)).sum(-1).mean()) < largest_kl
    assert size(packed) <= largest_size * size(float32)

    # through our own loader it is the same network as through the stock one
    ours = load_denoiser(str(packed), tokenizer)
    found[..., denoiser.spec.mask_id] = -torch.inf
    torch.testing.assert_close(
        ours.log_probs(Canvas.of(canvas, ours.spec.mask_id)), found.log_softmax(-1), rtol=0, atol=1e-5
    )
    assert ours.spec == denoiser.spec


def test_folder_says_what_other_software_must_know(tmp_path):
    denoiser, tokenizer = make()
    folder = export_student(denoiser, tokenizer, tmp_path / "out", 4, None, "A TABLE", 12, "cosine")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert config["is_causal"] is False
    assert config["mask_token_id"] == tokenizer.mask_token_id
    assert config["fewstep"] == denoiser.spec.as_dict()
    generation = json.loads((folder / "generation_config.json").read_text())
    wanted = dict(max_denoising_steps=4, canvas_length=12, noise_schedule="cosine", mask_token_id=1, eos_token_id=0)
    assert {key: generation[key] for key in wanted} == wanted
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "A TABLE" in card
    assert "fewstep generate out --steps 4" in card
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("spec", "schedule", "sampler"),
    [
        ({}, "log-linear", Ancestral()),
        ({}, "cosine", Ancestral()),
        ({"shift": True}, "log-linear", Ancestral()),
        ({"attention": "block", "block_size": 4}, "cosine", Ancestral()),
        ({}, "log-linear", Dilated()),
        ({}, "cosine", Dilated()),
        ({"attention": "block", "block_size": 4}, "cosine", Ancestral(block_length=16, budget="block")),
        ({}, "log-linear", TopK(block_length=16, budget="block")),
    ],
)
def test_the_snippet_draws_from_the_denoisers_own_distribution(tmp_path, monkeypatch, spec, schedule, sampler):
    denoiser, tokenizer = make(**spec)
    export_student(denoiser, tokenizer, tmp_path / "out", 1, None, "-", schedule=schedule, sampler=sampler)
    monkeypatch.chdir(tmp_path / "out")
    scope: dict = {}
    exec(snippet(denoiser.spec, schedule, sampler), scope)  # one step: every token is drawn from the all-masked canvas
    expected = denoiser.log_probs(Canvas.blank(1, 16, denoiser.spec.mask_id))
    torch.testing.assert_close(scope["logits"].log_softmax(-1).float(), expected, rtol=0, atol=1e-4)
    assert not (scope["canvas"] == denoiser.spec.mask_id).any()


def test_the_snippets_cosine_steps_are_the_process_own():
    text = snippet(make()[0].spec, "cosine", Ancestral())
    line = next(n for n in text.splitlines() if "reveal =" in n)
    chance = re.search(r"< (.*)\)$", line).group(1)
    for left in (1, 2, 4):
        found = eval(chance, {"math": math, "left": left, "quarter": math.pi / 2 / 4})
        t = torch.tensor([left / 4, (left - 1) / 4], dtype=torch.float64)
        assert found == pytest.approx(float(MaskedProcess("cosine").reveal_probability(t[0], t[1])), abs=1e-12)


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_the_snippets_dilated_passes_are_the_samplers_own(schedule):
    text = snippet(make()[0].spec, schedule, Dilated())
    lines = text[text.index("todo =") : text.index("with torch")]
    for length, steps, start in [(16, 4, 0), (16, 16, 0), (13, 5, 0), (128, 8, 0), (128, 8, 17)]:
        canvas = torch.ones(1, length, dtype=torch.int64)
        canvas[0, :start] = 7  # a prompt
        scope = {"math": math, "mask": 1, "canvas": canvas, "settings": SimpleNamespace(max_denoising_steps=steps)}
        rows, generator = Canvas.of(canvas.expand(4000, -1), 1), torch.Generator().manual_seed(0)
        turns = Dilated().transitions(rows, torch.full((4000,), steps), MaskedProcess(schedule), generator)
        possible = {tuple(turn[start:]) for turn in (steps - turns).tolist()}
        found = set()
        for _ in range(20):
            exec("import torch\n" + lines, scope)
            found.add(tuple(scope["last"][0, start:].int().tolist()))
        assert found <= possible
        assert len(found) > 1


@pytest.mark.parametrize("attention", ["full", "block"])
def test_the_snippets_blocks_and_their_passes_are_the_samplers_own(attention):
    spec = make(**({"attention": "block", "block_size": 4} if attention == "block" else {}))[0].spec
    text = snippet(spec, "cosine", Ancestral(block_length=4, budget="block"))
    canvas = torch.full((1, 9), spec.mask_id)
    canvas[0, :2] = 7  # a prompt
    scope = {"mask": spec.mask_id, "canvas": canvas, "settings": SimpleNamespace(max_denoising_steps=3)}
    exec("import torch\n" + text[text.index("place =") : text.index("with torch")], scope)
    written = [0, 0, 0, 0, 1, 1, 1] if attention == "full" else [0, 0, 1, 1, 1, 1, 2]
    assert scope["place"][2:].tolist() == written
    assert scope["passes"] == [(block, left) for block in sorted(set(written)) for left in (3, 2, 1)]
    chance = re.search(r"< (.*)\)\)$", next(n for n in text.splitlines() if "reveal =" in n)).group(1)
    for left in (1, 2, 3):
        found = eval(chance, {"math": math, "left": left, "steps": 3})
        t = torch.tensor([left / 3, (left - 1) / 3], dtype=torch.float64)
        assert found == pytest.approx(float(MaskedProcess("cosine").reveal_probability(t[0], t[1])), abs=1e-12)


def test_an_export_in_blocks_says_what_its_steps_count(tmp_path):
    denoiser, tokenizer = make(attention="block", block_size=4)
    rule = Ancestral(block_length="attention", budget="block")
    folder = export_student(denoiser, tokenizer, tmp_path / "out", 2, None, "-", 12, sampler=rule)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["max_denoising_steps"], generation["canvas_length"]) == (2, 12)
    assert generation["sampler"]["block_length"] == 4
    assert generation["sampler"]["budget"] == "block"
    card = (folder / "README.md").read_text("utf-8")
    assert "writes blocks of 4 tokens in at most 2 forward passes each, 12 tokens in at most 6." in card


def test_an_export_of_another_network_is_refused(tmp_path):
    denoiser, tokenizer = make()
    folder = export_student(denoiser, tokenizer, tmp_path / "out", 4, None, "-")
    other, _ = make(seed=1)
    with pytest.raises(UserError, match="logits differ"):
        check_export(other, tokenizer, folder, None)
    packed = export_student(denoiser, tokenizer, tmp_path / "packed", 4, "int8", "-")
    with pytest.raises(UserError, match="logits differ"):
        check_export(other, tokenizer, packed, "int8")


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    denoiser, tokenizer = make()
    # weights that come back different: what a broken architecture would do
    save = type(denoiser.model).save_pretrained

    def damaged(self, *arguments, **options):
        state = {name: tensor + 1 for name, tensor in self.state_dict().items() if "norm" not in name}
        save(self, *arguments, state_dict=state | {n: t for n, t in self.state_dict().items() if "norm" in n})

    monkeypatch.setattr(type(denoiser.model), "save_pretrained", damaged)
    with pytest.raises(UserError, match="logits differ"):
        export_student(denoiser, tokenizer, tmp_path / "out", 4, None, "-")
    assert list(tmp_path.iterdir()) == []
