"""Completions of prompts: laid out as in training, cut at the end of text, the same however they are batched."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from distill.completions import complete
from distill.finished import open_student
from distill.generation import continuation, encoded
from distill.runtime.world import World
from students.samplers import Ancestral, Dilated, Threshold, TopK
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from tests.distill.test_generate import SHAPE, write_student

PROMPTS = ["", "ab", "1+1=", "abcdefghijk"]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return open_student(write_student(tmp_path_factory.mktemp("completions") / "student", length=32))


def ids(student, prompts=PROMPTS):
    return [encoded(student.tokenizer, prompt) for prompt in prompts]


def written(student, prompts, **settings):
    settings = {"length": 16, "sampler": Ancestral(), "steps": 4, "seed": 0} | settings
    return complete(student.denoiser, student.tokenizer, prompts, **settings)


@pytest.mark.parametrize(
    "sampler", [Ancestral(), Dilated(draw="greedy"), TopK(), Threshold(threshold=0.02, block_length=4)]
)
def test_neither_the_batch_nor_other_processes_change_a_completion(student, sampler):
    prompts = ids(student)
    together = written(student, prompts, sampler=sampler, steps=4)
    assert written(student, prompts, sampler=sampler, steps=4, batch=1) == together
    assert written(student, prompts, sampler=sampler, steps=4, batch=3) == together
    assert written(student, prompts[:2], sampler=sampler, steps=4) == together[:2]


@pytest.mark.parametrize("sampler", [TopK(block_length=4, budget="block", stop=True), Threshold(block_length=4)])
def test_a_block_students_completions_are_the_same_one_by_one(student, sampler):
    """What it keeps of a row's finished blocks is of that row alone."""
    spec = replace(student.denoiser.spec, attention="block", block_size=4)
    torch.manual_seed(0)
    block = create_denoiser("qwen3", SHAPE, spec).eval()
    prompts = ids(student)

    def completions(batch):
        return complete(block, student.tokenizer, prompts, 16, sampler, 4, 0, batch)

    assert completions(1) == completions(3) == completions(4)
    assert any(c.tokens > 4 for c in completions(4))


def test_a_seed_is_a_completion_and_steps_are_noise_of_their_own(student):
    prompts = ids(student)
    assert written(student, prompts) == written(student, prompts)
    assert written(student, prompts) != written(student, prompts, seed=1)


def test_no_row_takes_more_passes_than_it_has_tokens_to_write(student):
    completions = written(student, ids(student), sampler=TopK(), steps=8)
    assert [c.nfe for c in completions] == [8, 8, 8, 5]
    assert all(c.ended or c.tokens == 16 - len(prompt) for prompt, c in zip(PROMPTS, completions, strict=True))


def test_a_planned_rule_has_its_transitions_however_short_a_row_is(student):
    """With many transitions hardly two of 5 positions share one; with 5 of them some do."""
    [completion] = written(student, ids(student, ["abcdefghijk"]), sampler=Ancestral(), steps=100_000)
    assert completion.nfe == 5


def test_what_ends_a_text_is_counted_and_not_said(tmp_path):
    student = open_student(write_student(tmp_path / "student", only="<|endoftext|>"))
    [completion] = written(student, ids(student, ["ab"]), length=8, steps=2)
    assert (completion.text, completion.tokens, completion.ended) == ("", 1, True)


def test_every_end_token_of_a_release_ends_a_text(tmp_path):
    student = open_student(write_student(tmp_path / "student", only="x"))
    ends = [student.tokenizer.eos_token_id, student.tokenizer.convert_tokens_to_ids("x")]
    student.denoiser.companions = {"generation_config.json": json.dumps({"eos_token_id": ends}).encode()}
    [completion] = written(student, ids(student, ["ab"]), length=8, steps=2)
    assert (completion.text, completion.tokens, completion.ended) == ("", 1, True)


def test_a_text_without_an_end_is_said_whole(tmp_path):
    student = open_student(write_student(tmp_path / "student", only="x"))
    [completion] = written(student, ids(student, ["ab"]), length=8, steps=2)
    assert (completion.text, completion.tokens, completion.ended, completion.nfe) == ("xxxxxx", 6, False, 2)
    assert completion.critic_nfe == 0


def test_processes_share_the_prompts(student):
    """Two processes in turn, each given what the other wrote."""
    prompts, parts = ids(student), {}

    class One(World):
        def gather(self, value):
            parts[self.rank] = value
            return [parts.get(rank, [[]] * len(value)) for rank in range(self.size)]

    device = torch.device("cpu")
    for rank in (0, 1):
        shared = written(student, prompts, batch=2, world=One(rank, 2, device))
    assert shared == written(student, prompts)


@pytest.mark.parametrize("sampler", [TopK(draw="greedy"), TopK(draw="greedy", block_length=4)])
def test_rows_of_their_own_lengths_are_written_in_one_batch_as_alone(student, sampler):
    prompts = ids(student)
    together = written(student, prompts, length=5, padding="right", sampler=sampler)
    alone = [written(student, [prompt], length=len(prompt) + 5, sampler=sampler)[0] for prompt in prompts]
    assert together == alone
    assert all(completion.tokens <= 5 for completion in together)


@pytest.mark.parametrize(
    ("prompt", "length", "said"),
    [
        ("abcd", 4, "prompt 2 has 4 tokens and the canvas 4, which leaves none to write"),
        ("a<|mask|>b", 8, "prompt 2 holds the mask token"),
        ("ab", 64, "length 64 is more than the model's 32 positions"),
    ],
)
def test_prompts_that_can_not_be_completed_are_refused(student, prompt, length, said):
    with pytest.raises(UserError, match=said):
        written(student, ids(student, ["a", prompt]), length=length)


def test_a_continuation_keeps_the_space_that_a_tokenizer_drops():
    class Dropping:
        def decode(self, tokens, **_):
            return "".join(tokens).lstrip()

    assert continuation(Dropping(), ["def f():\n"], ["    ", "return"]) == "    return"
    assert continuation(Dropping(), [], [" a"]) == "a"
