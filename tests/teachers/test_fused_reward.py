"""The marginalised reward fused with its heads is that of whole tables, and so are its gradients."""

import pytest
import torch
from torch import nn

from objectives.divergences import log_ratio
from objectives.gradients import marginalised
from teachers.denoiser import DenoiserSpec, log_probabilities
from teachers.ops import head, parts
from teachers.ops.head import LinearHead
from teachers.ops.reward import Read, Rewards, head_and_reward

VOCABULARY, WIDTH, POSITIONS = 700, 12, 7
SPEC = DenoiserSpec(VOCABULARY - 1, VOCABULARY, 16, gaps=((256, 520),))  # a whole chunk has no text


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(parts, "IN_CACHE", 1)


def layers(dtype=torch.float32, vocabulary=VOCABULARY, bias=True):
    torch.manual_seed(0)
    made = [nn.Linear(WIDTH, vocabulary, bias=bias, dtype=dtype) for _ in range(3)]
    states = [(4 * torch.randn(POSITIONS, WIDTH)).to(dtype) for _ in range(3)]
    return made, states


def read(layer, features, spec=SPEC):
    found = LinearHead.of(layer, spec.excluded_ids("cpu"))
    assert found is not None
    return Read(found, features)


def detached(layer, features, spec=SPEC):
    with torch.no_grad():
        return read(layer, features, spec)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_tables(share, bias):
    made, (ours, theirs, hers) = layers(bias=bias)
    ours.requires_grad_()
    weights = torch.linspace(-1, 2, POSITIONS)
    inputs = [ours, *made[0].parameters()]
    rewards = Rewards(detached(made[1], theirs), detached(made[2], hers), share, 2.0)
    fused = head_and_reward(read(made[0], ours), rewards)
    gradients = torch.autograd.grad((fused * weights).sum(), inputs)

    log_probs = log_probabilities(made[0](ours), SPEC)
    with torch.no_grad():
        teacher, auxiliary = log_probabilities(made[1](theirs), SPEC), log_probabilities(made[2](hers), SPEC)
        table = (1 - share) * log_ratio(teacher, auxiliary) + share * log_ratio(teacher, log_probs)
        assert (table.abs() > 2).any(), "some are clamped"
    whole = -marginalised(log_probs, table.clamp(-2, 2))
    torch.testing.assert_close(fused, whole, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad((whole * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_differences(monkeypatch):
    monkeypatch.setattr(head, "LEAST_COLUMNS", 3)
    spec = DenoiserSpec(9, 10, 16)
    made, (ours, theirs, hers) = layers(torch.float64, 10)
    rewards = Rewards(detached(made[1], theirs, spec), detached(made[2], hers, spec), 0.0, 50.0)
    layer = made[0]

    def of(features, weight, bias):
        offset = bias.index_fill(0, spec.excluded_ids("cpu"), -torch.inf)
        return head_and_reward(Read(LinearHead(weight, offset), features), rewards)

    assert torch.autograd.gradcheck(of, (ours.requires_grad_(), layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(dtype):
    made, (ours, theirs, hers) = layers(dtype)
    ours.requires_grad_()
    rewards = Rewards(detached(made[1], theirs), detached(made[2], hers), 0.0, 5.0)
    fused = head_and_reward(read(made[0], ours), rewards)
    assert fused.dtype == torch.float32
    (gradient,) = torch.autograd.grad(fused.sum(), ours)
    assert gradient.dtype == dtype
    wide = [nn.Linear(WIDTH, VOCABULARY) for _ in made]
    for one, other in zip(wide, made, strict=True):
        one.load_state_dict(other.state_dict())
    exact = Rewards(detached(wide[1], theirs.float()), detached(wide[2], hers.float()), 0.0, 5.0)
    torch.testing.assert_close(fused, head_and_reward(read(wide[0], ours.float()), exact), rtol=0.05, atol=0.05)


def test_of_a_network_that_has_diverged_there_is_no_number():
    made, (ours, theirs, hers) = layers()
    rewards = Rewards(detached(made[1], theirs * torch.nan), detached(made[2], hers), 0.0, 5.0)
    assert head_and_reward(read(made[0], ours), rewards).isnan().all()
