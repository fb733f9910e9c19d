"""The processes of a run: one without a launcher, or as many as a launcher started."""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from distill.runtime.exits import RUN_FAILED, RunError, lost_message
from distill.runtime.launcher import MEANING, WHERE, Launch, check_address, read_launch
from teachers.errors import UserError
from teachers.source import reason

Result = TypeVar("Result")
PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other, in a meeting or a collective operation."""


def keep_memory() -> None:
    """Stop glibc from returning every large tensor to the system: page faults cost small CPU models half their time."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


@contextmanager
def returning_memory() -> Iterator[None]:
    """Have glibc give each large tensor back as it is freed, where many come and only parts of them stay.

    What `keep_memory` keeps would lie between those parts, too small for the next one.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        yield
        return
    m_mmap_threshold, m_mmap_max = -3, -4
    libc.mallopt(m_mmap_max, 2**15)
    libc.mallopt(m_mmap_threshold, 2**16)
    try:
        yield
    finally:
        keep_memory()


@dataclass(frozen=True)
class World:
    """Who this process is among the others. Every method but `rows` is collective: all processes must call it."""

    rank: int
    size: int
    device: torch.device
    _alone: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """The global rows of a batch that this process holds."""
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in float64."""
        value = value.to(self.device, torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any process."""
        if self.size == 1:
            return list(flags)
        return (self.sum(torch.tensor(flags)) > 0).tolist()

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's plain value, by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, count: int, batch: int, work: Callable[[range], Result], even: bool = True) -> list[Result]:
        """Do something with ``count`` rows, ``batch`` at a time, the batches dealt out to the processes.

        Args:
            work: called with the rows of a batch.
            even: whether batches may be smaller, so that every process has as many rows to work on.

        Returns:
            The plain results of all batches, in the order of their rows, on every process.
        """
        if even:
            batch = self.even(count, batch)
        batches = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
        shares = self.gather([work(rows) for rows in batches[self.rank :: self.size]])
        return [shares[number % self.size][number // self.size] for number in range(len(batches))]

    def even(self, count: int, batch: int) -> int:
        """How many rows to a batch, at most ``batch``, when all processes have as many batches of about one size."""
        rounds = math.ceil(count / (batch * self.size))
        return max(1, math.ceil(count / (rounds * self.size))) if count else batch

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Do something on the main process; its plain result, or its `UserError`, on every process."""
        result, error = None, None
        if self.is_main:
            try:
                result = action()
            except UserError as mistake:
                error = str(mistake)
        result, error = self.broadcast((result, error))
        if error is not None:
            raise UserError(error)
        return result

    def finish(self) -> None:
        """Wait for every process; from here on each may leave without being missed."""
        self.barrier()
        self._alone.set()


ALONE = World(0, 1, torch.device("cpu"))
"""For work on one process, whether there are others or not."""


def start_world() -> World:
    """Find out who this process is, and join the process group of a launcher, to be left at exit.

    A process without a launcher is alone: it joins no group and needs no port.

    Raises:
        UserError: a launcher's variables are not right.
        RunError: the processes cannot meet where the variables say.
    """
    launch = read_launch(os.environ)
    keep_memory()
    end_with_launcher()
    atexit.register(leave_group)
    if launch is None:
        return World(0, 1, local_device(0))
    world = World(launch.rank, launch.size, local_device(launch.local_rank or 0))
    if not dist.is_initialized():
        join_group(launch, world.device)
    if world.size > 1:
        check_local_ranks(launch)
        watching = threading.Thread(target=miss_lost_processes, args=(world, world._alone), daemon=True)
        watching.start()
        atexit.register(stop_watching, watching, world._alone)
    return world


def local_device(local: int) -> torch.device:
    """The GPU of a process's number on its node, made the current one; the CPU where there is none.

    Raises:
        UserError: the node shows fewer GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK is {local}, but this process sees {torch.cuda.device_count()} GPUs; start one process a GPU, "
            f"and show each all GPUs of its node; {WHERE}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def group_backend() -> str:
    """What processes talk by."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def join_group(launch: Launch, device: torch.device) -> None:
    """Meet the other processes, each with a device of its own.

    Raises:
        UserError: ``MASTER_ADDR`` is no host.
        RunError: ``MASTER_PORT`` is taken, or not everybody came.
    """
    check_address(launch)
    # NCCL connects at once where it is told the device, and without a word on which it took
    told = device.type == "cuda" and launch.size > 1 and launch.local_rank is not None
    try:
        dist.init_process_group(group_backend(), timeout=PATIENCE, device_id=device if told else None)
    except dist.DistError as error:
        where = f"MASTER_PORT {launch.port} of MASTER_ADDR {launch.address}"
        if "EADDRINUSE" in str(error):
            raise RunError(f"{where} is in use by another process; give each run a port of its own; {WHERE}") from error
        raise RunError(f"the {launch.size} processes cannot meet at {where} ({reason(error)}); {WHERE}") from error


def check_local_ranks(launch: Launch) -> None:
    """Check that a process without ``LOCAL_RANK``, which takes itself for 0, has its node for itself.

    Raises:
        UserError: the node has other processes of the run.
    """
    store, host = group_store(), socket.gethostname()
    store.set(f"host/{launch.rank}", host if launch.local_rank is None else "")
    if launch.local_rank is not None:
        return
    hosts = [store.get(f"host/{rank}").decode() for rank in range(launch.size)]
    store.set(f"hosts read/{launch.rank}", "")
    here = hosts.count(host)
    if here > 1:
        if launch.rank == 0:  # it keeps the store
            store.wait([f"hosts read/{rank}" for rank, other in enumerate(hosts) if other])
        raise UserError(
            f"LOCAL_RANK, {MEANING['LOCAL_RANK']}, is not set, and {here} processes of this run are on {host}; {WHERE}"
        )


def group_store() -> dist.Store:
    """Where the processes of a run leave each other notes, without a collective operation."""
    return dist.distributed_c10d._get_default_store()


LAUNCHER = "FEWSTEP_LAUNCHER"
"""Environment variable with the id of the process that started this one and must not be outlived by it."""


def end_with_launcher() -> None:
    """Have Linux send a SIGTERM when the launcher is killed: torchrun, whose processes have sessions of their own, or
    the process that `LAUNCHER` names.

    A process that is left behind would hold the run's folder, or wait half an hour for a rendezvous that has gone.
    """
    launcher = os.environ.get(LAUNCHER)
    if sys.platform != "linux" or (launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if launcher is not None:
        gone = os.getppid() != int(launcher)
    else:
        gone = os.getppid() == 1 and b"torch" not in Path("/proc/1/cmdline").read_bytes()
    if gone:  # before we could ask
        raise SystemExit(RUN_FAILED)


def leave_group() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def stop_watching(thread: threading.Thread, stop: threading.Event) -> None:
    """End the thread of `miss_lost_processes`: one that is in the group's store when Python ends aborts the process."""
    stop.set()
    thread.join(timeout=10)


def miss_lost_processes(world: World, stop: threading.Event, period: float = 5.0, patience: int = 6) -> None:
    """End this process when another one gives no sign of life: a collective operation would wait for it for ever.

    Each process counts up its own key in the group's store, and looks at the others'. Looks are counted, not seconds,
    so that a machine that sleeps and wakes loses nobody.

    Args:
        period: seconds between looks.
        patience: looks without a change until a process counts as lost.
    """
    store = group_store()
    seen, silent = [-1] * world.size, [0] * world.size
    while not stop.wait(period):
        try:
            store.add(f"alive/{world.rank}", 1)
            now = [store.add(f"alive/{rank}", 0) for rank in range(world.size)]
            silent = [looks + 1 if a == b else 0 for looks, a, b in zip(silent, seen, now, strict=True)]
            seen = now
            lost = [rank for rank in range(world.size) if silent[rank] >= patience]
        except RuntimeError:
            lost = [0]  # the store has gone, and with it the process that kept it
        if lost and not stop.is_set():
            print(f"error: {lost_message(lost[0])}", file=sys.stderr, flush=True)
            os._exit(RUN_FAILED)


def first_to_say(message: str) -> bool:
    """Whether no other process has said this before; True when nobody can be asked."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    try:
        return group_store().add(f"said/{message}", 1) == 1
    except RuntimeError:
        return True
