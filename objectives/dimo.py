"""Di[M]O (Zhu et al. 2503.15457): a one-step generator from a masked diffusion teacher, as a point of our family.

The student writes x in one move; x is masked again to z̃_t; an auxiliary denoiser ψ learns the student's conditionals
there; and the student's logits get, at each masked position, the gradient that a divergence between teacher and
auxiliary has in the auxiliary's logits (generalised Jeffreys):

  g = (1−β) (p_ψ − p_θ) + β p_ψ (d − Σ_v p_ψ(v) d(v)),  d = log p_ψ − log p_θ.

The released code writes ½‖logits − sg[logits − g]‖², whose gradient is g; ours, Σ_v sg[g(v)] log p_ν(v), has the same,
because g sums to 0, and its value goes down as the student learns. It is plain squared error there, no pseudo-Huber.

The start. So that one move has something to be random about, the student starts from round(0.6 L) masks and random
tokens elsewhere, and predicts all positions. The code also adds Gaussian noise of 0.1 to the start's embeddings; the
`Denoiser` contract has no embeddings, so that is left out. Our samplers start all masked: a student trained with
``rollout.random_share`` above 0 has never seen their canvas, and none of the later ones of several steps. To compare at
several steps, train with ``rollout: k_step``, as configs/compare/dimo.yaml does: then start and states are the
sampler's, and what is left of Di[M]O is its critic and its gradient.

What the released code gets wrong and ours does not: the teacher stays in training mode, so the targets carry dropout
noise; every gradient goes through nan_to_num, which hides what our loop skips and records; what is reported as the loss
is ½‖g‖², which is no distance to the minimum; samples for the metric are drawn at temperature 7.
"""

from __future__ import annotations

from typing import Literal

from objectives.corruption import AnyCorruption, AnyWeight, Independent, Times, UniformWeight
from objectives.gradients import AnyGradient, ThroughLogits
from objectives.integral_kl import IntegralKLConfig
from objectives.ratios import AnyRatio, Auxiliary
from objectives.rollouts import AnyRollout, OneMove


class DimoConfig(IntegralKLConfig):
    """Every default with its origin, for class-conditional images there. The optimisers': lr 1e-5, clip 1 [code]."""

    name: Literal["dimo"] = "dimo"
    rollout: AnyRollout = OneMove(  # [paper]
        random_share=0.4,  # [paper] 0.6 masked; 0.5 for text-to-image [code]
    )
    ratio: AnyRatio = Auxiliary(  # [paper]
        label_smoothing=0.1,  # [code]
        reward_clamp=50.0,  # [own] of d, for β ≠ 0; the code has none
    )
    gradient: AnyGradient = ThroughLogits(  # [paper]
        jeffreys=0.0,  # [code] "Jeffreys_0.", the forward KL; 1 is the reverse KL
    )
    corruption: AnyCorruption = Independent()  # [paper]
    time: Times = Times(
        pi=(2, 1),  # [own] density 2t; [code] (π/2) sin(πt/2), MaskGIT's arccos law
        clamp=(0.01, 1.0),  # [code] at least one mask, at most all
    )
    weight: AnyWeight = UniformWeight(  # [code]
        importance=False,  # [code]
    )
