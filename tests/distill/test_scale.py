"""One config, every size: where weights, optimiser and teacher are kept changes memory, not what is computed."""

import re
import shutil

import pytest
import torch

from benchmarks.equality import make_teacher
from distill.runtime.checkpoints import checkpoint_folders, latest_checkpoint
from distill.runtime.run_folder import RunFolder
from tests.distill.runs import assert_same_weights, distil, here, losses


def assert_same_run(one, other, rtol=1e-4, weights=2e-5):
    torch.testing.assert_close(losses(one), losses(other), rtol=rtol, atol=1e-5)
    assert_same_weights(one, other, rtol=0, atol=weights)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The override that names a tiny teacher: what is kept where does not depend on how much it is."""
    folder = tmp_path_factory.mktemp("scale") / "teacher"
    make_teacher(folder)
    return f"teacher.path={folder}"


@pytest.fixture(scope="module")
def plain(teacher, tmp_path_factory):
    return here(tmp_path_factory.mktemp("plain") / "run", teacher, "train.updates=4")


@pytest.mark.parametrize(
    "overrides",
    [
        ["deepspeed.zero_optimization={stage: 2, offload_optimizer: {device: cpu}}"],
        ["deepspeed.zero_optimization={stage: 3, offload_optimizer: {device: cpu}, offload_param: {device: cpu}}"],
        ["train.gradient_checkpointing=true", "train.micro_batch=4"],
        ["train.gradient_checkpointing=true", "deepspeed.zero_optimization.stage=3"],
        ["teacher.placement=sharded"],
        ["teacher.placement=dispatched", "teacher.max_memory={cpu: 90KB}"],  # the rest goes to disk
        ["student.adapter={rank: 4}", "objective.ratio.adapter={rank: 4}", "deepspeed.zero_optimization.stage=1"],
        ["student.adapter={rank: 4}", "objective.ratio.adapter={rank: 4}", "train.gradient_checkpointing=true"],
    ],
    ids=lambda overrides: " ".join(overrides)[:60],
)
def test_where_things_are_kept_changes_nothing(overrides, teacher, plain, tmp_path, caplog):
    overrides = [*overrides, teacher, "train.updates=4"]
    run = here(tmp_path / "run", *overrides)
    if "adapter" in overrides[0]:  # another network: compare it with itself, its activations kept
        plain = here(tmp_path / "kept", *overrides[:2], teacher, "train.updates=4")
    assert_same_run(run, plain)
    if "dispatched" in overrides[0]:
        assert re.search("offloaded to the .*disk", caplog.text)
        assert list((tmp_path / ".run.offload").iterdir()) == []  # it is read from the model's own files


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resuming_is_bitwise_at_every_stage(precision, stage, teacher, tmp_path):
    overrides = [
        teacher,
        "train.updates=4",
        f"train.precision={precision}",
        f"deepspeed.zero_optimization.stage={stage}",
        "train.checkpoint_every=2",
    ]
    run = here(tmp_path / "run", *overrides)
    shutil.copytree(run.path, tmp_path / "half")
    shutil.rmtree(latest_checkpoint(RunFolder(tmp_path / "half")))
    half = here(tmp_path / "half", *overrides, resume=True)
    assert torch.equal(losses(half), losses(run))
    assert_same_weights(half, run, rtol=0, atol=0)


def test_two_processes_under_zero_2_go_on_as_one_under_zero_3_and_back(teacher, tmp_path):
    two = distil(
        tmp_path / "two", teacher, "train.updates=6", "train.checkpoint_every=2", "train.keep=9",
        "deepspeed.zero_optimization.stage=2", processes=2,
    )  # fmt: skip
    mixed = tmp_path / "mixed"
    shutil.copytree(two.path, mixed)
    for folder in checkpoint_folders(RunFolder(mixed))[1:]:
        shutil.rmtree(folder)
    # updates 3 and 4 in one process under ZeRO 3, then 5 and 6 in two sharing the teacher as well
    overrides = [teacher, "train.updates=6", "train.checkpoint_every=2"]
    one = here(mixed, *overrides, "train.keep=9", "deepspeed.zero_optimization.stage=3", resume=True)
    assert_same_run(one, two)
    for folder in checkpoint_folders(one)[2:]:
        shutil.rmtree(folder)
    back = distil(
        mixed, *overrides, "deepspeed.zero_optimization.stage=3", "teacher.placement=sharded", processes=2, resume=True,
        allow_changes=True,
    )  # fmt: skip
    assert_same_run(back, two)
