"""What every family can beyond predicting, in the trainings and samplers that need it; what one can not is a line."""

import json

import pytest
import torch

import fewstep
from distill.commands.distil import distil
from distill.commands.evaluate import evaluate_command
from distill.commands.generate import generate_command
from distill.config import DistillConfig, validate
from distill.planning.propose import plan
from distill.training.distillation import build_objective, load_networks
from students.student import enable_gradient_checkpointing
from teachers.errors import UserError
from teachers.randomness import RowStreams
from tests.batches import batch_of
from tests.objectives.wiring import shake
from tests.test_families_end_to_end import CONFIG, NAMES, WITHOUT_CASE, changes

NETWORKS = [name for name in NAMES if name not in ("oracle", *WITHOUT_CASE)]
TRAIN = {"updates": 2, "batch": 4, "precision": "float32", "student": {"lr": 1e-3}}
CRITIC = {"critic": {"lr": 1e-3}}
ADAPTER = {"rank": 2}
DIDI = {"name": "didi_instruct", "ratio": {"name": "discriminator", "blocks": 1}}
MMD = {"name": "representation_mmd", "blocks": 1}
SAMPLES = {"teacher_samples": 8, "teacher_sample_steps": 4}


@pytest.fixture(scope="module", params=NETWORKS)
def teacher(request, tmp_path_factory):
    """The teacher section of a config for one family."""
    return changes(request.param, tmp_path_factory.mktemp(request.param)).get("teacher", CONFIG["teacher"])


def config(teacher, objective, train=TRAIN, **sections):
    return validate(DistillConfig, CONFIG | {"teacher": teacher, "objective": objective, "train": train, **sections})


def gradients(objective, rollout):
    """Phase → (loss, gradients)."""
    found = {}
    for phase in objective.phases:
        network = objective.networks[phase]
        network.zero_grad()
        loss = objective.loss(phase, rollout).sum
        loss.backward()
        found[phase] = loss.detach(), [p.grad for p in network.parameters() if p.grad is not None]
    return found


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["whole", "adapters"])
def test_activations_that_are_computed_again_change_no_gradient(teacher, adapter):
    objective = CONFIG["objective"] | ({"ratio": {"name": "auxiliary", "adapter": adapter}} if adapter else {})
    described = config(teacher, objective, TRAIN | CRITIC, student={"adapter": adapter})
    networks = load_networks(described)
    torch.manual_seed(0)
    built = build_objective(described, networks)
    shake(built)
    base = networks.teacher if adapter else networks.student
    passes = []
    first = next(part for part in base.blocks()[0].modules() if not [*part.children()])
    first.register_forward_pre_hook(lambda *_: passes.append(1))
    rollout = built.rollout(batch_of(built, torch.randint(20, (4, 16)), 4), RowStreams(0, (0,), range(4)))
    passes.clear()
    kept, once = gradients(built, rollout), len(passes)
    for phase in built.phases:
        enable_gradient_checkpointing(built.networks[phase], True)
    passes.clear()
    again = gradients(built, rollout)
    assert len(passes) > once
    assert kept.keys() == again.keys()
    for phase in kept:
        torch.testing.assert_close(again[phase], kept[phase], rtol=1e-4, atol=1e-6)
        assert any(gradient.abs().sum() > 0 for gradient in kept[phase][1])


def test_student_and_discriminator_are_adapters_on_one_base(teacher, tmp_path):
    objective = {"name": "didi_instruct", "ratio": {"name": "discriminator", "adapter": ADAPTER}}
    described = config(teacher, objective, TRAIN | CRITIC, student={"adapter": ADAPTER}, **SAMPLES)
    loaded = fewstep.load_teacher(teacher["path"], family=teacher.get("family"))
    before = {name: value.clone() for name, value in loaded.denoiser.state_dict().items()}
    law = loaded.log_probs(torch.full((1, 16), loaded.spec.mask_id))
    distiller = fewstep.Distiller.of(loaded, described)
    assert [metrics["update"] for metrics in distiller] == [1, 2]
    after = {name.replace(".base_layer", ""): value for name, value in loaded.denoiser.state_dict().items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    student = distiller.student
    tokens = torch.full((1, 16), student.spec.mask_id)
    assert torch.equal(loaded.log_probs(tokens), law)
    assert not torch.equal(student.log_probs(tokens), law)
    exported = fewstep.load_student(fewstep.export(student, tmp_path / "exported"))
    torch.testing.assert_close(exported.log_probs(tokens), student.log_probs(tokens), atol=1e-5, rtol=0)


def test_a_discriminator_guides_what_is_evaluated(teacher, tmp_path):
    measured = CONFIG["evaluate"] | {"sampler": {"name": "rgas", "candidates": 2}, "steps": [4]}
    measured["temperatures"] = None
    described = config(teacher, DIDI, TRAIN | CRITIC, evaluate=measured, **SAMPLES)
    run = distil(described, tmp_path / "run")
    rows = json.loads(evaluate_command(run).read_text("utf-8"))["rows"]
    [student] = [row for row in rows if row["model"] == "student"]
    assert student["critic_nfe"] > 0
    assert student["judge_perplexity"] > 1


def test_a_planner_is_trained_and_says_what_is_committed(teacher, tmp_path):
    described = config(
        teacher, {"name": "step_reduction", "steps": 4, "group_size": 2}, sampler={"name": "planner"}, **SAMPLES
    )
    run = distil(described, tmp_path / "run")
    assert len(generate_command(str(run), steps=4, num=2, seed=1)) == 2


def test_features_of_its_blocks_are_compared(teacher, tmp_path):
    run = distil(config(teacher, MMD, TRAIN | {"updates": 1}, **SAMPLES), tmp_path / "run")
    [line] = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert line["student/grad_norm"] > 0


def test_its_memory_is_planned(teacher):
    found = plan(config(teacher, DIDI, TRAIN | CRITIC, **SAMPLES), 1, 80)
    assert {option.setup.stage for option in found.options} == {None, 0, 1, 2, 3}
    assert found.proposal is not None
    networks = load_networks(config(teacher, DIDI, TRAIN | CRITIC, **SAMPLES))
    assert found.networks["student"].trained == sum(p.numel() for p in networks.student.parameters())


def test_a_process_without_masks_is_planned_for_nobody(tmp_path):
    with pytest.raises(UserError, match=r"DUO checkpoint, without .*, but fewstep plan makes networks"):
        plan(config(changes("duo", tmp_path)["teacher"], DIDI, TRAIN | CRITIC, **SAMPLES), 1, 80)


@pytest.mark.parametrize(
    ("section", "capability"),
    [
        ({"student": {"adapter": ADAPTER}}, "adapters"),
        ({"teacher": {"placement": "sharded"}}, "sharding"),
        ({"teacher": {"placement": "dispatched"}}, "dispatch"),
        ({"student": {"init": "teacher"}}, "weights"),
        ({"sampler": {"name": "top_k", "block_length": 4, "cache": "dual"}}, "cache"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_source_without_a_network_can_not_do_is_refused_first(section, capability, tmp_path):
    described = CONFIG | changes("oracle", tmp_path)
    described |= section | {"teacher": described["teacher"] | section.get("teacher", {})}
    with pytest.raises(UserError, match=f"without {capability}, but"):
        distil(validate(DistillConfig, described), tmp_path / "run")
    assert not (tmp_path / "run").exists()
