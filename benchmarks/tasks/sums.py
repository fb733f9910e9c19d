"""Sums of several numbers, worked out digit by digit: several right ways to write the same answer.

    37+85+46+29=707512618927;305813417219#197

The working goes column by column from the right. Each step takes one of the column's digits and writes it with the
running total: 7 07, 5 12, 6 18, 9 27. The carry, 2, is where the next column starts: 3 05, 8 13, 4 17, 2 19. The digits
of a column may be taken in any order, and a row of training has one at random. So positions must agree: a digit that is
taken twice, or a total of another order, makes a wrong sum. The sum itself stands after the #.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

MARKER = "#"


@dataclass(frozen=True)
class Sums:
    """How the prompts are drawn.

    Attributes:
        addends: numbers a sum has. digits: of each number.
    """

    addends: int = 3
    digits: int = 2

    def prompt(self, draws: random.Random) -> str:
        """Numbers to add up, of exactly so many digits."""
        low = 10 ** (self.digits - 1) if self.digits > 1 else 0
        return "+".join(str(draws.randrange(low, 10**self.digits)) for _ in range(self.addends)) + "="


def numbers(prompt: str) -> list[int]:
    """The numbers of a prompt."""
    return [int(number) for number in prompt.removesuffix("=").split("+")]


def identity(prompt: str) -> tuple[int, ...]:
    """What two prompts share that are the same sum in another order."""
    return tuple(sorted(numbers(prompt)))


def answer(prompt: str) -> str:
    """The sum.

    >>> answer("37+85+46+29=")
    '197'
    """
    return str(sum(numbers(prompt)))


def completion(prompt: str, draws: random.Random) -> str:
    """One of the right workings, and the sum after the marker."""
    workings, carry = [], 0
    for column in _columns(prompt):
        workings.append(_steps(draws.sample(column, len(column)), carry))
        carry = (carry + sum(map(int, column))) // 10
    return ";".join(workings) + MARKER + answer(prompt)


def is_worked_out(prompt: str, completion: str, answer: str) -> bool:
    """Whether every step of a working is right, and the sum; for the checker "python" of `fewstep evaluate --task`.

    >>> is_worked_out("37+85+46+29=", "707512618927;305813417219#197", "197")
    True
    >>> is_worked_out("37+85+46+29=", "707512719927;305813417219#197", "197")  # the 7 is taken twice
    False
    """
    working, _, total = completion.partition(MARKER)
    steps, columns = working.split(";"), _columns(prompt)
    if len(steps) != len(columns) or total != answer:
        return False
    carry = 0
    for column, written in zip(columns, steps, strict=True):
        digits = written[::3]
        if sorted(digits) != sorted(column) or written != _steps(digits, carry):
            return False
        carry = (carry + sum(map(int, digits))) // 10
    return True


def _columns(prompt: str) -> list[tuple[str, ...]]:
    """The digits of each column, the right one first."""
    return list(zip(*(str(number) for number in numbers(prompt)), strict=True))[::-1]


def _steps(digits: Sequence[str], carry: int) -> str:
    """Each digit with the running total that starts at the carry."""
    totals = accumulate(map(int, digits), initial=carry)
    return "".join(f"{digit}{total:02}" for digit, total in zip(digits, list(totals)[1:], strict=True))
