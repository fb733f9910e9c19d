from __future__ import annotations

import io
import json
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from distill.commands.generate import generate_command
from distill.config import DataConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from distill.evaluation.subject import named_subject
from distill.finished import open_student
from distill.generation import decoded, generate, text_of
from distill.runtime.world import ALONE
from students.export import export_student
from students.fill import fill
from students.samplers import Ancestral, Sampler, TopK
from students.samplers.length import Predicted
from students.samplers.threshold import Threshold
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from teachers.randomness import RowStreams
from tests.golden.places import COPIES
from tests.networks import shape

SHAPE = shape(tie_word_embeddings=False)


def write_student(path, only: str | None = None, length: int = 16, sampler: Sampler | None = None):
    """An export with canvases of 12 in a model of 16; with ``only``, one that can write nothing else."""
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=16))
    spec = DenoiserSpec(tokenizer.mask_token_id, len(tokenizer), length, tokenizer.eos_token_id)
    torch.manual_seed(0)
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
    assert generate_command(folder, prompts=["say "], seed=0) == ["say " + 8 * "x"]
    assert generate_command(folder, prompts=["a<|mask|>b"], length=5, steps=1, seed=0) == ["axbxx"]
    printed = capsys.readouterr()
    assert printed.out == "say xxxxxxxx\naxbxx\n"
    assert "4 steps" in printed.err  # the export's own default
    assert "NFE 1.00" in printed.err
    assert "tokens/s" in printed.err
    assert "seed 0" in printed.err


def test_a_run_of_end_of_text_tokens_parts_two_documents(tmp_path):
    folder = write_student(tmp_path / "student", only="<|endoftext|>")
    assert generate_command(folder, prompts=["ab"], length=4, steps=1, seed=0) == ["ab\n\n"]


def test_markup_and_control_characters_are_not_interpreted(tmp_path, capsys):
    folder = write_student(tmp_path / "student", only="]")
    assert generate_command(folder, prompts=["\x1b[red"], length=6, steps=1, seed=0) == ["\x1b[red]"]
    assert capsys.readouterr().out == "�[red]\n"


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("androidx.test:runner:1.6 :100: a:x:b", None),  # colons are no emoji
        ("name\tprice\n", None),
        ("[bold]x[/bold] \\[y]", None),
        ("one\r\ntwo\r\n", None),
        ("three\rfour", "three�four"),  # a lone return would go back to the line's start
        ("\x1b[2J\x9b1m\x00", "�[2J�1m�"),
        ("naïve 🏃 \u202e", None),
    ],
)
def test_standard_output_is_the_prompt_and_the_decoded_tokens_byte_for_byte(tmp_path, capfdbinary, prompt, shown):
    folder = write_student(tmp_path / "student", only="x", length=64)
    [text] = generate_command(folder, prompts=[prompt], length=64, seed=0)
    written = 64 - len(prompt.encode())
    assert text == prompt + "x" * written
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == f"{shown or prompt}{'x' * written}\n".encode()


def test_a_terminal_of_few_letters_gets_escapes_and_no_traceback(tmp_path, monkeypatch):
    folder = write_student(tmp_path / "student", only="x")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    generate_command(folder, prompts=["naïve"], length=8, seed=0)
    stdout.flush()
    assert stdout.buffer.getvalue() == b"na\\xefvexx\n"


def test_padding_is_left_out_wherever_it_stands(tmp_path):
    folder = write_student(tmp_path / "student", only="<|pad|>")
    assert generate_command(folder, prompts=["a<|pad|>b"], length=9, seed=0) == ["a<|pad|>b"]
    assert generate_command(folder, prompts=["a<|mask|><|endoftext|><|mask|><|endoftext|>b"], length=9, seed=0) == [
        "a\n\nb"
    ]


def test_letters_that_spell_the_end_of_text_are_letters(tmp_path):
    tokenizer = open_student(write_student(tmp_path / "student", only="x")).tokenizer
    spelled = tokenizer("<|endoftext|>", split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert text_of(tokenizer, [*spelled, tokenizer.eos_token_id, *spelled]) == "<|endoftext|>\n\n<|endoftext|>"


def test_several_texts_can_be_told_apart(tmp_path, capsys):
    folder = write_student(tmp_path / "student", only="\u010a")  # a line feed
    generate_command(folder, num=2, prompts=["a", "bc"], length=4, seed=0)
    assert capsys.readouterr().out == (
        "--- 1 of 4 ---\na\n\n\n\n--- 2 of 4 ---\na\n\n\n\n--- 3 of 4 ---\nbc\n\n\n--- 4 of 4 ---\nbc\n\n\n"
    )
    generate_command(folder, num=2, prompts=["a", "bc"], length=4, seed=0, as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["a\n\n\n", "a\n\n\n", "bc\n\n", "bc\n\n"]
    assert [row["prompt"] for row in rows] == ["a", "a", "bc", "bc"]
    assert [row["log_prob"] for row in rows] == [0.0] * 4  # it can write nothing else
    assert all(1 <= row["nfe"] <= 3 for row in rows)


def test_a_noise_schedule_that_there_is_not_is_refused_by_all_who_read_it(tmp_path):
    folder = write_student(tmp_path / "student", only="x")
    settings = Path(folder) / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text("utf-8")), "noise_schedule": "cosin"}), "utf-8")
    said = "noise_schedule is 'cosin'; did you mean 'cosine'.; set it to log-linear or cosine in generation_config.json"
    with pytest.raises(UserError, match=said):
        open_student(folder)
    with pytest.raises(UserError, match=said):
        named_subject(folder, None, [], ALONE)


def test_passes_for_the_length_of_a_text_are_said_beside_the_others(tmp_path, capsys):
    sampler = Ancestral(length=Predicted())
    folder = write_student(tmp_path / "student", only="x", sampler=sampler)
    generate_command(folder, steps=2, num=2, seed=0, as_json=True)
    out, err = capsys.readouterr()
    assert [json.loads(line)["length_nfe"] for line in out.splitlines()] == [1, 1]
    assert "NFE 2.00 a text (at most 2) and 1.00 for its length, ancestral" in err
    generate_command(write_student(tmp_path / "plain", only="x"), steps=2, seed=0, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out)["length_nfe"] is None
    assert "length" not in err


def test_the_default_of_steps_is_a_cap(tmp_path, capsys):
    folder = write_student(tmp_path / "student", only="x")  # made for 4 steps
    assert generate_command(folder, prompts=["123456789"], seed=0) == ["123456789xxx"]
    assert "3 steps" in capsys.readouterr().err
    assert generate_command(folder, length=2, seed=0) == ["xx"]
    assert "2 steps" in capsys.readouterr().err


def test_ancestral_steps_may_outnumber_the_tokens(folder, capsys):
    """As in `fewstep evaluate`: what is meant by many steps is hardly two tokens in one of them."""
    texts = generate_command(folder, num=8, steps=1024, seed=0)
    assert "ancestral, 1024 steps" in capsys.readouterr().err
    student = open_student(folder)
    canvas = Canvas.blank(8, 12, student.denoiser.spec.mask_id)
    filled = fill(student.denoiser, canvas, Ancestral(), 1024, RowStreams(0, (), range(8)))
    assert texts == [decoded(student.tokenizer, row) for row in filled.tokens.tolist()]
    assert 11.5 < filled.nfe.double().mean() <= 12


def test_temperature_sharpens_and_is_said(folder, capsys):
    def entropy(temperature):
        texts = generate_command(folder, num=64, seed=1, temperature=temperature)
        letters = Counter("".join(texts))
        return -sum(n / letters.total() * math.log(n / letters.total()) for n in letters.values())

    assert entropy(0.001) < 0.7 * entropy(1.0)
    assert "temperature 0.001" in capsys.readouterr().err
    assert generate_command(folder, seed=2, temperature=1.0) == generate_command(folder, seed=2)


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


def test_a_released_checkpoint_is_written_as_its_family_does(capsys):
    checkpoint = str(COPIES / "sdar" / "checkpoint")
    for options, said in (
        (dict(seed=0), "threshold 0.85, of the drawn token, blocks of 4, at least sdar's timetable, 12 steps"),
        (dict(sampler="llada", seed=0), "top_k, greedy, blocks of 32, 12 steps"),
        (dict(sampler="llada", temperature=0.5, seed=0), "top_k, temperature 0.5, blocks of 32, 12 steps"),
        (dict(sampler="ancestral", seed=0), "ancestral, 12 steps"),
        (dict(steps=6, seed=0), "at least sdar's timetable, 6 steps"),
    ):
        generate_command(checkpoint, length=12, **options)
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="steps is 2, but a text has 3 blocks of 4 tokens"):
        generate_command(checkpoint, length=12, steps=2)


def test_a_student_that_writes_in_blocks_takes_a_step_for_each_by_default(tmp_path, capsys):
    write_student(tmp_path / "student", sampler=TopK(block_length=2))
    generate_command(str(tmp_path / "student"), seed=0)
    assert "top_k, blocks of 2, 6 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=13, sampler="dilated"), "steps 13 is more steps than tokens: 12 are to be written, and dilated"),
        (
            dict(steps=5, prompts=["12345678"], sampler="top_k"),
            "steps 5 is more steps than tokens: 4 are to be written.*, such as ancestral",
        ),
        (dict(steps=2**21), "steps 2097152 is more than 1048576, the most there may be"),
        (dict(steps=0), "steps 0 is too small"),
        (dict(num=0), "num 0 is too small"),
        (dict(length=0), "length 0 is too small"),
        (dict(length=17), "length 17 is more than the model's 16 positions"),
        (dict(prompts=["123456789012"]), "prompt '123456789012' has 12 tokens and the canvas 12"),
        (dict(prompts=["\udcff"]), "can not be encoded"),
        (dict(seed=-1), "seed -1"),
        (dict(temperature=0.0), "temperature 0 is not a positive number"),
        (dict(temperature=float("nan")), "temperature nan is not a positive number"),
        (dict(sampler="ancestrel"), "did you mean 'ancestral'"),
        (dict(sampler="lada"), "did you mean 'llada'"),
        (dict(sampler="sglang"), "serves models with attention in blocks, and this model's is full; give another one"),
        (dict(folder="nowhere"), "nowhere is not a folder"),
    ],
)
def test_mistakes_are_named(folder, options, message, capsys):
    with pytest.raises(UserError, match=message):
        generate_command(**dict(folder=folder) | options)
    assert capsys.readouterr().out == ""


def test_a_chat_is_the_answer_alone(tmp_path, capsys):
    folder = write_student(tmp_path / "student", only="x")
    with pytest.raises(UserError, match=r"this model's tokenizer has no chat template, .* leave chat out"):
        generate_command(folder, prompts=["a"], chat=True)
    student = open_student(folder)
    student.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}:{% endfor %}"
    answered = generate(student, ["a", "bc"], steps=1, seed=0, chat=True)
    assert answered.texts == ["x" * 10, "x" * 9]
    assert answered.prompts == ["a:", "bc:"]
    ends = json.dumps({"eos_token_id": [student.denoiser.spec.eos_id, student.tokenizer.convert_tokens_to_ids("x")]})
    student.denoiser.companions = {"generation_config.json": ends.encode()}
    assert generate(student, "a", steps=1, seed=0, chat=True).texts == [""]
    with pytest.raises(UserError, match="chat answers what a user says; give a prompt"):
        generate(student, chat=True)
