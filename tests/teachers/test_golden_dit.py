"""The diffusion transformers against their families' own numbers: small copies, and the whole cases where they are.

`log_p_x0` is what each family's sampler draws from. Half of a copy's positions are noised; the whole cases have
canvases with one noised position and with all of them as well.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from students.critic import released_discriminator
from teachers.canvas import Canvas
from teachers.families import resolve
from teachers.prefix import split
from tests.golden.places import COPIES, SHARED, checkpoint_of

ROOTS = {"copy": COPIES, "whole": SHARED}
NAMES = ["mdlm", "sedd", "bd3lm", "bd3lm-full", "duo", "sdtt", "sdtt twice", "didi-instruct"]
LEVELS = ("s0", "s1", "s2")
FAMILIES = dict(zip(NAMES, ["mdlm", "sedd", "bd3lm", "bd3lm", "duo", "sdtt", "sdtt", "didi-instruct"], strict=True))


class Case:
    """A family's checkpoint and its reference."""

    def __init__(self, root: Path, name: str):
        self.checkpoint = resolve(str(checkpoint_of(root, name)))
        self.reference = load_file(root / name.partition(" ")[0] / "reference.safetensors")
        self.denoiser = self.checkpoint.load().requires_grad_(False)
        names = {key.partition(".")[0] for key in self.reference if key.endswith("input_ids")}
        self.canvases = sorted(names - {"x0"})
        self.levels = [level for level in LEVELS if f"{level}.sigma" in self.reference] or [None]

    def canvas(self, name: str, level: str | None) -> Canvas:
        """A canvas at a noise level."""
        tokens, time = self.reference[f"{name}.input_ids"], self.reference.get(f"{level}.time")
        return Canvas.of(tokens, self.denoiser.spec.mask_id, time=time)

    def expected(self, name: str, level: str | None, what: str) -> torch.Tensor | None:
        """What the family computes; None where its case does not say."""
        key = f"{name}.{what}" if level is None else f"{name}.{level}.{what}"
        return self.reference.get(key)


@pytest.fixture(scope="module", params=[(place, name) for place in ROOTS for name in NAMES], ids=" ".join)
def case(request):
    place, name = request.param
    if not checkpoint_of(ROOTS[place], name).is_dir():
        pytest.skip("the whole cases are not here" if place == "whole" else "the copies have this checkpoint once")
    case = Case(ROOTS[place], name)
    assert case.checkpoint.family.name == FAMILIES[name]
    return case


def close(ours, expected):
    assert torch.equal(ours.isinf(), expected.isinf())
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def features(case, name, level):
    """What the head reads, with the time that a level is at."""
    canvas = case.canvas(name, level)
    network = case.denoiser if canvas.time is None else case.denoiser.timed()
    if case.checkpoint.config.get("cross_attn") and not name.startswith("sample"):
        blocks = split(canvas, case.reference["x0.input_ids"], network.spec.block_size)
        return network.features(blocks).view(*canvas.tokens.shape, -1)
    return network.features(canvas)


def score(logits, tokens, sigma):
    """SEDD's output: a log score of every token, which is 0 for the one that is there."""
    logits = logits - sigma.expm1().log()[:, None, None] - torch.log(torch.tensor(logits.shape[-1] - 1.0))
    return logits.scatter(-1, tokens[..., None], 0.0)


def test_log_probabilities_and_logits(case):
    compared = 0
    for name in case.canvases:
        for level in case.levels:
            read, tokens = features(case, name, level), case.reference[f"{name}.input_ids"]
            logits = case.denoiser.output_layer(read)
            if case.checkpoint.family.name == "sedd":
                logits = score(logits, tokens, case.reference[f"{level}.sigma"])
            expected = case.expected(name, level, "logits")
            if expected is not None and (level == "s0" or f"{level}.time" in case.reference or level is None):
                close(logits, expected)
                compared += 1
            expected = case.expected(name, level, "log_p_x0")
            if expected is None and level == "s0":
                expected = case.expected(name, None, "log_p_x0")  # of a family that reads σ = 0 alone
            if expected is not None:
                noised = tokens == case.denoiser.spec.mask_id
                where = noised if case.checkpoint.family.name == "sedd" else torch.ones_like(noised)
                close(case.denoiser.head(read)[where], expected[where])
                compared += 1
            expected = case.expected(name, level, "log_p_guided")
            if expected is not None:  # the release's guided sampler leaves the mask its probability
                close(case.denoiser.output_layer(read).log_softmax(-1), expected)
                compared += 1
    assert compared >= 2 * len(case.canvases)


def test_the_network_at_levels_that_the_sampler_never_feeds(case):
    """SDTT's network reads σ, and its class feeds zeros."""
    transformer = case.denoiser.network
    for name in case.canvases:
        for level in (level for level in case.levels if level and f"{level}.time" not in case.reference):
            tokens = case.reference[f"{name}.input_ids"]
            hidden = transformer(transformer.vocab_embed(tokens), case.reference[f"{level}.sigma"])
            close(case.denoiser.output_layer(hidden), case.expected(name, level, "logits"))


def test_the_released_discriminator(case):
    critic = released_discriminator(case.checkpoint)
    assert (critic is not None) == (case.checkpoint.family.name == "didi-instruct")
    if critic is None:
        return
    for name in case.canvases:
        for level in case.levels:
            canvas, backbone = case.canvas(name, level), critic.backbone
            network = backbone if canvas.time is None else backbone.timed()
            logits = critic.head(network.hidden_states(canvas)).squeeze(-1)
            close(logits, case.expected(name, level, "discriminator"))
            if level == "s0":
                close(critic(canvas), logits)
                close(critic.read_embeddings(canvas, backbone.token_embeddings()[canvas.tokens]), logits)
