"""Compiled blocks give what the blocks give, where no gradient is asked for, and change nothing else."""

from __future__ import annotations

import copy
import time
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from students.adapters import AdaptedDenoiser, AdapterConfig
from students.fill import fill
from students.samplers import Ancestral
from students.student import cast, compile_passes, twin
from teachers.canvas import Canvas
from teachers.compilation import COMPILING, clock, compile_blocks
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from teachers.randomness import RowStreams
from tests.compilation import capturing
from tests.networks import mdlm, shape, stock

LENGTH = 6


@pytest.fixture
def captured(monkeypatch, torchs_linear):
    return capturing(monkeypatch)


def canvas(rows, seed=0):
    tokens = torch.randint(2, 10, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool))


@torch.no_grad()
def features(denoiser, rows):
    return denoiser.features(canvas(rows))


def test_a_compiled_network_is_as_exact_as_float32():
    network = stock(12, LENGTH, sizes=shape(16, 2))
    expected = {rows: features(network, rows) for rows in (3, 2, 5)}
    torch._dynamo.reset()
    counters.clear()
    compile_passes(network, True)
    for rows, states in expected.items():
        torch.testing.assert_close(features(network, rows), states, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("make", [partial(stock, sizes=shape(16, 3)), mdlm])
def test_one_graph_is_of_all_blocks_and_any_number_of_rows(make, captured):
    network = make(12, LENGTH)
    expected = {rows: features(network, rows) for rows in (3, 2, 4, 1)}
    compile_passes(network, True)
    for rows, states in expected.items():
        assert torch.equal(features(network, rows), states)
    assert len(captured) == 2  # one row is another kind


def test_teacher_student_and_critic_on_one_base_each_compute_with_their_own_adapter(captured):
    base = stock(12, LENGTH, sizes=shape(16, 2))
    networks = [base, *(AdaptedDenoiser(base, AdapterConfig(rank=2)) for _ in range(2))]
    for adapted in networks[1:]:
        nn.init.normal_(next(p for name, p in adapted.named_parameters() if "lora_B" in name))
    expected = [features(network, 3) for network in networks]
    compile_passes(networks[1], True)
    for _ in range(2):
        for network, states in zip(networks, expected, strict=True):
            assert torch.equal(features(network, 3), states)
    assert len(captured) == 3


EXPERTS = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "moe_intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_layers_with_experts_are_compiled_unless_each_expert_is_called_by_itself(captured):
    torch.manual_seed(0)
    network = cast(create_denoiser("qwen3_moe", EXPERTS, DenoiserSpec(1, 12, LENGTH)).eval(), torch.bfloat16)
    expected = {rows: features(network, rows) for rows in (3, 2)}
    torch._dynamo.utils.warn_once_cache.clear()
    compile_passes(network, True)
    for rows, states in expected.items():
        assert torch.equal(features(network, rows), states)
    assert len(captured) == 1
    network.network.set_experts_implementation("eager")  # how many tokens an expert has is read from values
    with pytest.raises(UserError, match=r"^Qwen3MoeDecoderLayer can not be compiled \(.*\); leave compile out$"):
        features(network, 3)


def test_the_clock_stands_still_while_something_is_compiled(captured):
    network = stock(12, LENGTH)
    compile_passes(network, True)
    before, start = COMPILING.seconds, clock()
    began = time.perf_counter()
    features(network, 3)
    whole, counted = time.perf_counter() - began, clock() - start
    took = COMPILING.seconds - before
    assert 0 < took < whole
    assert counted == pytest.approx(whole - took, abs=0.01)
    features(network, 2)
    assert COMPILING.seconds == before + took  # nothing was compiled
    before = COMPILING.seconds
    torch.compile(lambda x: x + 1)(torch.ones(2))  # nor by a block
    assert COMPILING.seconds > before


def test_a_pass_with_a_gradient_is_not_compiled(captured):
    network = stock(12, LENGTH)
    expected = network.features(canvas(2))
    compile_passes(network, True)
    found = network.features(canvas(2))
    assert found.requires_grad
    assert torch.equal(found, expected)
    assert not captured


def test_a_cache_of_blocks_is_written_as_without(captured):
    network = stock(12, LENGTH, attention="block", block_size=2)
    blank, rule = Canvas.blank(2, LENGTH, 1), Ancestral(block_length=2, budget="block")
    written = fill(network, blank, rule, 2, RowStreams(0, (), range(2)))
    compile_passes(network, True)
    again = fill(network, blank, rule, 2, RowStreams(0, (), range(2)))
    assert torch.equal(again.tokens, written.tokens)
    assert again.query_tokens == written.query_tokens < int(written.nfe.sum()) * LENGTH


def test_names_stay_and_copies_are_not_compiled(captured):
    network = stock(12, LENGTH)
    names = list(network.state_dict())
    compile_passes(network, True)
    assert list(network.state_dict()) == names
    for other in (copy.deepcopy(network), twin(network)):
        with torch.no_grad():
            other.blocks()[0].mlp.down_proj.weight.zero_()
        assert not torch.equal(features(other, 2), features(network, 2))
        assert other.blocks()[0]._compiled_call_impl is None


def test_weights_that_are_trained_are_those_that_are_read(captured):
    network = stock(12, LENGTH)
    compile_passes(network, True)
    features(network, 2)
    with torch.no_grad():
        network.blocks()[0].mlp.down_proj.weight.mul_(2)
    assert torch.equal(features(network, 2), features(copy.deepcopy(network), 2))
    assert len(captured) == 1


def test_a_graph_that_is_replayed_is_told_where_a_pass_begins_and_gives_a_copy(monkeypatch):
    begun, memory = [], torch.zeros(2)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    monkeypatch.setattr(torch, "compile", lambda *_, **options: lambda block, x: memory.copy_(x + 1))
    blocks = nn.ModuleList(nn.Identity() for _ in range(3))
    compile_blocks(blocks, "reduce-overhead")
    with torch.no_grad():
        one = two = torch.zeros(2)
        for block in blocks:
            one = block(one)
        for block in blocks:
            two = block(two + 1)
    assert one.tolist() == [3, 3]
    assert two.tolist() == [6, 6]
    assert len(begun) == 2


class Reading(nn.Module):
    """A block that asks for a value, so that no graph holds it."""

    def forward(self, x):
        return x + 1 if x.sum().item() > 0 else x


def test_a_library_that_a_killed_process_left_half_written_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    libraries = [tmp_path / place / "torn.main.so" for place in ("cache", "elsewhere")]
    for library in libraries:
        library.parent.mkdir()
        library.touch()

    def compiled(library):
        """Stands for a function whose library on disk is read before it computes."""

        def compute(block, x):
            if library.exists():
                raise BackendCompilerFailed(print, ImportError(f"{library}: file too short"), None)
            return x + 1

        return compute

    for library, named in zip(libraries, (None, "file too short"), strict=True):
        monkeypatch.setattr(torch, "compile", lambda *_, library=library, **options: compiled(library))
        blocks = nn.ModuleList([nn.Identity()])
        compile_blocks(blocks, True)
        with torch.no_grad(), nullcontext() if named is None else pytest.raises(UserError, match=named):
            assert blocks[0](torch.zeros(1)).tolist() == [1]
    assert [library.exists() for library in libraries] == [False, True]


class NoNetwork(Denoiser):
    """A denoiser without blocks, as an oracle is."""

    features = save = None


def test_what_can_not_be_compiled_says_so(captured):
    blocks = nn.ModuleList([Reading()])
    compile_blocks(blocks, True)
    with torch.no_grad(), pytest.raises(UserError, match=r"^Reading can not be compiled \(.*\); leave compile out$"):
        blocks[0](torch.ones(2, 2))
    with pytest.raises(UserError, match="compile needs a network with blocks, and NoNetwork has none"):
        compile_passes(NoNetwork(), True)
