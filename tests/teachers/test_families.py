"""The registry: one name, one family; what a family can not do is said before anything is loaded."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.families import FAMILIES, resolve
from teachers.oracle.markov import random_source
from tests.golden.places import COPIES, checkpoint_of
from tests.teachers.test_dit import GOLDEN
from tests.teachers.test_golden_language import NAMED

ROOT = Path(__file__).parents[2]
NOT_LINEAR = {"oracle"}


@pytest.fixture
def config_only(tmp_path):
    """An MDLM folder without weights."""
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text("utf-8"), "utf-8")
    return tmp_path


def sample_of(family, tmp_path):
    """A checkpoint of a family: a small one of ours, or a golden one."""
    if family.name == "oracle":
        random_source(4, 1, 1.0, 0, 8).save(tmp_path)
        return resolve(str(tmp_path))
    if family.name == "stock":
        return resolve("bundled:teacher")
    if not (COPIES / family.name).is_dir():
        pytest.skip(f"{family.name} has no golden checkpoint")
    return resolve(str(checkpoint_of(COPIES, family.name)), **NAMED.get(family.name, {}))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_config_names_its_family(family, tmp_path):
    checkpoint = sample_of(family, tmp_path)
    files = checkpoint.config, checkpoint.name, checkpoint.folder
    claims = [other.name for other in FAMILIES[:-1] if other.recognises_files(*files)]
    assert checkpoint.family is family
    assert claims == ([] if family.name == "stock" else [family.name]), "one; stock has the rest"
    assert checkpoint.load().capabilities == checkpoint.family.capabilities


def compressed(denoiser, folder):
    """Compressed weights have the names of stock classes."""
    layout = "stock" if "compression" in denoiser.capabilities else "own"
    with denoiser.laid_out(layout, None) as (student, _):
        student.save(folder, "int8")
    return (folder / "config.json").is_file()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_declared_is_there_and_what_is_not_is_refused(family, tmp_path):
    denoiser = sample_of(family, tmp_path).load().requires_grad_(False)
    mask = denoiser.spec.mask_id if "absorbing process" in family.capabilities else 0
    canvas = replace(Canvas.blank(1, 4, mask), time=torch.ones(1))
    asked = {
        "hidden states": lambda: denoiser.hidden_states(canvas).shape[:2] == (1, 4),
        "embeddings": lambda: len(denoiser.token_embeddings()) == denoiser.spec.vocabulary,
        "blocks": lambda: len(denoiser.blocks()) > 0,
        "adapters": lambda: denoiser.output_layer in denoiser.network.modules(),
        "checkpointing": lambda: denoiser.checkpoint_activations() is None,
        "compression": lambda: compressed(denoiser, tmp_path / "int8"),
    }
    for capability, call in asked.items():
        if capability in family.capabilities:
            assert call(), capability
        else:
            with pytest.raises(UserError, match=f"{capability}"):
                call()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_linear_head_is_the_head(family, tmp_path):
    denoiser = sample_of(family, tmp_path).load()
    head = denoiser.linear_head()
    assert (head is None) == (family.name in NOT_LINEAR)
    if head is not None:
        features = 3 * torch.randn(5, head.weight.shape[1], generator=torch.Generator().manual_seed(0))
        law = head.logits(features.to(head.weight), slice(None)).log_softmax(-1)
        torch.testing.assert_close(law, denoiser.head(features.to(head.weight)))


def test_a_config_of_no_family(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 4}', "utf-8")
    with pytest.raises(UserError, match=r"no model_type, but hidden_size, of no family .* fewstep teachers lists"):
        resolve(str(tmp_path))


def test_a_missing_capability_is_an_error_before_anything_is_loaded(config_only):
    checkpoint = resolve(str(config_only))
    checkpoint.require({"weights": "anything"})
    with pytest.raises(UserError, match=r"MDLM checkpoint, without compression, but compress asks; leave it out"):
        checkpoint.require({"compression": "compress asks; leave it out"})


@pytest.mark.parametrize(
    "option", [{"time_conditioned": True}, {"shift": True}, {"attention": "block"}, {"block_size": 4}]
)
def test_an_option_that_the_checkpoint_says_itself(option, config_only):
    with pytest.raises(UserError, match=rf"{next(iter(option))} is set.*MDLM checkpoint.*leave it out"):
        resolve(str(config_only)).load(**option)


def test_families_without_a_tokenizer_know_one(config_only):
    mdlm = resolve(str(config_only))
    assert mdlm.family.tokenizer(mdlm) == "openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"
    (config_only / "tokenizer.json").write_text("{}", "utf-8")
    assert mdlm.family.tokenizer(mdlm) == str(config_only)
    stock = resolve("bundled:teacher")
    assert stock.family.tokenizer(stock) == str(stock.folder)


def test_reading_a_config_needs_no_torch():
    code = "import sys; from teachers.families import resolve; resolve('bundled:teacher').require({'weights': ''});"
    code += "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == []


def test_nobody_above_knows_what_class_a_denoiser_has():
    imports = re.compile(r"^from teachers\.\S+ import .*\b(Stock|Dit|Source)Denoiser\b", re.MULTILINE)
    above = [path for floor in ("distill", "objectives", "students") for path in (ROOT / floor).rglob("*.py")]
    knowing = {str(path.relative_to(ROOT)) for path in above if imports.search(path.read_text("utf-8"))}
    assert knowing == {"distill/data/source_text.py"}, "which makes one of text"


@pytest.mark.parametrize(("name", "nearest"), [("dreem", "dream"), ("lada", "llada")])
def test_an_unknown_family_is_told_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"family '{name}' is unknown; did you mean '{nearest}'\?; allowed are "):
        resolve("bundled:teacher", family=name)


def test_nobody_runs_code_for_a_family_that_needs_none():
    folder = str(checkpoint_of(COPIES, "llada"))
    with pytest.raises(UserError, match=r"is LLaDA, read by no code of its own; leave out trust_remote_code"):
        resolve(folder, trust_remote_code=folder)
