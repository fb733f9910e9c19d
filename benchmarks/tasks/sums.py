"""Sums of several numbers, worked out digit by digit: several right ways to write the same working.

    37+85+46=075618;138416#168

The working goes column by column from the right: the carry, the column's digits, and their total. The right column has
0 7 5 6 18, and the left one 1 3 8 4 16. The digits of a column may be written in any order, and a row of training has
one at random. So positions must agree: where several are drawn at a time, one digit is written twice and another one
left out. The sum itself stands after the #.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

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

    >>> answer("37+85+46=")
    '168'
    """
    return str(sum(numbers(prompt)))


def completion(prompt: str, draws: random.Random) -> str:
    """One of the right workings, and the sum after the marker."""
    return written(prompt, [draws.sample(column, len(column)) for column in columns(prompt)])


def columns(prompt: str) -> list[tuple[str, ...]]:
    """The digits of each column, the right one first.

    >>> columns("37+85+46=")
    [('7', '5', '6'), ('3', '8', '4')]
    """
    return list(zip(*(str(number) for number in numbers(prompt)), strict=True))[::-1]


def written(prompt: str, orders: Sequence[Sequence[str]]) -> str:
    """The working whose columns have their digits in these orders."""
    steps, carry = [], 0
    for digits in orders:
        total = carry + sum(map(int, digits))
        steps.append(f"{carry}{''.join(digits)}{total:02}")
        carry = total // 10
    return ";".join(steps) + MARKER + answer(prompt)


def is_worked_out(prompt: str, completion: str, answer: str) -> bool:
    """Whether every column of a working is right, and the sum; for the checker "python" of `fewstep evaluate --task`.

    >>> is_worked_out("37+85+46=", "075618;138416#168", "168")
    True
    >>> is_worked_out("37+85+46=", "077618;138416#168", "168")  # the 7 is taken twice
    False
    """
    orders = [step[1:-2] for step in completion.partition(MARKER)[0].split(";")]
    digits = [sorted(order) for order in orders]
    return digits == [sorted(column) for column in columns(prompt)] and completion == written(prompt, orders)
