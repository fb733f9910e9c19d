"""DiDi-Instruct as published (Zheng et al. 2509.25035): a named point of the integral-KL family.

∇L = E_{t~π, x~p_ν, z_t~Q(·|x)} [ ω(t)/π(t) · R(z_t, t) · ∇ log p_ν(x | all masked) ], R from a discriminator.

What the released code gets wrong is not inherited: student passes share one (absent) dropout draw, teacher and
discriminator see masked canvases as they were trained, a group shares its τ, and the average is updated once an update.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from objectives.integral_kl import IntegralKLConfig


class DidiInstructConfig(IntegralKLConfig):
    """Every default with its origin. The optimiser's are in configs/didi_instruct.yaml."""

    name: Literal["didi_instruct"] = "didi_instruct"  # type: ignore[assignment]
    rollout: Literal["one_move", "two_moves", "k_step"] = "two_moves"  # score decomposition [paper]
    corruption: Literal["independent", "coupled", "nested"] = "coupled"  # [paper]
    pi: tuple[PositiveInt, PositiveInt] = (2, 2)  # [code] Beta(1, 1) or Beta(2, 2)
    clamp_time: tuple[float, float] = (0.02, 0.98)  # [code]
    omega: Literal["elbo", "uniform"] = "elbo"  # [paper] −α'/(1−α)
    clamp_omega: tuple[float, float] = (0.1, 10.0)  # [code]
    importance: bool = True  # [paper] ω(t)/π(t)
    ratio: Literal["auxiliary", "discriminator"] = "discriminator"  # [paper]
    discriminator_blocks: PositiveInt = 4  # [code]
    discriminator_targets: tuple[float, float] = (0.9, 0.1)  # [code]
    reward_epsilon: float = 1e-6  # [code]
    reward_clamp: float = 8.0  # [code]
    gradient: Literal["marginalised", "per_token", "score_function"] = "score_function"  # [paper]
    group_size: PositiveInt = 4  # [paper]
    advantage_clamp: float = 3.0  # [code]
    teacher_kl: float = 0.02  # [code] 0.01–0.05
    teacher_divergence: Literal["kl", "jeffreys"] = "kl"  # [code] or Jeffreys with β = 0.5
    entropy_bonus: float = 5e-4  # [code] 5e-4–0.02
