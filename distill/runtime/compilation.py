"""Compiling the passes that need no gradient, which takes a person's time and so is said."""

from __future__ import annotations

from functools import cache

from torch import nn

from distill.runtime.messages import say
from students.student import compile_passes
from teachers.compilation import Compilation


def compile_network(network: nn.Module, compilation: Compilation) -> None:
    """See `students.student.compile_passes`; says once what will take a while.

    Raises:
        UserError: the network can not be compiled.
    """
    compile_passes(network, compilation)
    if compilation:
        _say_once()


@cache
def _say_once() -> None:
    say("passes without a gradient are compiled; the first one of each kind takes some seconds to a minute")
