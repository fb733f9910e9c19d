"""Training with flex attention is what it is without, and refused where it can not be."""

import pytest
import torch
from torch.nn.attention import flex_attention

from benchmarks.shapes import Size
from distill.runtime.world import ALONE
from distill.training import distillation
from distill.training.distillation import in_memory, load_networks
from tests.distill.config.small import distil, pretrain, refused

KL = {"name": "integral_kl", "rollout": {"name": "k_step", "steps": [2]}}
ADAPTER = {"adapter": {"rank": 2}}
WRITTEN = {"teacher_samples": 4, "teacher_sample_steps": 2}
FULL = {"objective": KL, **WRITTEN}
ADAPTED = {"objective": {**KL, "ratio": ADAPTER}, "student": ADAPTER, **WRITTEN}
TRAIN = {"critic": {"lr": 1e-4}, "gradient_checkpointing": "products"}


def size(sections=FULL, block: int | None = 4):
    return Size("llama", 16, 2, 2, 300, 8, 4, block=block, sections=sections, train=TRAIN)


@pytest.mark.parametrize("sections", [FULL, ADAPTED], ids=["full", "adapters"])
def test_updates_are_those_of_masks(sections, tmp_path, monkeypatch):
    # torch has the mathematics of its gradient for a CPU as well
    monkeypatch.setattr(distillation, "check_flex_attention", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    size(sections).teacher(tmp_path)
    found = {}
    for flex in (False, True):
        config = size(sections).config(tmp_path, updates=2, flex_attention=flex)
        networks = load_networks(config)
        trainer = in_memory(config, networks, ALONE)
        steps = [step.loss for update in trainer for _, step in update.steps]
        reads = [networks.teacher, *trainer.objective.networks.values()]
        assert {getattr(network, "base", network).flex for network in reads} == {flex}
        found[flex] = steps, list(trainer.average().parameters())
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-4, abs=1e-5)
    for one, other in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_it_is_refused_where_it_can_not_be(tmp_path):
    size().teacher(tmp_path)
    config = size().config(tmp_path, updates=2, flex_attention=True)
    networks = load_networks(config)
    refused(lambda: in_memory(config, networks, ALONE), "on a CPU", "leave it out")
    rows = size(block=None)
    rows.teacher(tmp_path)
    whole = rows.config(tmp_path, updates=2, flex_attention=True)
    refused(lambda: load_networks(whole), "this student's is full", "leave it out")
    words = "train.flex_attention=true", "teacher.placement=dispatched"
    refused(lambda: distil(tmp_path, *words), "teacher.placement 'dispatched'", "leave out either")
    refused(lambda: pretrain(tmp_path, words[0]), "model.attention to block or masks.documents to true")
    assert pretrain(tmp_path, words[0], "model={type: qwen3, attention: block, block_size: 4}").train.flex_attention
