"""Training with compiled passes is the training without, and leaves what it would."""

import pytest
import torch

from benchmarks.shapes import Size
from distill.runtime.world import ALONE
from distill.training.distillation import in_memory, load_networks
from tests.compilation import capturing
from tests.distill.config.small import distil, pretrain, refused

KL = {"objective": {"name": "integral_kl", "rollout": {"name": "k_step", "steps": [4]}}}
ADAPTER = {"adapter": {"rank": 2}}
ADAPTED = {"objective": {**KL["objective"], "ratio": ADAPTER}, "student": ADAPTER}


@pytest.mark.parametrize("sections", [KL, ADAPTED], ids=["full", "adapters"])
def test_updates_are_those_of_training_as_it_is(sections, tmp_path, monkeypatch):
    graphs = capturing(monkeypatch)
    size = Size("llama", 16, 2, 2, 300, 8, 4, sections=sections, train={"critic": {"lr": 1e-4}})
    size.teacher(tmp_path)
    found = {}
    for compilation in (False, True):
        config = size.config(tmp_path, updates=2, compile=compilation)
        trainer = in_memory(config, load_networks(config), ALONE)
        steps = [[(phase, step.loss, step.norm) for phase, step in update.steps] for update in trainer]
        found[compilation] = steps, dict(trainer.average().named_parameters())
        assert bool(graphs) == compilation
    assert found[True][0] == found[False][0]
    expected, average = found[False][1], found[True][1]
    assert list(average) == list(expected)
    assert all(torch.equal(average[name], weight) for name, weight in expected.items())


def test_blocks_whose_weights_come_and_go_are_not_compiled(tmp_path):
    for word, named in (
        ("teacher.placement=dispatched", "teacher.placement 'dispatched'"),
        ("deepspeed.zero_optimization.stage=3", "deepspeed.zero_optimization.stage 3"),
    ):
        refused(lambda word=word: distil(tmp_path, "train.compile=true", word), "train.compile is True", named)
    assert distil(tmp_path, "train.compile=reduce-overhead").train.compile == "reduce-overhead"


def test_pretraining_has_no_pass_to_compile(tmp_path):
    refused(lambda: pretrain(tmp_path, "train.compile=true"), "train.compile is True", "leave it out")
