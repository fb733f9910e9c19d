"""Compiling the passes that need no gradient, which takes a person's time and so is said."""

from __future__ import annotations

from functools import cache

from torch import nn

from distill.runtime.messages import say
from distill.runtime.world import first_to_say
from students.student import compile_passes
from teachers.compilation import COMPILING, Compilation


def compile_network(network: nn.Module, compilation: Compilation) -> None:
    """See `students.student.compile_passes`; says once what will take a while.

    Raises:
        UserError: the network can not be compiled.
    """
    compile_passes(network, compilation)
    if compilation:
        _say_once()


def say_compile_time() -> None:
    """Say how long compiling took, if anything was compiled: what is told of single texts and rows leaves it out."""
    if COMPILING.seconds:
        say(f"compiling took {COMPILING.seconds:.1f} s, which no text's or row's seconds have in them")


@cache
def _say_once() -> None:
    message = "passes without a gradient are compiled; the first one of each kind takes some seconds to a minute"
    if first_to_say(message):
        say(message)
