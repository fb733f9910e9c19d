"""Where an update stops the host, and what it launches, counted on the CPU: by place in our code.

    python -m benchmarks.launches                       # every case below
    python -m benchmarks.launches "sdtt, 4 layers"      # one of them
    python -m benchmarks.launches --config configs/smoke.yaml train.updates=6
    python -m benchmarks.launches --json docs/launches.json --label "after"

A *launch* is an aten operation that computes something: at least one kernel on a GPU. A *stop* is an operation for
which the host waits until a GPU has done all it was given: a value that Python reads (`.item()`, `bool`, `float`), an
operation whose result has a size that depends on values (`nonzero`, boolean indexing, `masked_select`, also in the
backward pass), and a copy between host and device. Neither depends on how wide the network is.

On a CPU there is one memory, so it is followed which tensors *would* lie on the host: those made without a device, and
what is computed from such tensors alone. Reading these stops nothing. Whole tensors of both kinds in one operation,
which a GPU refuses, are listed as well.

Of passes that are compiled, the kernels and products are counted that inductor calls here; on a GPU it may make others.
"""

from __future__ import annotations

import argparse
import json
import linecache
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from benchmarks.shapes import Size
from distill.config import DistillConfig, load_config
from distill.training.distillation import in_run_folder
from distill.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
OURS = tuple(str(ROOT / floor) + "/" for floor in ("fewstep", "distill", "objectives", "students", "teachers"))
LOOP = str(ROOT / "distill/training/trainer.py")
SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
SIZED_BY_VALUES |= {"masked_scatter_backward"}  # a masked_select within
READS = {"_local_scalar_dense", "equal", "is_nonzero"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
NO_KERNEL = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "detach", "lift_fresh",
    "alias", "_local_scalar_dense", "is_same_size", "_reshape_alias", "_unsafe_view", "resize_", "set_",
    "_nested_tensor_size", "record_stream", "is_pinned",
}  # fmt: skip
FROM_VALUES = {"tensor", "as_tensor", "from_numpy", "asarray"}
FACTORIES = FROM_VALUES | {"zeros", "ones", "full", "arange", "rand", "randn", "randint", "linspace", "empty", "eye"}
TO_HOST = {"tolist", "cpu", "numpy", "__array__"}
MOVES = {"cpu", "to", "cuda"}
COPIES = {"copy_", "__getitem__", "__setitem__", "index_put_"}
PROPERTIES = {"__get__", "__set__"}
JOINS = {"stack", "cat", "where"}


@dataclass
class Counts:
    """What some updates did.

    Attributes:
        updates: how many.
        stops: (kind, place in our code) → how often. launches: place → how often.
        parts: what the loop was at → launches.
        mixes: places where whole tensors of host and device met.
    """

    updates: int = 0
    stops: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    mixes: Counter[str] = field(default_factory=Counter)

    def as_json(self, places: int = 15) -> dict[str, Any]:
        """An update's mean; of launches only the busiest places."""
        each = max(1, self.updates)
        stops = [{"kind": kind, "place": place, "an update": n / each} for (kind, place), n in self.stops.most_common()]
        return {
            "updates": self.updates,
            "stops an update": sum(self.stops.values()) / each,
            "launches an update": sum(self.launches.values()) / each,
            "stops": stops,
            "launches": {place: n / each for place, n in self.launches.most_common(places)},
            "parts": {part: n / each for part, n in self.parts.most_common()},
            "mixes": {place: n / each for place, n in self.mixes.most_common()},
        }


class Watcher(TorchFunctionMode):
    """Counts what is done while it is entered and `counting`.

    Attributes:
        counts: so far. counting: whether anything is added to them.
        host: tensors that would lie in the host's memory.
    """

    def __init__(self):
        self.counts, self.counting = Counts(), True
        self.host = WeakTensorKeyDictionary()
        self._operations = Operations(self)

    def __enter__(self) -> Watcher:
        super().__enter__()
        self._operations.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._operations.__exit__(*error)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Follow which tensors lie on the host, and see what the dispatcher does not."""
        options, name = kwargs or {}, getattr(func, "__name__", "")
        if func is Tensor.backward:  # what is computed again within it is followed too
            with Followed(self):
                return torch.autograd.backward(args[0], options["gradient"], options["retain_graph"])
        tensors = list(tensors_in((args, options)))
        host = bool(tensors) and all(tensor in self.host for tensor in tensors)
        if name in TO_HOST and tensors and not host:
            self.stop("copy to the host")
        out = func(*args, **options)
        if name in MOVES and out is args[0]:  # on a CPU it is where it was; elsewhere it would be another tensor
            out = out.view_as(out)
        self._place(name, tensors, host, args, options, out)
        return out

    def _place(self, name: str, tensors: list[Tensor], host: bool, args: Any, options: Any, out: Any) -> None:
        device = options.get("device")
        moves = name == "cuda" or (name == "to" and moved_to(args, options) is not None)
        if not tensors:
            on_host = name in FACTORIES and host_memory(device)
            if name in FROM_VALUES and not on_host:
                self.stop("copy to the device")
        elif moves:
            on_host = host_memory(moved_to(args, options))
            if on_host != host and not (host and options.get("non_blocking")):
                self.stop("copy to the host" if on_host else "copy to the device")
        else:
            on_host = host or name in TO_HOST
            self._meet(name, tensors, host)
        for tensor in tensors_in(out):
            if on_host:
                self.host[tensor] = True
            elif moves:
                self.host.pop(tensor, None)

    def _meet(self, name: str, tensors: list[Tensor], host: bool) -> None:
        """Operations on tensors of both memories."""
        some = [tensor for tensor in tensors if tensor in self.host]
        if host or not some:
            return
        if name in COPIES:
            self.stop("copy to the device")
        elif self.counting and name not in PROPERTIES and (name in JOINS or any(tensor.dim() for tensor in some)):
            self.counts.mixes[f"{place(sys._getframe())} ({name})"] += 1

    def stop(self, kind: str) -> None:
        """The host waits."""
        if self.counting:
            self.counts.stops[kind, place(sys._getframe())] += 1

    def launch(self, number: int) -> None:
        """The host gives a GPU something to do."""
        if self.counting:
            frame = sys._getframe()
            self.counts.launches[place(frame)] += number
            self.counts.parts[part(frame)] += number


class Followed(TorchFunctionMode):
    """A watcher within a function that it has already seen."""

    def __init__(self, watcher: Watcher):
        self.watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """See `Watcher`."""
        return self.watcher.__torch_function__(func, types, args, kwargs)


class Operations(TorchDispatchMode):
    """What reaches the dispatcher, of forward and backward passes, for a `Watcher`."""

    def __init__(self, watcher: Watcher):
        super().__init__()
        self.watcher = watcher

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Count an operation, and do it."""
        if self.watcher.counting:
            self._count(func, args)
        return func(*args, **(kwargs or {}))

    def _count(self, func: Any, args: Sequence[Any]) -> None:
        name, watcher = func.overloadpacket.__name__, self.watcher
        tensors = list(tensors_in(args))
        if tensors and all(tensor in watcher.host for tensor in tensors):
            return
        if name in READS:
            watcher.stop("a value is read")
        elif name in SIZED_BY_VALUES:
            watcher.stop("a size depends on values")
        elif name in INDEXING:
            for _ in range(masks_in(name, args)):
                watcher.stop("a size depends on values")
        if not func.is_view and name not in NO_KERNEL:
            watcher.launch(1)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors within lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def masks_in(name: str, args: Sequence[Any]) -> int:
    """How many boolean indices an operation looks for the True ones of; a number put at one mask needs none."""
    masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
    return 0 if name != "index" and len(args[1]) == 1 and args[2].numel() == 1 else len(masks)


def host_memory(device: torch.device | str | None) -> bool:
    """Whether code means the host: it names no device, or "cpu" as a word."""
    return device is None or (isinstance(device, str) and device == "cpu")


def moved_to(args: Sequence[Any], options: dict[str, Any]) -> torch.device | str | None:
    """The device that `Tensor.to` is given, where it is given one."""
    given = [options.get("device"), *args[1:2]]
    return next((device for device in given if isinstance(device, torch.device | str)), None)


def place(frame: FrameType | None) -> str:
    """file:line of the innermost code of ours."""
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"


def part(frame: FrameType | None) -> str:
    """What the trainer was at: its line, and the phase."""
    while frame is not None and frame.f_code.co_filename != LOOP:
        frame = frame.f_back
    if frame is None:
        return "the loop"
    text = linecache.getline(LOOP, frame.f_lineno).strip()
    return f"{frame.f_locals['phase']}: {text}" if frame.f_code.co_name == "_step" else text


def count(config: DistillConfig, run: Path) -> Counts:
    """Distil in a run folder; what all updates but the first and the last did, what is around them included."""
    watcher, update = Watcher(), Trainer.update
    watcher.counting = False

    def watched(trainer: Trainer) -> Any:
        watcher.counting = 0 < trainer.done < config.train.updates - 1
        watcher.counts.updates += watcher.counting
        return update(trainer)

    with patch.object(Trainer, "update", watched), counted_graphs(watcher, config), watcher:
        in_run_folder(config, run)
    return watcher.counts


def counted_graphs(watcher: Watcher, config: DistillConfig) -> AbstractContextManager[object]:
    """While entered, what a config has compiled is counted as well."""
    if not config.train.compile:
        return nullcontext()
    from benchmarks.compiled_launches import counting_compile  # torch's compiler takes two seconds to import

    return patch.object(torch, "compile", counting_compile(watcher.launch))


K_STEPS = {"name": "k_step", "steps": [8, 16]}
ADAPTER = {"adapter": {"rank": 4}}
KL = {"name": "integral_kl", "rollout": K_STEPS}
CRITIC = {"critic": {"lr": 1e-5}}


def case(layers: int, objective: dict[str, Any], student: dict[str, Any] | None = None, **train: Any) -> Size:
    """A network that is narrow, 8 rows of 64 tokens, and few rows by the teacher where it writes any."""
    sections = {"objective": objective, "teacher_samples": 16, "teacher_sample_steps": 8}
    sections |= {} if student is None else {"student": student}
    return Size("llama", 32, layers, 2, vocabulary=1000, length=64, sections=sections, train=train)


CASES = {
    "integral_kl, 4 layers": case(4, KL, **CRITIC),
    "sdtt, 4 layers": case(4, {"name": "sdtt"}),
    "didi_instruct, 4 layers": case(4, {"name": "didi_instruct"}, **CRITIC),
    "integral_kl, 32 layers, LoRA": case(32, KL | {"ratio": ADAPTER}, ADAPTER, gradient_checkpointing=True, **CRITIC),
}
IN_BLOCKS = {
    f"{name}, blocks of 16": replace(CASES[name], block=16)
    for name in ("integral_kl, 4 layers", "sdtt, 4 layers", "didi_instruct, 4 layers")
}
CASES |= {f"{name}, compiled": replace(size, train={**size.train, "compile": True}) for name, size in CASES.items()}
CASES |= IN_BLOCKS


def case_config(size: Size, folder: Path, updates: int = 4) -> DistillConfig:
    """Of a random teacher; ``updates`` are counted."""
    size.teacher(folder)
    return size.config(folder, updates=updates + 2, precision="float32", log_every=10**6)


def show(name: str, counts: dict[str, Any], console: Console) -> None:
    """The tables of a case."""
    stops, launches = counts["stops an update"], counts["launches an update"]
    table = Table("stops an update", "kind", "place", title=f"{name}: {stops:.1f} stops, {launches:,.0f} launches")
    for one in counts["stops"]:
        table.add_row(f"{one['an update']:.1f}", one["kind"], one["place"])
    console.print(table)
    table = Table("launches an update", "place or part")
    for key in ("launches", "parts"):
        for where, number in counts[key].items():
            table.add_row(f"{number:,.0f}", where)
        table.add_section()
    console.print(table)
    for where, number in counts["mixes"].items():
        console.print(f"host and device meet, {number:.1f} an update: {where}")


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Count what the command line says, print it, and give it back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="cases; with --config, overrides")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--json", type=Path, help="a file to which the counts are added under --label")
    parser.add_argument("--label", default="now")
    wanted = parser.parse_intermixed_args(arguments)
    found: dict[str, dict[str, Any]] = {}
    console = Console(width=140)
    for name in [str(wanted.config)] if wanted.config else wanted.words or CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if wanted.config:
                config = load_config(DistillConfig, wanted.config, ["evaluate.every=null", *wanted.words])
            else:
                config = case_config(CASES[name], folder / "teacher")
            found[name] = count(config, folder / "run").as_json()
        show(name, found[name], console)
    if wanted.json is not None:
        before = json.loads(wanted.json.read_text("utf-8")) if wanted.json.exists() else {}
        wanted.json.write_text(json.dumps({**before, wanted.label: found}, indent=1) + "\n", "utf-8")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
