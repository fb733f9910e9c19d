"""A config from a YAML file, the files it is based on, and dotted overrides; and the other way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from distill.config.bundled import config_file
from distill.config.explain import explain, inside, sections, shown, tags
from distill.config.yaml12 import read_yaml, write_yaml
from teachers.errors import UserError

AnySection = TypeVar("AnySection", bound=BaseModel)
LARGEST, DEEPEST = 10_000, 20  # values in a config, and levels of them, or of files
KEY = re.compile(r"[\w.]+=")


def load_config(kind: type[AnySection], path: str | Path, overrides: Iterable[str] = ()) -> AnySection:
    """Read a YAML config, the files its ``base`` names, and ``key.sub=value`` overrides (values are YAML).

    ``base`` is the path of another config, from the folder of the file that names it, or a list of paths, of which a
    later one overrides an earlier one. Sections are merged key by key and values replaced; a section of another
    ``name`` replaces the whole section, and null removes what a base says.

    Args:
        path: a file, or ``bundled:NAME``, see `config_file`.

    Raises:
        UserError: unreadable file, unknown key (the nearest named), value out of range, or a failed cross-check.
    """
    values = _Files(kind).read(config_file(path))
    for override in overrides:
        apply_override(kind, values, override)
    return validate(kind, values)


class _Files:
    """The config files of one load, each read once."""

    def __init__(self, kind: type[BaseModel]):
        self.kind = kind
        self.values: dict[Path, dict[str, Any]] = {}

    def read(self, path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
        """What a file says on top of its bases; ``above`` are the files that are based on it, the first one first."""
        place = _place(path)
        if place not in self.values:
            values = read_mapping(path, f"base {str(path)!r} of config {str(above[-1])!r}" if above else "")
            merged: dict[str, Any] = {}
            for base in _bases(values.pop("base", None), path):
                self._check_chain(base, (*above, path))
                merged = merge(merged, self.read(base, (*above, path)), [self.kind])
            self.values[place] = merge(merged, values, [self.kind])
        return self.values[place]

    def _check_chain(self, base: Path, above: tuple[Path, ...]) -> None:
        if _place(base) in map(_place, above):
            raise UserError(
                f"config {str(above[-1])!r} has the base {str(base)!r}, which is based on it in turn; "
                "take the base out of one of them"
            )
        if len(above) > DEEPEST:
            raise UserError(f"config {str(above[0])!r} has a base of a base, more than {DEEPEST} deep; take some out")


def _place(path: Path) -> Path:
    """Where a file is, links followed; of a path that no file can have, the path itself."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path


def _bases(named: Any, path: Path) -> list[Path]:
    """The files that ``base`` names in the file ``path``."""
    names = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f"base of config {str(path)!r} is {shown(named)}; give the path of a config, or a list of them")
    return [path.parent / os.path.expanduser(name) for name in names]


def read_mapping(path: Path, what: str = "") -> dict[str, Any]:
    """The values in a file.

    Args:
        what: the file in a message.

    Raises:
        UserError: it is not there, or no YAML mapping.
    """
    what = what or f"config {str(path)!r}"
    try:
        values = read_yaml(path.read_text("utf-8"))
    except FileNotFoundError as error:
        hint = "a base is found from the folder of the file that names it" if what.startswith("base") else ""
        raise UserError(f"{what} does not exist; {hint or 'examples are in configs/'}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, no such date
        why = " ".join(str(error).split())[:160]
        raise UserError(f"cannot read {what} ({why}); it must be a UTF-8 YAML file") from error
    if not isinstance(values, dict):
        raise UserError(f"{what} holds {type(values).__name__}; it must be a YAML mapping of sections")
    _check_size(values, what)
    return values


def merge(lower: dict[str, Any], upper: dict[str, Any], allowed: Sequence[Any]) -> dict[str, Any]:
    """The values of ``upper`` on top of ``lower``, as `load_config` says; both stay as they are.

    Args:
        allowed: the types, of which one is what these are the values of.
    """
    merged = dict(lower)
    for key, value in upper.items():
        types = inside(allowed, key)
        below, value = named(lower.get(key), types), named(value, types)
        if value is None and key in lower:
            del merged[key]
        elif isinstance(below, dict) and isinstance(value, dict) and _same_kind(below, value, types):
            merged[key] = merge(below, value, types)
        else:
            merged[key] = value
    return merged


def named(value: Any, types: Sequence[Any]) -> Any:
    """A name alone, where sections differ by their ``name``, as the section that it stands for."""
    return {"name": value} if isinstance(value, str) and tags(sections(types)) else value


def _same_kind(below: dict[str, Any], value: dict[str, Any], types: Sequence[Any]) -> bool:
    return not tags(sections(types)) or value.get("name", below.get("name")) == below.get("name")


def is_override(word: str) -> bool:
    """Whether a word of a command line is ``key.sub=value``, and not a file or folder with = in its name."""
    return KEY.match(word) is not None and not os.path.exists(word)


def apply_override(kind: type[BaseModel], values: dict[str, Any], override: str) -> None:
    """Set one ``key.sub=value`` in nested ``values``, which are to become a ``kind``."""
    key, equals, text = override.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f"override {override!r} is not of the form key.sub=value")
    if text.lstrip().startswith("#"):
        raise UserError(
            f"override {override!r} has no value, because # begins a comment in YAML; quote it: \"{key}='{text}'\""
        )
    try:
        value = read_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"override {override!r}: the value is not YAML; quote it") from error
    *path, last = key.split(".")
    types: list[Any] = [kind]
    for section in path:
        types = inside(types, section)
        inner = named(values.get(section), types)
        if inner is not None and not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {section} is {shown(inner)}, not a section")
        inner = dict(inner or {})  # a copy: two sections may be one YAML alias, and the override means one of them
        values[section] = inner
        values = inner
    values[last] = named(value, inside(types, last))


def validate(kind: type[AnySection], values: dict[str, Any]) -> AnySection:
    """Build a config; the first mistake becomes a one-line `UserError`."""
    _check_size(values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(kind, error.errors())) from error


def _check_size(values: Any, what: str = "the config") -> None:
    """Refuse what YAML's aliases can make: values that hold themselves, or a few lines that stand for millions."""
    pending, count = [(values, 0)], 0
    while pending:
        value, level = pending.pop()
        inner = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else []
        count += len(inner)
        if count > LARGEST or level > DEEPEST:
            raise UserError(
                f"{what} has more than {LARGEST} values or {DEEPEST} levels; write out what an alias (*) stands for"
            )
        pending += [(v, level + 1) for v in inner]


def dump_config(config: BaseModel) -> str:
    """The resolved config as YAML."""
    return write_yaml(config.model_dump(mode="json"))
