"""Chunks change neither results nor gradients, and are as many as asked for, whatever the positions."""

import pytest
import torch

from teachers import chunks
from teachers.chunks import chunk_count, in_chunks


def reduce(features, weight, used, tokens, absent):
    assert absent is None
    log_probs = (features @ weight).log_softmax(-1)
    return log_probs[used].exp().square().sum(-1), log_probs.gather(-1, tokens[:, None]).squeeze(-1)


@pytest.mark.parametrize("count", [2, 5, 13, 20])
def test_values_and_gradients_are_those_of_one_call(count):
    """Also where an output has only some of the positions, and where there are more chunks than positions."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(13, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    used = torch.rand(13, generator=generator) < 0.5
    tokens = torch.randint(0, 9, (13,), generator=generator)
    calls, results = [], []

    def function(features, used, tokens, absent):
        calls.append(len(features))
        return reduce(features, weight, used, tokens, absent)

    for how_many in (1, count):
        calls.clear()
        outputs = in_chunks(function, how_many, features, used, tokens, None)
        assert len(calls) == how_many
        assert sum(calls) == 13
        assert max(calls) - min(calls) <= 1
        (outputs[0].sum() - outputs[1].cos().sum()).backward()
        results.append([*outputs, features.grad, weight.grad])
        features.grad = weight.grad = None
    assert len(results[0][0]) == used.sum()
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-14)


def test_the_log_probabilities_of_a_chunk_are_not_kept():
    saved = []

    def function(features):
        return ((features @ torch.ones(4, 1000)).log_softmax(-1).amax(-1),)

    features = torch.randn(16, 4, requires_grad=True)
    for how_many in (1, 4):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            in_chunks(function, how_many, features)
        saved.append(max(sizes, default=0))
    assert saved[0] >= 16 * 1000
    assert saved[1] < 1000


def test_chunk_count(monkeypatch):
    assert chunk_count(4096, 260) == 1
    assert chunk_count(0, 260) == 1
    assert chunk_count(8192, 150_000) == 19
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 70)
    assert [chunk_count(n, 10) for n in (7, 8, 14, 15)] == [1, 2, 2, 3]
