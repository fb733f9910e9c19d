"""What a run spends: counted where it is spent, added up over resumes, and said."""

from dataclasses import replace

from distill.runtime.cost import Cost, total

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
