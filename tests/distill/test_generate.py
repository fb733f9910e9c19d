from __future__ import annotations

import pytest
import torch

from distill.commands.generate import generate_command
from distill.config import DataConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from students.export import export_student
from students.samplers import Sampler
from students.samplers.threshold import Threshold
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.causal import create_denoiser

SHAPE = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    intermediate_size=24, tie_word_embeddings=False,
)  # fmt: skip


def write_student(path, only: str | None = None, sampler: Sampler | None = None):
    """An export with canvases of 12 in a model of 16; with ``only``, one that can write nothing else."""
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=16))
    spec = DenoiserSpec(tokenizer.mask_token_id, len(tokenizer), 16, tokenizer.eos_token_id)
    denoiser = create_denoiser("qwen3", dict(SHAPE, attention_bias=False), spec)
    if only:
        with torch.no_grad():  # equal final states, and a head that answers them with one token
            denoiser.model.model.norm.weight.zero_()
            denoiser.model.model.norm.weight[0] = 1.0
            denoiser.model.get_input_embeddings().weight[:, 0] = 100.0
            head = denoiser.model.get_output_embeddings().weight
            head.zero_()
            head[tokenizer.convert_tokens_to_ids(only), 0] = 1000.0
    export_student(denoiser, tokenizer, path, 4, None, "-", canvas_length=12, sampler=sampler)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_student(tmp_path_factory.mktemp("generate") / "student")


def test_prompt_is_kept_and_the_rest_is_written(tmp_path, capsys):
    folder = write_student(tmp_path / "student", only="x")
    capsys.readouterr()
    assert generate_command(folder, prompt="say ", seed=0) == ["say " + 8 * "x"]
    assert generate_command(folder, prompt="a<|mask|>b", length=5, steps=1, seed=0) == ["axbxx"]
    printed = capsys.readouterr()
    assert printed.out == "say xxxxxxxx\naxbxx\n"
    assert "4 steps" in printed.err  # the export's own default
    assert "NFE 1.00" in printed.err
    assert "tokens/s" in printed.err
    assert "seed 0" in printed.err


def test_what_follows_an_end_of_text_is_another_document(tmp_path):
    folder = write_student(tmp_path / "student", only="<|endoftext|>")
    assert generate_command(folder, prompt="ab", length=4, steps=1, seed=0) == ["ab\n\n\n\n"]


def test_markup_and_control_characters_are_not_interpreted(tmp_path, capsys):
    folder = write_student(tmp_path / "student", only="]")
    assert generate_command(folder, prompt="\x1b[red", length=6, steps=1, seed=0) == ["\x1b[red]"]
    assert capsys.readouterr().out == "�[red]\n"


def test_the_seed_decides(folder):
    first = generate_command(folder, num=3, seed=5)
    assert generate_command(folder, num=3, seed=5) == first
    assert generate_command(folder, num=3, seed=6) != first
    assert len(set(first)) == 3


def test_the_folders_own_sampler_is_the_default(tmp_path, capsys):
    write_student(tmp_path / "student", sampler=Threshold(threshold=0.001))
    for options, said in (
        ({}, "NFE 1.00"),
        ({"sampler": "threshold"}, "NFE 1.00"),
        ({"sampler": "dilated"}, "NFE 4.00"),
    ):
        generate_command(str(tmp_path / "student"), seed=0, **options)
        printed = capsys.readouterr().err
        assert said in printed
        assert options.get("sampler", "threshold") in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=13), "--steps 13 is more steps than tokens: 12 are to be written"),
        (dict(steps=5, prompt="12345678"), "--steps 5 is more steps than tokens: 4 are to be written"),
        (dict(steps=0), "--steps 0 is too small"),
        (dict(num=0), "--num 0 is too small"),
        (dict(length=0), "--length 0 is too small"),
        (dict(length=17), "--length 17 is more than the model's 16 positions"),
        (dict(prompt="123456789012"), "--prompt has 12 tokens and the canvas 12"),
        (dict(prompt="\udcff"), "can not be encoded"),
        (dict(seed=-1), "--seed -1"),
        (dict(sampler="ancestrel"), "did you mean 'ancestral'"),
        (dict(folder="nowhere"), "nowhere is not a folder"),
    ],
)
def test_mistakes_are_named(folder, options, message, capsys):
    with pytest.raises(UserError, match=message):
        generate_command(**dict(folder=folder) | options)
    assert capsys.readouterr().out == ""
