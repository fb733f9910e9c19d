"""Parts: sections that a config may leave out, name, or give a few settings of; the rest is the default's."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from teachers.section import Section


class Part(Section):
    """A choice of the objective: which one, ``name``, and that one's own settings."""

    name: str


def completed(kind: type[BaseModel], values: Any) -> Any:
    """Fill up what a config writes of each section of ``kind`` that has a default.

    A part may be its name alone (``gradient: logit``), or some settings of the default one (``gradient: {…}``), whose
    others then are the default's: a published method's, where ``kind`` is one.
    """
    if not isinstance(values, dict):
        return values
    defaults = {name: field.default for name, field in kind.model_fields.items() if isinstance(field.default, Section)}
    return values | {name: _completed(values[name], default) for name, default in defaults.items() if name in values}


def _completed(written: Any, default: Section) -> Any:
    if isinstance(default, Part):
        written = {"name": written} if isinstance(written, str) else written
        if isinstance(written, dict) and written.get("name", default.name) != default.name:
            return written
    return {**default.model_dump(), **written} if isinstance(written, dict) else written
