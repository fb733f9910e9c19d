"""The integral-KL family."""
from __future__ import annotations

from typing import Literal

from teachers.section import Section


class IntegralKLConfig(Section):
    name: Literal["integral_kl"] = "integral_kl"
    steps: list[int] = [4, 8, 16]

    @property
    def group(self) -> int:
        return 1
