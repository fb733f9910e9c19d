"""How a run lies in memory: what its config says, and what a plan may try instead."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate.utils import convert_file_size_to_int

from distill.config import DistillConfig
from distill.config.deepspeed import deepspeed_section, zero_section
from teachers.checkpointing import Checkpointing
from teachers.errors import UserError


@dataclass(frozen=True)
class Setup:
    """What decides how the networks lie in memory.

    Attributes:
        processes: N, one device each.
        rows: of an update, over all processes. micro: of a pass.
        width: bytes of a weight in compute precision, 2 or 4.
        unrounded: networks are read in float32, see `ObjectiveConfig.unrounded`.
        stage: ZeRO; None where torch alone trains. offload: optimiser state on the CPU.
        checkpointing: gradient checkpointing.
        placement: of the teacher, see `TeacherConfig`; ``dispatched``: bytes of it that its device may hold.
        bucket, live: elements of a reduce bucket, and of the parameters that ZeRO 3 gathers at once.
        watched: the average comes to the device to be watched.
    """

    processes: int
    rows: int
    micro: int
    width: int
    unrounded: bool
    stage: int | None
    offload: bool
    checkpointing: Checkpointing
    placement: str
    dispatched: float
    bucket: float
    live: float
    watched: bool

    @property
    def read(self) -> int:
        """Bytes of a weight as it is read."""
        return 4 if self.unrounded else self.width

    @property
    def share(self) -> int:
        """Rows of a process."""
        return self.rows // self.processes

    @property
    def accumulated(self) -> bool:
        """Whether gradients are summed over several passes."""
        return self.micro < self.share


def setup_of(config: DistillConfig, processes: int) -> Setup:
    """What a config says.

    Raises:
        UserError: the rows of an update do not divide evenly.
    """
    train = config.train
    zero = zero_section(config.deepspeed)
    told = deepspeed_section(config.deepspeed, processes, config.teacher.placement == "sharded")
    share = train.batch // processes
    if train.batch % processes or share % (train.micro_batch or share):
        raise UserError(
            f"train.batch {train.batch} does not divide into {processes} processes and micro-batches of "
            f"{train.micro_batch or share}; change train.batch, train.micro_batch or --gpus"
        )
    limit = (config.teacher.max_memory or {}).get(0)
    return Setup(
        processes=processes,
        rows=train.batch,
        micro=train.micro_batch or share,
        width=2 if train.precision == "bfloat16" else 4,
        unrounded=config.objective.unrounded,
        stage=None if told is None else zero.get("stage", 1),
        offload=(zero.get("offload_optimizer") or {}).get("device", "none") != "none",
        checkpointing=train.gradient_checkpointing,
        placement=config.teacher.placement,
        dispatched=float("inf") if limit is None else convert_file_size_to_int(limit),
        bucket=float(zero.get("reduce_bucket_size", 5e8)),
        live=float(zero.get("stage3_max_live_parameters", 1e9)) + float(zero.get("stage3_prefetch_bucket_size", 5e7)),
        watched=config.evaluate.every is not None,
    )


def micro_batches(config: DistillConfig, processes: int) -> list[int]:
    """Micro-batches to choose from: powers of two, and the whole share, that divide a process's rows into groups."""
    share = config.train.batch // processes
    powers = [2**k for k in range(share.bit_length()) if 2**k < share] + [share]
    return [m for m in powers if share % m == 0 and m % config.objective.group == 0]
