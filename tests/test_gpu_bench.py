"""The GPU's script: what it keeps, what it goes on with, and its cheapest sections at toy size."""

import json
import time
from functools import partial
from itertools import product

import torch

from benchmarks import gpu
from benchmarks.expect import CARDS, MODELS, WAYS, table
from benchmarks.gpu import Planned, Results, measure
from benchmarks.on_gpu.setting import SETTINGS, Job
from benchmarks.on_gpu.updates import kernel_class
from tests.forks import ROOT


def two_parts(job, fails=False, hangs=False):
    for name in ("first", "second"):
        if name not in job.have:
            yield name, {"figure": 1.0}
        if fails:
            raise ValueError("no more")
        if hangs:
            time.sleep(600)


def job(folder, **fields):
    return Job(SETTINGS["toy"], torch.device("cpu"), folder, **fields)


def test_what_was_measured_before_a_failure_is_kept(tmp_path):
    path = tmp_path / gpu.RESULTS
    for name, section, state in (
        ("whole", two_parts, "done"),
        ("failing", partial(two_parts, fails=True), "failed"),
        ("hanging", partial(two_parts, hangs=True), "out of time"),
    ):
        measure(Planned(name, section, 1), job(tmp_path), path, 2.0)
        entry = Results(path).of(name)
        assert entry["state"] == state
        assert entry["parts"]["first"] == {"figure": 1.0}
        assert ("second" in entry["parts"]) == (state == "done")
    assert "no more" in Results(path).of("failing")["error"]
    written = gpu.table(json.loads(path.read_text()))
    assert "| whole | second | figure | 1 |" in written
    assert "out of time" in written


def test_only_some_sections_are_measured_and_what_is_done_is_not_measured_again(tmp_path, capsys):
    words = ["--out", str(tmp_path), "--device", "cpu", "--size", "toy"]
    found = gpu.main([*words, "--only", "blocks", "latency"])
    assert {name for name, entry in found.items() if entry["state"] == "done"} == {"blocks", "latency"}
    assert found["blocks"]["parts"].popitem()[1]["same"] is True
    for texts in ("whole texts", "a block less"):
        assert found["blocks"]["parts"][f"attention, {texts}"]["apart"] < 1e-5
    one = found["latency"]["parts"]["169 M, 1 rows"]
    assert one["ratio"] > 0
    assert one["sampler, ms"] > 0
    # the second start has nothing to do where all is done
    path = tmp_path / gpu.RESULTS
    entries = {
        planned.name: {"state": "done", "seconds": 1.0, "error": None, "parts": {}} for planned in gpu.sections("toy")
    }
    path.write_text(json.dumps(entries))
    assert gpu.main(words) == entries
    assert "gpu.md" in {file.name for file in tmp_path.iterdir()}
    capsys.readouterr()


def test_the_first_sections_have_their_seconds_for_certain_and_what_is_not_reached_is_named(tmp_path, capsys):
    for size in SETTINGS:
        assert sum(planned.seconds for planned in gpu.first_sections(size)) <= gpu.SECONDS
    names = [planned.name for planned in gpu.sections("toy")]
    assert len(set(names)) == 10
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--size", "toy", "--seconds", "0"]) == {}
    assert f"not measured: {'; '.join(names)}; the same command measures them" in capsys.readouterr().out


def test_kernels_are_told_apart_by_their_names():
    for name, kind in {
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": "matrix products",
        "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT": "matrix products",
        "void pytorch_flash::flash_fwd_kernel<...>": "attention",
        "void at::native::vectorized_elementwise_kernel<4, ...>": "elementwise",
        "Memcpy DtoH (Device -> Pageable)": "copies",
        "void at::native::(anonymous namespace)::cunn_SoftMaxForward": "softmax",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel": "optimiser and average",
        "never heard of": "other",
    }.items():
        assert kernel_class(name) == kind, name


def test_the_page_shows_the_table_that_was_computed():
    rows = json.loads((ROOT / "docs/gpu.json").read_text())
    assert table(rows) in (ROOT / "docs/gpu.md").read_text()
    found = {(row["model"], row["trains"], row["cards"]) for row in rows}
    assert found <= set(product(MODELS, WAYS, [card.name for card in CARDS]))
    assert len(rows) == len(found)
    assert all(not row["fits"] or row["GB a card"] < 0.9 * float(row["cards"].split()[2]) for row in rows)
