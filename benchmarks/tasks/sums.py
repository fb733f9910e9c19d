"""Sums of several numbers, worked out digit by digit: several right ways to write the same answer.

    37+85+46+29=707512618927;305813417219#197

The working goes column by column from the right. Each step takes one of the column's digits and writes it with the
running total: 7 07, 5 12, 6 18, 9 27. The carry, 2, is where the next column starts: 3 05, 8 13, 4 17, 2 19. The digits
of a column may be taken in any order, and a row of training has one at random. So positions must agree: a digit that is
taken twice, or a total of another order, makes a wrong sum. The sum itself stands after the #.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

MARKER = "#"


@dataclass(frozen=True)
class Sums:
    """How the prompts are drawn.

    Attributes:
        addends: numbers a sum has. digits: of each number.
    """

    addends: int = 4
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
    addends = [str(number) for number in numbers(prompt)]
    columns, carry = [], 0
    for column in reversed(list(zip(*addends, strict=True))):
        steps, total = [], carry
        for digit in draws.sample(column, len(column)):
            total += int(digit)
            steps.append(f"{digit}{total:02}")
        columns.append("".join(steps))
        carry = total // 10
    return ";".join(columns) + MARKER + answer(prompt)
