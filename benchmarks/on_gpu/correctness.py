"""Whether the device computes what the CPU does: losses, gradients and draws in float32, and the process group."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.on_gpu.setting import CRITIC, Figures, Job
from benchmarks.shapes import Size
from distill.data.tokenizers import load_tokenizer
from distill.runtime.world import group_backend, leave_group, start_world
from distill.training.distillation import Networks, build_objective, load_networks
from objectives.objective import Objective, Rollout
from students.fill import fill
from students.samplers import Ancestral
from students.samplers.at_once import AtOnce
from teachers.canvas import Batch, Canvas
from teachers.randomness import RowStreams

OBJECTIVES: dict[str, dict[str, Any]] = {
    "integral_kl": {"train": CRITIC},
    "sdtt": {"train": {}},
    "didi_instruct": {"train": CRITIC},
    "dimo": {"train": CRITIC},
}


def correctness(job: Job) -> Iterator[tuple[str, Figures]]:
    """Each check by itself."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if job.on_gpu:
        yield "machine", machine()
    for name, sections in OBJECTIVES.items():
        if f"losses, {name}" not in job.have:
            size = replace(job.setting.checked, sections={"objective": {"name": name}}, train=sections["train"])
            yield f"losses, {name}", losses(size, job)
    yield "samples", samples(job)
    yield "process group of one", process_group(job)


def machine() -> Figures:
    """What was measured on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "GB": properties.total_memory / 1e9,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
    }


def losses(size: Size, job: Job) -> Figures:
    """A rollout on each of both, and each phase's loss and gradient on both of the one that the CPU drew."""
    with tempfile.TemporaryDirectory() as temporary:
        here, there = (objective_on(size, Path(temporary), device) for device in (torch.device("cpu"), job.device))
    rollout, other = rollout_of(here, size), rollout_of(there, size)
    figures: Figures = {
        "tokens of a rollout": tokens_of(rollout).numel(),
        "of these different": int((tokens_of(rollout) != tokens_of(other)).sum()),
    }
    for phase in here.phases:
        a, b = loss_and_gradient(here, phase, rollout), loss_and_gradient(there, phase, moved(rollout, job.device))
        figures[f"{phase} loss"] = a[0]
        figures[f"{phase} loss, relative difference"] = abs(a[0] - b[0]) / max(abs(a[0]), 1e-12)
        figures[f"{phase} gradient, relative difference"] = float((a[1] - b[1]).norm() / a[1].norm().clamp(min=1e-12))
    return figures


def objective_on(size: Size, folder: Path, device: torch.device) -> Objective:
    """The same random networks, on a device."""
    size.describe(folder)
    config = size.config(folder, updates=10, precision="float32")
    loaded = load_networks(config, (size.network(), load_tokenizer("bundled:teacher")))
    networks = Networks(loaded.teacher.to(device), loaded.student.to(device), loaded.tokenizer)
    objective = build_objective(config, networks)
    perturb(objective)
    for network in objective.networks.values():
        network.to(device)
    objective.begin(0, 10)
    if objective.target is not None:
        objective.target.load_state_dict(objective.student.state_dict())
    return objective


@torch.no_grad()
def perturb(objective: Objective) -> None:
    """Networks that start equal have no loss: each gets noise of its own, the same on every device."""
    noise = torch.Generator().manual_seed(1)
    for network in objective.networks.values():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise).to(parameter)


@torch.no_grad()
def rollout_of(objective: Objective, size: Size) -> Rollout:
    """Drawn where the objective is. It also has a discriminator iterate, which must happen as often on each device."""
    device = objective.student.device
    return objective.rollout(rows_of(size, objective).to(device), RowStreams(0, (0,), range(size.batch), device))


def tokens_of(rollout: Rollout) -> Tensor:
    """(n,) all that a rollout holds of tokens and masks, on the CPU."""
    parts = [part.tokens if isinstance(part, Canvas) else part for part in rollout.parts().values()]
    return torch.cat([part.flatten().long().cpu() for part in parts if not part.is_floating_point()])


def rows_of(size: Size, objective: Objective) -> Batch:
    """Random text, and a canvas that is all open."""
    spec = objective.student.spec
    labels = torch.randint(10, spec.vocabulary - 1, (size.batch, size.length), generator=torch.Generator())
    return Batch(Canvas.blank(size.batch, size.length, spec.mask_id), labels.clamp(min=spec.mask_id + 1))


def moved(rollout: Rollout, device: torch.device) -> Rollout:
    """The same on a device."""
    return replace(rollout, **{name: value.to(device) for name, value in rollout.parts().items()})


def loss_and_gradient(objective: Objective, phase: str, rollout: Rollout) -> tuple[float, Tensor]:
    """The loss of all rows, and its gradient as one vector."""
    network = objective.networks[phase]
    out = objective.loss(phase, rollout)
    out.sum.backward()
    gradients = [p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    return float(out.sum), torch.cat(gradients)


@torch.no_grad()
def samples(job: Job) -> Figures:
    """Texts of one pass drawn with the same numbers, and whether a seed's own numbers are the same on both."""
    size, texts, drawn = job.setting.checked, [], []
    for device in (torch.device("cpu"), job.device):
        denoiser = size.network(device)
        canvas = Canvas.blank(size.batch, size.length, denoiser.spec.mask_id, device)
        streams = RowStreams(0, (1,), range(size.batch), device)
        uniforms = torch.rand(size.batch, size.length, generator=torch.Generator(), dtype=torch.float64).to(device)
        texts.append(fill(denoiser, canvas, AtOnce(), 1, streams, uniforms=uniforms).tokens.cpu())
        drawn.append(fill(denoiser, canvas, Ancestral(), 4, streams).tokens.cpu())
    return {
        "tokens, the same numbers": texts[0].numel(),
        "of these different": int((texts[0] != texts[1]).sum()),
        "tokens, the same seed": drawn[0].numel(),
        "different": int((drawn[0] != drawn[1]).sum()),
    }


def process_group(job: Job) -> Figures:
    """A group of this process alone, as a launcher would start it."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29513"}
    os.environ |= alone
    try:
        world = start_world()
        total = torch.arange(4.0, device=world.device)
        dist.all_reduce(total)
        job.settle()
        return {"backend": dist.get_backend(), "expected": group_backend(), "sum": float(total.sum()), "right": 6.0}
    finally:
        leave_group()
        for name in alone:
            del os.environ[name]
