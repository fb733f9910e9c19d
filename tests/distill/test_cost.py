"""What a run spends: counted where it is spent, added up over resumes, and said."""

import errno
import shutil
from dataclasses import replace

import pytest

import fewstep
from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.cost import Cost, total
from tests.distill.runs import distil, here

SPENT = Cost(
    seconds=1800.0,
    core_hours=1.0,
    gpu_hours=0.0,
    devices=("2 × cpu, 1 thread each",),
    teacher_passes=1200,
    student_passes=300,
    critic_passes=0,
    tokens=4096,
    peak_host_bytes=10**9,
    peak_device_bytes=None,
    seeds=(0,),
    updates=40,
    versions={"torch": "2.13"},
)


def test_costs_add_up():
    later = replace(SPENT, gpu_hours=0.5, core_hours=0.0, devices=("1 × H100",), peak_host_bytes=5, lost_updates=3)
    both = SPENT + replace(later, peak_device_bytes=7, seeds=(0, 1), versions={"torch": "2.14"})
    assert (both.seconds, both.core_hours, both.gpu_hours, both.updates, both.lost_updates) == (3600, 1.0, 0.5, 80, 3)
    assert (both.teacher_passes, both.student_passes, both.critic_passes, both.tokens) == (2400, 600, 0, 8192)
    assert both.devices == ("2 × cpu, 1 thread each", "1 × H100")
    assert (both.peak_host_bytes, both.peak_device_bytes) == (10**9, 7)
    assert (both.seeds, both.versions) == ((0, 1), {"torch": "2.14"})
    assert total([SPENT, SPENT, SPENT]) == SPENT + SPENT + SPENT
    assert total([]) is None


def test_a_cost_is_read_back_as_it_was(tmp_path):
    assert Cost.load(tmp_path) is None
    SPENT.save(tmp_path)
    assert Cost.load(tmp_path) == SPENT


def test_a_cost_in_words():
    assert SPENT.words == (
        "1 core hours on 2 × cpu, 1 thread each; 40 updates; 1,200 teacher passes; 300 student passes; 4,096 tokens; "
        "1.00 GB a process; seed 0"
    )


def sequences_sent(network):
    """A list that grows with each forward pass of a stock network, by the rows that it is given."""
    sent = []

    def count(module, arguments, inputs):
        sent.append(len(inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]))

    network.base_model.register_forward_pre_hook(count, with_kwargs=True)
    return sent


@pytest.fixture(scope="module")
def teacher():
    return fewstep.load_teacher("bundled:teacher")


@pytest.mark.parametrize("objective", [fewstep.IntegralKL(rollout={"steps": [2, 4]}), fewstep.DidiInstruct()])
def test_passes_are_those_that_networks_make(teacher, objective):
    """Counted by torch itself, at the module that computes a pass."""
    data = None if objective.name == "integral_kl" else "bundled:novels"
    distiller = fewstep.Distiller(teacher, objective, updates=2, batch=4, length=16, data=data)
    networks = distiller._trainer.objective.networks
    critic = networks["critic"]
    modules = [teacher.denoiser, networks["student"], getattr(critic, "backbone", critic)]
    before = distiller.student.finished.training
    sent = [sequences_sent(module.network) for module in modules]
    list(distiller)
    after = distiller.student.finished.training
    for role, rows in zip(("teacher", "student", "critic"), sent, strict=True):
        assert getattr(after, f"{role}_passes") - getattr(before, f"{role}_passes") == sum(rows), role
    assert sum(sent[1]) > 0
    assert (after.updates, after.tokens, after.seeds) == (2, 2 * 4 * 16, (0,))
    assert after.core_hours > before.core_hours > 0
    assert after.peak_host_bytes > 10**8


def test_passes_of_adapters_are_not_their_bases(teacher):
    """One base computes for all three, and each pass is of the one that asked."""
    adapter = fewstep.Adapter(rank=2)
    objective = fewstep.IntegralKL(rollout={"steps": [2, 4]}, ratio={"adapter": {"rank": 2}})
    distiller = fewstep.Distiller(teacher, objective, updates=2, batch=4, length=16, adapter=adapter)
    base = distiller._trainer.objective.teacher
    before = distiller.student.finished.training
    sent = sequences_sent(base.network)
    list(distiller)
    after = distiller.student.finished.training
    student, critic = (getattr(after, f"{r}_passes") - getattr(before, f"{r}_passes") for r in ("student", "critic"))
    assert after.teacher_passes == 2 * 4  # it is asked once an update, at what the student wrote
    assert (student > 0, critic) == (True, 2 * 2 * 4)  # the critic's loss, and the student's
    assert after.teacher_passes + student + critic == sum(sent)


def test_a_killed_run_counts_what_it_lost(tmp_path):
    """As if killed before its second checkpoint was whole: it goes on from update 2, and makes two updates twice."""
    few = ["train.checkpoint_every=2", "evaluate.every=null"]
    run = distil(tmp_path / "run", *few, "train.updates=4")
    killed = Cost.load(run.path)
    shutil.rmtree(latest_checkpoint(run))
    distil(run.path, *few, "train.updates=6", resume=True, allow_changes=True)
    cost = Cost.load(run.path)
    assert (killed.updates, killed.lost_updates, killed.teacher_passes) == (4, 0, 4 * 8)
    assert (cost.updates, cost.lost_updates, cost.teacher_passes) == (8, 2, 8 * 8)
    assert cost.tokens == 8 * 8 * 32
    assert cost.seconds > killed.seconds
    assert cost.core_hours > killed.core_hours


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch, capsys):
    def full(cost, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Cost, "save", full)
    run = here(tmp_path / "run", "train.updates=1")
    assert latest_checkpoint(run) is not None
    assert "No space left on device; what the run has spent is not kept" in " ".join(capsys.readouterr().err.split())


def test_two_processes_share_the_passes_of_one_and_pay_twice_the_time(tmp_path):
    one, two = (Cost.load(distil(tmp_path / str(n), "train.updates=2", processes=n).path) for n in (1, 2))
    assert (two.teacher_passes, two.tokens, two.updates) == (one.teacher_passes, one.tokens, one.updates)
    assert two.teacher_passes == 2 * 8
    assert two.core_hours == pytest.approx(2 * two.seconds / 3600)
    assert two.devices == ("2 × cpu, 1 thread each",)


def test_a_watched_run_does_not_pay_for_the_watch(tmp_path):
    """Its seconds count, its passes are not the training's; float32 samples from the teacher itself."""
    few = ["train.updates=2", "evaluate.precision=float32", "evaluate.watch_samples=4"]
    plain, watched = (
        Cost.load(here(tmp_path / str(every), *few, f"evaluate.every={every}").path) for every in ("null", 1)
    )
    passes = [(c.teacher_passes, c.student_passes, c.critic_passes) for c in (plain, watched)]
    assert passes[0] == passes[1]


def test_rows_that_a_teacher_writes_first_are_paid_for(tmp_path):
    few = ["objective={name: certainty}", "train.critic=null", "teacher_samples=8", "teacher_sample_steps=4"]
    run = here(tmp_path / "run", *few, "train.updates=1")
    cost = Cost.load(run.path)
    assert 8 < cost.teacher_passes <= 8 * 5
