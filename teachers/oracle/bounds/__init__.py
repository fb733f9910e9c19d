"""How near to a source any student can come that draws the positions of a pass independently of each other.

A student is a function of the canvas: in pass n it commits positions S_n, and draws x_i for i ∈ S_n from laws q_i(· |
z) of the canvas z before the pass, independently. Given the *schedule* c, which says what S_1, …, S_K are, it has the
law q(x | c) = Π_n Π_{i ∈ S_n} q_i(x_i | x of earlier passes). What is bounded is min_q KL(q(· | c) ‖ source), in nats
a row, over **all** such q, also those that know c. A network does not know c, and has the same bound or a larger one.
An evaluation's ``divergence_nats`` estimates the mean of KL(q(· | c) ‖ source) over the schedules of its sampler, so
that the mean of the bound over the same schedules is below it, for a teacher as for any student.

By the chain rule KL(q ‖ p) is a sum over passes of E_z KL(q(x_S | z) ‖ p(x_S | z)). If one pass is a product of laws,
and all the others may be anything, the least that the earlier ones must leave is

    min over laws r of z of  KL(r ‖ p(z)) + E_r V(z) = −log Σ_z p(z) e^{−V(z)},   V(z) = min KL(product ‖ p(x_S | z)),

so that any lower bound on V gives one on the whole. These are the bounds on which the modules rest: copies need no
more, templates.py and brackets.py say what V is.

The other direction, KL(source ‖ q), is least for the source's own marginals, q_i = p(x_i | z): the teacher sampled in
the same passes. Nothing that is distilled can be better there, so it is no bench.
"""

from __future__ import annotations

from teachers.oracle.bounds.bounds import Bounds, best_bounds, bounds

__all__ = ["Bounds", "best_bounds", "bounds"]
