"""Two engines, one result: torch alone and DeepSpeed give the same run, and each continues the other's."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.equality import make_teacher
from distill.config import OptimizerConfig, TrainConfig
from distill.config.deepspeed import deepspeed_section
from distill.runtime.checkpoints import checkpoint_folders, latest_checkpoint
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import ALONE
from distill.training.engines import rehearse, start_engine
from distill.training.plain import PlainEngine
from distill.training.zero import ZeroEngine
from teachers.errors import UserError
from tests.distill.runs import ROOT, assert_same_weights, here, losses, words

ZERO = "deepspeed.zero_optimization.stage={}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines") / "teacher"
    make_teacher(folder)
    return f"teacher.path={folder}"


def settings(**train):
    return TrainConfig(updates=9, batch=4, student=OptimizerConfig(lr=0.1), **train)


def test_torch_alone_trains_one_process_and_deepspeed_whatever_else():
    assert deepspeed_section({}, 1) is None
    assert deepspeed_section({"steps_per_print": 5}, 1) == {"steps_per_print": 5}
    assert deepspeed_section({}, 1, sharded_teacher=True) == {}
    assert deepspeed_section({}, 2) == {}
    train = settings()
    for section, kind in ((None, PlainEngine), ({}, ZeroEngine)):
        engine = start_engine(torch.nn.Linear(2, 2), train.student, train, section, ALONE)
        assert type(engine) is kind
        engine.destroy()


def states(run):
    """All that is saved of both networks, by phase and name."""
    return {
        f"{phase}/{name}": tensor
        for phase in ("student", "critic")
        for name, tensor in load_file(latest_checkpoint(run) / phase / "rank-0.safetensors").items()
    }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "overrides",
    [[], ["train.micro_batch=2"], ["train.student.clip=1e-3", "train.critic={lr: 1e-4, weight_decay: 0.1, clip: 0}"]],
    ids=["whole", "accumulated", "clipped and decayed"],
)
def test_torch_alone_and_deepspeed_give_the_same_run_bit_for_bit(overrides, precision, teacher, tmp_path):
    overrides = [teacher, "train.updates=4", "length=16", f"train.precision={precision}", *overrides]
    plain, zero = here(tmp_path / "plain", *overrides), here(tmp_path / "zero", *overrides, ZERO.format(1))
    assert torch.equal(losses(plain), losses(zero))
    one, other = states(plain), states(zero)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    norms = [[(x["student/grad_norm"], x["critic/grad_norm"]) for x in run.read_metrics()] for run in (plain, zero)]
    assert norms[0] == norms[1]
    assert len(norms[0]) == 4


def cut(run, folder, kept=1):
    """A copy of a run that was killed after so many checkpoints."""
    shutil.copytree(run.path, folder)
    for late in checkpoint_folders(RunFolder(folder))[kept:]:
        shutil.rmtree(late)
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resuming_on_torch_alone_is_bitwise(precision, teacher, tmp_path):
    overrides = [teacher, "train.updates=4", "length=16", "train.checkpoint_every=2", f"train.precision={precision}"]
    run = here(tmp_path / "run", *overrides)
    half = here(cut(run, tmp_path / "half"), *overrides, resume=True)
    assert torch.equal(losses(half), losses(run))
    one, other = states(half), states(run)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert_same_weights(half, run, rtol=0, atol=0)


@pytest.mark.parametrize("stage", range(4))
def test_each_engine_continues_what_the_other_has_saved(stage, teacher, tmp_path):
    overrides = [teacher, "train.updates=4", "length=16", "train.checkpoint_every=2"]
    plain, zero = here(tmp_path / "plain", *overrides), here(tmp_path / "zero", *overrides, ZERO.format(stage))
    there = here(cut(plain, tmp_path / "there"), *overrides, ZERO.format(stage), resume=True)
    back = here(cut(zero, tmp_path / "back"), *overrides, resume=True)
    for run in (there, back):
        torch.testing.assert_close(losses(run), losses(plain), rtol=1e-4, atol=1e-5)
        assert_same_weights(run, plain, rtol=0, atol=2e-5)
    assert torch.equal(losses(there)[:2], losses(plain)[:2])  # and went on from there


def test_a_refused_step_changes_nothing():
    train = settings()
    network = torch.nn.Linear(2, 2)
    engine = start_engine(network, train.student, train, None, ALONE)
    before = network.weight.clone()
    for factor, loss in ((torch.inf, 1.0), (torch.nan, 1.0), (1.0, torch.inf), (1.0, torch.nan)):
        engine.backward(network(torch.ones(4, 2)).sum() * factor)
        assert not engine.step(0, torch.tensor(loss))[1]
    assert torch.equal(network.weight, before)
    assert engine.adam_steps == 0
    assert all(not moment.any() for _, moment in engine.gather("exp_avg"))
    engine.backward(network(torch.ones(4, 2)).sum())
    norm, moved = engine.step(0, torch.tensor(1.0))
    assert moved
    assert float(norm) == pytest.approx(96**0.5)  # six gradients of 4: a row's is 1, and there are four rows
    assert engine.adam_steps == 1


def test_a_run_on_one_process_imports_no_deepspeed_and_joins_no_group(teacher, tmp_path):
    code = (
        "import sys; from distill import cli\n"
        "try: cli.main()\n"
        "finally:\n"
        "    import torch.distributed as dist\n"
        "    print('deepspeed' in sys.modules, dist.is_initialized())\n"
    )
    overrides = [teacher, "train.updates=2", "length=16", "evaluate.every=2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words(tmp_path / "run", *overrides)], cwd=ROOT, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "False False\n"
    assert latest_checkpoint(RunFolder(tmp_path / "run")).name == "update-00000002"


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"steps_per_print": 0}, "{'steps_per_print': 0} (integer modulo by zero)"),
        ({"zero_optimization": {"stage": 1, "allgather_bucket_size": 3}}, "allgather_bucket_size must be a multiple"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "requires gradient_clipping=0"),
    ],
)
def test_what_deepspeed_cannot_train_with_is_told_before_anything_is_made(section, part, teacher, tmp_path):
    with pytest.raises(UserError) as refused:
        rehearse(section, settings(), ALONE)
    assert part in str(refused.value)
    with pytest.raises(UserError):
        here(tmp_path / "run", teacher, *(f"deepspeed.{key}={value}" for key, value in section.items()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_rehearsal_of_what_works_says_nothing_and_draws_nothing(stage, precision):
    before = torch.get_rng_state()
    rehearse({"zero_optimization": {"stage": stage}}, settings(micro_batch=2, precision=precision), ALONE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("precision", "copies"), [("float32", 3), ("bfloat16", 3.5)])
def test_an_engine_keeps_no_second_copy_of_float32_weights(stage, precision, copies):
    """Weights and two moments: 12 bytes a parameter in float32; in bfloat16 masters too, 14 bytes."""
    train = settings(precision=precision)
    network = torch.nn.Linear(128, 512, bias=False).to(getattr(torch, precision))
    trained = network.weight.numel()
    section = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    engine = start_engine(network, train.student, train, section, ALONE)
    tensors = [*engine.masters(), *engine._shards(), *(m for s in engine._adam.state.values() for m in s.values())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel() > 1}
    assert sum(storages.values()) == pytest.approx(4 * copies * trained, rel=1e-3)
    engine.destroy()
