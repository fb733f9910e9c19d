"""The ``adapter:`` section of a config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from teachers.section import Section


class AdapterConfig(Section):
    """A LoRA adapter.

    Attributes:
        rank: columns of A's output [own].
        alpha: the adapter's output is multiplied by alpha/rank [own].
        targets: "all-linear", every linear layer but the head (2305.14314 [paper]), or the last parts of the names of
            linear layers, e.g. ``[q_proj, v_proj]`` (2106.09685 [paper]). In networks with experts, those of attention.
    """

    rank: PositiveInt = 16
    alpha: float = Field(default=32.0, gt=0)
    targets: Literal["all-linear"] | list[str] = "all-linear"

    @field_validator("targets", mode="before")
    @classmethod
    def _targets(cls, targets: Any) -> Any:
        names = isinstance(targets, list) and targets and all(isinstance(target, str) and target for target in targets)
        if targets != "all-linear" and not names:
            raise ValueError(f"{targets!r} is neither 'all-linear' nor a list of layer names such as [q_proj, v_proj]")
        return targets
