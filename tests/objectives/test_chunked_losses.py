"""Every loss in chunks equals the dense one, with little memory; and no loss depends on there being a position."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from objectives.elbo import Autoregressive, MaskedElbo
from objectives.integral_kl import IntegralKLConfig
from objectives.objective import Distillation
from students.student import trainable_copy
from teachers import chunks
from teachers.denoiser import DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of
from tests.objectives.test_integral_kl import CONFIGS, LENGTH, VOCABULARY, real_rows, small_objective
from tests.objectives.wiring import tensors_of

ROWS = 4


def results(objective, phase, rollout):
    """Sum, metrics and gradients of a loss."""
    network = objective.networks[phase]
    network.zero_grad()
    out = objective.loss(phase, rollout)
    out.sum.backward()
    metrics = [value for pair in out.metrics.values() for value in pair]
    return [out.sum.detach(), *metrics, *(p.grad for p in network.parameters() if p.grad is not None)]


def assert_chunked_is_dense(monkeypatch, objective, phase, rollout, size):
    dense = results(objective, phase, rollout)
    heads = []
    handle = objective.networks["student"].model.lm_head.register_forward_hook(lambda *_: heads.append(1))
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", size * VOCABULARY)
    chunked = results(objective, phase, rollout)
    handle.remove()
    if phase == "student":
        assert len(heads) >= ROWS * LENGTH // size  # it was in chunks
    assert len(dense) == len(chunked)
    for one, other in zip(dense, chunked, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, ROWS * LENGTH - 1])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("phase", ["critic", "student"])
def test_integral_kl(monkeypatch, name, phase, size):
    objective = small_objective(CONFIGS[name])
    rollout = objective.rollout(batch_of(objective, real_rows(ROWS), ROWS), RowStreams(0, (0,), range(ROWS)))
    assert_chunked_is_dense(monkeypatch, objective, phase, rollout, size)


@pytest.mark.parametrize("size", [1, 7, ROWS * LENGTH - 1])
@pytest.mark.parametrize("kind", ["elbo", "autoregressive"])
def test_pretraining(monkeypatch, kind, size):
    model = small_objective(CONFIGS["default"]).student
    objective = MaskedElbo(model, MaskedProcess()) if kind == "elbo" else Autoregressive(model)
    rollout = objective.rollout(batch_of(objective, real_rows(ROWS), ROWS), RowStreams(0, (0,), range(ROWS)))
    assert_chunked_is_dense(monkeypatch, objective, "student", rollout, size)


@pytest.mark.parametrize("name", CONFIGS)
def test_rollouts_are_the_same_in_chunks(monkeypatch, name):
    objective = small_objective(CONFIGS[name])
    dense = objective.rollout(batch_of(objective, real_rows(8), 8), RowStreams(0, (1,), range(8)))
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 7 * VOCABULARY)
    chunked = objective.rollout(batch_of(objective, real_rows(8), 8), RowStreams(0, (1,), range(8)))
    for field, value in tensors_of(dense).items():
        assert torch.equal(tensors_of(chunked)[field], value), field


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("phase", ["critic", "student"])
def test_passes_do_not_depend_on_the_data_and_an_empty_loss_is_a_connected_zero(monkeypatch, name, phase):
    """Passes and head calls are collective under ZeRO 3: a process without a masked position makes them too."""
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 7 * VOCABULARY)
    objective = small_objective(CONFIGS[name])
    rollout = objective.rollout(batch_of(objective, real_rows(ROWS), ROWS), RowStreams(0, (0,), range(ROWS)))
    calls = []
    networks = {n: getattr(objective.networks[n], "backbone", objective.networks[n]) for n in ("student", "critic")}
    for name, network in {**networks, "teacher": objective.teacher}.items():
        for module in (network.model.base_model, network.model.lm_head):
            module.register_forward_hook(lambda m, *_, name=name: calls.append((name, type(m).__name__)))
    results(objective, phase, rollout)
    usual = list(calls)
    calls.clear()
    nothing = torch.zeros_like(rollout.fake.open)
    rollout.fake = replace(rollout.fake, tokens=rollout.sample, open=nothing)
    rollout.real = None if rollout.real is None else replace(rollout.real, tokens=real_rows(ROWS), open=nothing)
    rollout.states = rollout.sample[:, None].expand_as(rollout.states)
    rollout.revealed = torch.zeros_like(rollout.revealed)
    empty = results(objective, phase, rollout)
    assert calls == usual
    assert len(calls) > 0
    assert empty[0] == 0
    gradients = [p.grad for p in objective.networks[phase].parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert all((g == 0).all() for g in gradients)


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors made inside that were alive at once, at most."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return

        def freed(_, key=key, size=size):
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.mark.parametrize("phase", ["critic", "student"])
def test_a_large_vocabulary_needs_memory_for_a_chunk_only(monkeypatch, phase):
    vocabulary, length, rows, size = 20_000, 64, 8, 16
    shape = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": 8, "intermediate_size": 8, "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(0)
    teacher = create_denoiser("qwen3", shape, DenoiserSpec(1, vocabulary, length)).requires_grad_(False).eval()
    config = IntegralKLConfig(rollout="one_move", regularisers={"teacher_weight": 0.1, "entropy_bonus": 0.1})
    objective = config.build(Distillation(teacher, trainable_copy(teacher), MaskedProcess(), length, teacher))
    peaks = {}
    for name, at_once in (("chunked", size), ("dense", rows * length)):
        monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", at_once * vocabulary)
        objective.networks[phase].zero_grad()
        rollout = objective.rollout(batch_of(objective, None, rows), RowStreams(0, (0,), range(rows)))
        with PeakMemory() as memory:
            objective.loss(phase, rollout).sum.backward()
        peaks[name] = memory.peak / 4 / vocabulary  # in float32 rows of the vocabulary
    # a student's chunk: three networks' log-probabilities and what their softmax and divergences need
    assert peaks["chunked"] < 16 * size
    assert peaks["dense"] > 10 * peaks["chunked"]
