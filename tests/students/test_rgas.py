"""Reward-guided sampling against laws enumerated on a vocabulary of three, and against its published counts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from students.adapters import AdapterConfig
from students.critic import Discriminator
from students.fill import fill
from students.samplers import LOG_LINEAR, Rgas
from students.samplers.rgas import choose, embedding_gradients, tilted_log_probs
from teachers import chunks
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from tests.networks import shape
from tests.students.test_samplers import (
    CHI_SQUARE_26,
    LENGTH,
    MASK,
    VOCABULARY,
    Fixed,
    Table,
    chi_square,
    exact_law,
    masked_canvas,
    seeded,
)

SHAPE = shape(intermediate_size=16, initializer_range=1.0, tie_word_embeddings=False)
SEQUENCES = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * LENGTH)


def discriminator(length: int = LENGTH, adapter: AdapterConfig | None = None, scale: float = 1.0) -> Discriminator:
    """A random one whose logits are ``scale`` times those of unit spectral norm."""
    torch.manual_seed(0)
    critic = Discriminator(create_denoiser("qwen3", SHAPE, DenoiserSpec(MASK, VOCABULARY, length)).eval(), 1, adapter)
    critic.head.append(Scale(scale))
    return critic


class Scale(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def run(denoiser, canvas, steps, seed=0, critic=None, process=LOG_LINEAR, **settings):
    critic = critic or discriminator(canvas.length)
    return fill(denoiser, canvas, Rgas(**settings), steps, seeded(seed), process=process, critic=critic)


@pytest.mark.parametrize("by_time", [False, True])
def test_without_guidance_and_choice_it_is_ancestral_sampling(by_time):
    denoiser, process = Table(by_time), MaskedProcess("cosine")
    out = run(denoiser, masked_canvas(50_000), 3, process=process, strength=(0, 0), candidates=1)
    assert chi_square(out.tokens, exact_law(denoiser, 3, process)) < CHI_SQUARE_26
    assert (out.critic_nfe == 0).all(), "a discriminator whose answer is not used was asked"


def test_a_discriminator_without_opinion_changes_nothing():
    denoiser, process = Table(), MaskedProcess()
    out = run(denoiser, masked_canvas(20_000), 4, critic=discriminator(scale=0.0), candidates=2)
    assert chi_square(out.tokens, exact_law(denoiser, 4, process)) < CHI_SQUARE_26
    assert (out.critic_nfe > 0).all()


def mixture_reward(critic: Discriminator, log_probs: Tensor, canvas: Canvas) -> Tensor:
    """ΣD over the masked positions, straight from its definition: (B, L, V) → (B,)."""
    known = functional.one_hot(canvas.tokens, VOCABULARY).float()
    read = torch.where(canvas.open[..., None], log_probs.softmax(-1), known) @ critic.backbone.token_embeddings()
    return (critic.read_embeddings(canvas, read) * canvas.open).sum(1)


def test_the_gradient_is_that_of_finite_differences():
    critic, denoiser, step = discriminator(scale=10.0), Table(), 1e-2
    canvas = Canvas.of(torch.tensor([[MASK, 1, MASK], [MASK, MASK, 0]]), MASK)
    masked, table = canvas.open, critic.backbone.token_embeddings().detach()
    with torch.no_grad():
        features = denoiser.features(canvas, masked)
        slopes = embedding_gradients(denoiser, critic, table, canvas, features)[masked]
        tilted = tilted_log_probs(denoiser, table, 1.0, torch.inf, features, slopes)
        assert (tilted[:, MASK] == -torch.inf).all()
        ours = torch.zeros(2, LENGTH, VOCABULARY)
        ours[masked] = (tilted - features).nan_to_num()  # −∞ − −∞ in the mask's column
        log_probs = denoiser.features(canvas)
        theirs = torch.zeros_like(ours)
        for i, v in itertools.product(range(LENGTH), range(MASK)):
            bump = torch.zeros(LENGTH, VOCABULARY)
            bump[i, v] = step
            ends = [mixture_reward(critic, log_probs + sign * bump, canvas) for sign in (1, -1)]
            theirs[:, i, v] = (ends[0] - ends[1]) / (2 * step)
    assert theirs[masked].abs().max() > 0.1
    torch.testing.assert_close(ours[masked], theirs[masked], atol=2e-3, rtol=2e-3)


def test_one_guided_step_has_the_tilted_law():
    critic, denoiser, strength, clamp = discriminator(scale=10.0), Table(), 3.0, 0.2
    start = masked_canvas(1)
    log_probs = denoiser.features(start).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(mixture_reward(critic, log_probs, start).sum(), log_probs)
    assert (gradient.abs() > clamp).any()
    assert ((gradient != 0) & (gradient.abs() < clamp)).any()
    p = (log_probs + strength * gradient.nan_to_num().clamp(-clamp, clamp)).softmax(-1)[0].detach().double()
    law = torch.einsum("a,b,c->abc", *p).flatten()
    settings = {"guided": 1.0, "strength": (strength, 99.0), "clamp": clamp}
    tokens = run(denoiser, masked_canvas(50_000), 1, critic=critic, **settings).tokens
    assert chi_square(tokens, law) < CHI_SQUARE_26
    plain = exact_law(denoiser, 1, MaskedProcess())
    assert chi_square(tokens, plain) > 10 * CHI_SQUARE_26, "the guidance is too weak for this test to tell"


def test_a_choice_between_two_candidates_has_the_enumerated_law():
    # P(x) = 2 Σ_y p(x) p(y) e^r(x) / (e^r(x) + e^r(y))
    critic, denoiser = discriminator(scale=3.0), Table()
    plain = exact_law(denoiser, 1, MaskedProcess())
    with torch.no_grad():
        reward = critic(Canvas.of(SEQUENCES, MASK)).sum(1).double()
    law = 2 * plain * (plain * torch.sigmoid(reward[:, None] - reward)).sum(1)
    out = run(denoiser, masked_canvas(30_000), 1, critic=critic, candidates=2)
    assert chi_square(out.tokens, law) < CHI_SQUARE_26
    assert chi_square(out.tokens, plain) > 10 * CHI_SQUARE_26, "the choice is too weak for this test to tell"
    assert (out.nfe == 1).all()
    assert (out.critic_nfe == 2).all()


@pytest.mark.parametrize("padding", [(0, 0), (2, 0), (0, 2)])
def test_candidates_are_chosen_by_a_softmax_of_their_rewards_whatever_the_padding(padding):
    critic, rows = discriminator(scale=4.0), 20_000
    candidates = torch.tensor([[0, 1, 2], [2, 2, MASK], [1, MASK, 0]])
    with torch.no_grad():
        expected = critic(Canvas.of(candidates, MASK)).sum(1).softmax(0)
        padded, reveal = (functional.pad(x, padding).expand(rows, -1, -1) for x in (candidates, candidates != MASK))
        real = functional.pad(torch.ones(rows, LENGTH, dtype=torch.bool), padding)
        before = Canvas.of(torch.full(real.shape, MASK), MASK, real if sum(padding) else None)
        kept = choose(critic, padded, reveal, before, seeded(1))
    share = torch.stack([(kept == c).float().mean() for c in range(3)])
    assert share.sum() == 1
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)  # 4 standard deviations
    assert expected.max() - expected.min() > 0.1


def test_eight_steps_cost_what_is_published_and_what_is_not():
    critic, denoiser, rows = discriminator(128), Fixed(torch.tensor([0.2, 0.3, 0.5]), 128), 3
    passes, backward = [], []

    def hook(module, inputs, output):
        passes.append(len(output.last_hidden_state))
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda gradient: backward.append(len(gradient)))

    critic.requires_grad_(False).backbone.model.base_model.register_forward_hook(hook)
    out = run(denoiser, masked_canvas(rows, 128), 8, critic=critic)
    assert (out.nfe == 8).all()
    assert (out.critic_nfe == 4 * 2 + 16).all(), "4 forward and backward, and 16 forward"
    assert backward == [1, rows, rows, rows], "all-masked rows share a pass"
    assert passes == [*backward, *[rows] * 16]
    assert [len(z) for z in denoiser.forwarded] == [1, *[rows] * 7], "candidates share the denoiser's pass"
    published = run(denoiser, masked_canvas(rows, 128), 8, critic=critic, accounting="published")
    assert torch.equal(published.tokens, out.tokens)
    assert (published.critic_nfe == 0).all()
    assert Rgas().label == "rgas"
    assert Rgas(accounting="published").label == "rgas (critic passes not counted)"


def test_passes_are_counted_for_the_rows_that_take_them():
    tokens = torch.zeros(2, 64, dtype=torch.int64)
    tokens[1, 0] = MASK
    out = run(Fixed(torch.tensor([0.2, 0.3, 0.5]), 64), Canvas.of(tokens, MASK), 4, seed=1, guided=1.0)
    assert out.nfe.tolist() == [0, 1]
    assert out.critic_nfe.tolist() == [0, 2]


def test_strength_rises_linearly_over_the_guided_steps():
    rgas = Rgas(guided=0.5, strength=(30.0, 60.0))
    assert [rgas.guidance(k, 8) for k in range(6)] == [30, 40, 50, 60, 0, 0]
    assert rgas.guidance(0, 2) == 30


@pytest.mark.parametrize("draw", ["exact", "float32-gumbel"])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_prompts_are_kept_masks_filled_and_passes_bounded(steps, draw, monkeypatch):
    critic = discriminator(16)
    canvas = torch.randint(0, 3, (12, 16), generator=seeded(6))
    hidden = torch.rand(12, 16, generator=seeded(7)) < torch.linspace(0, 1, 12)[:, None]
    before = canvas.masked_fill(hidden, MASK)
    given, denoiser = Canvas.of(before.clone(), MASK), Fixed(torch.tensor([0.2, 0.3, 0.5]), 16)
    out = run(denoiser, given, steps, 8, critic, draw=draw)
    assert torch.equal(given.tokens, before), "the caller's canvas was written to"
    assert torch.equal(given.open, hidden), "the caller's canvas was written to"
    assert torch.equal(out.tokens[~hidden], canvas[~hidden])
    assert (out.tokens < 3).all()
    assert (out.nfe <= steps).all()
    assert ((out.nfe > 0) == hidden.any(1)).all()
    assert out.query_tokens == int(out.nfe.sum()) * 16
    assert sum(len(z) for z in denoiser.forwarded) == int(out.nfe.sum())
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    assert torch.equal(run(denoiser, given, steps, 8, critic, draw=draw).tokens, out.tokens)


def test_a_discriminator_that_likes_a_token_makes_it_frequent():
    critic = discriminator(8, scale=4.0)
    optimizer = torch.optim.Adam([p for p in critic.parameters() if p.requires_grad], 0.02)
    table, generator = critic.backbone.token_embeddings().detach(), seeded(0)
    for _ in range(60):  # on mixtures as well as tokens: what a gradient at a mixture is worth depends on the training
        mixtures = torch.rand(32, 8, VOCABULARY, generator=generator) ** 4
        mixtures[..., MASK] = 0
        mixtures[:16] = functional.one_hot(mixtures[:16].argmax(-1), VOCABULARY)
        mixtures /= mixtures.sum(-1, keepdim=True)
        likes = critic.read_embeddings(masked_canvas(32, 8), mixtures @ table)
        loss = functional.binary_cross_entropy_with_logits(likes, mixtures[..., 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    denoiser = Fixed(torch.tensor([0.4, 0.2, 0.4]), 8)

    def share(**settings):
        return float((run(denoiser, masked_canvas(500, 8), 4, critic=critic, **settings).tokens == 1).float().mean())

    assert share(strength=(0, 0), candidates=1) == pytest.approx(0.2, abs=0.025)
    assert share(guided=1.0, strength=(3, 3)) > 0.4, "gradient tilting"
    assert share(guided=0.0) > 0.3, "candidates"


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2)])
def test_reading_the_embeddings_of_tokens_is_reading_the_tokens(adapter):
    critic = discriminator(adapter=adapter)
    for parameter in critic.backbone.parameters():
        nn.init.normal_(parameter)  # an adapter that starts at zero would not be seen
    table = critic.backbone.token_embeddings()
    assert table.shape == (VOCABULARY, 16)
    canvas = Canvas.of(SEQUENCES, MASK)
    torch.testing.assert_close(critic.read_embeddings(canvas, table[SEQUENCES]), critic(canvas))
    out = run(Table(), masked_canvas(4), 2, critic=critic)
    assert (out.critic_nfe > 0).all()


def test_what_it_needs_is_said_in_one_line():
    for critic in (None, nn.Linear(1, 1)):
        with pytest.raises(UserError, match=r"asks a trained discriminator.*objective.ratio=discriminator"):
            fill(Table(), masked_canvas(2), Rgas(), 1, seeded(0), critic=critic)
    with pytest.raises(UserError, match="steps is 0"):
        run(Table(), masked_canvas(2), 0)
