"""SDTT (Deschenaux & Gulcehre 2410.21035): students of MDLM, each a revision of one repository.

Their config.json is a training configuration whose values may be unresolved, ``${…}``; it is read as plain JSON and
nothing in it is resolved. It does not say the vocabulary, which the embedding does. One revision, ``teacher_1M_sm``,
has its prefix twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teachers.errors import UserError
from teachers.families.dit.family import (
    EMBEDDING,
    DitFamily,
    Layout,
    flag,
    prefix_of,
    refuse_unless,
    shapes_of,
    whole_number,
)
from teachers.families.dit.sedd import nested_sizes
from teachers.families.dit.shape import Shape
from teachers.families.family import Checkpoint

PREFIX = "backbone."


class Sdtt(DitFamily):
    """Checkpoints whose config.json names the parameterization "multi-round-sdtt"."""

    name = "sdtt"
    title = "an SDTT checkpoint"
    releases = ("jdeschena/sdtt",)

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        parameterization = config.get("parameterization")
        return isinstance(parameterization, Mapping) and parameterization.get("name") == "multi-round-sdtt"

    def layout(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Layout:
        """See `DitFamily.layout`."""
        refuse_unless(checkpoint, "model.type", ("ddit-orig", "ddit"))
        refuse_unless(checkpoint, "noise.type", ("loglinear",))
        shapes = shapes_of(checkpoint)
        prefix = prefix_of(checkpoint, shapes)
        if prefix not in (PREFIX, 2 * PREFIX):
            raise UserError(
                f"model {checkpoint.name!r} has {prefix + EMBEDDING}; SDTT's releases have {PREFIX + EMBEDDING}, or "
                f"the prefix {PREFIX} twice: give their files as they are"
            )
        return Layout(
            Shape(shapes[prefix + EMBEDDING][0], *nested_sizes(checkpoint)),
            whole_number(checkpoint, "model.length"), prefix, time_conditioned=flag(checkpoint, "time_conditioning"),
        )  # fmt: skip
