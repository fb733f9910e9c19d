"""A cache of keys and values changes no prediction: not for any rule, any canvas, or any walk of tokens."""

import pytest
import torch

from students.adapters import AdaptedDenoiser, AdapterConfig, merged
from students.cache import RowCache
from students.fill import fill
from students.planner import add_planner
from students.rollout import k_step
from students.samplers import Ancestral, Dilated, Edit, EntropyBound, Factor, Threshold, TopK
from students.session import Session
from teachers.cache import Window
from teachers.canvas import Canvas
from teachers.delegating import DelegatingDenoiser
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.families import resolve
from teachers.families.dit.denoiser import DitDenoiser, Release
from teachers.families.dit.family import CAPABILITIES
from teachers.families.dit.network import DiffusionTransformer, Shape
from teachers.families.stock.trial import check_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.golden.places import COPIES
from tests.networks import mdlm, shape, stock

V, L, MASK, EOS = 23, 24, 1, 2
SIZES = shape(layers=2, initializer_range=0.3)


def blocks(size: int = 4, **spec) -> Denoiser:
    return stock(V, L, MASK, sizes=SIZES, attention="block", block_size=size, eos_id=EOS, **spec)


def columns() -> Denoiser:
    """Counts its blocks in columns, as releases do."""
    network = blocks()
    network.columns = True
    return network


def transformer() -> Denoiser:
    """As BD3-LM's releases, but for the place of the mask; sharper than a new one."""
    torch.manual_seed(0)
    spec = DenoiserSpec(MASK, V, L, eos_id=EOS, attention="block", block_size=4)
    network = DiffusionTransformer(Shape(V, hidden=16, conditioning=8, blocks=2, heads=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return DitDenoiser(network, spec, Release("backbone.", {}, CAPABILITIES)).eval()


NETWORKS = {
    "blocks of 4": blocks,
    "blocks of 3": lambda: blocks(3),
    "one block": lambda: blocks(L),
    "shifted": lambda: blocks(shift=True),
    "shifted, blocks of 8": lambda: blocks(8, shift=True),
    "columns": columns,
    "diffusion transformer": transformer,
}
RULES = {
    "ancestral": Ancestral(),
    "dilated": Dilated(),
    "top_k": TopK(draw="greedy", block_length=4),
    "top_k, small blocks": TopK(order="margin", block_length=2),
    "top_k, whole": TopK(order="random"),
    "threshold": Threshold(threshold=0.3, block_length=4, stop=True),
    "threshold, large blocks": Threshold(threshold=0.3, block_length=8),
    "factor": Factor(block_length=4),
    "entropy_bound": EntropyBound(block_length=3),
    "edit": Edit(threshold=0.2, editing_threshold=0.2, block_length=4),
}
KEY = (6,)
PROMPTS = [[5, 6, 7], [8] * 7, [9] * 2, [4] * 5, [7, 8]]


class Uncached(DelegatingDenoiser):
    """The same network, whose passes send whole rows."""

    def __init__(self, inner):
        super().__init__(inner)
        self.capabilities = inner.capabilities - {"cache"}


class Counted(DelegatingDenoiser):
    """Remembers which tokens it was sent, pass by pass."""

    def __init__(self, inner):
        super().__init__(inner)
        self.sent = []

    def window_features(self, canvas: Canvas, window: Window):
        self.sent.append((len(canvas), window.width))
        return super().window_features(canvas, window)

    def features(self, canvas, select=None):
        self.sent.append((len(canvas), canvas.length))
        return super().features(canvas, select)


def canvas_of(padding):
    if padding is None:  # rows that are all the same; masks alone would be the same at every position, too
        return Canvas.prompted([[5]] * len(PROMPTS), L, MASK)
    return Canvas.prompted(PROMPTS, L if padding == "none" else L - 7, MASK, pad_id=0, padding=padding)


def streams():
    return RowStreams(0, KEY, range(len(PROMPTS)))


def close(one, other, atol=1e-5):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


def walk(denoiser, rule, canvas, steps, **more):
    """What was written, and the law of every pass at every position that it asked."""
    laws = []
    filled = fill(
        denoiser, canvas, rule, steps, streams(), record=lambda one: laws.append(denoiser.head(one.features)), **more
    )
    return filled, laws


def assert_same(denoiser, rule, canvas, steps, **more):
    one, laws = walk(denoiser, rule, canvas, steps, **more)
    other, whole = walk(Uncached(denoiser), rule, canvas, steps, **more)
    for cached, uncached in zip(laws, whole, strict=True):
        close(cached, uncached)
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.nfe, other.nfe)
    return one.query_tokens, other.query_tokens


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("network", "padding"),
    [
        *(("blocks of 4", padding) for padding in (None, "none", "left", "right")),
        ("shifted", None),
        ("shifted", "left"),
    ],
)
def test_every_rule_writes_as_without_a_cache(network, rule, padding):
    cached, whole = assert_same(
        NETWORKS[network](), RULES[rule], canvas_of(padding), torch.tensor([12, 14, 16, 20, 24])
    )
    assert cached < whole or "whole" in rule or rule in ("ancestral", "dilated")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", ["ancestral", "top_k, small blocks", "edit"])
def test_every_network_writes_as_without_a_cache(network, rule):
    steps = 24 if network == "blocks of 3" else 16
    for padding in ("none", "left"):
        assert_same(NETWORKS[network](), RULES[rule], canvas_of(padding), steps)


@pytest.mark.parametrize("network", NETWORKS)
def test_any_walk_of_tokens_and_rows_has_the_law_of_whole_passes(network):
    assert_walk_is_exact(NETWORKS[network](), canvas_of("left"), 25, atol=1e-5)


@pytest.mark.parametrize("family", ["sdar", "sdar-moe", "llada2", "fast-dllm-v2", "a2d", "bd3lm"])
def test_any_walk_of_a_released_network_has_the_law_of_whole_passes(family):
    options = {} if family == "bd3lm" else {"block_size": 4}
    denoiser = resolve(str(COPIES / family / "checkpoint")).load(**options).requires_grad_(False)
    prompts = [[5, 6, 7], [8] * 6, [9]]
    canvas = Canvas.prompted(prompts, 16, denoiser.spec.mask_id, pad_id=0, padding="right")
    assert_walk_is_exact(denoiser, canvas, 8, atol=1e-4)


@torch.no_grad()
def assert_walk_is_exact(denoiser: Denoiser, canvas: Canvas, passes: int, atol: float) -> None:
    """Tokens change anywhere, masks come back, rows stay away and return, and any columns are asked."""
    randomness, mask_id = torch.Generator().manual_seed(3), denoiser.spec.mask_id
    tokens, real = canvas.tokens.clone(), canvas.real
    assert real is not None
    cache, saved = RowCache(denoiser, canvas), 0

    def chance(p, *size):
        return torch.rand(*size, generator=randomness) < p

    for _ in range(passes):
        rows = chance(0.7, len(tokens)).nonzero().squeeze(1)
        select = chance(0.1, len(rows), canvas.length) & real[rows]
        some = select.any(1)
        rows, select = rows[some], select[some]
        if len(rows) == 0:
            continue
        part = Canvas.of(tokens[rows], mask_id, real[rows])
        features, sent = cache.features(part, rows, select)
        close(denoiser.head(features), denoiser.log_probs(part, select), atol)
        saved += part.tokens.numel() - sent
        drawn = torch.randint(3, V, tokens.shape, generator=randomness)
        drawn = drawn.masked_fill(chance(0.3, *tokens.shape), mask_id)
        late = torch.arange(canvas.length) > torch.randint(0, canvas.length, (len(tokens), 1), generator=randomness)
        tokens = torch.where(chance(0.2, *tokens.shape) & real & late, drawn, tokens)
    assert saved > 0 or denoiser.spec.block_size == L, "a row is one block"


def test_until_given_tokens_and_rollouts():
    network, canvas = blocks(), canvas_of("none")
    until, given = torch.tensor([0, 3, 5, 9, 2]), canvas.tokens.masked_fill(canvas.open, 7)
    assert_same(network, RULES["top_k"], canvas, 12, until=until)
    assert_same(network, RULES["top_k, small blocks"], canvas, 16, given=given)
    states = [
        k_step(denoiser, MaskedProcess(), canvas, RULES["threshold"], [8, 12], streams())
        for denoiser in (network, Uncached(network))
    ]
    assert torch.equal(states[0].states, states[1].states)
    assert torch.equal(states[0].sample, states[1].sample)


def test_wrappers_keep_the_cache_and_adapters_change_it():
    torch.manual_seed(1)
    base = blocks()
    adapted = AdaptedDenoiser(add_planner(base, 8), AdapterConfig(rank=2))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    canvas = canvas_of("right")
    for denoiser in (adapted, merged(adapted), base):
        cached, whole = assert_same(denoiser, RULES["top_k"], canvas, 12)
        assert cached < whole
    texts = [fill(d, canvas, RULES["top_k"], 12, streams()).tokens for d in (adapted, merged(adapted), base)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_a_network_that_keeps_no_activations_keeps_keys_and_values():
    network = blocks()
    network.checkpoint_activations()
    cached, whole = assert_same(network, RULES["top_k"], canvas_of("none"), 12)
    assert cached < whole
    assert all(block.training for block in network.blocks()), "as transformers wants it for the next gradient"


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_a_pass_sends_what_changed_and_what_it_asks():
    """A block of four in two passes: the second of a block sends it alone, the first stores the one before as well."""
    counted, canvas = Counted(blocks()), Canvas.blank(2, 16, MASK)
    filled = fill(counted, canvas, TopK(order="random", block_length=4), 8, RowStreams(0, KEY, range(2)))
    assert counted.sent == [(1, 4), (2, 4), *[(2, 8), (2, 4)] * 3]
    assert filled.query_tokens == 2 * sum(width for _, width in counted.sent)


def test_under_a_shift_the_pass_that_stores_a_block_writes_the_first_token_of_the_next():
    counted, canvas = Counted(blocks(shift=True)), Canvas.blank(1, 12, MASK)
    fill(counted, canvas, TopK(draw="greedy", block_length=4), 9, RowStreams(0, KEY, range(1)))
    assert counted.sent == [(1, 4)] * 9


def test_rows_that_are_the_same_go_through_once():
    counted = Counted(blocks())
    filled = fill(counted, Canvas.blank(3, 16, MASK), TopK(draw="greedy", block_length=4), 8, torch.Generator())
    assert {rows for rows, _ in counted.sent} == {1}
    assert torch.equal(filled.tokens, filled.tokens[:1].expand(3, -1))


def test_a_single_pass_keeps_nothing_and_full_attention_does_not_by_itself():
    for network, steps in ((blocks(), 1), (stock(V, L, MASK, sizes=SIZES), 4)):
        counted = Counted(network)
        fill(counted, canvas_of("none"), Ancestral(), steps, streams())
        assert {width for _, width in counted.sent} == {L}


def test_finished_rows_are_sent_no_more():
    """A row ends with its first block, the other goes on."""
    network, canvas = blocks(), Canvas.blank(2, 16, MASK)
    given = torch.full_like(canvas.tokens, 7)
    given[0, 2] = EOS
    rule = Threshold(threshold=1, block_length=4, stop=True)
    counted = Counted(network)
    filled = fill(counted, canvas, rule, 16, RowStreams(0, KEY, range(2)), given=given)
    assert filled.nfe.tolist() == [4, 16]
    assert [rows for rows, _ in counted.sent[4:]] == [1] * 12
    assert_same(network, rule, canvas_of("none"), 24)


def test_processes_that_pass_together_make_equally_many_whatever_their_rows():
    """Under ZeRO 3; a row that is finished goes on with passes that ask nothing."""
    calls = []
    for stopped in (False, True):
        counted, canvas = Counted(blocks()), canvas_of("none").rows(slice(0, 1))
        counted.collective = True
        given = torch.full_like(canvas.tokens, EOS if stopped else 7)
        rule = TopK(order="random", block_length=4, stop=True)
        fill(counted, canvas, rule, 12, RowStreams(0, KEY, [0]), given=given, passes=12)
        calls.append(len(counted.sent))
    assert calls == [12, 12]


# --- approximations ---------------------------------------------------------------------------------------------------


def full(**spec) -> Denoiser:
    return stock(V, L, MASK, sizes=SIZES, eos_id=EOS, **spec)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_what_an_approximate_cache_writes_does_not_depend_on_the_batch(cache, shift):
    rule = Threshold(threshold=0.3, block_length=4, cache=cache)
    for network in (full(shift=shift), blocks(8, shift=shift)):
        canvas = canvas_of("left")
        together = fill(network, canvas, rule, 12, streams())
        for row in (0, 1, 4):
            alone = fill(network, canvas.rows(slice(row, row + 1)), rule, 12, RowStreams(0, KEY, [row]))
            assert torch.equal(alone.tokens[0], together.tokens[row])
        assert together.log_prob is None


@pytest.mark.parametrize("budget", [("text", 12), ("block", 3)])
@pytest.mark.parametrize(("cache", "later"), [("prefix", [24, 18, 12, 6]), ("dual", [6, 6, 6, 6])])
def test_an_approximate_cache_sends_a_whole_row_for_each_block_and_then_a_part(cache, later, budget):
    counted = Counted(full())
    rule = TopK(draw="greedy", block_length=6, cache=cache, budget=budget[0])
    fill(counted, Canvas.blank(1, L, MASK), rule, budget[1], RowStreams(0, KEY, range(1)))
    assert [width for _, width in counted.sent] == [w for part in later for w in (L, part, part)]
    assert f"approximate {cache} cache" in rule.label


def test_blocks_that_are_the_attentions_own_leave_nothing_to_approximate():
    network, canvas = blocks(), canvas_of("none")
    exact = walk(network, TopK(draw="greedy", block_length=4), canvas, 12)
    named = walk(network, TopK(draw="greedy", block_length=4, cache="dual"), canvas, 12)
    assert torch.equal(exact[0].tokens, named[0].tokens)
    for one, other in zip(exact[1], named[1], strict=True):
        close(one, other)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda: mdlm(V, L, time_conditioned=True), "'dual'"),
        (lambda: Uncached(full()), "needs a network with cache"),
    ],
)
def test_a_network_that_can_not_approximate_is_one_line(network, says):
    denoiser = network()
    denoiser.capabilities |= {"cache"} if denoiser.spec.time_conditioned else set()
    with pytest.raises(UserError, match=says) as caught:
        Session(denoiser, Canvas.blank(1, L, MASK), 4, "dual")
    assert "\n" not in str(caught.value)


def test_a_cache_needs_blocks_of_the_sampler():
    with pytest.raises(ValueError, match="set block_length as well"):
        TopK(cache="dual")


@pytest.fixture
def masks(monkeypatch):
    """The mask of every attention that is computed, or None."""
    seen, attention = [], torch.nn.functional.scaled_dot_product_attention

    def spy(*inputs, attn_mask=None, **options):
        seen.append(attn_mask)
        return attention(*inputs, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize("network", ["blocks of 4", "shifted", "diffusion transformer"])
def test_where_all_is_seen_no_mask_is_made_so_that_flash_attention_can_run(network, masks):
    denoiser, rule = NETWORKS[network](), Threshold(threshold=1.0, block_length=4)  # a token a pass
    if not isinstance(denoiser, DitDenoiser):
        check_denoiser(denoiser, network)
    alike = Canvas.prompted([[5]] * 2, L, MASK)
    masks.clear()
    written, laws = walk(denoiser, rule, alike, 24)
    bare = sum(mask is None for mask in masks)
    assert bare > 0.5 * len(masks), "all passes but those that store a block, or read beyond one"
    masks.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Window, "sees_all", lambda *_: False)
        same, masked = walk(denoiser, rule, alike, 24)
    assert all(mask is not None for mask in masks)
    assert torch.equal(written.tokens, same.tokens)
    for one, other in zip(laws, masked, strict=True):
        close(one, other)


def test_a_row_of_one_block_needs_no_mask_and_padding_does(masks):
    denoiser = blocks(L)
    check_denoiser(denoiser, "one block")
    masks.clear()
    law = denoiser.log_probs(canvas_of("none"))
    assert masks
    assert all(mask is None for mask in masks)
    denoiser.maskless = False
    close(law, denoiser.log_probs(canvas_of("none")))
    denoiser.maskless = True
    masks.clear()
    denoiser.log_probs(canvas_of("left"))
    assert all(mask is not None for mask in masks)
