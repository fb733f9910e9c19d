"""What is fused with a head is what is computed of all its log-probabilities, and so are its gradients."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from students import drawing
from students.fill import fill
from students.samplers import Dilated, TopK
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec, log_probabilities
from teachers.families.stock.loading import create_denoiser
from teachers.ops import draw, head, parts
from teachers.ops.draw import head_and_draw
from teachers.ops.head import LinearHead
from teachers.randomness import RowStreams, categorical
from tests.networks import shape, stock

VOCABULARY, WIDTH, POSITIONS = 700, 24, 20
SPEC = DenoiserSpec(VOCABULARY - 1, VOCABULARY, 16, gaps=((256, 520),))  # a whole chunk has no text
TRITON = pytest.param("triton", marks=pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"))


@pytest.fixture(params=["torch", TRITON])
def kernels(request, monkeypatch):
    """Small chunks in torch; Triton's kernels in its interpreter, which needs no GPU."""
    monkeypatch.setattr(parts, "IN_CACHE", 1)
    if request.param == "triton":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        for module in (draw,):
            monkeypatch.setattr(module, "runs_triton", lambda tensor: True)


def layer(seed=0, dtype=torch.float32, bias=True):
    torch.manual_seed(seed)
    made = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    with torch.no_grad():
        made.weight.mul_(8)
    return made


def linear_head(made):
    found = LinearHead.of(made, SPEC.excluded_ids("cpu"))
    assert found is not None
    return found


def features(seed=1, dtype=torch.float32, positions=POSITIONS):
    return torch.randn(positions, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def uniforms(positions=POSITIONS):
    return torch.rand(positions, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gathered(law, tokens):
    return law.gather(-1, tokens[:, None])[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_draws_are_those_of_all_log_probabilities(kernels, temperature, greedy, bias):
    made, read, u = layer(bias=bias), features(), None if greedy else uniforms()
    drawn = head_and_draw(linear_head(made), read, u, temperature)
    own = log_probabilities(made(read), SPEC)
    law = (own / temperature).log_softmax(-1)
    assert torch.equal(drawn.tokens, law.argmax(-1) if u is None else categorical(law, u))
    torch.testing.assert_close(drawn.log_prob, gathered(law, drawn.tokens), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(drawn.confidence, gathered(own, drawn.tokens), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(dtype):
    made, read, u = layer(dtype=dtype), features(dtype=dtype), uniforms()
    drawn = head_and_draw(linear_head(made), read, u)
    law = log_probabilities(made(read), SPEC)
    assert (drawn.tokens == categorical(law, u)).float().mean() > 0.9  # the bias is added before the rounding there
    torch.testing.assert_close(drawn.log_prob, gathered(law, drawn.tokens), rtol=0.02, atol=0.05)
    assert drawn.log_prob.dtype == torch.float32


@torch.no_grad()
def test_no_uniform_draws_what_is_no_text(kernels):
    edges = torch.tensor([0.0, 1 - 2.0**-53] * (POSITIONS // 2), dtype=torch.float64)
    drawn = head_and_draw(linear_head(layer()), features(), edges)
    text = SPEC.tokens("cpu")
    assert drawn.tokens.tolist() == [int(text[0]), int(text[-1])] * (POSITIONS // 2)


@torch.no_grad()
def test_rare_tokens_are_drawn_as_often_as_the_law_says(kernels):
    made = layer()
    made.weight.zero_()
    made.bias.copy_(torch.linspace(-28, 0, VOCABULARY))  # the first token's probability is about 3e-14
    p = made.bias.double().index_fill(0, SPEC.excluded_ids("cpu"), -torch.inf).softmax(-1)
    first = torch.tensor([0.9, 1.1], dtype=torch.float64) * p[0]
    assert head_and_draw(linear_head(made), features(positions=2), first).tokens.tolist() == [0, 1]


@torch.no_grad()
def test_frequencies_are_the_law(kernels):
    made, read = layer(), features(positions=1).expand(100, -1).contiguous()
    u = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    seen = torch.bincount(head_and_draw(linear_head(made), read, u).tokens, minlength=VOCABULARY) / 100
    p = log_probabilities(made(read[:1]), SPEC)[0].exp()
    # equally spaced uniforms hit an interval as often as its width says, give or take one at each end
    assert (seen - p).abs().max() <= 2 / 100


def test_a_rules_tokens_are_the_same_where_drawing_is_fused(monkeypatch):
    denoiser, seen = stock(VOCABULARY, 16, seed=3), []
    canvas = Canvas.blank(4, 16, denoiser.spec.mask_id)

    def filled(sampler):
        return fill(denoiser, canvas, sampler, 4, RowStreams(0, (1,), range(4)))

    rules = [Dilated(), Dilated(temperature=0.8), TopK(draw="greedy")]
    apart = [filled(rule) for rule in rules]
    monkeypatch.setattr(head, "WIDE", 1)
    monkeypatch.setattr(head, "MANY", 1)
    monkeypatch.setattr(drawing, "head_and_draw", lambda *given: seen.append(len(given[1])) or head_and_draw(*given))
    for rule, one in zip(rules, apart, strict=True):
        other = filled(rule)
        assert torch.equal(one.tokens, other.tokens)
        if one.log_prob is not None:
            torch.testing.assert_close(one.log_prob, other.log_prob)
    assert sum(seen) >= 3 * 4 * 16
    filled(Dilated(top_k=5))
    denoiser.collective = True
    before = len(seen)
    filled(Dilated())
    assert len(seen) == before, "what is not drawn from a whole vocabulary or is not at hand is drawn as ever"


@pytest.mark.parametrize("kind", ["gemma2", "granite"])
def test_heads_that_cap_or_scale_are_not_linear(kind):
    sizes = shape(**({"logits_scaling": 4.0} if kind == "granite" else {}))
    if kind == "granite":
        del sizes["head_dim"]
    assert create_denoiser(kind, sizes, DenoiserSpec(59, 60, 16)).linear_head() is None


def test_only_torchs_own_linear_layer_is_fused():
    assert LinearHead.of(nn.Sequential(layer()), SPEC.excluded_ids("cpu")) is None


def test_chunks_cover_the_vocabulary(monkeypatch):
    monkeypatch.setattr(parts, "IN_CACHE", 1)
    chunks = list(linear_head(layer()).chunks(POSITIONS))
    assert [columns.start for columns in chunks] == [0, head.LEAST_COLUMNS, 2 * head.LEAST_COLUMNS]
