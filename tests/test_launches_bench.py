"""The count of stops and launches, against operations whose count is known."""

from dataclasses import replace

import pytest
import torch
from torch._inductor import metrics

from benchmarks.compiled_launches import counting_compile
from benchmarks.launches import CASES, Watcher, case_config, count

DEVICE = torch.device("cpu")  # a device that code is handed; code that means the host's memory names none, or "cpu"


def stops_of(watcher):
    return {
        kind: sum(n for (of, _), n in watcher.counts.stops.items() if of == kind) for kind, _ in watcher.counts.stops
    }


def test_what_stops_a_gpu_and_what_does_not():
    values, where = torch.arange(6.0, device=DEVICE), torch.arange(6, device=DEVICE) % 2 == 0
    for what, stops in (
        (lambda: float(values.sum()), {"a value is read": 1}),
        (lambda: bool(where.any()), {"a value is read": 1}),
        (lambda: torch.equal(values, values), {"a value is read": 1}),
        (lambda: values[where], {"a size depends on values": 1}),
        (lambda: where.nonzero(), {"a size depends on values": 1}),
        (lambda: values.masked_select(where), {"a size depends on values": 1}),
        (lambda: values.tolist(), {"copy to the host": 1}),
        (lambda: values.to("cpu"), {"copy to the host": 1}),
        (lambda: torch.tensor([1.0, 2.0], device=DEVICE), {"copy to the device": 1}),
        (lambda: torch.tensor([1.0, 2.0]).to(DEVICE), {"copy to the device": 1}),
        (lambda: values.clone().masked_fill_(where, 0.0), {}),
        (lambda: values[torch.tensor([0, 3], device=DEVICE)], {"copy to the device": 1}),
        (lambda: torch.where(where, values, 0.0), {}),
        (lambda: values.view(2, 3).gather(1, torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)), {}),
        # what was on the host all the time
        (lambda: torch.tensor([1.0, 2.0]).sum().item(), {}),
        (lambda: torch.arange(4).mul(2).tolist(), {}),
    ):
        with Watcher() as watcher:
            what()
        assert stops_of(watcher) == stops


def test_the_backward_pass_counts_and_what_is_computed_again_in_it():
    weights = torch.ones(4, device=DEVICE, requires_grad=True)
    where = torch.tensor([True, False, True, True], device=DEVICE)

    def loss(x):
        return x[where].square().sum()

    with Watcher() as watcher:
        total = loss(weights)
        forward = watcher.counts.launches.total()
        total.backward()
    assert stops_of(watcher) == {"a size depends on values": 2}  # its gradient is put back at as many places
    assert forward == 3
    assert watcher.counts.launches.total() > 2 * forward
    with Watcher() as watcher:
        torch.utils.checkpoint.checkpoint(loss, weights, use_reentrant=False).backward()
    assert stops_of(watcher) == {"a size depends on values": 3}


def test_views_launch_nothing_and_whole_tensors_of_both_memories_are_told():
    values = torch.ones(2, 3, device=DEVICE)
    with Watcher() as watcher:
        values.t().unsqueeze(0)[:, 1:].expand(2, 2, 2)
        torch.empty_like(values)
    assert watcher.counts.launches.total() == 0
    with Watcher() as watcher:
        values + torch.ones(3)
    assert watcher.counts.mixes.total() == 1
    with Watcher() as watcher:
        values + torch.ones(())  # a number, as any
    assert watcher.counts.mixes.total() == 0


def test_an_update_launches_in_proportion_to_the_depth_and_stops_as_often(tmp_path, torchs_linear):
    counts = []
    for layers in (1, 2, 3):
        config = case_config(replace(CASES["integral_kl, 4 layers"], layers=layers), tmp_path / str(layers), updates=1)
        counts.append(count(config, tmp_path / f"run-{layers}"))
    launches = [found.launches.total() for found in counts]
    assert launches[2] - launches[1] == launches[1] - launches[0] > 0
    assert [found.stops.total() for found in counts] == [4, 4, 4]
    assert all(found.updates == 1 for found in counts)
    assert not counts[0].mixes, "a GPU would refuse these"


@pytest.mark.parametrize("objective", ["sdtt", "didi_instruct"])
def test_other_objectives_stop_no_oftener(tmp_path, objective):
    case = replace(CASES[f"{objective}, 4 layers"], layers=1)
    assert count(case_config(case, tmp_path / "data", updates=1), tmp_path / "run").stops.total() == 4


def test_a_call_of_what_is_compiled_counts_as_its_graph_does():
    values = torch.ones(2, 3, device=DEVICE)

    def translate(graph, inputs):  # as inductor would, which takes seconds to make one kernel of two operations
        metrics.generated_kernel_count += 1
        return graph.forward

    with Watcher() as watcher:
        compiled = counting_compile(watcher.launch, translate)(lambda x: (x + 1) * 2)
        for calls in (1, 2):
            assert compiled(values).tolist() == [[4, 4, 4]] * 2
            assert watcher.counts.launches.total() == calls
