"""How a mistake in a config is told: one line with the value, what is allowed and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from teachers.errors import nearest
from teachers.source import reason

MOVED: dict[str, str] = {
    "evaluate.draw": "sampler.draw",
    "objective.order": "sampler, which is ancestral where the order was random,",
    "objective.rollout.order": "sampler, which is ancestral where the order was random,",
}
"""What an older fewstep's config may hold, and what to write now. A key is a dotted path, where a tagged section may be
followed by its name (``objective.didi_instruct.omega`` is of that objective alone)."""


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 120 else f"{text[:117]}..."


def library_reason(error: Exception) -> str:
    """What another library says against a value of the user's, with the value where the library tells it."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])} is {shown(first['input'])}: {first['msg']}"
    return f"{type(error).__name__}: {reason(error)}" if isinstance(error, LookupError) else reason(error)


def explain(kind: type[BaseModel], errors: Sequence[Any], moved: dict[str, str] = MOVED) -> str:
    """The line for the first of pydantic's ``errors``; for a key of an older fewstep's before any other."""
    for error in errors:
        path, _ = locate(kind, error["loc"])
        for place in (".".join(map(str, error["loc"])), ".".join(path)):
            if place in moved:
                old = f"{'.'.join(path)} is {shown(error['input'])}"
                return f"{old}, which is no longer set here; write {moved[place]} instead"
    return _explain_one(kind, errors[0])


def _explain_one(kind: type[BaseModel], error: Any) -> str:
    path, allowed = locate(kind, error["loc"])
    where, message = ".".join(path), error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(kind, error["loc"], path)
        case "missing":
            return f"{where} is missing; add it to the config"
        case "value_error":
            return f"{where}: {message}" if where else message
        case "union_tag_not_found":
            return f"{where}.name is missing; allowed are {', '.join(tags(allowed))}"
        case "union_tag_invalid":
            name, names = error["ctx"]["tag"], tags(allowed)
            return f"{where}.name {name!r} is unknown{nearest(name, names)}; allowed are {', '.join(names)}"
    return f"{where} is {shown(error['input'])}: {message[0].lower()}{message[1:]}"


def _unknown_key(kind: type[BaseModel], loc: Sequence[Any], path: list[str]) -> str:
    names = [name for section in sections(locate(kind, loc[:-1])[1])[:1] for name in section.model_fields]
    section = f"section {'.'.join(path[:-1])}" if path[:-1] else "the config"
    return f"unknown key {'.'.join(path)}{nearest(path[-1], names)}; {section} allows {', '.join(names)}"


def locate(kind: type[BaseModel], loc: Iterable[Any]) -> tuple[list[str], list[Any]]:
    """Take apart where pydantic saw an error: the path as people write it, and the types that are allowed there.

    Of several sections that differ by ``name``, pydantic puts the name into its path.
    """
    path: list[str] = []
    allowed: list[Any] = [kind]
    for part in loc:
        choice = sections(allowed)
        if len(choice) > 1 and part in tags(choice):
            allowed = [section for section in choice if part in tags([section])]
            continue
        path.append(str(part))
        allowed = inside(allowed, part)
    return path, allowed


def inside(allowed: Iterable[Any], key: Any) -> list[Any]:
    """The types that a key may have in a section of one of the types ``allowed``."""
    fields = [section.model_fields[key] for section in sections(allowed) if key in section.model_fields]
    return [option for field in fields for option in options(field.annotation)]


def options(annotation: Any) -> list[Any]:
    """The types that an annotation allows."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [option for inner in get_args(annotation) for option in options(inner)]
    return [annotation]


def sections(allowed: Iterable[Any]) -> list[type[BaseModel]]:
    """Those of the types that are sections."""
    return [option for option in allowed if isinstance(option, type) and issubclass(option, BaseModel)]


def tags(allowed: Iterable[Any]) -> list[str]:
    """The names by which sections that differ by ``name`` are told apart, sorted."""
    named = (section.model_fields.get("name") for section in sections(allowed))
    return sorted(field.default for field in named if field is not None and isinstance(field.default, str))
