"""Prompted rows through both engines, micro-batches, processes and a resumed run: one and the same student."""

import json
import shutil

import pytest

from benchmarks.equality import loss_difference, make_teacher
from distill.config import DataConfig, DistillConfig, load_config
from distill.models import tail_of
from distill.runtime.run_folder import RunFolder
from distill.training.distillation import build_objective, load_networks, load_rows
from objectives.tail import Tail
from tests.distill.runs import ROOT, assert_same_weights, distil, here, losses

OBJECTIVES = {
    "integral_kl": [],
    "didi_instruct": ["objective={name: didi_instruct, ratio: {blocks: 1}}"],
}

WAYS = {
    "micro-batches": (1, ["train.micro_batch=4"]),
    "two processes, the other engine": (2, ["deepspeed.zero_optimization.stage=1"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny teacher, and sums of different lengths."""
    folder = tmp_path_factory.mktemp("prompted")
    make_teacher(folder / "teacher")
    rows = [{"prompt": f"{a} + {7 * a} =", "completion": f" {8 * a}"} for a in range(1, 41)]
    (folder / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return folder


def overrides(folder, objective):
    return [
        f"teacher.path={folder / 'teacher'}", "length=null", "train.updates=4", "train.checkpoint_every=2",
        f"data={{path: {folder / 'sums.jsonl'}, format: prompt_completion, length: 24}}", *OBJECTIVES[objective],
    ]  # fmt: skip


@pytest.fixture(scope="module", params=OBJECTIVES)
def whole(request, folder):
    return here(folder / request.param, *overrides(folder, request.param))


def again(whole, *more, **kind):
    """The same run in another way."""
    folder = whole.path.parent
    return distil(folder / "again", *overrides(folder, whole.path.name), *more, **kind)


@pytest.fixture(autouse=True)
def clean(folder):
    yield
    shutil.rmtree(folder / "again", ignore_errors=True)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_gives_the_same_student(whole, way):
    processes, more = WAYS[way]
    other = again(whole, *more, processes=processes)
    for curve, expected in zip(losses(other).unbind(1), losses(whole).unbind(1), strict=True):
        assert loss_difference(curve, expected) <= 1e-4
    assert_same_weights(other, whole, rtol=0, atol=2e-5)


def test_a_resumed_run_is_the_same_to_the_bit(whole):
    half = RunFolder(shutil.copytree(whole.path, whole.path.parent / "again"))
    shutil.rmtree(half.checkpoints / "update-00000004")
    (half.checkpoints / "best").unlink(missing_ok=True)
    resumed = here(half.path, *overrides(whole.path.parent, whole.path.name), resume=True)
    assert_same_weights(resumed, whole, rtol=0, atol=0)


def test_a_tail_is_of_prompted_rows_alone(folder):
    """``data.tail`` reaches the objective; rows of text count alike."""
    config = load_config(
        DistillConfig, ROOT / "configs" / "smoke.yaml", [*overrides(folder, "integral_kl"), "data.tail=0.25"]
    )
    networks = load_networks(config)
    objective = build_objective(config, networks)
    assert objective.tail.share == 0.25
    assert objective.tail.ends == (load_rows(config, networks).end,)
    text = DataConfig(path="text.txt", length=8)
    assert tail_of(text, networks.student, 0) == tail_of(None, networks.student, 0) == Tail()
