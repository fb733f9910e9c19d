"""DiDi-Instruct as published (Zheng et al. 2509.25035): a named point of the integral-KL family.

∇L = E_{t~π, x~p_ν, z_t~Q(·|x)} [ ω(t)/π(t) · R(z_t, t) · ∇ log p_ν(x | all masked) ], R from a discriminator.

What the released code gets wrong is not inherited: student passes share one (absent) dropout draw, teacher and
discriminator see masked canvases as they were trained, a group shares its τ, and the average is updated once an update.
"""

from __future__ import annotations

from typing import Literal

from objectives.corruption import AnyCorruption, AnyWeight, Coupled, ElboWeight, Times
from objectives.gradients import AnyGradient, ScoreFunction
from objectives.integral_kl import IntegralKLConfig
from objectives.ratios import AnyRatio, Discrimination
from objectives.regularisers import Regularisers
from objectives.rollouts import AnyRollout, TwoMoves


class DidiInstructConfig(IntegralKLConfig):
    """Every default with its origin. The optimiser's are in configs/didi_instruct.yaml."""

    name: Literal["didi_instruct"] = "didi_instruct"
    rollout: AnyRollout = TwoMoves()  # score decomposition [paper]
    ratio: AnyRatio = Discrimination(  # [paper]
        blocks=4,  # [code]
        targets=(0.9, 0.1),  # [code]
        reward_epsilon=1e-6,  # [code]
        reward_clamp=8.0,  # [code]
    )
    gradient: AnyGradient = ScoreFunction(  # [paper]
        group_size=4,  # [paper]
        advantage_clamp=3.0,  # [code]
    )
    corruption: AnyCorruption = Coupled()  # [paper]
    time: Times = Times(
        pi=(2, 2),  # [code] Beta(1, 1) or Beta(2, 2)
        clamp=(0.02, 0.98),  # [code]
    )
    weight: AnyWeight = ElboWeight(  # [paper] −α'/(1−α)
        clamp=(0.1, 10.0),  # [code]
        importance=True,  # [paper] ω(t)/π(t)
    )
    regularisers: Regularisers = Regularisers(
        teacher_weight=0.02,  # [code] 0.01–0.05
        teacher_divergence="kl",  # [code] or Jeffreys with β = 0.5
        entropy_bonus=5e-4,  # [code] 5e-4–0.02
    )
