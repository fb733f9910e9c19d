"""IDLM (2602.19066): inverse distillation, as a point of the integral-KL family.

If the teacher f* is the best denoiser for what the student writes, the student writes what the teacher learned from.
How far it is from that, L(f*, p_ν) − min_f L(f, p_ν) with L the teacher's own training loss, is what the student
minimises (Theorem 3.1: at least KL(p_ν‖p*), and 0 only where they are equal); an auxiliary f, trained by L(f, p_ν),
stands for the minimum.

For masked diffusion, as paper and code have it: a real row is masked to t ~ U (the state z); the student gives a point
of the simplex for each position, G = p_ν(· | z) where z is masked and the token elsewhere; this is masked again at an
independent t' ~ U, what stays visible being drawn from G; and both losses have G for their target, so that

  student loss = w(t') Σ_{i masked in z̃} ⟨G_i, log f_i(z̃) − log f*_i(z̃)⟩,  w = −α'/(1−α).

Relation to `integral_kl`. z̃ is discrete and passes no gradient; visible positions copy their token in both models and
cancel; where z shows the token, G is constant. What is left is −w Σ_v p_ν(v|z) sg[log f*(v|z̃) − log f(v|z̃)] on the
positions masked in both z and z̃: the *marginalised* gradient, to the letter, with rollout "data". So IDLM is a
configuration, not a loss of its own: it says where the states come from, has soft labels for f, and clamps nothing. The
difference of the two masked losses *as a function of the student's whole law* has a second part, through the law of z̃,
which neither follows; tests/objectives/test_idlm.py computes both parts by enumeration.

What the released code gets wrong and ours does not: it sums −10⁶ over the visible positions of each loss, which cancels
in the gradient but drowns the losses it reports; its gradient clipping is set and never applied. Ours differs on
purpose in one thing: all masked tokens count alike in f's loss, which the code weights by w(t'); same minimum [own].
"""

from __future__ import annotations

from typing import Literal

from objectives.corruption import AnyCorruption, AnyWeight, ElboWeight, Independent, Times
from objectives.gradients import AnyGradient, Marginalised
from objectives.integral_kl import IntegralKLConfig
from objectives.ratios import AnyRatio, Auxiliary
from objectives.rollouts import AnyRollout, FromData


class IdlmConfig(IntegralKLConfig):
    """Every default with its origin. The optimisers': lr 1e-6 for both, batch 512, EMA 0.9999 [code]."""

    name: Literal["idlm"] = "idlm"
    rollout: AnyRollout = FromData()  # [paper] one step from noise often fails
    ratio: AnyRatio = Auxiliary(  # [paper]
        labels="soft",  # [paper] simplex relaxation
        reward_clamp=1e4,  # [code] none
    )
    gradient: AnyGradient = Marginalised()  # [paper]
    corruption: AnyCorruption = Independent()  # [code]
    time: Times = Times(
        pi=(1, 1),  # [code] uniform; there antithetic within a batch
        clamp=(1e-3, 1.0),  # [code]
    )
    weight: AnyWeight = ElboWeight(  # [paper]
        clamp=(0.0, 1e3),  # [code] none, and so is this with t ≥ 1e-3
        importance=False,  # [code]
    )
