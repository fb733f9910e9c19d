"""A config from a YAML file and dotted overrides, and the other way."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from distill.config.explain import explain, shown
from teachers.errors import UserError

AnySection = TypeVar("AnySection", bound=BaseModel)


def load_config(kind: type[AnySection], path: str | Path, overrides: Sequence[str] = ()) -> AnySection:
    """Read a YAML config and apply ``key.sub=value`` overrides (values are YAML).

    Raises:
        UserError: unreadable file, unknown key (the nearest named), value out of range, or a failed cross-check.
    """
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config {str(path)!r} does not exist; examples are in configs/") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, no such date
        why = " ".join(str(error).split())[:160]
        raise UserError(f"cannot read config {str(path)!r} ({why}); it must be a UTF-8 YAML file") from error
    if not isinstance(values, dict):
        raise UserError(f"config {str(path)!r} holds {type(values).__name__}; it must be a YAML mapping of sections")
    for override in overrides:
        apply_override(values, override)
    return validate(kind, values)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one ``key.sub=value`` in nested ``values``."""
    key, equals, text = override.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f"override {override!r} is not of the form key.sub=value")
    try:
        value = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"override {override!r}: the value is not YAML; quote it") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is not None and not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {section} is {shown(inner)}, not a section")
        inner = dict(inner or {})  # a copy: two sections may be one YAML alias, and the override means one of them
        values[section] = inner
        values = inner
    values[last] = value


def validate(kind: type[AnySection], values: dict[str, Any]) -> AnySection:
    """Build a config; the first mistake becomes a one-line `UserError`."""
    _check_size(values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(kind, error.errors())) from error


LARGEST, DEEPEST = 10_000, 20  # values in a config, and levels of them


def _check_size(values: Any) -> None:
    """Refuse what YAML's aliases can make: values that hold themselves, or a few lines that stand for millions."""
    pending, count = [(values, 0)], 0
    while pending:
        value, level = pending.pop()
        inner = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else []
        count += len(inner)
        if count > LARGEST or level > DEEPEST:
            raise UserError(
                f"the config has more than {LARGEST} values or {DEEPEST} levels; write out what an alias (*) stands for"
            )
        pending += [(v, level + 1) for v in inner]


def dump_config(config: BaseModel) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
