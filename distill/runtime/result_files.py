"""Results as files: frozen dataclasses, whose fields are the keys of JSON objects, in the file's order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from teachers.errors import UserError

Result = TypeVar("Result")


def as_json(value: Any) -> Any:
    """A result as plain values; a field that is None by default is left out where it is None."""
    if is_dataclass(value):
        here = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: as_json(part) for f, part in here if not (part is None and f.default is None)}
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    return [as_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def json_text(value: Any) -> str:
    """`as_json` as a file holds it."""
    return json.dumps(as_json(value), indent=1) + "\n"


def from_json(kind: type[Result], values: Any) -> Result:
    """A result from the plain values that `as_json` gives.

    Raises:
        ValueError: a value is missing or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{place}: {first['msg']}") from error


def load_result(kind: type[Result], path: Path, what: str) -> Result:
    """A result from its file; see `read_result`."""
    return read_result(path, what, lambda values: from_json(kind, values))


def read_result(path: Path, what: str, make: Callable[[Any], Result]) -> Result:
    """A result from its file.

    Args:
        what: a result's name and how to get a new one, for the message.
        make: from plain values; raises ValueError, KeyError or TypeError where they are not whole.

    Raises:
        UserError: the file is not there, or not whole.
    """
    try:
        return make(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give a folder or a file with results") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a whole {what}, or remove it ({error})") from error
