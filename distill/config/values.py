"""Kinds of values that several sections have."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue

from teachers.families import named_family
from teachers.source import parse_source


def _named_model(name: str) -> str:
    parse_source(name)
    return name


def _named_data(name: str) -> str:
    parse_source(name, kind="dataset")
    return name


def _named_family(name: str) -> str:
    named_family(name)
    return name


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(values, allow_nan=False)
    except ValueError as error:
        raise ValueError("it holds a number that is not finite; give a finite one") from error
    return values


def _whole(value: Any) -> Any:
    """Whole numbers as ints, also those that are written 5e8: there is one kind of number in JSON."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


# what other libraries are given; it must survive being written into the run folder
PassedOn = Annotated[dict[str, JsonValue], AfterValidator(_finite)]
DeepSpeedSection = Annotated[PassedOn, AfterValidator(_whole)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Temperatures = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
# "auto" becomes one of the others before anything is loaded, see `distill.config.precision.settled`
Precision = Literal["float32", "bfloat16", "auto"]
# which of a text's end-of-text tokens a judge scores
EndOfText = Literal["all", "first"]
# checked before anything is downloaded: what one section names would be, before another's mistake is found
FamilyName = Annotated[str, AfterValidator(_named_family)]
ModelName = Annotated[str, AfterValidator(_named_model)]
DataName = Annotated[str, AfterValidator(_named_data)]
