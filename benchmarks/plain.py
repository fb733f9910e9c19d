"""The methods' mathematics in plain PyTorch, as their authors' code writes it, around the same network.

Logits are at all positions, (B, L, V) wide, with a uniform for each of their entries where a token is drawn; AdamW, and
an average. It is written after the released code of MDLM, SDTT and DiDi-Instruct.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.update_worker import ROWS, SHAPE, Cell

NEVER = -1e6
GROUP = 4
"""Rows of DiDi-Instruct that are each other's baseline."""
MOVES = (4, 1), (8, 2), (4, 2), (8, 5)
"""K, and steps before the recorded state: in four updates as many, on average, as where both are drawn uniformly."""


class Learner:
    """A network that trains in plain torch."""

    def __init__(self, network: nn.Module):
        self.network, self.average = network, list[Tensor]()
        self.trained = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def averaged(self) -> Self:
        """This, with an average of its weights from now on."""
        self.average = [weight.detach().clone() for weight in self.trained]
        return self

    def learn(self, loss: Tensor) -> None:
        """A step, and the average's."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for average, weight in zip(self.average, self.trained, strict=False):
                average.lerp_(weight, 1e-2)


class Plain(Learner):
    """A denoiser, all logits at all positions."""

    def __init__(self, cell: Cell):
        super().__init__(cell.network().model.requires_grad_(True))
        self.mask_id = cell.vocabulary - 1

    def law(self, z: Tensor) -> Tensor:
        """(B, L, V) log-probabilities: no mask, and what is known stays."""
        logits = self.network(z, use_cache=False).logits.float()
        # the two in-place changes that the released code makes break the graph of a log_softmax, so it is written out
        logits[..., self.mask_id] += NEVER
        logits = logits - logits.logsumexp(-1, keepdim=True)
        known = z != self.mask_id
        logits[known] = NEVER
        logits[known, z[known]] = 0
        return logits

    @torch.no_grad()
    def step(self, z: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Rows at times t (B,) → rows at times s, and the law that they were drawn from."""
        law = self.law(z)
        return self.drawn(law, z, t, s), law

    @torch.no_grad()
    def drawn(self, law: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """(B, L) the same rows at times s, by the law at times t."""
        chances = law.exp() * (t - s)[:, None, None]
        chances[..., self.mask_id] = s[:, None]
        token = (chances / (1e-10 - (torch.rand_like(chances) + 1e-10).log())).argmax(-1)
        return torch.where(z == self.mask_id, token, z)


class PlainDiscriminator(Learner):
    """The trunk, and a logit a token; the last four blocks and the head train."""

    def __init__(self, cell: Cell):
        trunk, width = cell.network().model.model.requires_grad_(False), SHAPE["hidden_size"]
        trunk.layers[-4:].requires_grad_(True)
        layers = nn.Linear(width, width), nn.Linear(width, 1)
        head = nn.Sequential(spectral_norm(layers[0]), nn.SiLU(), spectral_norm(layers[1]))
        super().__init__(nn.ModuleDict({"trunk": trunk, "head": head}))

    def logits(self, z: Tensor) -> Tensor:
        """(B, L), positive for what is real."""
        parts: Any = self.network
        return parts["head"](parts["trunk"](z, use_cache=False).last_hidden_state)[..., 0].float()


class PlainUpdate:
    """One update of a method after the other."""

    def __init__(self, method: str, cell: Cell):
        self.method, self.cell, self.made = method, cell, 0
        self.rows = torch.from_numpy(cell.text()).view(ROWS, cell.length)
        self.student = Plain(cell).averaged()
        if method != "pretrain":
            self.teacher = Plain(cell)
            self.teacher.network.requires_grad_(False)
        if method == "integral_kl":
            self.critic = Plain(cell)
        if method == "didi_instruct":
            self.discriminator = PlainDiscriminator(cell)

    def __call__(self) -> list[float]:
        """Make it."""
        x0 = self.rows[torch.randint(ROWS, (self.cell.batch,))]
        getattr(self, self.method)(x0, torch.rand(len(x0)).clamp(min=1e-3))
        self.made += 1
        return []

    def masked(self, x0: Tensor, t: Tensor) -> Tensor:
        """Rows at times t (B,)."""
        return torch.where(torch.rand(x0.shape) < t[:, None], self.student.mask_id, x0)

    def pretrain(self, x0: Tensor, t: Tensor) -> None:
        """The masked ELBO (2406.07524)."""
        law = self.student.law(self.masked(x0, t))
        self.student.learn((-law.gather(-1, x0[..., None])[..., 0] / t[:, None]).mean())

    def sdtt(self, x0: Tensor, t: Tensor) -> None:
        """Two of the teacher's steps in one, by the reverse KL (2410.21035)."""
        start, dt = self.masked(x0, t), 1 / 1024
        z, target = start, torch.zeros(())
        for number in range(2):
            at = (t - number * dt).clamp(min=0)
            still = (z == self.student.mask_id)[..., None]
            z, law = self.teacher.step(z, at, (at - dt).clamp(min=0))
            target = torch.where(still, law, target)
        law = self.student.law(start)
        distance = (law.exp() * (law - target)).sum(-1)
        self.student.learn(distance[start == self.student.mask_id].mean())

    def integral_kl(self, x0: Tensor, t: Tensor) -> None:
        """A state of the student's own sampler, a critic, and the marginalised reward (2503.15457, 2602.19066)."""
        # 1. what the student writes
        steps, before = MOVES[self.made % len(MOVES)]
        state, times = torch.full_like(x0, self.student.mask_id), torch.linspace(1, 0, steps + 1)
        times = times[:, None].expand(-1, len(x0))
        for number in range(before):
            state = self.student.step(state, times[number], times[number + 1])[0]
        sample = self.student.step(state, times[before], torch.zeros(len(x0)))[0]
        fake = self.masked(sample, t)
        hidden = fake == self.student.mask_id
        # 2. the critic learns it
        law = self.critic.law(fake)
        self.critic.learn(-law.gather(-1, sample[..., None])[..., 0][hidden].mean())
        # 3. the student gets what the teacher makes likelier
        with torch.no_grad():
            reward = (self.teacher.law(fake) - self.critic.law(fake)).clamp(-5, 5)
        law = self.student.law(state)
        gain = (law.exp() * reward).sum(-1) * (hidden & (state == self.student.mask_id))
        self.student.learn(-(gain.sum(1) / self.cell.length / t).sum() / len(x0))

    def didi_instruct(self, x0: Tensor, t: Tensor) -> None:
        """Two moves, a discriminator, and the score function with its reward, in groups of rows (2509.25035)."""
        mask_id, zero = self.student.mask_id, torch.zeros(len(x0))
        tau = torch.rand(len(x0) // GROUP, 3).median(-1).values.clamp(0.02, 0.98).repeat_interleave(GROUP)
        # 1. all masked → the state at τ → x, each move with its graph
        states = [torch.full_like(x0, mask_id)]
        laws = [self.student.law(states[0])]
        states.append(self.student.drawn(laws[0], states[0], torch.ones(len(x0)), tau))
        laws.append(self.student.law(states[1]))
        sample = self.student.drawn(laws[1], states[1], tau, zero)
        # 2. the discriminator learns to tell it from real rows
        hidden = torch.rand(x0.shape) < tau[:, None]
        fake, real = (torch.where(hidden, mask_id, tokens) for tokens in (sample, x0))
        on_fake, on_real = self.discriminator.logits(torch.cat([fake, real])).chunk(2)
        told = binary_cross_entropy_with_logits(on_real, torch.full_like(on_real, 0.9), reduction="none")
        told = told + binary_cross_entropy_with_logits(on_fake, torch.full_like(on_fake, 0.1), reduction="none")
        self.discriminator.learn(told[hidden].mean() / 2)
        # 3. a row's reward, within its group
        with torch.no_grad():
            logits = self.discriminator.logits(fake)
            odds = (logsigmoid(logits) - logsigmoid(-logits)).clamp(-8, 8)
            reward = ((odds * hidden).sum(1) / hidden.sum(1).clamp(min=1)).view(-1, GROUP)
            advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-8)
        # 4. the score function, and what keeps the student near its teacher and varied
        weight = (1 / tau).clamp(0.1, 10) / (6 * tau * (1 - tau))
        score, penalty = zero, zero
        for state, after, law in zip(states, [states[1], sample], laws, strict=True):
            open_ = state == mask_id
            written = law.gather(-1, sample[..., None])[..., 0] * (open_ & (after != mask_id))
            score = score + written.sum(1)
            with torch.no_grad():
                theirs = self.teacher.law(state)
            apart = (theirs.exp() * (theirs - law)).sum(-1)
            entropies = -(law.exp() * law).sum(-1)
            penalty = penalty + ((0.02 * apart - 5e-4 * entropies) * open_).sum(1) / open_.sum(1).clamp(min=1) / 2
        self.student.learn((-weight * advantage.flatten().clamp(-3, 3) * score + penalty).mean())
