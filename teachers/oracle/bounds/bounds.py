"""Bounds of every source that has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.oracle.bounds.brackets import BracketBounds
from teachers.oracle.bounds.pair import least_pair_nats
from teachers.oracle.bounds.templates import TemplateBounds
from teachers.oracle.brackets import Brackets
from teachers.oracle.copies import Copies
from teachers.oracle.source import Source
from teachers.oracle.templates import Templates


class Bounds(NamedTuple):
    """Of min KL(student ‖ source), nats a row, by schedule: (C,) float64 each.

    Attributes:
        lower: no student has less.
        reached: some student has at most this.
    """

    lower: Tensor
    reached: Tensor


def bounds(source: Source, schedule: Tensor) -> Bounds:
    """Over all students that reveal the positions of a row as a schedule says.

    Args:
        schedule: (C, L) int64, in which pass each position is revealed; passes are numbered in order, from anywhere.

    Raises:
        UserError: a source for which nobody has derived them.
    """
    source.check_length(schedule.shape[1])
    if isinstance(source, Copies):
        return _copies(source, schedule)
    if isinstance(source, Templates):
        of_templates = TemplateBounds(source)
        sizes = [pass_sizes(row) for row in schedule]
        return Bounds(_nats(map(of_templates.lower, sizes)), _nats(map(of_templates.reached, sizes)))
    if isinstance(source, Brackets):
        of_brackets = BracketBounds(source)
        return Bounds(_nats(map(of_brackets.lower, schedule)), _nats(map(of_brackets.reached, schedule)))
    raise _underived(source)


def best_bounds(source: Source, passes: int) -> Bounds | None:
    """The same over all students and all fixed schedules of at most so many passes: of the best order, (1,) each.

    None where nobody has derived it: brackets in more than one pass and fewer than they have tokens.

    Raises:
        UserError: see `bounds`.
    """
    length = source.row_length or passes
    if passes >= length:
        return Bounds(torch.zeros(1).double(), torch.zeros(1).double())
    at_once = torch.zeros(1, length, dtype=torch.int64)
    if passes == 1:
        return bounds(source, at_once)
    if isinstance(source, Copies):
        halves = at_once.clone()
        halves[:, length // 2 :] = 1
        return bounds(source, halves)
    if isinstance(source, Templates):
        best = TemplateBounds(source).best(passes)
        return Bounds(*(_nats([value]) for value in best))
    if isinstance(source, Brackets):
        return None
    raise _underived(source)


def _copies(source: Copies, schedule: Tensor) -> Bounds:
    """Each pair whose members are revealed in one pass costs what `least_pair_nats` says, all else nothing.

    Given z, the positions of a pass are independent pairs and single tokens under the source as well, so that V(z) is
    a sum over pairs that does not depend on z, and both bounds are it.
    """
    first, second = schedule.chunk(2, 1)
    pair = least_pair_nats(source.tokens, float(source.pair[0, 0]), float(source.pair[0, 1]))
    cost = pair * (first == second).sum(1).double()
    return Bounds(cost, cost)


def pass_sizes(schedule: Tensor) -> tuple[int, ...]:
    """How many positions (L,) each pass reveals, in order."""
    return tuple(schedule.unique(return_counts=True)[1].tolist())


def _nats(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _underived(source: Source) -> UserError:
    return UserError(
        f"there is no bound for a source of kind {source.kind}, whose dependence is not at a distance; choose copies, "
        "brackets or templates"
    )
