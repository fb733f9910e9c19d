"""The ``sampler`` section: one of `SAMPLERS` by its name, with its settings, or a released one's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field

from students.samplers import PRESETS, SAMPLERS, Sampler


def _named(value: Any) -> Any:
    """A sampler's name, where its defaults will do; or some settings of the ancestral one, or of a released one."""
    if not isinstance(value, str | dict):
        return value
    written = {"name": "ancestral", **({"name": value} if isinstance(value, str) else value)}
    released = PRESETS.get(written["name"]) if isinstance(written["name"], str) else None
    return written if released is None else {**released.model_dump(), **written, "name": released.name}


def measured_with(value: Any, trained: Any) -> Any:
    """The sampler to measure with: that which is trained, with some settings of its own, or another one."""
    if isinstance(value, dict) and "name" not in value:
        trained = _named(trained)
        return {**(trained.model_dump() if isinstance(trained, Sampler) else trained), **value}
    return trained if value is None else value


if TYPE_CHECKING:
    AnySampler = Sampler
else:  # a union of what is in a table is beyond a type checker
    AnySampler = Union[tuple(SAMPLERS.values())]  # noqa: UP007
    AnySampler = Annotated[AnySampler, Field(discriminator="name"), BeforeValidator(_named)]
