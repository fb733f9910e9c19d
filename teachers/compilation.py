"""Transformer blocks that are compiled for passes without a gradient, by `torch.compile`: fewer launches a pass.

Blocks of a network differ in their weights alone, so one is compiled for all of them, for any number of rows and
tokens. One row, another precision, adapters and masks of another kind are compiled once more each. Weights and their
names are untouched, and a copy of a network is not compiled.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from teachers.errors import UserError

Compilation = bool | Literal["reduce-overhead"]
"""Whether passes without a gradient are compiled; "reduce-overhead": on a GPU also replayed from CUDA graphs."""
VARIANTS = 64
"""How many kinds of a block's pass are compiled at most, in one process [own]."""


class CompileTime:
    """How long this process has compiled, or recorded CUDA graphs.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds, self._calls, self._compiles, self._since = 0.0, False, False, 0.0

    def begin(self, _: Any) -> None:
        """What torch calls before it compiles or records."""
        self._compiles, self._since = True, time.perf_counter()

    def end(self, _: Any) -> None:
        """What it calls afterwards."""
        if not self._calls:
            self.seconds += time.perf_counter() - self._since

    @contextmanager
    def call(self) -> Iterator[None]:
        """Within, a compiled function is called once. A call that compiles counts whole: it chooses kernels, too."""
        self._calls, self._compiles, start = True, False, time.perf_counter()
        try:
            yield
        finally:
            self._calls = False
            if self._compiles:
                self.seconds += time.perf_counter() - start


COMPILING = CompileTime()
"""This process's."""


def clock() -> float:
    """Seconds as `time.perf_counter` counts them, but for those of compiling, so that times can be compared."""
    return time.perf_counter() - COMPILING.seconds


class CompiledBlock:
    """What is called in a block's place: compiled where no gradient is asked for, the block itself elsewhere.

    A pass that keeps keys and values (`teachers.cache`) is never compiled, since its tensors change from pass to pass.

    Args:
        compiled: computes any block, given as its first argument. compilation: how.
        first, last: of the network's blocks. What a CUDA graph gives is overwritten when it is replayed: the first
            block says that a pass begins, and the last one's output is copied.
    """

    def __init__(
        self,
        block: nn.Module,
        compiled: Callable[..., Any],
        compilation: Compilation,
        first: bool = False,
        last: bool = False,
    ):
        self.block, self.compiled, self.first, self.last = block, compiled, first, last
        self.compilation: Compilation = compilation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the block.

        Raises:
            UserError: it can not be compiled.
        """
        if torch.is_grad_enabled() or not all(map(_is_plain, (*args, *kwargs.values()))):
            return self.block._call_impl(*args, **kwargs)
        if self.first:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            with COMPILING.call():
                out = self._compute(*args, **kwargs)
        except compiler_errors() as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{type(self.block).__name__} can not be compiled ({reason[:200]}); leave compile out"
            ) from error
        return tree_map_only(Tensor, Tensor.clone, out) if self.last else out

    def _compute(self, *args: Any, **kwargs: Any) -> Any:
        """What the compiled function gives; libraries that killed processes have left half written are made again."""
        removed = set[Path]()
        while True:
            try:
                return self.compiled(self.block, *args, **kwargs)
            except compiler_errors() as error:
                library = unreadable_library(error)
                if library is None or library in removed:
                    raise
                library.unlink(missing_ok=True)
                removed.add(library)


def compile_blocks(blocks: nn.ModuleList, compilation: Compilation) -> None:
    """Compile a network's blocks, first to last, when the first pass without a gradient reaches them."""
    if not compilation:
        return
    # of transformers' layers with experts, in which nobody can do anything about it
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    prepare_compiling()
    graphs = compilation == "reduce-overhead"
    compiled = torch.compile(_computed, dynamic=True, fullgraph=True, mode="reduce-overhead" if graphs else None)
    for number, block in enumerate(blocks):
        first, last = graphs and number == 0, graphs and number == len(blocks) - 1
        block._compiled_call_impl = CompiledBlock(block, compiled, compilation, first, last)


def compilation_of(blocks: nn.ModuleList) -> Compilation:
    """How a network's blocks are compiled, if they are."""
    call = blocks[0]._compiled_call_impl
    return call.compilation if isinstance(call, CompiledBlock) else False


def prepare_compiling() -> None:
    """Count the seconds of what torch compiles, and let it compile `VARIANTS` kinds of a pass."""
    import torch._dynamo  # takes two seconds
    from torch._dynamo.callback import callback_handler

    if COMPILING.begin not in callback_handler.start_callbacks:
        callback_handler.register_start_callback(COMPILING.begin)
        callback_handler.register_end_callback(COMPILING.end)
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)


def unreadable_library(error: Exception) -> Path | None:
    """The library in inductor's cache that could not be read, if that was why nothing could be compiled.

    Libraries are written where they are looked for, so a process that is killed leaves half of one, which no later
    process can read or replaces.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    named = re.search(r"(/\S+\.so): ", str(error))
    library = None if named is None else Path(named[1])
    return library if library is not None and library.is_relative_to(cache_dir()) else None


def _computed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return block.forward(*args, **kwargs)


def _is_plain(value: Any) -> bool:
    """Whether it is nothing that passes write into."""
    return value is None or isinstance(value, Tensor | bool | int | float | str | tuple)


def compiler_errors() -> tuple[type[Exception], ...]:
    """What torch raises where it can not compile."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import OperatorIssue

    return FailOnRecompileLimitHit, TorchDynamoException, OperatorIssue
