"""The models that come with the package: pairs of a teacher and its judge, which read text as the same tokens."""

import pytest

from distill.config import PretrainConfig, load_config
from distill.data.batches import load_data
from distill.data.tokenizers import PLAIN_TEXT, load_tokenizer
from distill.training.pretraining import held_out_figures
from teachers.families import load_denoiser, resolve
from teachers.process import MaskedProcess
from teachers.source import BUNDLED

CONFIGS = {"novels-teacher": "teacher", "novels-judge": "judge", "words-teacher": "words", "words-judge": "words-judge"}
PAIRS = [("teacher", "judge"), ("words", "words-judge")]


@pytest.fixture(scope="module")
def bits():
    """Bits per byte of each model on about 12 kB of the bundled novels, which none has seen."""
    return {name: bits_per_byte(config, name) for config, name in CONFIGS.items()}


def bits_per_byte(config, name):
    told = ["data.path=bundled:novels", "data.heldout=null"]
    pretraining = load_config(PretrainConfig, f"bundled:pretrain/{config}", told)
    data = load_data(pretraining.data, load_tokenizer(f"bundled:{name}"))
    rows = round(12_000 / pretraining.data.length / data.bytes_per_token)
    denoiser = load_denoiser(f"bundled:{name}").eval()
    return held_out_figures(pretraining, denoiser, data, MaskedProcess("log-linear"), rows)["bits_per_byte"]


@pytest.mark.parametrize(("teacher", "judge"), PAIRS)
def test_a_judge_reads_its_teachers_tokens(teacher, judge):
    one, other = ((BUNDLED / name / "tokenizer.json").read_bytes() for name in (teacher, judge))
    assert one == other
    assert resolve(f"bundled:{teacher}").load().spec.attention == "full"
    assert resolve(f"bundled:{judge}").config["fewstep"]["attention"] == "causal"


def test_words_are_pieces_of_words():
    words = load_tokenizer("bundled:words")
    text = 'She opened the door, and said: "It\'s cold" -- twice.'
    ids = words(text, **PLAIN_TEXT)["input_ids"]
    assert words.decode(ids) == text
    assert len(ids) < len(text) / 2
    assert words.decode(words("“It’s cold” —", **PLAIN_TEXT)["input_ids"]) == '"It\'s cold" --'


def test_the_files_are_small():
    size = sum(path.stat().st_size for name in PAIRS[1] for path in (BUNDLED / name).iterdir())
    assert size < 20e6


def test_the_teacher_of_words_knows_more_of_the_text_than_that_of_bytes(bits):
    assert bits["words"] < 0.9 * bits["teacher"]


@pytest.mark.parametrize(("teacher", "judge"), PAIRS)
def test_a_judge_knows_more_of_the_text_than_its_teacher(teacher, judge, bits):
    assert bits[judge] < bits[teacher]
