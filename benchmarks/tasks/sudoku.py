"""Sudokus of 4x4 cells with several solutions: a grid is right as a whole or not at all.

    1..4.4..2.4...2.=1234341221434321

A prompt is the grid row by row, with a dot where a cell is empty; the completion is the grid, filled. So few cells are
given that a prompt has several solutions, and a row of training has one of them at random. Cells that are drawn at the
same time come from different solutions, and do not fit together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import permutations

SIDE, BOX = 4, 2
EMPTY = "."


@dataclass(frozen=True)
class Sudokus:
    """How the prompts are drawn.

    Attributes:
        least, most: cells that are given.
    """

    least: int = 5
    most: int = 7

    def prompt(self, draws: random.Random) -> str:
        """A grid with so few cells given that it has several solutions."""
        while True:
            grid = draws.choice(grids())
            given = set(draws.sample(range(SIDE * SIDE), draws.randint(self.least, self.most)))
            prompt = "".join(cell if n in given else EMPTY for n, cell in enumerate(grid)) + "="
            if len(solutions(prompt)) > 1:
                return prompt


def units(grid: str) -> list[str]:
    """The cells of each row, column and box.

    >>> units("1234341221434321")[-1]
    '4321'
    """
    rows = [grid[SIDE * n : SIDE * (n + 1)] for n in range(SIDE)]
    columns = [grid[n::SIDE] for n in range(SIDE)]
    corners = [(row, column) for row in range(0, SIDE, BOX) for column in range(0, SIDE, BOX)]
    boxes = ["".join(rows[row + n][column : column + BOX] for n in range(BOX)) for row, column in corners]
    return rows + columns + boxes


@cache
def grids() -> list[str]:
    """All 288 filled grids."""
    lines = ["".join(line) for line in permutations("1234")]
    return [
        grid
        for first in lines for second in lines for third in lines for fourth in lines
        if _differ(first, second, third, fourth) and is_filled(grid := first + second + third + fourth)
    ]  # fmt: skip


def _differ(*lines: str) -> bool:
    return all(len(set(column)) == len(lines) for column in zip(*lines, strict=True))


def is_filled(grid: str) -> bool:
    """Whether each row, column and box holds every number once."""
    return len(grid) == SIDE * SIDE and all(set(unit) == set("1234") for unit in units(grid))


def fits(prompt: str, grid: str) -> bool:
    """Whether a grid holds what the prompt gives."""
    return all(given in (EMPTY, cell) for given, cell in zip(prompt.removesuffix("="), grid, strict=True))


def is_solution(prompt: str, completion: str, answer: str) -> bool:
    """Whether a grid is one of the solutions, not just the answer; for the checker "python" of `fewstep evaluate`.

    >>> is_solution("..34341221434321=", "1234341221434321", "1234341221434321")
    True
    """
    return is_filled(completion) and fits(prompt, completion)


def solutions(prompt: str) -> list[str]:
    """All of them."""
    return [grid for grid in grids() if fits(prompt, grid)]


def completion(prompt: str, draws: random.Random) -> str:
    """One of the solutions."""
    return draws.choice(solutions(prompt))
