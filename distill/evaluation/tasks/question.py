"""A question of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """What is asked, and which answers are right.

    Attributes:
        prompt: as the model reads it.
        answer: the right one, or a list of right ones; None where nothing is compared with it.
        row: as it is in the file.
        place: where it stands, for messages.
    """

    prompt: str
    answer: str | list[str] | None
    row: dict[str, Any]
    place: str

    @property
    def answers(self) -> list[str]:
        """The right ones."""
        if self.answer is None:
            return []
        return [self.answer] if isinstance(self.answer, str) else self.answer
