"""Every objective at the smallest size, on rows that it must treat as any canvas."""

from __future__ import annotations

import torch

from objectives.certainty import CertaintyConfig
from objectives.consistency import ConsistencyConfig
from objectives.constrained_order import ConstrainedOrderConfig
from objectives.didi_instruct import DidiInstructConfig
from objectives.dimo import DimoConfig
from objectives.elbo import Autoregressive, EditConfig, MaskedElbo
from objectives.idlm import IdlmConfig
from objectives.integral_kl import IntegralKLConfig
from objectives.objective import Distillation
from objectives.redi import RediConfig
from objectives.representation_mmd import RepresentationMmdConfig
from objectives.sdtt import SdttConfig
from objectives.step_reduction import StepReductionConfig
from objectives.t3d import T3DConfig
from objectives.tail import Tail
from objectives.trajectory import TrajectoryConfig
from students.samplers import Ancestral, Dilated, Planner, Threshold
from students.student import trainable_copy
from teachers.process import MaskedProcess
from tests.networks import shape, stock

VOCABULARY, LENGTH, MASK, ROWS = 9, 11, 8, 8
LEFT, RIGHT = 3, 2
PADDED = LENGTH + LEFT + RIGHT

KINDS = {
    "integral_kl": (IntegralKLConfig(rollout={"steps": [2, 4]}), Ancestral()),
    "integral_kl, dilated": (IntegralKLConfig(rollout={"steps": [2, 4]}, gradient="logit"), Dilated()),
    "integral_kl, adaptive": (IntegralKLConfig(rollout={"steps": [4]}), Threshold(threshold=0.2)),
    "integral_kl, states twice": (IntegralKLConfig(rollout={"steps": [2, 4], "uses": 2}), Ancestral()),
    "integral_kl, nested": (
        IntegralKLConfig(corruption="nested", rollout={"steps": [2, 4]}, gradient={"exact_share": 0.5}), Ancestral(),
    ),
    "integral_kl, per token": (
        IntegralKLConfig(
            rollout="two_moves", corruption="coupled", gradient="per_token",
            regularisers={"teacher_weight": 0.1, "entropy_bonus": 0.1},
        ),
        Ancestral(),
    ),
    "didi_instruct": (DidiInstructConfig(ratio={"blocks": 1}), Ancestral()),
    "dimo": (DimoConfig(), Ancestral()),
    "idlm": (IdlmConfig(), Ancestral()),
    "representation_mmd": (RepresentationMmdConfig(sets=2, draws=2), Ancestral()),
    "representation_mmd, sequence": (
        RepresentationMmdConfig(sets=2, draws=2, observations="sequence", kernel="linear"), Ancestral(),
    ),
    "sdtt": (SdttConfig(first_steps=8), Ancestral()),
    "consistency": (ConsistencyConfig(first_steps=4), Ancestral()),
    "redi": (RediConfig(steps=3), Ancestral()),
    "redi, random": (RediConfig(steps=3, random_share=0.5), Ancestral()),
    "certainty": (CertaintyConfig(block=3), Ancestral()),
    "certainty, sampler": (CertaintyConfig(canvases="sampler", steps=[2, 4]), Dilated()),
    "trajectory": (TrajectoryConfig(window=(4, 4)), Ancestral()),
    "t3d": (T3DConfig(guess="drawn"), Ancestral()),
    "constrained_order": (ConstrainedOrderConfig(weight="uniform"), Ancestral()),
    "step_reduction": (StepReductionConfig(steps=4, group_size=2), Planner()),
    "step_reduction, all": (
        StepReductionConfig(steps=4, group_size=2, trains="all", verifier="teacher", surrogate=1.0), Threshold(),
    ),
    "step_reduction, used twice": (StepReductionConfig(steps=4, group_size=2, uses=2), Planner()),
    "step_reduction, discriminator": (
        StepReductionConfig(steps=4, group_size=2, verifier="discriminator", discriminator_blocks=1), Planner(),
    ),
}  # fmt: skip


def objective_of(name, tail=None, sampler=None):
    """One of `KINDS`, "elbo" or "autoregressive", whose networks are no longer the teacher's."""
    tail = tail or Tail()
    if name == "autoregressive":
        sizes = shape(initializer_range=0.3)
        return Autoregressive(stock(VOCABULARY, PADDED, MASK, sizes=sizes, shift=True, attention="causal"), tail)
    teacher = stock(VOCABULARY, PADDED, MASK, sizes=shape(initializer_range=0.3)).requires_grad_(False)
    student = trainable_copy(teacher)
    if name == "elbo":
        objective = MaskedElbo(student, MaskedProcess(), EditConfig(rate=0.4, share=1.0), tail=tail)
    else:
        config, usual = KINDS[name]
        torch.manual_seed(1)
        objective = config.build(
            Distillation(teacher, student, MaskedProcess(), LENGTH, teacher, sampler or usual, tail)
        )
    with torch.no_grad():
        for phase in objective.phases:
            for parameter in objective.networks[phase].parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    objective.begin(0, 4)
    return objective


def results(objective, phase, rollout):
    """Loss, count, metrics and gradients."""
    objective.networks[phase].zero_grad()
    out = objective.loss(phase, rollout)
    out.sum.backward()
    gradients = [p.grad.clone() for p in objective.networks[phase].parameters() if p.grad is not None]
    metrics = [value.double() for pair in out.metrics.values() for value in pair]
    return [out.sum.detach(), objective.count(phase, rollout), *metrics, *gradients]
