"""A denoiser's law is the model's own logits, whatever class of transformers computes them, or one line refuses it."""

import json
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from distill.config import DataConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from distill.evaluation.judge import Judge
from students.cache import RowCache
from students.fill import fill
from students.samplers import Ancestral
from students.samplers.random_start import random_tokens
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.families.stock.trial import check_denoiser
from tests.networks import stock

V, MASK, PAD, POSITIONS = 259, 1, 2, 64
ENTRIES = {"vocab_size": V, "eos_token_id": 0, "pad_token_id": PAD, "bos_token_id": None}
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
}  # fmt: skip
ONE, WIDE = {"num_key_value_heads": 1}, {"num_key_value_heads": 1, "head_dim": 16}
WINDOW = {"sliding_window": 8}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
CLASSES = {
    "qwen3": ("qwen3", SIZES | WIDE),
    "qwen2": ("qwen2", SIZES | ONE),
    "llama": ("llama", SIZES | ONE),
    "llama with scaled positions": ("llama", SIZES | ONE | {"rope_scaling": LLAMA3}),
    "mistral": ("mistral", SIZES | ONE | WINDOW),
    "gemma": ("gemma", SIZES | WIDE),
    "gemma2": ("gemma2", SIZES | WIDE | WINDOW | {"final_logit_softcapping": 5.0}),
    "gemma3": (
        "gemma3_text",
        SIZES | WIDE | WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "granite": ("granite", SIZES | ONE | {"logits_scaling": 8.0}),
    "cohere": ("cohere", SIZES | ONE | {"logit_scale": 0.0625}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}),
    "gpt_neox": ("gpt_neox", SIZES),
    "phi": ("phi", SIZES),
    "phi3": ("phi3", SIZES | ONE | {"original_max_position_embeddings": POSITIONS}),
    "olmo2": ("olmo2", SIZES | ONE),
    "smollm3": ("smollm3", SIZES | ONE),
    "opt": ("opt", SIZES | {"word_embed_proj_dim": 32, "ffn_dim": 64}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "falcon": ("falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}),
    "starcoder2": ("starcoder2", SIZES | ONE),
    "qwen3_moe": (
        "qwen3_moe",
        SIZES | WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "mixtral": ("mixtral", SIZES | ONE | {"num_local_experts": 4}),
    "bert": ("bert", SIZES | {"type_vocab_size": 2}),
    "roberta": ("roberta", SIZES | {"type_vocab_size": 1, "max_position_embeddings": POSITIONS + 3}),
}
REFUSED = {
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, "causal by its making"),
    "modernbert": ("modernbert", SIZES | {"cls_token_id": None, "sep_token_id": None}, "'modernbert'"),
}
NO_BLOCKS = {"bloom"}
"""Their class takes no mask of ours, so that they are read with full attention alone."""
NO_CACHE = {"mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": POSITIONS})}
"""Their class reads positions off the attention mask, so that a part of a row can not be sent alone."""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(vocabulary=V), DataConfig(path="unused", length=POSITIONS))


def made(kind, shape, folder, tokenizer, **more):
    """A random model, sharper than a new one, as somebody else saves it."""
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if kind in ("bert", "roberta", "modernbert") else AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(kind, **ENTRIES | shape | more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def half_masked(length=20):
    tokens = torch.randint(3, V, (2, length), generator=torch.Generator().manual_seed(1))
    tokens[:, ::2] = MASK
    return tokens


def law(logits, *excluded):
    logits = logits.double().clone()
    logits[..., [MASK, *excluded]] = -torch.inf
    return logits.log_softmax(-1).float()


def close(one, other, atol=1e-5):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


def padded(tokens, left):
    """The rows with three tokens of padding on one side, and where they are."""
    pad = torch.full((len(tokens), 3), PAD)
    real = torch.cat(
        [torch.zeros_like(pad), torch.ones_like(tokens)] if left else [torch.ones_like(tokens), torch.zeros_like(pad)],
        1,
    )
    return torch.cat([pad, tokens] if left else [tokens, pad], 1), real.bool()


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_the_law_is_the_models_own(name, tokenizer, tmp_path):
    folder = made(*CLASSES[name], tmp_path / "model", tokenizer)
    ours, tokens = load_denoiser(folder, tokenizer), half_masked()
    found = ours.log_probs(Canvas.of(tokens, MASK))
    close(found, law(ours.network(input_ids=tokens).logits))
    # for anybody who loads what we write
    ours.save(tmp_path / "written")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "written").eval()
    close(found, law(other(input_ids=tokens).logits))
    # some of the positions, and rows beside padding
    select = tokens == MASK
    close(ours.log_probs(Canvas.of(tokens, MASK), select), found[select])
    for left in (True, False):
        rows, real = padded(tokens, left)
        part = ours.log_probs(Canvas.of(rows, MASK, real))
        close(part[:, 3:] if left else part[:, :-3], found)
    assert len(ours.blocks()) == 2
    assert ours.spec.max_length == (2**20 if name == "bloom" else 2048 if name == "falcon" else POSITIONS)
    assert ours.spec.length == (POSITIONS if name == "bloom" else ours.spec.max_length)


@pytest.mark.parametrize("name", [name for name in CLASSES | NO_CACHE if name not in NO_BLOCKS])
@torch.no_grad()
def test_blocks_see_themselves_whole_and_nothing_later(name, tokenizer, tmp_path):
    kind, shape = (CLASSES | NO_CACHE)[name]
    wide = {field: POSITIONS for field in WINDOW if field in shape}
    ours = load_denoiser(made(kind, shape, tmp_path, tokenizer, **wide), tokenizer, attention="block", block_size=4)
    tokens = half_masked(8)
    one, other = Canvas.of(tokens, MASK), tokens.clone()
    other[:, -1] = 3 + (other[:, -1] - 2) % (V - 3)
    changed = (ours.log_probs(one) - ours.log_probs(Canvas.of(other, MASK)))[..., 2:].abs().amax((0, 2))
    assert changed[:4].max() < 1e-6  # experts add in another order
    assert changed[4:].min() > 1e-4
    assert ("cache" in ours.capabilities) == (name not in NO_CACHE)
    if name not in NO_CACHE:
        assert_cached_is_uncached(ours, half_masked(20))


def assert_cached_is_uncached(ours, tokens):
    """Passes that ask one block after the other, while tokens of all of them change now and then."""
    cache, rows, randomness = RowCache(ours, Canvas.of(tokens, MASK)), torch.arange(len(tokens)), torch.Generator()
    for start in (0, 3, 7, 7, 12, 16):
        select = torch.zeros_like(tokens, dtype=torch.bool)
        select[0, start : start + 3] = select[1, start + 1 : start + 4] = True
        canvas = Canvas.of(tokens, MASK)
        features, sent = cache.features(canvas, rows, select)
        assert sent < tokens.numel()
        close(ours.head(features), ours.log_probs(canvas, select))
        tokens = tokens.clone()
        tokens[:, start : start + 4] = torch.randint(3, V, (2, 4), generator=randomness)


WINDOWED = {
    **{name: CLASSES[name] for name in ("mistral", "gemma2", "gemma3")},
    "qwen2": ("qwen2", SIZES | ONE | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_blocks_do_not_undo_a_window(name, tokenizer, tmp_path):
    folder = made(*WINDOWED[name], tmp_path, tokenizer)
    with pytest.raises(UserError, match=r"sliding_window is 8 in .*; set attention to full.* sliding_window to null"):
        load_denoiser(folder, tokenizer, attention="block", block_size=4)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": None, "layer_types": None}))
    assert load_denoiser(folder, tokenizer, attention="block", block_size=4).spec.block_size == 4


@torch.no_grad()
def test_full_attention_keeps_a_window_on_both_sides(tokenizer, tmp_path):
    """Two layers that look eight tokens far carry a token sixteen far, and no further."""
    ours = load_denoiser(made(*CLASSES["mistral"], tmp_path, tokenizer), tokenizer)
    tokens = half_masked(20)
    for place, reached in ((0, range(1, 17)), (19, range(3, 19))):
        other = tokens.clone()
        other[:, place] = 3 + (other[:, place] - 2) % (V - 3)
        laws = [ours.log_probs(Canvas.of(z, MASK))[..., 2:] for z in (tokens, other)]
        changed = (laws[0] - laws[1]).nan_to_num().abs().amax((0, 2))
        assert [n for n in range(20) if n != place and changed[n] > 0] == list(reached)


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_no_denoiser_is_one_line(name, tokenizer, tmp_path):
    kind, shape, says = REFUSED[name]
    with pytest.raises(UserError, match=says) as caught:
        load_denoiser(made(kind, shape, tmp_path, tokenizer), tokenizer)
    assert "\n" not in str(caught.value)


def test_a_class_that_takes_no_mask_is_refused_with_blocks(tokenizer, tmp_path):
    with pytest.raises(
        UserError, match=r"BloomForCausalLM, which can not be read with block attention .* attention full"
    ):
        load_denoiser(made(*CLASSES["bloom"], tmp_path, tokenizer), tokenizer, attention="block", block_size=4)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            lambda logits, mask: logits + 1e-3 * torch.arange(logits.shape[-1]),
            "other logits than its last hidden states",
        ),
        (lambda logits, mask: logits[..., :-1], "gives 258 logits where its output layer has 259 rows"),
    ],
)
def test_a_forward_that_does_what_we_do_not_see_is_refused(fault, says, monkeypatch):
    ours = stock(V, 16)
    forward, base = ours.network.forward, ours.network.base_model

    def other(*arguments, **inputs):
        answer = forward(*arguments, **inputs)
        if ours.network.model is base:  # the whole network, not the head alone
            answer.logits = fault(answer.logits, None)
        return answer

    monkeypatch.setattr(ours.network, "forward", other)
    with pytest.raises(UserError, match=says):
        check_denoiser(ours, "x")


def test_judges_read_from_left_to_right(tokenizer, tmp_path):
    for kind, shape in (REFUSED["mamba"][:2], CLASSES["bloom"]):
        judge = Judge(resolve(made(kind, shape, tmp_path / kind, tokenizer)), tokenizer)
        assert judge.max_length > 10**6
        assert judge.score(half_masked())[0].shape == (2,)
    with pytest.raises(UserError, match="BertLMHeadModel, which reads what follows a token"):
        Judge(resolve(made(*CLASSES["bert"], tmp_path / "bert", tokenizer)), tokenizer)


# --- ids without a token ---------------------------------------------------------------------------------------------


def padded_model(tokenizer, folder, rows=300):
    return made("qwen2", SIZES | ONE, folder, tokenizer, vocab_size=rows)


@torch.no_grad()
def test_ids_without_a_token_are_impossible(tokenizer, tmp_path):
    folder, tokens = padded_model(tokenizer, tmp_path / "model"), half_masked()
    ours = load_denoiser(folder, tokenizer).requires_grad_(False)
    assert ours.spec.gaps == ((V, 300),)
    close(ours.log_probs(Canvas.of(tokens, MASK)), law(ours.network(input_ids=tokens).logits, *range(V, 300)))
    drawn = fill(ours, Canvas.blank(64, 32, MASK), Ancestral(), 4, torch.Generator().manual_seed(0)).tokens
    assert drawn.max() < V
    ours.save(tmp_path / "written")
    assert json.loads((tmp_path / "written" / "config.json").read_text())["fewstep"]["gaps"] == [[V, 300]]
    assert load_denoiser(str(tmp_path / "written")).spec == ours.spec
    assert load_denoiser(folder, mask_id=MASK).spec.gaps == ()


def test_gaps_within_a_vocabulary(tokenizer):
    spec = DenoiserSpec(4, 10, 8, gaps=[[1, 3], [8, 10]])
    assert spec.gaps == ((1, 3), (8, 10))
    assert spec.tokens("cpu").tolist() == [0, 3, 5, 6, 7]
    assert spec.excluded("cpu").nonzero().squeeze(1).tolist() == [1, 2, 4, 8, 9]
    assert spec.excluded_ids("cpu").tolist() == [4, 1, 2, 8, 9]
    assert random_tokens(torch.linspace(0, 0.999, 50), spec).unique().tolist() == [0, 3, 5, 6, 7]


@pytest.mark.parametrize("gaps", [[[3, 2]], [[0, 11]], [[3, 6]], 5, [5], [["0", "1"]]])
def test_gaps_that_are_none(gaps):
    with pytest.raises(UserError, match=re.escape(f"gaps {gaps!r}")):
        DenoiserSpec(4, 10, 8, gaps=gaps)


def test_a_judge_needs_a_row_for_every_token(tokenizer, tmp_path):
    judge = Judge(resolve(padded_model(tokenizer, tmp_path / "larger")), tokenizer)
    assert judge.score(half_masked())[0].shape == (2,)
    with pytest.raises(UserError, match="has 200 rows of embeddings and its tokenizer ids up to 258"):
        Judge(resolve(padded_model(tokenizer, tmp_path / "smaller", 200)), tokenizer)


# --- autoregressive models -------------------------------------------------------------------------------------------


def test_a_model_that_calls_itself_causal_is_read_otherwise_by_request_alone(tokenizer, tmp_path):
    folder = made("qwen2", SIZES | ONE, tmp_path, tokenizer, is_causal=True)
    with pytest.raises(UserError, match=r"is autoregressive: .* fewstep convert, or set attention"):
        load_denoiser(folder, tokenizer)
    assert load_denoiser(folder, tokenizer, attention="full").spec.attention == "full"


def test_no_mask_token_points_to_the_conversion(tmp_path, tokenizer):
    made("qwen2", SIZES | ONE, tmp_path, tokenizer)
    with pytest.raises(UserError, match=r"names no mask token.*fewstep convert.*mask_token_id in its config"):
        load_denoiser(str(tmp_path))
