"""The smallest thing the loop can train, for tests of the loop itself; it can be poisoned."""

import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.config import OptimizerConfig, TrainConfig
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import start_world
from distill.training.loop import train
from objectives.objective import LossOutput, Objective, Rollout
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec


class Line(Denoiser):
    """A network of four weights."""

    def __init__(self):
        super().__init__()
        self.spec = DenoiserSpec(3, 4, 8)
        self.weights = nn.Parameter(torch.ones(4))

    def features(self, canvas, select=None):
        return (self.weights * canvas.tokens.float()).sum(-1)

    def save(self, folder):
        folder.mkdir()
        (folder / "weights.json").write_text(json.dumps(self.weights.tolist()))


class Poisoned(Objective):
    """A quadratic loss; at the given updates it, or only its gradient, is not finite."""

    phases = ("student",)

    def __init__(self, loss_at=(), gradient_at=()):
        self.student, self.loss_at, self.gradient_at, self.update = Line(), loss_at, gradient_at, -1

    def rollout(self, batch, randomness):
        self.update += 1
        return Ones(torch.ones(len(batch), 4))

    def outline(self, canvas):
        return Ones(torch.ones(len(canvas), 4))

    def count(self, phase, rollout):
        return torch.tensor(len(rollout.x))

    def loss(self, phase, rollout):
        out = self.student(Canvas.of(rollout.x, self.student.spec.mask_id)).square().sum()
        if self.update in self.gradient_at:  # √x at 0: the value is 0, the slope infinite
            out = out + (out - out.detach()).sqrt()
        if self.update in self.loss_at:
            out = out * torch.inf
        return LossOutput(out)


@dataclass
class Ones(Rollout):
    x: Tensor


def train_line(folder, objective, stage=1, updates=6, max_skipped=3, resume=False):
    """A real run of the loop, in this process and in a second; its `Outcome` is ``outcome`` of what is returned.

    DeepSpeed trains at a ``stage``, torch alone at None.
    """
    config = TrainConfig(
        updates=updates, batch=4, micro_batch=2, ema=0.0, log_every=1, checkpoint_every=1, max_skipped=max_skipped,
        student=OptimizerConfig(lr=0.1),
    )  # fmt: skip
    run = RunFolder(folder)
    if not resume:
        run.create("{}")
    zero = None if stage is None else {"zero_optimization": {"stage": stage}}
    run.outcome = train(objective, {"student": config.student}, None, config, zero, run, start_world(), 4, resume)
    return run
