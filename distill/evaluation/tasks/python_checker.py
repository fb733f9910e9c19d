"""A checker that is a function of the user's: imported by its name, and asked."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from teachers.errors import UserError
from teachers.source import reason

WITHOUT_ROW = 3
"""Arguments of a function that does not ask for the row: prompt, completion, answer."""


def load_function(name: str) -> tuple[Callable[..., Any], bool]:
    """The function that ``module:function`` or ``FILE.py:function`` names, and whether it takes the row as well.

    Modules are also found in the folder where the command runs.

    Raises:
        UserError: there is none, its module fails, or it does not take (prompt, completion, answer[, row]).
    """
    where, _, function_name = name.rpartition(":")
    try:
        module = _file(Path(os.path.expanduser(where))) if where.endswith(".py") else _module(where)
    except (Exception, SystemExit) as error:  # a module runs whatever it holds
        raise UserError(
            f"task.function {name!r} can not be imported ({_said(error)}); write module:function or FILE.py:function"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        has = ", ".join(_own_functions(module)) or "none"
        raise UserError(f"task.function {name!r}: {where} has no function {function_name!r}; it has {has}")
    return function, _takes_row(function, name)


def _own_functions(module: ModuleType) -> list[str]:
    """The names of a module's public functions, without those that it imports."""
    own = [(key, value) for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
    return [key for key, value in own if value.__module__ == module.__name__]


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"checker in {path}", path)
    assert spec is not None  # a file that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    here = os.getcwd()
    sys.path.append(here)  # behind all else: nothing of ours is hidden by a file of the user's
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def _takes_row(function: Callable[..., Any], name: str) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of compiled code
        return False
    for count in (WITHOUT_ROW + 1, WITHOUT_ROW):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count > WITHOUT_ROW
    raise UserError(f"task.function {name!r} takes {signature}; it must take (prompt, completion, answer[, row])")


def scored(function: Callable[..., Any], values: Sequence[Any], what: str) -> float:
    """What a checker says of a completion.

    Args:
        what: the question and the checker, for messages.

    Raises:
        UserError: it raises, or returns neither a truth value nor a number from 0 to 1.
    """
    try:
        value = function(*values)
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} raised {_said(error)} on completion {values[1][:40]!r}; mend it") from error
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
        raise UserError(
            f"{what} returned {str(value)[:40]!r} for completion {values[1][:40]!r}; return True, False or a number "
            "from 0 to 1"
        )
    return float(value)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}" if isinstance(error, Exception) else "SystemExit"
