"""What a compiled function launches: the kernels and the products that inductor calls, counted as they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._inductor import config, metrics
from torch._inductor.compile_fx import compile_fx
from torch.fx import GraphModule
from torch.utils._python_dispatch import _disable_current_modes

COMPILE = torch.compile


def counting_compile(add: Callable[[int], None], translate: Callable[..., Any] = compile_fx) -> Callable[..., Any]:
    """What to put in the place of `torch.compile`, so that each call of what is compiled is counted.

    A mode that watches torch's operations sees none of them, and would keep torch from compiling.

    Args:
        add: told how many launches a call has had. translate: a graph to code, counting in inductor's `metrics`.
    """

    def backend(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        before = launches()
        with config.patch(force_disable_caches=True):  # what lies on disk from an earlier time is not counted anew
            run = translate(graph, inputs)
        each = launches() - before

        def counted(*arguments: Any) -> Any:
            add(each)
            return run(*arguments)

        return counted

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        inner = COMPILE(function, backend=backend, **{**options, "mode": None})

        def unwatched(*arguments: Any, **named: Any) -> Any:
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                return inner(*arguments, **named)

        return unwatched

    return compiled


def launches() -> int:
    """Of all graphs that inductor has translated so far, each called once."""
    return metrics.generated_kernel_count + counters["inductor"]["extern_calls"]
