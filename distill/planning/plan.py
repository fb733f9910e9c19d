"""What a distillation needs of memory, term by term, before any is spent.

A run passes through a few moments: the start, the rollout, each phase's passes and its optimiser step, a checkpoint.
What is alive at each is known: networks and their training state from their shapes and DeepSpeed's ZeRO stage (here,
with the place in DeepSpeed 0.19 that allocates it), activations and logits from a run on tensors without data
(distill/planning/live_memory.py). The peak is the largest of the moments. Bytes, for rank 0, which keeps the average as
well.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from distill.config import DistillConfig
from distill.planning.live_memory import PassMemory, Peak, pass_memory
from objectives.integral_kl import IntegralKL, IntegralKLConfig
from objectives.objective import Distillation
from students.adapters import AdaptedDenoiser
from students.student import frozen, trainable_copy
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.families import recognise
from teachers.families.family import OPTIONS
from teachers.families.stock.denoiser import untrained_denoiser
from teachers.process import MaskedProcess
from teachers.source import parse_source, read_object, reason

Bytes = dict[str, float]
"""Name of a term → bytes."""


@dataclass(frozen=True)
class Network:
    """Sizes of a network, in parameters.

    Attributes:
        trained, frozen: what an engine holds; an adapter's base is the teacher and counted there.
        largest: of one trained parameter.
        small: of all parameters that ZeRO 3 keeps whole, see ``stage3_param_persistence_threshold``.
    """

    trained: int
    frozen: int
    largest: int
    small: int

    @property
    def total(self) -> int:
        """Trained and frozen."""
        return self.trained + self.frozen


@dataclass(frozen=True)
class Networks:
    """The three networks of a distillation; those on adapters count without their base, which is the teacher."""

    teacher: Network
    student: Network
    critic: Network


@dataclass(frozen=True)
class Setup:
    """What decides how the networks lie in memory.

    Attributes:
        processes: N, one device each.
        rows: of an update, over all processes. micro: of a pass.
        width: bytes of a weight in compute precision, 2 or 4.
        stage: ZeRO. offload: optimiser state on the CPU.
        checkpointing: gradient checkpointing.
        placement: of the teacher, see `TeacherConfig`; ``dispatched``: bytes of it that its device may hold.
        bucket, live: elements of a reduce bucket, and of the parameters that ZeRO 3 gathers at once.
        watched: the average comes to the device to be watched.
    """

    processes: int
    rows: int
    micro: int
    width: int
    stage: int
    offload: bool
    checkpointing: bool
    placement: str
    dispatched: float
    bucket: float
    live: float
    watched: bool

    @property
    def share(self) -> int:
        """Rows of a process."""
        return self.rows // self.processes

    @property
    def accumulated(self) -> bool:
        """Whether gradients are summed over several passes."""
        return self.micro < self.share


@dataclass(frozen=True)
class Moment:
    """What is alive at one time: on the device, and in the host's memory for it."""

    name: str
    device: Bytes
    host: Bytes

    def total(self, one_memory: bool = False) -> float:
        """Bytes on the device; with ``one_memory``, as on a machine without one, the host's too."""
        return sum(self.device.values()) + (sum(self.host.values()) if one_memory else 0)


LIVE = 1e9 + 5e7
"""Elements that ZeRO 3 gathers by default: stage3_max_live_parameters and stage3_prefetch_bucket_size."""


def setup_of(config: DistillConfig, processes: int) -> Setup:
    """What a config says.

    Raises:
        UserError: the rows of an update do not divide evenly.
    """
    train = config.train
    zero: dict[str, Any] = config.deepspeed.get("zero_optimization", {})  # type: ignore[assignment]
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
        stage=zero.get("stage", 1),
        offload=(zero.get("offload_optimizer") or {}).get("device", "none") != "none",
        checkpointing=train.gradient_checkpointing,
        placement=config.teacher.placement,
        dispatched=float("inf") if limit is None else convert_file_size_to_int(limit),
        bucket=float(zero.get("reduce_bucket_size", 5e8)),
        live=float(zero.get("stage3_max_live_parameters", 1e9)) + float(zero.get("stage3_prefetch_bucket_size", 5e7)),
        watched=config.evaluate.every is not None,
    )


def read_shape(name: str) -> PretrainedConfig:
    """A model's shape, from its config.json alone: a folder, that file itself, or ``bundled:NAME``.

    Raises:
        UserError: there is none, or it is of no stock causal language model.
    """
    source = parse_source(name)
    path = Path(source.path)
    path = path / "config.json" if path.is_dir() else path
    if source.revision is not None or not path.is_file():
        raise UserError(f"{name!r} is no folder with a config.json; download that one file and give its path")
    config = read_object(path)
    kind, family = config.get("model_type"), recognise(config, name)
    if "planning" not in family.capabilities:
        raise UserError(
            f"{name!r} is {family.title}, whose layers and weights fewstep plan does not know; give a config whose "
            "teacher is a network that stock transformers knows"
        )
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"{path} is of model_type {kind!r}, which transformers does not know; for planning, write its shape as a "
            "stock config.json, such as configs/plan/llada-8b/config.json"
        )
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever a value out of range meets first
        raise UserError(f"cannot read {path} ({reason(error)}); it must be a model's config.json") from error


def _denoiser(shape: PretrainedConfig, config: DistillConfig, layers: int | None = None) -> Denoiser:
    """A denoiser of a shape with so many layers, all by default."""
    options = {key: value for key in OPTIONS if (value := getattr(config.teacher, key)) is not None}
    return untrained_denoiser(shape, options, layers)


class Shapes:
    """The networks of a config as shapes: their sizes, and the memory of their passes at any micro-batch."""

    def __init__(self, config: DistillConfig):
        """Read the config.json of teacher and student.

        Raises:
            UserError: see `read_shape`; rows are longer than the teacher's positions, or it is autoregressive; an
                objective outside the integral-KL family.
        """
        if not isinstance(config.objective, IntegralKLConfig):
            raise UserError(
                f"fewstep plan knows the integral-KL family, not objective {config.objective.name!r}; plan with "
                "objective.name=integral_kl, whose critic makes it the larger one"
            )
        self.config = config
        self.teacher = read_shape(config.teacher.path)
        self.student = None if config.student.init == "teacher" else read_shape(config.student.init)
        longest = self.teacher.max_position_embeddings
        if config.sequence_length > longest:
            raise UserError(
                f"rows of {config.sequence_length} tokens are longer than the teacher's {longest} positions"
            )
        self._passes: dict[tuple[Any, ...], dict[str, PassMemory]] = {}

    def networks(self, config: DistillConfig | None = None) -> Networks:
        """Exact sizes; of another config of the same shapes, such as one with adapters."""
        config = config or self.config
        zero: dict[str, Any] = config.deepspeed.get("zero_optimization", {})  # type: ignore[assignment]
        threshold = float(zero.get("stage3_param_persistence_threshold", 1e5))
        objective = self._objective(config, None)
        networks = (objective.teacher, objective.student, objective.networks["critic"])
        return Networks(*(_sizes(network, threshold) for network in networks))

    def passes(self, setup: Setup, config: DistillConfig | None = None) -> dict[str, PassMemory]:
        """Memory of the rollout and of both phases' passes.

        All layers are alike, so every peak is linear in their number and two depths give any: deep enough that the
        blocks a discriminator trains are not all there are.
        """
        config = config or self.config
        config = config.model_copy(
            update={
                "train": config.train.model_copy(update={"precision": "bfloat16" if setup.width == 2 else "float32"})
            }
        )
        adapters = (config.student.adapter, config.objective.ratio.adapter)
        key = (setup.share, setup.micro, setup.checkpointing, setup.width, repr(adapters))
        if key not in self._passes:
            layers, least = self.teacher.num_hidden_layers, 3
            if config.objective.ratio.trained_blocks is not None:
                least = config.objective.ratio.trained_blocks + 2
            if layers <= least or self.student is not None:
                self._passes[key] = self._trace(config, setup, None)
            else:
                deep, shallow = (self._trace(config, setup, depth) for depth in (least, least - 1))
                self._passes[key] = {name: deep[name].grown(shallow[name], layers - least) for name in deep}
        return self._passes[key]

    def _trace(self, config: DistillConfig, setup: Setup, layers: int | None) -> dict[str, PassMemory]:
        objective = self._objective(config, layers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks that tensors without data have no address
            return pass_memory(config, objective, setup.share, setup.micro, setup.checkpointing)

    def _objective(self, config: DistillConfig, layers: int | None) -> IntegralKL:
        """The networks as `distill.commands.distil` wires them, without weights."""
        try:
            with torch.device("meta"):
                teacher = frozen(_denoiser(self.teacher, config, layers))
                student: Denoiser
                if config.student.adapter is not None:
                    student = AdaptedDenoiser(teacher, config.student.adapter)  # type: ignore[arg-type]
                else:
                    first = teacher if self.student is None else _denoiser(self.student, config, layers)
                    student = trainable_copy(first)
                process = MaskedProcess(config.teacher.process)
                return config.objective.build(Distillation(teacher, student, process, config.sequence_length, teacher))
        except UserError:
            raise
        except Exception as error:  # transformers and torch raise what they meet first
            raise UserError(
                f"no model can be made from the shape in {config.teacher.path!r} ({reason(error)}); correct it"
            ) from error


def _sizes(network: nn.Module, threshold: float) -> Network:
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    every = [p.numel() for p in network.parameters()]
    return Network(
        sum(trained), sum(every) - sum(trained), max(trained, default=0), sum(n for n in every if n < threshold)
    )


def engine_bytes(network: Network, setup: Setup, average: bool) -> tuple[Bytes, Bytes]:
    """What an engine keeps from its start to its end: (device, host).

    Args:
        average: it has the average's shards (students.student.Ema).
    """
    n, width, trained = setup.processes, setup.width, network.trained
    shard = trained if setup.stage == 0 else trained / n  # ZeRO 0 keeps all of everything on each process
    weights = width * network.total
    if setup.stage == 3:  # partition_parameters.py; small ones stay whole
        weights = width * (network.total / n + network.small * (1 - 1 / n))
    # all stages but 0 clone the shard, in float32 too: measured, where stage3.py looks as if it would not
    copies = setup.stage > 0
    state = {"weights in float32": 4 * shard * copies, "Adam's moments": 8 * shard}
    if average:
        state["average"] = 4 * shard
    device, host = {"weights": weights}, {}
    if setup.stage == 3:  # stage3.py: ipg buffers and grad_partitions_flat_buffer, made once
        device["reduce bucket"] = width * setup.bucket
        (host if setup.offload else device)["gradients"] = width * shard
    if setup.offload and setup.stage:
        # single_partition_of_fp32_groups and its gradient, and a staging copy in compute precision
        host |= {**state, "gradients": host.get("gradients", 0) + 4 * shard, "staging": width * shard}
        if setup.stage < 3:
            if setup.accumulated:
                host["gradients"] += width * shard  # accumulated_grads_in_cpu
            device["staging"] = width * network.largest  # temp_grad_buffer_for_gpu_offload
    else:
        device |= state
    return device, host


def _sum(terms: Bytes) -> float:
    return sum(terms.values())


def teacher_bytes(teacher: Network, setup: Setup) -> tuple[Bytes, Bytes]:
    """The frozen teacher in compute precision: (device, host); see distill/training/placement.py."""
    n, whole = setup.processes, setup.width * teacher.total
    if setup.placement == "sharded":
        return {"teacher": setup.width * (teacher.total / n + teacher.small * (1 - 1 / n))}, {}
    if setup.placement == "dispatched":
        there = min(whole, setup.dispatched)
        return {"teacher": there}, {"teacher": whole - there}
    return {"teacher": whole}, {}


def pass_bytes(network: Network, passes: PassMemory, setup: Setup) -> Bytes:
    """What a phase's passes add to what the engines keep, at the worst point of a forward and backward pass.

    ZeRO 0 and 1 leave gradients with the parameters until the update's last backward pass is over. ZeRO 2 moves them
    into a bucket as they come; ZeRO 3 too, into one that it keeps. Stages 1 and 2 allocate the bucket (setup_buckets)
    at the first gradient of a pass; stage 1 frees it when the update's last pass is over.
    """
    whole, shard = setup.width * network.trained, setup.width * network.trained / setup.processes
    bucket = setup.width * setup.bucket if setup.stage in (1, 2) else 0

    def terms(peak: Peak, gradients: float, bucket: float) -> Bytes:
        found = {"activations": peak.activations, "logits": peak.logits}
        return found | {"gradients": gradients, "reduce bucket": bucket}

    if setup.stage in (0, 1) and not setup.accumulated:
        started = [(p, p.gradients) for p in (passes.kept_top, passes.kept_bottom)]
        # the forward peak has no gradients, and so no bucket yet
        points = [terms(passes.forward, 0, 0)]
        points += [terms(p, g, bucket) for p, g in started if g > 0]
        points += [terms(passes.backward, 0, bucket)]
    elif setup.stage in (0, 1):
        points = [terms(passes.forward, whole, bucket), terms(passes.backward, whole, bucket)]
    else:
        kept = shard if setup.stage == 2 and setup.accumulated else 0  # all_grad_tensors, of the passes before
        # a bucket that overflows is emptied into grads_in_partition while activations are there
        moved = shard if setup.stage == 2 and network.trained > setup.bucket else 0
        points = [terms(passes.forward, kept, 0), terms(passes.backward, kept + moved, bucket)]
    found = max(points, key=_sum)
    if setup.stage == 3:
        found["gathered weights"] = setup.width * min(network.total, setup.live)
    return found


def step_bytes(network: Network, setup: Setup) -> Bytes:
    """What an optimiser step adds, from the end of the last backward pass on."""
    n, width = setup.processes, setup.width
    whole, shard = width * network.trained, width * network.trained / n
    if setup.stage == 0:  # gradients, and a flat copy of them for the others; our own norm squares one at a time
        return {
            "gradients": whole,
            "reduce bucket": max(width * min(network.trained, 5e8) * (n > 1), 4 * network.largest),
        }
    bucket = width * setup.bucket
    if setup.stage == 3:  # _prepare_fp32_grad_for_sub_group, 1e9 elements at a time; norms in float64
        part = min(network.trained / n, 1e9)
        return {"gradients": 0.0 if setup.offload else max(part * (width + 4 * (width == 2)), 8 * network.largest / n)}
    if setup.offload:
        return {"gradients": whole if setup.stage == 1 else 0, "reduce bucket": bucket}
    reducing = {"gradients": whole if setup.stage == 1 else shard, "reduce bucket": bucket}
    # averaged gradients, flattened, then in float32; before that the norm, in float64, one at a time
    stepping = {"gradients": 2 * shard + 4 * network.trained / n * (width == 2)}
    norm = {"gradients": shard + 8 * network.largest}
    return max(reducing, stepping, norm, key=_sum)


def moments(networks: Networks, passes: dict[str, PassMemory], setup: Setup) -> list[Moment]:
    """The moments of a run, on rank 0."""
    teacher, student, critic = networks.teacher, networks.student, networks.critic
    frozen_device, frozen_host = teacher_bytes(teacher, setup)
    device: Bytes = dict(frozen_device)
    host: Bytes = {f"{k}, dispatched": v for k, v in frozen_host.items() if v}
    for name, network in (("student", student), ("critic", critic)):
        on_device, on_host = engine_bytes(network, setup, name == "student")
        device |= {f"{name}: {term}": size for term, size in on_device.items()}
        host |= {f"{name}: {term}": size for term, size in on_host.items()}
    host["averaged twin"] = 4 * student.total  # loop.py: float32, on the CPU but while it is watched
    gathered = setup.width * min(teacher.total, LIVE) if setup.placement == "sharded" else 0

    def during(name: str, added: Bytes, on_host: Bytes | None = None) -> Moment:
        with_gathered = added | ({"gathered teacher": gathered} if gathered else {})
        return Moment(name, device | {f"then: {k}": v for k, v in with_gathered.items()}, host | (on_host or {}))

    # networks come in float32 and whole to the host; each goes to its device in compute precision, the critic first
    loaded = {"critic, loaded": 4 * critic.total, "student, loaded": 4 * student.total}
    critic_device = {k: v for k, v in device.items() if k.startswith(("teacher", "critic"))}
    flattened = {"student, flattened": setup.width * (student.total + student.trained)} if setup.stage in (1, 2) else {}
    found = [
        Moment("start: networks in float32", {}, {"teacher, loaded": 4.0 * teacher.total, **loaded}),
        Moment("start: the twin is made", {**frozen_device}, {**loaded, "averaged twin": 4 * student.total}),
        Moment("start: weights are flattened", {**critic_device, **flattened}, {"averaged twin": 4 * student.total}),
    ]
    rollout = passes["rollout"].forward
    added = {"activations": rollout.activations, "logits": rollout.logits}
    if setup.stage == 3:
        added["gathered weights"] = setup.width * min(student.total, setup.live)
    found.append(during("rollout", added))
    for name, network in (("critic", critic), ("student", student)):
        found.append(during(f"{name} pass", pass_bytes(network, passes[name], setup)))
        found.append(during(f"{name} step", step_bytes(network, setup)))
    # every process writes its share of three copies of both networks, and of the average
    share = 4 * (3 * (student.trained + critic.trained) + student.trained) / setup.processes
    swapped = {"average, swapped": 4 * student.trained / (setup.processes if setup.stage else 1)}
    parameter = {"one parameter": 4 * student.largest}
    on_device, on_host = (parameter, swapped) if setup.offload else (max(swapped, parameter, key=_sum), {})
    found.append(during("checkpoint", on_device, {"checkpoint, being written": share, **on_host}))
    if setup.watched:
        found.append(during("watch", {"averaged twin": 4 * student.total}, {}))
    return found


def peak(found: list[Moment], one_memory: bool = False) -> Moment:
    """The moment that needs most."""
    return max(found, key=lambda moment: moment.total(one_memory))


def host_peak(found: list[Moment]) -> float:
    """The most bytes of the host's memory that the main process needs."""
    return max(sum(moment.host.values()) for moment in found)


def micro_batches(config: DistillConfig, processes: int) -> list[int]:
    """Micro-batches to choose from: powers of two, and the whole share, that divide a process's rows into groups."""
    share = config.train.batch // processes
    powers = [2**k for k in range(share.bit_length()) if 2**k < share] + [share]
    return [m for m in powers if share % m == 0 and m % config.objective.group == 0]


def largest_micro_batch(
    shapes: Shapes, networks: Networks, setup: Setup, memory: float, config: DistillConfig | None = None
) -> int | None:
    """The largest micro-batch whose peak stays within ``memory`` bytes; None if none does."""
    choices = micro_batches(shapes.config, setup.processes)
    best = None
    while choices:  # memory grows with the rows: halve what is left
        middle = len(choices) // 2
        tried = replace(setup, micro=choices[middle])
        if peak(moments(networks, shapes.passes(tried, config), tried)).total() <= memory:
            best, choices = choices[middle], choices[middle + 1 :]
        else:
            choices = choices[:middle]
    return best
