"""Sections: what may be set, and every mistake that is seen before anything is loaded."""

import pytest
import torch

from distill.config import DistillConfig, EvaluateConfig, OptimizerConfig, TrainConfig
from distill.runtime.world import World
from distill.training.distillation import check_samplers
from distill.training.engine import micro_batch
from students.samplers import RELEASED, Ancestral, TopK
from students.samplers.dilated import Dilated
from teachers.errors import UserError
from tests.distill.config.small import DISTIL, distil, load, pretrain, refused
from tests.networks import stock


def test_small_configs_load(tmp_path):
    assert distil(tmp_path).sequence_length == 16
    assert pretrain(tmp_path).tokenizer.vocabulary == 4096


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("trian.batch=8", ("trian", "did you mean 'train'?", "evaluate")),
        ("train.updtes=3", ("train.updtes", "did you mean 'updates'?", "micro_batch")),
        ("train.student.wramup=3", ("train.student.wramup", "did you mean 'warmup'?")),
        ("train.critic.beta=3", ("train.critic.beta", "did you mean 'betas'?")),
        ("objective.ratoi=3", ("objective.ratoi", "did you mean 'ratio'?", "weight")),
        ("teacher.tokeniser=x", ("teacher.tokeniser", "did you mean 'tokenizer'?")),
        ("evaluate.sample=9", ("evaluate.sample", "did you mean 'samples'?")),
    ],
)
def test_a_misspelt_key_names_the_nearest(override, parts, tmp_path):
    refused(lambda: distil(tmp_path, override), *parts)


def test_a_misspelt_key_in_the_other_objective(tmp_path):
    overrides = ["objective.name=didi_instruct", "objective.ratio.reward_clmap=2"]
    refused(lambda: distil(tmp_path, *overrides), "objective.ratio.reward_clmap", "'reward_clamp'")


def test_a_misspelt_key_in_an_optional_section(tmp_path):
    overrides = ["data.path=x.txt", "data.length=16", "data.pak=true"]
    refused(lambda: distil(tmp_path, *overrides), "data.pak", "did you mean 'pack'?")


def test_an_unknown_objective(tmp_path):
    message = refused(lambda: distil(tmp_path, "objective.name=integral_lk"), "'integral_lk'")
    assert "did you mean 'integral_kl'?" in message
    assert "didi_instruct" in message


def test_an_objective_without_a_name(tmp_path):
    base = {**DISTIL, "objective": {"rollout": "k_step"}}
    refused(lambda: load(DistillConfig, base, tmp_path), "objective.name is missing", "integral_kl")


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("train.updates=0", "train.updates", "0"),
        ("train.student.lr=-1e-4", "train.student.lr", "-0.0001"),
        ("train.ema=1.0", "train.ema", "1.0"),
        ("train.precision=float16", "train.precision", "'float16'"),
        ("evaluate.precision=automatic", "evaluate.precision", "'automatic'"),
        ("objective.rollout.steps=[]", "objective.rollout.steps", "[]"),
        ("objective.rollout.steps=[0]", "objective.rollout.steps.0", "0"),
        ("objective.ratio={label_smoothing: 1}", "objective.ratio.label_smoothing", "1"),
        ("length=1", "length", "1"),
        ("evaluate.entropy_floor=1.5", "evaluate.entropy_floor", "1.5"),
        ("train.batch=many", "train.batch", "'many'"),
        ("teacher.process=linear", "teacher.process", "'linear'"),
        ("train=3", "train", "3"),
    ],
)
def test_out_of_range(override, where, value, tmp_path):
    assert refused(lambda: distil(tmp_path, override), value).startswith(f"{where} is {value}")


def test_missing_keys_are_named(tmp_path):
    base = {k: v for k, v in DISTIL.items() if k != "teacher"}
    refused(lambda: load(DistillConfig, base, tmp_path), "teacher is missing")
    refused(lambda: load(DistillConfig, base, tmp_path, "teacher.revision=x"), "teacher.path is missing")


# --- cross-checks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["sampler=dilated", "objective.rollout.steps=[4,32]"], ("32", "16")),
        (["train.critic=null"], ("train.critic",)),
        (["length=null"], ("length",)),
        (["data.path=x.txt", "data.length=12"], ("16", "12")),
        (["objective.ratio=discriminator"], ("marginalised", "per_token")),
        (["objective.gradient={name: per_token, group_size: 1}"], ("group_size is 1",)),
        (["objective.rollout=one_move", "objective.corruption=coupled"], ("coupled", "two_moves")),
        (["objective.time={clamp: [0.5, 0.2]}"], ("(0.5, 0.2)",)),
        (["evaluate.sampler=ancestrel"], ("'ancestrel'", "'ancestral'")),
        (["sampler={name: edit, stop: true}"], ("stop ends a text", "block_length")),
        (["sampler={name: top_k, order: entropi}"], ("sampler", "order", "entropi", "'entropy'")),
        (["sampler={name: rgas, stop: true}"], ("rgas looks at whole texts", "leave stop out")),
        (["sampler={name: ancestral, block_length: 32, budget: block}"], ("sampler.block_length is 32", "16 tokens")),
        (["evaluate.sampler={name: top_k, block_length: 0}"], ("0 is no length of a block", "attention")),
        (
            ["sampler={name: dilated, block_length: 4, budget: block}", "objective.rollout.steps=[2,8]"],
            ("objective.rollout.steps has 8", "4 tokens of a block"),
        ),
        (["sampler={name: dilated, budget: block}"], ("budget 'block'", "block_length")),
        (["evaluate.sampler={name: rgas, block_length: 4}"], ("rgas reads whole texts", "blocks of 4")),
    ],
)
def test_cross_checks(overrides, parts, tmp_path):
    refused(lambda: distil(tmp_path, *overrides), *parts)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train.batch=8", "train.micro_batch=3"], ("train.batch 8", "micro_batch 3")),
        (["train.batch=8", "train.micro_batch=16"], ("train.batch 8", "micro_batch 16")),
        (["objective.name=didi_instruct", "train.batch=6"], ("6", "multiple of 4")),
        (["objective.name=didi_instruct", "train.batch=8", "train.micro_batch=2"], ("micro_batch 2", "multiple of 4")),
    ],
)
def test_batches_must_divide(overrides, parts, tmp_path):
    refused(lambda: distil(tmp_path, *overrides), *parts)


def test_batches_that_divide(tmp_path):
    assert distil(tmp_path, "train.micro_batch=2").train.micro_batch == 2
    assert distil(tmp_path, "objective.name=didi_instruct", "train.micro_batch=4").objective.group == 4
    assert distil(tmp_path, "train.batch=3").train.batch == 3  # groups of one


def test_elbo_needs_pairs_and_a_judge_does_not(tmp_path):
    refused(lambda: pretrain(tmp_path, "train.batch=3"), "3", "multiple of 2")
    assert pretrain(tmp_path, "train.batch=3", "objective=autoregressive").train.batch == 3


def test_an_edit_stage_needs_a_teacher_an_edit_and_an_update(tmp_path):
    assert pretrain(tmp_path).edit is None
    length, updates = ("data.length=64", "train.updates=10")
    edit = pretrain(tmp_path, "edit={}", length, updates).edit
    assert (edit.share, edit.rate, edit.first(10)) == (0.2, 0.1, 8)
    refused(lambda: pretrain(tmp_path, "edit={}", length, updates, "objective=autoregressive"), "edit", "leave it out")
    refused(lambda: pretrain(tmp_path, "edit.rate=0.01", length, updates), "edit.rate 0.01", "64", "0.031 or more")
    refused(lambda: pretrain(tmp_path, "edit.share=0.04", length, updates), "edit.share 0.04", "10", "larger share")
    refused(lambda: pretrain(tmp_path, "edit.rate=1", length, updates), "edit.rate", "less than 1")
    refused(lambda: pretrain(tmp_path, "edit.shares=1", length, updates), "edit.shares", "'share'")


@pytest.mark.parametrize("override", ["model.attention=block", "model.block_size=4"])
def test_block_attention_and_block_size_go_together(override, tmp_path):
    refused(lambda: pretrain(tmp_path, override), "block_size", "both or neither")
    assert pretrain(tmp_path, "model.attention=block", "model.block_size=4").model.block_size == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["sampler={name: ancestral, block_length: 4}", "objective.rollout.steps=[2,8]"],
            "has 2, .* 4 blocks",
        ),
        (
            ["evaluate={sampler: {name: top_k, block_length: 2}, every: 5, watch_steps: 4}"],
            "evaluate.watch_steps has 4, .* 8 blocks of 2",
        ),
        (["sampler={name: top_k, block_length: attention}"], "attention is full and has no blocks"),
        (["sampler={name: top_k, block_length: 4, stop: true}"], "waits for an end token, and this model has none"),
        (["sampler={name: ancestral, block_length: 4}", "objective.rollout.steps=[4,8]"], None),
    ],
)
def test_samplers_that_do_not_fit_a_student_are_refused_when_it_is_loaded(overrides, said, tmp_path):
    config, student = distil(tmp_path, *overrides), stock(8, 16)
    if said is None:
        check_samplers(config, student)
        return
    with pytest.raises(UserError, match=said):
        check_samplers(config, student)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "complaint"),
    [
        (8, None, 3, "not a multiple of the 3 processes"),
        (8, 3, 2, "is 4 rows each, not a multiple of train.micro_batch 3"),
        (8, None, 4, "makes micro-batches of 2 rows, not a multiple of 4"),  # a group would be parted
        (8, 2, 1, "makes micro-batches of 2 rows, not a multiple of 4"),
        (8, None, 2, None),
    ],
)
def test_groups_and_micro_batches_are_never_parted(batch, micro, processes, complaint):
    train = TrainConfig(updates=1, batch=batch, micro_batch=micro, student=OptimizerConfig(lr=1.0))
    world = World(0, processes, torch.device("cpu"))
    if complaint is None:
        assert micro_batch(train, world, group=4) == 4
    else:
        with pytest.raises(UserError, match=complaint):
            micro_batch(train, world, group=4)


# --- the sampler ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "trained", "measured"),
    [
        ([], Ancestral(), Ancestral()),
        (["sampler=dilated"], Dilated(), Dilated()),
        (["sampler={name: dilated, temperature: 0.5}"], Dilated(temperature=0.5), Dilated(temperature=0.5)),
        (["sampler=llada"], RELEASED["llada"], RELEASED["llada"]),
        (
            ["sampler={name: llada, draw: exact, block_length: 8}"],
            TopK(block_length=8),
            TopK(block_length=8),
        ),
        (["sampler=dilated", "evaluate.sampler=sdar"], Dilated(), RELEASED["sdar"]),
        (["sampler.temperature=0.5"], Ancestral(temperature=0.5), Ancestral(temperature=0.5)),
        (["evaluate.sampler=dilated"], Ancestral(), Dilated()),
        (["sampler=dilated", "evaluate.sampler=ancestral"], Dilated(), Ancestral()),
        (["sampler=dilated", "evaluate.sampler.temperature=0.5"], Dilated(), Dilated(temperature=0.5)),
        (["evaluate.sampler.temperature=0.5"], Ancestral(), Ancestral(temperature=0.5)),
    ],
)
def test_a_student_is_measured_with_what_it_is_trained_for(overrides, trained, measured, tmp_path):
    config = distil(tmp_path, *overrides)
    assert (config.sampler, config.evaluate.sampler) == (trained, measured)


def test_sections_that_are_made_already_are_completed_alike():
    values = {**DISTIL, "sampler": Dilated(), "evaluate": EvaluateConfig(samples=8)}
    evaluate = DistillConfig(**values).evaluate
    assert (evaluate.sampler, evaluate.samples) == (Dilated(), 8)
    values["evaluate"] = EvaluateConfig(sampler=Ancestral())
    assert DistillConfig(**values).evaluate.sampler == Ancestral()
    values["evaluate"] = {"sampler": {"temperature": 0.5}}
    assert DistillConfig(**values).evaluate.sampler == Dilated(temperature=0.5)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data={path: a.jsonl, length: 8, columns: {prompt: q}}", "columns.prompt does not go with format 'text'"),
        (
            "data={path: a.jsonl, length: 8, format: messages, columns: {completion: q}}",
            "which has columns.messages; leave it out",
        ),
        ("data={path: a.jsonl, length: 8, format: prompt_completion, columns: {answer: q}}", "data.columns.answer"),
        ("data={path: a.jsonl, length: 8, format: prompts}", "data.format"),
        ("data={path: a.jsonl, length: 8, format: prompt_only, pack: false}", "pack is false"),
        ("data={path: a.jsonl, length: 8, format: prompt_only, text_column: q}", "text_column is of format 'text'"),
        ("data={path: a.jsonl, length: 8, format: prompt_only, tail: .inf}", "data.tail"),
        ("data={path: a.jsonl, length: 8, format: prompt_only, too_long: cut}", "data.too_long"),
    ],
)
def test_what_does_not_go_with_a_format_is_refused(override, says, tmp_path):
    refused(lambda: distil(tmp_path, "length=null", override), says)


def test_pretraining_needs_completions_and_packs_no_prompts(tmp_path):
    refused(lambda: pretrain(tmp_path, "data.format=prompt_only"), "data.format is 'prompt_only'", "prompt_completion")
    words = ["data.format=messages", "masks.documents=true"]
    refused(lambda: pretrain(tmp_path, *words), "masks.documents", "'messages' is never packed")
    assert pretrain(tmp_path, "data.format=messages").data.columns.messages == "messages"
