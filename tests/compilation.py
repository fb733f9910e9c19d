"""Compiling without a compiler: what is captured of compiled blocks is computed as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from distill import cli

COMPILE = torch.compile


def capturing(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """The graphs that `torch.compile` captures from now on; none is translated to C++, which takes seconds."""
    torch._dynamo.reset()
    graphs: list[GraphModule] = []
    monkeypatch.setattr(torch, "compile", captured(graphs))
    return graphs


def captured(graphs: list[GraphModule]) -> Callable[..., Any]:
    """What to put in the place of `torch.compile`."""

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return lambda f, mode=None, **options: COMPILE(f, **{**options, "backend": backend})


def captured_command(*words: str) -> None:
    """The command, in a process of its own, which says on stderr how many graphs it captured."""
    graphs: list[GraphModule] = []
    torch.compile = captured(graphs)
    try:
        cli.main()
    finally:
        sys.stderr.write(f"graphs: {len(graphs)}\n")
