"""Names of a package that are imported when they are first asked for, so that the package itself costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(package: str, names: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` (PEP 562) of a package's ``__init__``.

    Args:
        package: the package's ``__name__``.
        names: public name → where it is, "module:name", or "module" where both are called the same.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own = names[name].partition(":")
        return getattr(import_module(module), own or name)

    return get, lambda: sorted(names)
