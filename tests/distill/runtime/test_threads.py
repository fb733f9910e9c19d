"""Threads, how they wait and CUDA's allocator: what a command says of them where nobody has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from distill.runtime import threads
from distill.runtime.threads import available_cores, few_for_small, settle_environment


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of two cores with two threads each, on Linux, whose files can be written."""
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    return tmp_path


def test_what_nobody_has_said(machine):
    said = {}
    settle_environment(said)
    assert said == {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "2",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }


def test_what_somebody_has_said_stays(machine):
    own = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
    said = dict(own)
    settle_environment(said)
    assert said == own


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_processes_of_a_node_share_its_cores(machine, name):
    for size, each in (("2", "1"), ("8", "1"), ("1", "2"), ("?", "2")):
        said = {name: size}
        settle_environment(said)
        assert said["OMP_NUM_THREADS"] == each


def test_threads_of_a_core_and_cores_that_may_not_be_used_do_not_count(machine, monkeypatch):
    assert available_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    assert available_cores() == 1


def test_a_machine_that_does_not_tell_its_cores_has_as_many_as_may_be_used(machine):
    for cpu in range(4):
        (machine / f"cpu{cpu}/topology/thread_siblings_list").unlink()
    assert available_cores() == 4


def test_quotas_of_containers(machine):
    for said, cores in (("max 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("800000 100000", 2)):
        (machine / "cpu.max").write_text(said + "\n")
        assert available_cores() == cores
    (machine / "cpu.max").unlink()
    (machine / "cpu").mkdir()
    for quota, cores in (("-1", 2), ("100000", 1)):
        (machine / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
        (machine / "cpu/cpu.cfs_period_us").write_text("100000\n")
        assert available_cores() == cores


def test_elsewhere_torch_decides(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    said = {}
    settle_environment(said)
    assert "OMP_NUM_THREADS" not in said


def test_small_passes_are_computed_on_one_thread(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    few_for_small(1_770_000, 64 * 128)
    assert chosen == []
    few_for_small(1_770_000, 128)
    assert chosen == [1]


CODE = """
import sys
from distill.runtime.deepspeed import join_deepspeed
from distill.runtime.world import ALONE
join_deepspeed(ALONE)
import deepspeed.runtime.engine, deepspeed.runtime.zero.stage3
from deepspeed.runtime.zero.muon.original_muon import zeropower_via_newtonschulz5
sys.exit(len([name for name in sys.modules if name.startswith("torch._inductor")]) > 40)
"""


def test_deepspeed_comes_without_torchs_compiler():
    """Of which transformers imports about 20 modules; the compiler has 570."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    subprocess.run([sys.executable, "-c", CODE], check=True, env=environment)
