"""Stock causal language models as denoisers: masks, shift, selection, saving, conversion."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from distill.config import DataConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from teachers.canvas import Canvas
from teachers.convert import from_autoregressive
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.families.stock.denoiser import StockDenoiser
from teachers.families.stock.loading import create_denoiser
from teachers.masks import additive, visibility
from teachers.vocabulary import check_tokenizer
from tests.networks import shape

FAMILIES = ["qwen3", "llama", "qwen2"]
V, L, MASK, BLOCK = 11, 8, 10, 2
SHAPE = shape(32, 2, tie_word_embeddings=False)


def shape_of(family):
    return {k: v for k, v in SHAPE.items() if k != "head_dim" or family != "qwen2"}


def stock(family, vocabulary=V, **more):
    """A stock model with weights large enough that attention matters."""
    torch.manual_seed(0)
    sizes = shape_of(family) | {"vocab_size": vocabulary, "max_position_embeddings": 16, "initializer_range": 0.3}
    config = AutoConfig.for_model(family, **sizes | more)
    return AutoModelForCausalLM.from_config(config).eval()


def denoiser(family="qwen3", **spec):
    values = {"mask_id": MASK, "vocabulary": V, "max_length": 16, **spec}
    return StockDenoiser(stock(family), DenoiserSpec(**values)).requires_grad_(False)


@pytest.fixture
def z():
    canvas = torch.randint(0, V - 1, (3, L), generator=torch.Generator().manual_seed(1))
    canvas[:, ::3] = MASK
    return canvas


def log_probs(ours, z, select=None, real=None):
    return ours.log_probs(Canvas.of(z, ours.spec.mask_id, real), select)


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def without_mask(logits):
    """The definition: mask column out, the rest normalised."""
    logits = logits.float().clone()
    logits[..., MASK] = -torch.inf
    return logits.log_softmax(-1)


# --- masks ---------------------------------------------------------------------------------------------------------


def mask_of(attention, length, dtype=torch.float32, **options):
    return additive(visibility(attention, length, **options).dense(), dtype)


def visible(mask):
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(mask.dtype).min}
    return (mask == 0).int().tolist()


def test_full_mask():
    assert visible(mask_of("full", 3)[0, 0]) == [[1, 1, 1]] * 3


def test_causal_mask():
    assert visible(mask_of("causal", 3)[0, 0]) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_block_mask():
    # five tokens in blocks of two: the last block is short
    assert visible(mask_of("block", 5, torch.bfloat16, block_size=2)[0, 0]) == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_padding_hides_keys_from_every_query():
    padding = torch.tensor([[1, 1, 0], [0, 1, 1]])
    mask = mask_of("causal", 3, padding=padding)
    assert mask.shape == (2, 1, 3, 3)
    assert visible(mask[0, 0]) == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert visible(mask[1, 0]) == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("size", [None, 0])
def test_block_mask_needs_a_block_size(size):
    with pytest.raises(UserError, match="block size"):
        visibility("block", 4, block_size=size)


# --- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["full", "block", "causal"])
def test_attention_equals_the_explicit_mask_on_the_stock_model(family, attention, z):
    reference = stock(family)
    ours = denoiser(family, attention=attention, block_size=BLOCK if attention == "block" else None)
    mask = mask_of(attention, L, block_size=BLOCK)
    with torch.no_grad():
        expected = reference(input_ids=z, attention_mask=mask.expand(len(z), 1, L, L), use_cache=False).logits
    close(log_probs(ours, z), without_mask(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_full_attention_looks_ahead(family, z):
    # the test above would pass if masks were ignored on both sides; here the last token must reach the first position
    changed = z.clone()
    changed[:, -1] = (changed[:, -1] + 1) % (V - 1)
    full, causal = denoiser(family), denoiser(family, attention="causal")
    assert (log_probs(full, z)[:, 0, :MASK] - log_probs(full, changed)[:, 0, :MASK]).abs().max() > 1e-3
    close(log_probs(causal, z)[:, :-1], log_probs(causal, changed)[:, :-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_block_attention_equals_incremental_evaluation(family, z):
    ours, model = denoiser(family, attention="block", block_size=BLOCK), stock(family)
    cache, parts = DynamicCache(config=model.config), []
    with torch.no_grad():
        for start in range(0, L, BLOCK):  # every query of a block sees all that is cached, and its own block
            seen = torch.zeros(len(z), 1, BLOCK, start + BLOCK)
            step = model(
                input_ids=z[:, start : start + BLOCK],
                attention_mask=seen,
                position_ids=torch.arange(start, start + BLOCK)[None],
                past_key_values=cache,
                use_cache=True,
            )
            parts.append(step.logits)
    close(log_probs(ours, z), without_mask(torch.cat(parts, dim=1)))


def test_a_block_does_not_see_later_blocks_but_sees_itself_whole(z):
    ours = denoiser(attention="block", block_size=4)
    later, own = z.clone(), z.clone()
    later[:, 4:] = (later[:, 4:] + 3) % (V - 1)
    own[:, 3] = (own[:, 3] + 3) % (V - 1)
    close(log_probs(ours, later)[:, :4], log_probs(ours, z)[:, :4])
    close(log_probs(ours, z[:, :4]), log_probs(ours, z)[:, :4])
    assert (log_probs(ours, own)[:, 0, :MASK] - log_probs(ours, z)[:, 0, :MASK]).abs().max() > 1e-3


# --- logits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_column_is_impossible_and_the_rest_is_normalised(family, z):
    answer = log_probs(denoiser(family), z)
    assert answer.shape == (3, L, V)
    assert answer.dtype == torch.float32
    assert (answer[..., MASK] == -torch.inf).all()
    close(answer.exp().sum(-1), torch.ones(3, L))


def test_low_precision_networks_give_float32(z):
    answer = log_probs(denoiser().bfloat16(), z)
    assert answer.dtype == torch.float32
    close(answer.exp().sum(-1), torch.ones(3, L))


@pytest.mark.parametrize("family", FAMILIES)
def test_shift_moves_predictions_one_to_the_right(family, z):
    plain, shifted = log_probs(denoiser(family), z), log_probs(denoiser(family, shift=True), z)
    close(shifted[:, 1:], plain[:, :-1])
    close(shifted[:, 0], plain[:, 0])  # nothing predicts the first position but itself


@pytest.mark.parametrize("shift", [False, True])
def test_shift_comes_before_select(shift, z):
    ours = denoiser(shift=shift)
    select = z == MASK
    close(log_probs(ours, z, select=select), log_probs(ours, z)[select])
    assert log_probs(ours, z, select=torch.zeros_like(select)).shape == (0, V)


def test_rows_that_are_the_same_share_a_pass(z):
    ours, same = denoiser(), z[:1].expand(3, -1)
    seen = []
    ours.model.base_model.register_forward_pre_hook(
        lambda _, args, kw: seen.append(len(kw["input_ids"])), with_kwargs=True
    )
    for tokens, rows in ((same, 1), (z, 3)):
        canvas, select = Canvas.of(tokens, MASK), tokens == MASK
        select[0, 0] = False
        close(ours.head(ours.features_at(canvas, select)), ours.log_probs(canvas)[select])
        assert seen[-2] == rows


def test_hidden_states_are_what_the_head_reads(z):
    ours = denoiser(shift=True)
    close(without_mask(ours.model.get_output_embeddings()(ours.hidden_states(Canvas.of(z, MASK)))), log_probs(ours, z))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["full", "block"])
def test_padding_changes_nothing(family, attention, z):
    ours = denoiser(family, attention=attention, block_size=BLOCK if attention == "block" else None)
    alone = log_probs(ours, z)
    real = torch.cat([torch.ones_like(z), torch.zeros(3, 4, dtype=torch.long)], dim=1).bool()
    padded = torch.cat([z, torch.randint(0, V, (3, 4), generator=torch.Generator().manual_seed(5))], dim=1)
    close(log_probs(ours, padded, real=real)[:, :L], alone)
    # without the mask the padding would be seen, or, in blocks, comes later anyway
    if attention == "full":
        assert (log_probs(ours, padded)[:, :L, :MASK] - alone[..., :MASK]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["full", "block", "causal"])
@pytest.mark.parametrize("shift", [False, True])
def test_left_padding_changes_nothing(family, attention, shift, z):
    ours = denoiser(family, attention=attention, block_size=4 if attention == "block" else None, shift=shift)
    for width in (4, 3):  # a whole block, and less than one
        real = torch.cat([torch.zeros(3, width, dtype=torch.long), torch.ones_like(z)], dim=1).bool()
        padded = torch.cat([torch.zeros(3, width, dtype=torch.long), z], dim=1)
        close(log_probs(ours, padded, real=real)[:, width:], log_probs(ours, z))


def test_forward_is_log_probs(z):
    ours = denoiser()
    canvas = Canvas.of(z, MASK)
    assert torch.equal(ours(canvas, canvas.open), ours.log_probs(canvas, canvas.open))


# --- saving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "spec",
    [
        {"eos_id": 0, "pad_id": 2},
        {"attention": "block", "block_size": 4, "shift": True},
        {"attention": "causal", "shift": True, "eos_id": 1},
    ],
)
def test_save_and_load_keep_spec_and_logits(family, spec, z, tmp_path):
    ours = denoiser(family, **spec)
    ours.save(tmp_path)
    back = load_denoiser(str(tmp_path))
    assert back.spec == ours.spec
    with torch.no_grad():
        assert torch.equal(log_probs(back, z), log_probs(ours, z))
    # for whoever loads the folder without us, it is bidirectional or not by its config alone
    assert AutoConfig.from_pretrained(tmp_path).is_causal is (spec.get("attention") == "causal")


def test_stock_transformers_loads_a_full_attention_folder_as_bidirectional(z, tmp_path):
    ours = denoiser()
    ours.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        close(without_mask(model(input_ids=z).logits), log_probs(ours, z))


def test_overrides_win_over_the_saved_spec_and_none_does_not(tmp_path):
    denoiser(shift=True).save(tmp_path)
    assert load_denoiser(str(tmp_path), shift=None).spec.shift is True
    assert load_denoiser(str(tmp_path), shift=False).spec.shift is False


def test_tied_weights_survive(z, tmp_path):
    torch.manual_seed(0)
    spec = DenoiserSpec(mask_id=MASK, vocabulary=V, max_length=16)
    ours = create_denoiser("qwen3", {**SHAPE, "tie_word_embeddings": True}, spec).requires_grad_(False)
    ours.save(tmp_path)
    assert torch.equal(log_probs(load_denoiser(str(tmp_path)).requires_grad_(False), z), log_probs(ours, z))


# --- tokenizers, conversion, mistakes ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=16))


@pytest.fixture
def with_new_mask(tokenizer):
    """The tokenizer of an autoregressive model, and a mask token that the model has no row for."""
    extended = copy.deepcopy(tokenizer)
    extended.add_special_tokens({"mask_token": "<|hole|>"})
    return extended


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_conversion_adds_the_mask_with_the_mean_embedding(family, tied, with_new_mask, tmp_path):
    before = stock(family, vocabulary=259, tie_word_embeddings=tied)
    before.save_pretrained(tmp_path)
    assert len(with_new_mask) == 260
    spec = DenoiserSpec(mask_id=with_new_mask.mask_token_id, vocabulary=260, max_length=16)
    ours = from_autoregressive(resolve(str(tmp_path)), with_new_mask, spec)
    for old, new in (
        (before.get_input_embeddings().weight, ours.model.get_input_embeddings().weight),
        (before.get_output_embeddings().weight, ours.model.get_output_embeddings().weight),
    ):
        assert new.shape[0] == 260
        assert torch.equal(new[:259], old)
        close(new[259], old.mean(0), atol=1e-6)
    assert ours.model.config.vocab_size == 260
    assert ours.model.config.is_causal is False
    assert log_probs(ours, torch.full((1, 4), 259)).shape == (1, 4, 260)


def test_conversion_resets_a_mask_token_that_the_model_already_has(tokenizer, tmp_path):
    # a judge trained here has a row for the mask that was never trained
    before = stock("qwen3", vocabulary=259)
    before.save_pretrained(tmp_path)
    spec = DenoiserSpec(mask_id=tokenizer.mask_token_id, vocabulary=259, max_length=16)
    table = from_autoregressive(resolve(str(tmp_path)), tokenizer, spec).model.get_input_embeddings().weight
    old = before.get_input_embeddings().weight
    close(table[tokenizer.mask_token_id], old.mean(0), atol=1e-6)
    others = [i for i in range(259) if i != tokenizer.mask_token_id]
    assert torch.equal(table[others], old[others])


def test_conversion_keeps_a_padded_vocabulary(tokenizer, tmp_path):
    # published models have more rows than their tokenizers have entries
    stock("qwen3", vocabulary=300).save_pretrained(tmp_path)
    spec = DenoiserSpec(mask_id=tokenizer.mask_token_id, vocabulary=259, max_length=16)
    ours = from_autoregressive(resolve(str(tmp_path)), tokenizer, spec)
    assert ours.spec.vocabulary == 300
    assert log_probs(ours, torch.full((1, 4), spec.mask_id)).shape == (1, 4, 300)


def test_tokenizer_larger_than_the_model(tokenizer, tmp_path):
    stock("qwen3", vocabulary=V).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"259 entries .* 11"):
        load_denoiser(str(tmp_path), tokenizer)


def test_tokenizer_with_another_mask(tokenizer):
    with pytest.raises(UserError, match=r"mask token is 1 but .* uses 5"):
        check_tokenizer(tokenizer, 259, 5, "x")
    check_tokenizer(tokenizer, 259, tokenizer.mask_token_id, "x")


def test_a_stock_model_takes_the_tokenizers_mask(tokenizer, tmp_path):
    stock("qwen3", vocabulary=259).save_pretrained(tmp_path)
    spec = load_denoiser(str(tmp_path), tokenizer).spec
    assert (spec.mask_id, spec.eos_id, spec.pad_id, spec.vocabulary, spec.max_length) == (1, 0, 2, 259, 16)


def test_no_mask_token_anywhere(tmp_path):
    stock("qwen3").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="set mask_id"):
        load_denoiser(str(tmp_path))
    assert load_denoiser(str(tmp_path), mask_id=4).spec.mask_id == 4


@pytest.mark.parametrize("mask", [-1, V])
def test_mask_outside_the_vocabulary(mask):
    with pytest.raises(UserError, match=str(mask)):
        denoiser(mask_id=mask)


@pytest.mark.parametrize(
    "spec",
    [
        {"attention": "block"},
        {"attention": "full", "block_size": 2},
        {"attention": "block", "block_size": 0},
        {"attention": "block", "block_size": "2"},
        {"attention": "none"},
    ],
)
def test_attention_and_block_size_go_together(spec):
    with pytest.raises(UserError, match=r"attention is|attention 'none'|block_size is"):
        denoiser(**spec)


def test_full_attention_overrides_a_block_checkpoint(tmp_path):
    denoiser(attention="block", block_size=2).save(tmp_path)
    assert load_denoiser(str(tmp_path)).spec.block_size == 2
    full = load_denoiser(str(tmp_path), attention="full").spec
    assert (full.attention, full.block_size) == ("full", None)


def test_time_conditioning_is_refused():
    with pytest.raises(UserError, match="time_conditioned"):
        denoiser(time_conditioned=True)


@pytest.mark.parametrize(
    ("model_type", "shape", "parts"),
    [
        ("qwen33", {}, ("'qwen33'", "'qwen3'")),
        ("bert_none", {}, ("'bert_none'",)),
        ("qwen3", {"hiden_size": 16}, ("model.shape.hiden_size", "'hidden_size'")),
        ("qwen3", {"vocab_size": 16}, ("model.shape.vocab_size", "leave it out")),
        ("qwen3", {"hidden_size": -1}, ("model.shape", "correct it")),
        ("qwen3", {"num_hidden_layers": "many"}, ("model.shape", "correct it")),
    ],
)
def test_shapes_that_no_model_has(model_type, shape, parts):
    with pytest.raises(UserError) as caught:
        create_denoiser(model_type, shape, DenoiserSpec(mask_id=1, vocabulary=20, max_length=8))
    for part in parts:
        assert part in str(caught.value)


def test_a_number_of_a_shape_is_of_its_fields_kind():
    shape = {**SHAPE, "hidden_size": 3.2e1, "initializer_range": 1}
    config = create_denoiser("qwen3", shape, DenoiserSpec(mask_id=1, vocabulary=20, max_length=8)).model.config
    assert (config.hidden_size, config.initializer_range) == (32, 1.0)


def test_unknown_bundled_model():
    with pytest.raises(UserError, match="no bundled model 'nothing-like-it'"):
        load_denoiser("bundled:nothing-like-it")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_denoiser(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
def test_truncated_weights(keep, tmp_path):
    stock("qwen3").save_pretrained(tmp_path)
    weights = Path(tmp_path, "model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"model.safetensors.*download it again") as caught:
        load_denoiser(str(tmp_path), mask_id=MASK)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(tmp_path):
    # transformers initialises what a file lacks and only warns; a teacher with random weights is a silent disaster
    from safetensors.torch import load_file, save_file

    stock("qwen3").save_pretrained(tmp_path)
    path = Path(tmp_path, "model.safetensors")
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        load_denoiser(str(tmp_path), mask_id=MASK)
