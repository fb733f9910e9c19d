"""What a distillation needs of memory, term by term, before any is spent.

A run passes through a few moments: the start, the rollout, each phase's passes and its optimiser step, a checkpoint.
What is alive at each is known: networks and their training state from their shapes and DeepSpeed's ZeRO stage (here,
with the place in DeepSpeed 0.19 that allocates it), activations and logits from a run on tensors without data
(`distill.planning.passes`). The peak is the largest of the moments. Bytes, for rank 0, which keeps the average as
well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.planning.live_memory import PassMemory, Peak
from distill.planning.passes import Passes
from distill.planning.setup import Setup
from distill.planning.shapes import Network, Networks

Bytes = dict[str, float]
"""Name of a term → bytes."""
LIVE = 1e9 + 5e7
"""Elements that ZeRO 3 gathers by default: stage3_max_live_parameters and stage3_prefetch_bucket_size."""


@dataclass(frozen=True)
class Moment:
    """What is alive at one time: on the device, and in the host's memory for it."""

    name: str
    device: Bytes
    host: Bytes

    def total(self, one_memory: bool = False) -> float:
        """Bytes on the device; with ``one_memory``, as on a machine without one, the host's too."""
        return sum(self.device.values()) + (sum(self.host.values()) if one_memory else 0)


def engine_bytes(network: Network, setup: Setup, average: bool) -> tuple[Bytes, Bytes]:
    """What an engine keeps from its start to its end: (device, host).

    Args:
        average: it has the average's shards (students.student.Ema).
    """
    n, width, trained = setup.processes, setup.width, network.trained
    if setup.stage is None:  # torch alone: in float32 the weights are what Adam steps
        state = {"weights in float32": 4 * trained * (width == 2), "Adam's moments": 8 * trained}
        return {"weights": width * network.total, **state, "average": 4 * trained * average}, {}
    shard = trained if setup.stage == 0 else trained / n  # ZeRO 0 keeps all of everything on each process
    weights = width * network.total
    if setup.stage == 3:  # partition_parameters.py; small ones stay whole
        weights = width * (network.total / n + network.small * (1 - 1 / n))
    # float32 weights are their own masters, but where DeepSpeed keeps these on the CPU (`ZeroEngine`)
    copies = setup.stage > 0 and (width == 2 or setup.offload)
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

    Torch alone, ZeRO 0 and 1 leave gradients with the parameters until the update's last backward pass is over. ZeRO 2
    moves them into a bucket as they come; ZeRO 3 too, into one that it keeps. Stages 1 and 2 allocate the bucket
    (setup_buckets) at the first gradient of a pass; stage 1 frees it when the update's last pass is over.
    """
    whole, shard = setup.width * network.trained, setup.width * network.trained / setup.processes
    bucket = setup.width * setup.bucket if setup.stage in (1, 2) else 0

    def terms(peak: Peak, gradients: float, bucket: float) -> Bytes:
        found = {"activations": peak.activations, "logits": peak.logits}
        return found | {"gradients": gradients, "reduce bucket": bucket}

    if setup.stage in (None, 0, 1) and not setup.accumulated:
        started = [(p, p.gradients) for p in (passes.kept_top, passes.kept_bottom)]
        # the forward peak has no gradients, and so no bucket yet
        points = [terms(passes.forward, 0, 0)]
        points += [terms(p, g, bucket) for p, g in started if g > 0]
        points += [terms(passes.backward, 0, bucket)]
    elif setup.stage in (None, 0, 1):
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
    if setup.stage is None:  # gradients in float32, each in place of the parameter's; their norm in float64, one by one
        return {"gradients": 4 * network.trained + 8 * network.largest}
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


def moments(networks: Networks, passes: Passes | None, setup: Setup) -> list[Moment]:
    """The moments of a run, on rank 0.

    Args:
        passes: None for what is there without any.
    """
    run = _Run(networks, setup)
    found = run.start()
    if passes is not None:
        found += run.rollout(passes)
    for name, network in networks.trained.items():
        within = pass_bytes(network, PassMemory() if passes is None else passes.phases[name], setup)
        held = {} if passes is None else {"rollout, activations": passes.held * (1 - setup.micro / setup.share)}
        found.append(run.during(f"{name} pass", within | held))
        found.append(run.during(f"{name} step", step_bytes(network, setup)))
    found.append(run.checkpoint())
    if setup.watched:
        found.append(run.during("watch", {"averaged twin": 4 * networks.student.total}))
    return found


class _Run:
    """What is alive from the start of a run to its end, on rank 0, and what each moment adds."""

    def __init__(self, networks: Networks, setup: Setup):
        self.networks, self.setup = networks, setup
        self.teacher, frozen_host = teacher_bytes(networks.teacher, setup)
        self.device: Bytes = dict(self.teacher)
        self.dispatched: Bytes = {f"{term}, dispatched": size for term, size in frozen_host.items() if size}
        self.host: Bytes = dict(self.dispatched)
        for name, network in networks.kept.items():
            self.device[f"{name}: weights"] = setup.width * network.total
        for name, network in networks.trained.items():
            on_device, on_host = engine_bytes(network, setup, name == "student")
            self.device |= {f"{name}: {term}": size for term, size in on_device.items()}
            self.host |= {f"{name}: {term}": size for term, size in on_host.items()}
        self.twin = {"averaged twin": 4.0 * networks.student.total}  # float32, on the CPU but while it is watched
        self.host |= self.twin

    def start(self) -> list[Moment]:
        """Networks are read or copied on the host in compute precision; each goes to its device, in order.

        A teacher that is sharded or dispatched goes there as it is read, one layer at a time.
        """
        networks, setup = self.networks, self.setup
        kept = {f"{name}, loaded": float(setup.read * network.total) for name, network in networks.kept.items()}
        loaded = kept | {f"{name}, loaded": float(setup.read * n.total) for name, n in networks.trained.items()}
        whole = {"teacher, loaded": float(setup.read * networks.teacher.total)}
        there, on_host = ({}, whole) if setup.placement == "replicated" else (self.teacher, self.dispatched)
        *before, last = networks.trained
        moved = {k: v for k, v in self.device.items() if k in self.teacher or k.partition(":")[0] in before}
        network = networks.trained[last]
        flattened = {f"{last}, flattened": setup.width * (network.total + network.trained) * (setup.stage in (1, 2))}
        return [
            Moment("start: networks are read", dict(there), {**on_host, **loaded}),
            Moment("start: the twin is made", dict(self.teacher), {**self.dispatched, **loaded, **self.twin}),
            Moment("start: weights are flattened", {**moved, **flattened}, {**self.dispatched, **kept, **self.twin}),
        ]

    def during(self, name: str, added: Bytes, on_host: Bytes | None = None) -> Moment:
        """A moment after the start."""
        if self.setup.placement == "sharded":
            added = added | {"gathered teacher": self.setup.width * min(self.networks.teacher.total, LIVE)}
        return Moment(name, self.device | {f"then: {k}": v for k, v in added.items()}, self.host | (on_host or {}))

    def rollout(self, passes: Passes) -> list[Moment]:
        """The rollout's, unless it asks no network."""
        if passes.rollout is None:
            return []
        peak = passes.rollout.forward
        added = {"activations": peak.activations, "logits": peak.logits}
        asked = [network.total for name, network in self.networks.trained.items() if name in passes.asked]
        if self.setup.stage == 3 and asked:
            added["gathered weights"] = self.setup.width * min(max(asked), self.setup.live)
        return [self.during("rollout", added)]

    def checkpoint(self) -> Moment:
        """Every process writes its share of three copies of what trains and of the average, one the rest."""
        networks, setup, student = self.networks, self.setup, self.networks.student
        trained = sum(network.trained for network in networks.trained.values())
        written = 4 * (3 * trained + student.trained) / setup.processes
        written += sum(setup.width * networks.kept[name].total for name in networks.saved)
        swapped = {"average, swapped": 4 * student.trained / (setup.processes if setup.stage else 1)}
        parameter = {"one parameter": 4.0 * student.largest}
        on_device, on_host = (parameter, swapped) if setup.offload else (max(swapped, parameter, key=_sum), {})
        return self.during("checkpoint", on_device, {"checkpoint, being written": written, **on_host})


def peak(found: Sequence[Moment], one_memory: bool = False) -> Moment:
    """The moment that needs most."""
    return max(found, key=lambda moment: moment.total(one_memory))


def host_peak(found: Sequence[Moment]) -> float:
    """The most bytes of the host's memory that the main process needs."""
    return max(sum(moment.host.values()) for moment in found)
