"""Compiling without a compiler: what is captured of compiled blocks is computed as it is."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule

COMPILE = torch.compile


def capturing(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """The graphs that `torch.compile` captures from now on; none is translated to C++, which takes seconds."""
    graphs: list[GraphModule] = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda f, mode, **options: COMPILE(f, backend=backend, **options))
    return graphs
