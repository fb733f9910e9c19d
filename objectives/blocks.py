"""Any objective on the blocks of texts, each behind what is clean before it: how a student of blocks is distilled.

The law of a text that is written in blocks is Π_b p(x_b | x_<b), and each factor is a denoiser over canvases of one
block. So an update's B texts of N blocks become B · N rows, and the objective, its rollouts and its rules work on these
as on any others: K steps are K passes a block, and a student is trained on the states of its own block sampler. A
network reads all blocks of a text in one pass, on [x_t ⊕ x₀] (teachers/prefix.py).

What is before a block is a text of the data (as in BD3-LM, 2503.09573), one that the teacher wrote, or one that the
student writes itself, block by block in its own passes, so that its blocks have the joint law they will be read in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from objectives.objective import Distillation, LossOutput, Needs, Objective, ObjectiveConfig, Rollout, labels_of
from students.fill import fill
from teachers.canvas import Batch, Canvas
from teachers.denoiser import end_ids
from teachers.positions import on_device, sent
from teachers.prefix import split
from teachers.randomness import RowStreams
from teachers.section import Section


class BlocksConfig(Section):
    """How a student of blocks is distilled.

    Attributes:
        size: tokens of a block; None for what the model that the student starts from has. Another one is only another
            attention mask, of a student that starts with the teacher's weights.
        prefix: whose text is before a block: of the "data", or, without any, of the teacher; of the "teacher", also
            where there are data; or the "student"'s own, for objectives that need no text.
    """

    size: PositiveInt | None = None
    prefix: Literal["data", "teacher", "student"] = "data"  # [paper] 2503.09573

    def check(self, objective: ObjectiveConfig, needs: Needs, has_text: bool) -> None:
        """Refuse a prefix that the objective can not be given.

        Args:
            needs: the objective's, see `Objective.needs`. has_text: whether the run's data hold texts.

        Raises:
            ValueError: the remedy.
        """
        if self.prefix == "student" and needs != "nothing":
            raise ValueError(
                f"blocks.prefix is 'student', but {objective.name} learns from {needs} that are given; set it to data, "
                "or to teacher"
            )
        if self.prefix == "teacher" and needs == "trajectories" and has_text:
            raise ValueError(
                f"blocks.prefix is 'teacher', but {objective.name} learns the order of the data; set it to data, or "
                "leave the data out"
            )


@dataclass
class BlocksRollout(Rollout):
    """A rollout on the blocks of texts, of which a part is one of whole texts.

    Attributes:
        blocks: rows are blocks, those of a text, or of a group of texts, beside each other.
        each: N, blocks of a text.
    """

    blocks: Rollout
    each: int

    def __len__(self) -> int:
        """Texts."""
        return len(self.blocks) // self.each

    def rows(self, part: slice) -> BlocksRollout:
        """The rollout of some of the texts, of whole groups."""
        start, stop, _ = part.indices(len(self))
        return replace(self, blocks=self.blocks.rows(slice(start * self.each, stop * self.each)))

    def learn(self) -> None:
        """See `Rollout.learn`."""
        self.blocks.learn()


class InBlocks(Objective[BlocksRollout]):
    """An objective, given blocks for rows.

    Texts of a group share what the first of them has, prompt and text, so that each of its blocks is compared with
    others behind the same tokens. Blocks behind the one in which a text ends have nothing to write.

    Args:
        objective: built for canvases of a block.
        whole: what is distilled, of whole texts.
        steps: passes of a block, where the student writes what is before it.
    """

    def __init__(self, objective: Objective[Rollout], config: BlocksConfig, whole: Distillation, steps: int):
        size = whole.student.spec.block_size
        assert size is not None, "the student writes in blocks"
        self.objective, self.config, self.size = objective, config, min(size, whole.length)
        self.process, self.sampler, self.steps = whole.process, whole.sampler, steps
        self.ends = whole.tail.ends or end_ids(whole.student)
        self.phases, self.group, self.candidates = objective.phases, objective.group, objective.candidates
        self.student, self.target, self.reference = objective.student, objective.target, objective.reference
        self.asks, self.needs, self.uses = objective.asks, objective.needs, objective.uses
        self.writes = config.prefix == "student"
        if config.prefix == "teacher" and objective.needs != "trajectories":
            self.needs = "written rows"
        elif config.prefix == "data" and objective.needs == "nothing":
            self.needs = "rows"

    def begin(self, update: int, updates: int) -> bool:
        """See `Objective.begin`."""
        return self.objective.begin(update, updates)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The objective's."""
        return self.objective.networks

    @torch.no_grad()
    def rollout(self, batch: Batch, randomness: RowStreams) -> BlocksRollout:
        """The objective's, on the blocks of the texts."""
        count, device = batch.canvas.length // self.size, batch.canvas.device
        # 1. a text for each group
        texts = batch.rows(slice(None, None, self.group))
        if self.writes:
            first = torch.arange(0, len(batch), self.group, device=device)
            texts = replace(texts, labels=self._written(texts.canvas, randomness.take(first)))
        # 2. its blocks, and of each block as many rows as the group has, (B · N,)
        blocks = self._blocks(texts)
        blocks = blocks.rows(self._each(len(blocks), device), whole=True)
        # 3. a stream for each of them
        return BlocksRollout(self.objective.rollout(blocks, self._streams(randomness, count)), count)

    def again(self, rollout: BlocksRollout, randomness: RowStreams) -> BlocksRollout:
        """The objective's, behind the same texts."""
        streams = self._streams(randomness, rollout.each)
        return replace(rollout, blocks=self.objective.again(rollout.blocks, streams))

    def _each(self, blocks: int, device: torch.device) -> Tensor:
        """An index of blocks that has each as often as a group has rows."""
        return sent(torch.arange(blocks).repeat_interleave(self.group), device)

    def _streams(self, randomness: RowStreams, count: int) -> RowStreams:
        """One for each block, in the order of the rows: groups, blocks of a text, rows of a group."""
        order = torch.arange(len(randomness) * count, device=randomness.device)
        return randomness.split(count).take(order.view(-1, self.group, count).transpose(1, 2).flatten())

    def _written(self, canvas: Canvas, randomness: RowStreams) -> Tensor:
        """(B, L) what the student writes."""
        return fill(self.student, canvas, self.sampler, self.steps, randomness, process=self.process).tokens

    def _blocks(self, texts: Batch) -> Batch:
        labels = labels_of(texts)
        ended = behind_end(labels, self.ends, self.size)
        canvas = split(replace(texts.canvas, open=texts.canvas.open & ~ended), labels, self.size)
        order = texts.order
        if order is not None:
            order = order.reshape(-1, self.size)
            first = order.masked_fill(order < 0, torch.iinfo(order.dtype).max).amin(1, keepdim=True)
            order = torch.where(order < 0, order, order - first)  # a block's passes are counted from its first
        return Batch(canvas, labels.reshape(-1, self.size), order)

    def as_read(self, canvas: Canvas) -> Canvas:
        """The blocks of each group's first text, as often as the group has rows."""
        texts = canvas.rows(slice(None, None, self.group))
        blocks = split(texts, texts.tokens, self.size)
        return blocks.rows(self._each(len(blocks), canvas.device), whole=True)

    def outline(self, canvas: Canvas) -> BlocksRollout:
        """See `Objective.outline`."""
        return BlocksRollout(self.objective.outline(self.as_read(canvas)), canvas.length // self.size)

    def count(self, phase: str, rollout: BlocksRollout) -> Tensor:
        """The objective's."""
        return self.objective.count(phase, rollout.blocks)

    def loss(self, phase: str, rollout: BlocksRollout) -> LossOutput:
        """The objective's."""
        return self.objective.loss(phase, rollout.blocks)


def behind_end(tokens: Tensor, ends: Sequence[int], size: int) -> Tensor:
    """(B, L) bool: the blocks of ``size`` tokens behind the one in which a text ends.

    It ends with the first of the end tokens that fill the rest of the row. One in the middle of a row of packed
    documents ends none.

    Args:
        ends: the tokens that end a text, see `teachers.denoiser.end_ids`.
    """
    column = torch.arange(tokens.shape[1], device=tokens.device)
    others = ~torch.isin(tokens, on_device(ends, tokens.device))
    end = torch.where(others, column, -1).amax(1, keepdim=True) + 1  # (B, 1)
    return column // size > end // size
