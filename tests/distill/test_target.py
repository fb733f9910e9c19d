"""An objective's target: filled with the average when it asks, kept in checkpoints, and there again after a resume."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.config import OptimizerConfig, TrainConfig
from distill.runtime.checkpoints import checkpoint_folders, latest_checkpoint
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import start_world
from distill.training.checkpoint import check_space, checkpoint_bytes
from distill.training.loop import train
from objectives.objective import LossOutput
from students.student import twin
from teachers.canvas import Canvas
from teachers.errors import UserError
from tests.distill.line import Line, Ones, Poisoned, train_line
from tests.distill.runs import assert_same_weights, here, sign

SDTT = [
    "objective={name: sdtt, rounds: 3, first_steps: 8}", "train.critic=null", "teacher_samples=8",
    "teacher_sample_steps=2", "train.updates=6", "train.batch=4", "length=8", "train.student.lr=1e-3",
    "train.precision=bfloat16", "train.checkpoint_every=3", "train.keep=3",
    "deepspeed.zero_optimization.stage=1",
]  # fmt: skip


class Chasing(Poisoned):
    """Two networks; the student chases twice its own average of some updates ago, and notes what it was given."""

    phases = ("critic", "student")

    def __init__(self):
        super().__init__()
        self.critic, self.target, self.seen = Line(), twin(self.student), {}

    @property
    def networks(self):
        return super().networks | {"critic": self.critic}

    def begin(self, update, updates):
        self.update = update
        return update in (2, 4)

    def rollout(self, batch, randomness):
        self.seen[self.update] = self.target.weights.detach().clone()
        return Ones(torch.rand(len(batch), 4, generator=torch.Generator().manual_seed(self.update)))

    def loss(self, phase, rollout):
        canvas = Canvas.of(rollout.x, self.student.spec.mask_id)
        if phase == "critic":
            return LossOutput(self.critic(canvas).square().sum())
        with torch.no_grad():
            goal = 2 * self.target(canvas)
        return LossOutput((self.student(canvas) - goal).square().sum())


def chase(folder, stage=1, updates=6, resume=False, precision="float32"):
    """Six updates of the loop, or fewer, with a checkpoint after each."""
    objective = Chasing()
    config = TrainConfig(
        updates=updates, batch=4, micro_batch=2, ema=0.6, log_every=1, checkpoint_every=1, keep=10,
        precision=precision, student=OptimizerConfig(lr=0.1), critic=OptimizerConfig(lr=0.1),
    )  # fmt: skip
    run = RunFolder(folder)
    if not resume:
        run.create("{}")
    optimizers = {phase: config.student for phase in objective.phases}
    zero = None if stage is None else {"zero_optimization": {"stage": stage}}
    train(objective, optimizers, None, config, zero, run, start_world(), 4, resume)
    return run, objective


def averages(run):
    """Update → the averaged student's weights after it."""
    files = {int(f.name[-8:]): f / "student-ema" / "weights.json" for f in checkpoint_folders(run)}
    return {update: torch.tensor(json.loads(file.read_text())) for update, file in files.items()}


@pytest.fixture(
    scope="module",
    params=[(None, "float32"), (None, "bfloat16"), (1, "float32"), (2, "bfloat16"), (3, "float32")],
    ids=str,
)
def whole(request, tmp_path_factory):
    """(stage, precision), a run of six updates, and its objective."""
    stage, precision = request.param
    return request.param, *chase(tmp_path_factory.mktemp("whole") / "run", stage, precision=precision)


def test_the_target_is_the_average_when_asked_for_and_else_stays(whole):
    (_, precision), run, objective = whole
    after, dtype = averages(run), getattr(torch, precision)
    start = torch.ones(4, dtype=dtype)
    for update, expected in enumerate([start, start, after[2], after[2], after[4], after[4]]):
        assert torch.equal(objective.seen[update], expected.to(dtype))
        assert objective.seen[update].dtype == dtype
    assert len({tuple(objective.seen[update].tolist()) for update in (0, 2, 4)}) == 3
    for folder in checkpoint_folders(run):
        [kept] = load_file(folder / "target" / "rank-0.safetensors").values()
        assert torch.equal(kept, objective.seen[int(folder.name[-8:]) - 1])


@pytest.mark.parametrize("stop", [2, 5])  # just before the target is filled, and between
def test_interrupted_and_resumed_ends_the_same(whole, stop, tmp_path):
    (stage, precision), run, objective = whole
    shutil.copytree(run.path, tmp_path / "cut")
    for folder in checkpoint_folders(RunFolder(tmp_path / "cut"))[stop:]:
        shutil.rmtree(folder)
    cut, resumed = chase(tmp_path / "cut", stage, resume=True, precision=precision)
    assert torch.equal(averages(cut)[6], averages(run)[6])
    assert list(resumed.seen) == list(range(stop, 6))
    assert all(torch.equal(resumed.seen[update], objective.seen[update]) for update in resumed.seen)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A real run in bfloat16, of three rounds of two updates."""
    return here(tmp_path_factory.mktemp("distilled") / "run", *SDTT)


def test_a_real_run_interrupted_after_a_refresh_ends_bit_for_bit_the_same(distilled, tmp_path):
    shutil.copytree(distilled.path, tmp_path / "cut")
    shutil.rmtree(
        latest_checkpoint(RunFolder(tmp_path / "cut"))
    )  # update 6; at 3 the target of the second round is in use
    resumed = here(tmp_path / "cut", *SDTT, resume=True)
    assert_same_weights(resumed, distilled, rtol=0, atol=0)
    one, other = ([x for x in run.read_metrics() if "student/loss" in x] for run in (distilled, resumed))
    assert [x["student/loss"] for x in one] == [x["student/loss"] for x in other]
    assert len(one) == 6
    targets = [load_file(f / "target" / "rank-0.safetensors") for f in checkpoint_folders(distilled)]
    assert len(targets) == 2
    assert all(tensor.dtype == torch.bfloat16 for tensor in targets[0].values())
    assert any(not torch.equal(a, b) for a, b in zip(*(t.values() for t in targets), strict=True))


def test_an_adapters_target_is_an_adapter(tmp_path):
    run = here(tmp_path / "run", *SDTT, "student.adapter={rank: 2}", "train.updates=3")
    target = load_file(latest_checkpoint(run) / "target" / "rank-0.safetensors")
    assert all("lora" in name for name in target)
    assert any(tensor.abs().max() > 0 for name, tensor in target.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "objective",
    ["{name: consistency, rounds: 2, first_steps: 4}", "{name: redi, rounds: 2, steps: 2, random_share: 0.5}"],
)
def test_the_others_run_too(objective, tmp_path):
    overrides = [*SDTT[1:], f"objective={objective}", "train.updates=2", "train.micro_batch=2"]
    run = here(tmp_path / "run", *overrides, "sampler={name: random_start, random_share: 0.5}")
    lines = [line for line in run.read_metrics() if "student/loss" in line]
    assert len(lines) == 2
    assert all(line["student/loss"] > 0 and line["student/grad_norm"] > 0 for line in lines)


FORGERIES = {
    "gone": (lambda folder, tensors: shutil.rmtree(folder), "holds no weight/weights for target"),
    "empty": (lambda folder, tensors: tensors.clear(), "holds no weight/weights for target"),
    "another shape": (lambda folder, tensors: tensors.update({"weight/weights": torch.ones(5)}), "has shape (5,)"),
    "no shape": (lambda folder, tensors: tensors.update({"weight/weights": torch.tensor(1.0)}), "has shape ()"),
}


@pytest.fixture(scope="module")
def chased(tmp_path_factory):
    return chase(tmp_path_factory.mktemp("chase") / "run", updates=3)[0].path


@pytest.mark.parametrize("name", FORGERIES)
def test_a_checkpoint_without_its_target_or_with_another_is_refused_in_one_line(name, chased, tmp_path):
    shutil.copytree(chased, tmp_path / "run")
    folder = latest_checkpoint(RunFolder(tmp_path / "run")) / "target"
    tensors = load_file(folder / "rank-0.safetensors")
    forge, expected = FORGERIES[name]
    forge(folder, tensors)
    if folder.exists():
        save_file(tensors, folder / "rank-0.safetensors")
    sign(folder.parent)
    with pytest.raises(UserError) as refused:
        chase(tmp_path / "run", resume=True)
    told = str(refused.value)
    assert expected in told
    assert told.count("\n") == 0
    assert "; resume with the config that the run was started with" in told


def test_a_checkpoint_of_an_objective_without_a_target_is_refused(chased, tmp_path):
    shutil.copytree(chased, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    shutil.rmtree(latest_checkpoint(run) / "target")
    with pytest.raises(UserError, match=r"target/rank-0.safetensors is missing; remove that folder"):
        chase(tmp_path / "run", resume=True)


def test_the_disk_is_asked_for_the_target_as_well(tmp_path):
    class Counted:
        parameters = 4

    engines, target = {"student": Counted()}, Line()
    assert checkpoint_bytes(engines, target) - checkpoint_bytes(engines) == 4 * 4
    assert checkpoint_bytes(engines, target.bfloat16()) - checkpoint_bytes(engines) == 2 * 4
    run = RunFolder(tmp_path / "run")
    run.create("{}")
    check_space(run, engines, 2, target)
    huge = torch.nn.Module()
    huge.weight = torch.nn.Parameter(torch.empty(10**15, device="meta"))
    with pytest.raises(UserError, match=r"checkpoints of 4000000\.00 GB"):
        check_space(run, engines, 2, huge)


def test_a_finished_run_resumed_gives_its_average_again(tmp_path):
    first = train_line(tmp_path / "run", Poisoned(), updates=2).outcome.average
    again = train_line(tmp_path / "run", Poisoned(), updates=2, resume=True).outcome.average
    assert not torch.equal(first.weights, Line().weights)
    assert torch.equal(again.weights, first.weights)
