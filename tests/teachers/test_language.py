"""Released language models of other shapes than the golden ones, with their files' habits, and how they are written.

What a network of another shape computes is said by the stock class that computes the golden ones, made here from fields
written out by hand, with weights under the release's names, which are written out by hand as well.
"""

import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.families import resolve
from teachers.families.language import LANGUAGE
from teachers.masks import additive, visibility
from teachers.vocabulary import read_tokenizer
from tests.golden.places import COPIES, checkpoint_of
from tests.teachers.test_golden_language import NAMED

NAMES = [family.name for family in LANGUAGE if (COPIES / family.name).is_dir()]
ROWS, LENGTH, MASK = 40, 12, 37

SIZES = {
    "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "vocab_size": ROWS, "hidden_act": "silu",
    "rms_norm_eps": 1e-3, "rope_theta": 7000.0,
}  # fmt: skip
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}


def llada_names(name):
    name = re.sub(r"^model\.layers\.(\d+)\.self_attn\.o_proj", r"model.transformer.blocks.\1.attn_out", name)
    name = re.sub(r"^model\.layers\.(\d+)\.self_attn", r"model.transformer.blocks.\1", name)
    name = re.sub(r"^model\.layers\.(\d+)\.mlp", r"model.transformer.blocks.\1", name)
    name = re.sub(r"^model\.layers", "model.transformer.blocks", name)
    for stock, own in {
        "gate_proj": "ff_proj", "down_proj": "ff_out", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ff_norm", "model.embed_tokens": "model.transformer.wte",
        "model.norm": "model.transformer.ln_f", "lm_head": "model.transformer.ff_out",
    }.items():  # fmt: skip
        name = name.replace(stock, own)
    return name


def diffugpt_names(name):
    return name.replace("transformer.wte", "embed_tokens").replace("transformer.", "denoise_model.")


def llada(**changes):
    """Fields of a LLaDA config.json."""
    config = json.loads((COPIES / "llada" / "checkpoint" / "config.json").read_text("utf-8"))
    return config | {
        "d_model": 48, "mlp_hidden_size": 56, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "max_sequence_length": 32,
        "vocab_size": ROWS, "embedding_size": ROWS, "rms_norm_eps": 1e-3, "rope_theta": 7000.0, "mask_token_id": MASK,
    } | changes  # fmt: skip


def like(family, **fields):
    """Fields of another config.json that calls its sizes as the stock class does."""
    config = json.loads((COPIES / family / "checkpoint" / "config.json").read_text("utf-8"))
    config.pop("layer_types", None)
    return config | {"mask_token_id": MASK} | fields


def merged_llada2(tensors):
    """Queries, keys and values as LLaDA2 has them, in one, and its other names."""
    own = {}
    for name, tensor in tensors.items():
        name = name.replace("model.embed_tokens", "model.word_embeddings").replace(
            "e_score_correction_bias", "expert_bias"
        )
        name = name.replace("self_attn.o_proj", "attention.dense")
        name = name.replace("self_attn.q_norm", "attention.query_layernorm")
        name = name.replace("self_attn.k_norm", "attention.key_layernorm")
        if ".self_attn.q_proj." in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            own[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        elif ".self_attn." not in name:
            own[name] = tensor
    return own


def split_experts(tensors):
    """One tensor an expert, as files have them."""
    own = {}
    for name, tensor in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            for expert, weight in enumerate(tensor):
                gate, up = weight.chunk(2)
                own[name.replace("gate_up_proj", f"{expert}.gate_proj.weight")] = gate
                own[name.replace("gate_up_proj", f"{expert}.up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            for expert, weight in enumerate(tensor):
                own[name.replace("down_proj", f"{expert}.down_proj.weight")] = weight
        else:
            own[name] = tensor
    return own


def renamed(rename):
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


MOE = SIZES | EXPERTS | {"head_dim": 20}
SARVAM = SIZES | {
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 8, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 2, "routed_scaling_factor": 1.5, "use_qk_norm": True, "head_dim": 16,
    "partial_rotary_factor": 0.5, "norm_topk_prob": True,
}  # fmt: skip
LLADA2 = SIZES | {
    "num_experts": 8, "num_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 8, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 2, "routed_scaling_factor": 1.5, "head_dim": 16,
}  # fmt: skip
TIED = {"tie_word_embeddings": True}
YARN = {"factor": 4.0, "original_max_position_embeddings": 8}
VARIANTS = {
    "llada, fewer key heads": (llada(), "llama", SIZES, renamed(llada_names)),
    "llada, all sizes by others": (
        llada(mlp_hidden_size=None, mlp_ratio=2, n_kv_heads=None, embedding_size=None), "llama",
        SIZES | {"intermediate_size": 96, "num_key_value_heads": 6}, renamed(llada_names),
    ),
    "llada, one key head": (
        llada(n_kv_heads=None, multi_query_attention=True), "llama", SIZES | {"num_key_value_heads": 1},
        renamed(llada_names),
    ),
    "llada, tied, padded": (
        llada(weight_tying=True, vocab_size=ROWS - 2), "llama", SIZES | TIED, renamed(llada_names)
    ),
    "llada-moe, a dense layer": (
        like("llada-moe", **{k: v for k, v in MOE.items() if not k.startswith(("head_dim", "moe_", "intermediate"))},
             expert_intermediate_size=12, dense_intermediate_size=56, moe_layer_freq=[0, 1, 1]),
        "qwen3_moe", MOE | {"head_dim": 8, "mlp_only_layers": [0], "norm_topk_prob": False}, split_experts,
    ),
    "dream, tied": (like("dream", **SIZES | TIED), "qwen2", SIZES | TIED, dict),
    "dream, yarn": (
        like("dream", **SIZES, rope_scaling={"type": "yarn", **YARN}), "qwen2",
        SIZES | {"rope_parameters": {"rope_theta": 7000.0, "rope_type": "yarn", **YARN}}, dict,
    ),
    "dream, in blocks": (
        like("dream", **SIZES, architectures=["DreamForCausalLM"], block_size=5), "qwen2", SIZES | {"block": 5}, dict
    ),
    "fast-dllm-v2, tied": (
        like("fast-dllm-v2", **SIZES | TIED, bd_size=5), "qwen2", SIZES | TIED | {"block": 5}, dict
    ),
    "sdar, a bias": (
        like("sdar", **SIZES, head_dim=20, attention_bias=True, block_size=3), "qwen3",
        SIZES | {"head_dim": 20, "attention_bias": True, "block": 3}, dict,
    ),
    "sdar, by transformers 5": (
        like("sdar", **{k: v for k, v in SIZES.items() if k != "rope_theta"}, rope_theta=None, head_dim=20,
             rope_parameters={"rope_theta": 7000.0, "rope_type": "default"}), "qwen3",
        SIZES | {"head_dim": 20, "block": 4}, dict,
    ),
    "sdar-moe, every second layer dense": (
        like("sdar-moe", **MOE, decoder_sparse_step=2, norm_topk_prob=False, block_size=3), "qwen3_moe",
        MOE | {"decoder_sparse_step": 2, "norm_topk_prob": False, "block": 3}, split_experts,
    ),
    "rnd1, a dense layer": (
        like("rnd1", **MOE, mlp_only_layers=[1]), "qwen3_moe", MOE | {"mlp_only_layers": [1], "norm_topk_prob": True},
        split_experts,
    ),
    "llada2, two dense layers": (
        like("llada2", **LLADA2, block_size=5), "sarvam_moe", SARVAM | {"block": 5},
        lambda tensors: split_experts(merged_llada2(tensors)),
    ),
    "llada2, biases, no width of a head": (
        like("llada2", **LLADA2 | {"head_dim": None}, use_qkv_bias=True, use_qk_norm=False, norm_topk_prob=False),
        "sarvam_moe", SARVAM | {"head_dim": 8, "attention_bias": True, "block": 32},
        lambda tensors: split_experts(merged_llada2(tensors)),
    ),
    "diffugpt, inner width by the others": (
        like("diffugpt", n_embd=48, n_layer=3, n_head=6, n_positions=32, n_inner=None, vocab_size=ROWS), "gpt2",
        {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 32, "vocab_size": ROWS, "attn_pdrop": 0.0,
         "resid_pdrop": 0.0, "embd_pdrop": 0.0}, renamed(diffugpt_names),
    ),
    "a2d, of Llama": (
        like("a2d", **SIZES, model_type="a2d-llama", head_dim=None, tie_word_embeddings=False), "llama", SIZES, dict
    ),
    "a2d, of Qwen2": (
        like("a2d", **SIZES, model_type="a2d-qwen2", head_dim=None), "qwen2", SIZES | TIED, dict
    ),
}  # fmt: skip


def make(folder, config, stock_type, fields, to_release, dtype=torch.float32):
    """Write a checkpoint with random weights; and the stock network of the same weights, and its block size."""
    fields = dict(fields)
    block = fields.pop("block", None)
    if stock_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {stock_type}")
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(stock_type, **fields)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3).copy_(parameter.to(dtype).float())
        for buffer_name, buffer in network.named_buffers():
            if buffer_name.endswith("correction_bias"):
                buffer.copy_(torch.randn_like(buffer))
    tied = set(network.all_tied_weights_keys)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if name not in tied}
    folder.mkdir(exist_ok=True)
    own = {name: tensor.to(dtype).contiguous().clone() for name, tensor in to_release(tensors).items()}
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return network, block


def logits(network, block, tokens, real, shift):
    """(B, L, V): the row that predicts each position."""
    seen = visibility("block" if block else "full", LENGTH, "cpu", block, real, columns=True)
    mask = additive(seen.dense(), torch.float32)
    with torch.no_grad():
        rows = network(input_ids=tokens, attention_mask=mask.expand(len(tokens), -1, -1, -1), use_cache=False).logits
    return torch.cat([rows[:, :1], rows[:, :-1]], 1) if shift else rows


def canvases():
    """Tokens (2, L) half of them masked, without padding and with three columns of it on the left of the first row."""
    tokens = torch.randint(MASK, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens[:, ::2] = MASK
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[0, :3] = False
    return (tokens, None), (tokens, real)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_shapes_are_the_stock_classes_networks(name, tmp_path):
    network, block = make(tmp_path, *VARIANTS[name])
    checkpoint = resolve(str(tmp_path))
    denoiser = checkpoint.load()
    assert checkpoint.family.name == ("dream-block" if "in blocks" in name else name.partition(",")[0])
    assert (denoiser.spec.block_size, denoiser.spec.mask_id, denoiser.spec.vocabulary) == (block, MASK, ROWS)
    for tokens, real in canvases():
        expected = logits(network, block, tokens, real, denoiser.spec.shift)
        expected[..., MASK] = -torch.inf
        found = denoiser.log_probs(Canvas.of(tokens, MASK, real)).detach()
        compared = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.clone()
        compared[:, 1:] &= compared[:, :-1].clone()
        torch.testing.assert_close(found[compared], expected.log_softmax(-1)[compared], atol=1e-4, rtol=0)
    denoiser.save(tmp_path / "again")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", tmp_path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_the_release_again(name, tmp_path):
    released = checkpoint_of(COPIES, name)
    resolve(str(released), **NAMED.get(name, {})).load().save(tmp_path)
    ours, theirs = (
        {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}
        for folder in (tmp_path, released)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert written.pop("fewstep", None) == ({"family": "diffullama"} if name == "diffullama" else None)
    assert written == json.loads((released / "config.json").read_text("utf-8"))


def test_what_a_person_has_set_is_written_and_read_again(tmp_path):
    released = str(checkpoint_of(COPIES, "a2d"))
    resolve(released).load(block_size=4, mask_id=9).save(tmp_path / "blocks")
    spec = resolve(str(tmp_path / "blocks")).load().spec
    assert (spec.attention, spec.block_size, spec.mask_id, spec.shift) == ("block", 4, 9, False)
    assert json.loads((tmp_path / "blocks" / "config.json").read_text("utf-8"))["fewstep"] == {
        "block_size": 4,
        "mask_id": 9,
    }
    spec = resolve(str(tmp_path / "blocks")).load(attention="full").spec
    assert (spec.attention, spec.block_size, spec.mask_id) == ("full", None, 9)
    resolve(str(checkpoint_of(COPIES, "diffullama")), family="diffullama").load(mask_id=5).save(tmp_path / "named")
    checkpoint = resolve(str(tmp_path / "named"))
    assert (checkpoint.family.name, checkpoint.load().spec.mask_id) == ("diffullama", 5)


@pytest.mark.parametrize(
    ("family", "options", "attention", "block_size"),
    [
        ("a2d", {}, "full", None),
        ("a2d", {"attention": "block"}, "block", 32),
        ("sdar", {}, "block", 4),
        ("sdar", {"attention": "full"}, "full", None),
        ("fast-dllm-v2", {}, "block", 32),
        ("llada2", {"block_size": 8}, "block", 8),
    ],
)
def test_blocks_are_as_released_or_as_they_are_set(family, options, attention, block_size):
    spec = resolve(str(checkpoint_of(COPIES, family))).load(**options).spec
    assert (spec.attention, spec.block_size) == (attention, block_size)


@pytest.mark.parametrize(
    ("family", "option"), [("llada", {"block_size": 4}), ("dream", {"shift": False}), ("sdar", {"shift": True})]
)
def test_what_a_family_always_is_cannot_be_set(family, option):
    with pytest.raises(UserError, match=rf"{next(iter(option))} is set, but model .* is .*, which says that itself"):
        resolve(str(checkpoint_of(COPIES, family))).load(**option)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_files_of_half_precision(dtype, tmp_path):
    network, _ = make(tmp_path, *VARIANTS["llada, fewer key heads"], dtype=dtype)
    tokens, _ = canvases()[0]
    expected = logits(network, None, tokens, None, False)
    expected[..., MASK] = -torch.inf
    denoiser = resolve(str(tmp_path)).load()
    torch.testing.assert_close(denoiser.log_probs(Canvas.of(tokens, MASK)), expected.log_softmax(-1), atol=1e-4, rtol=0)
    assert denoiser.dtypes.usual_type == dtype
    assert not denoiser.dtypes.others


def changed(tmp_path, family, **changes):
    """A copy of a golden checkpoint with another config.json; None takes a key out."""
    shutil.copytree(checkpoint_of(COPIES, family), tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "out"}), "utf-8")
    return resolve(str(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llada", "scale_logits", True),
        ("llada", "input_emb_norm", True),
        ("llada", "attention_layer_norm", True),
        ("llada", "alibi", True),
        ("llada", "include_bias", True),
        ("llada", "include_qkv_bias", True),
        ("llada", "block_group_size", 2),
        ("llada", "activation_type", "swiglu"),
        ("llada", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("llada-moe", "shared_expert_intermediate_size", 24),
        ("llada-moe", "moe_router_enable_expert_bias", True),
        ("dream", "use_sliding_window", True),
        ("sdar", "layer_types", ["full_attention", "sliding_attention"]),
        ("llada2", "use_bias", True),
        ("llada2", "use_sliding_window", True),
    ],
)
def test_another_network_under_the_familys_name_is_refused(family, key, value, tmp_path):
    with pytest.raises(UserError, match=rf"has {key} .*another network than .*: {key} must be "):
        changed(tmp_path, family, **{key: value}).load()


@pytest.mark.parametrize(
    ("family", "key"), [("llada", "d_model"), ("dream", "rope_theta"), ("llada2", "n_group"), ("diffugpt", "n_head")]
)
def test_a_field_that_is_missing_is_not_guessed(family, key, tmp_path):
    checkpoint = changed(tmp_path, family, **{key: "out"})
    if checkpoint.family.name == family:  # without its size, LLaDA is no LLaDA
        with pytest.raises(
            UserError, match=rf"config.json has no {key}, which .* has; put the release's config.json back"
        ):
            checkpoint.load()


def test_merged_experts_are_told_what_splits_them(tmp_path):
    with pytest.raises(UserError, match=r"llada2_moe_veomni, whose experts are merged .* split them with the script"):
        changed(tmp_path, "llada2", model_type="llada2_moe_veomni").load()


def test_the_mask_is_the_first_that_names_one(tmp_path):
    assert changed(tmp_path, "llada").load(mask_id=3).spec.mask_id == 3
    shutil.rmtree(tmp_path / "copy")
    checkpoint = changed(tmp_path, "llada-moe")
    assert checkpoint.load().spec.mask_id == 244, "the release's own token, looked up in its tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "copy" / name).unlink()
    with pytest.raises(UserError, match=r"names no mask token.*156895.*set mask_id"):
        checkpoint.load()
    released = {family.name: family for family in LANGUAGE}
    assert [released["diffugpt"].released_mask({}, rows) for rows in (50257, 50258)] == [10541, 50257]
    assert released["diffullama"].released_mask({}, 32000) == 811
    assert [released["a2d"].released_mask({"model_type": f"a2d-{base}"}, 151936) for base in ("qwen3", "qwen2")] == [
        151669,
        None,
    ]


def test_a_tokenizer_that_is_code_is_read_by_the_stock_class_that_makes_the_same_of_its_files(tmp_path):
    """Dream's comes as Python, a list of words and a list of merges."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    plain.train_from_iterator(["a word and a word"] * 3, trainer)
    plain.model.save(str(tmp_path))
    mask = {"content": "<|mask|>", "special": True, "normalized": False}
    settings = {
        "tokenizer_class": "DreamTokenizer", "mask_token": "<|mask|>", "unk_token": None,
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {str(plain.get_vocab_size()): {**mask, "lstrip": False, "rstrip": False}},
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.mask_token_id == plain.get_vocab_size()
    tokens = plain.encode("a word and").ids
    assert tokenizer.encode("a word and<|mask|>") == [*tokens, plain.get_vocab_size()]
    assert tokenizer.decode(tokens) == "a word and"


@pytest.mark.parametrize("kind", ["DreamTokenizer", "Qwen2Tokenizer"])
def test_a_tokenizer_file_is_read_whatever_code_is_named(kind, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(COPIES / "dream" / "checkpoint" / name, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    named = {"tokenizer_class": kind, "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | named), "utf-8")
    assert (len(read_tokenizer(tmp_path)), read_tokenizer(tmp_path).mask_token_id) == (247, 246)


def test_diffugpt_without_a_tokenizer_takes_gpt2s(tmp_path):
    checkpoint = changed(tmp_path, "diffugpt")
    assert checkpoint.family.tokenizer(checkpoint) == str(checkpoint.folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint.folder / name).unlink()
    assert checkpoint.family.tokenizer(checkpoint).startswith("openai-community/gpt2@")


@pytest.mark.parametrize(
    ("family", "key", "value", "rule"),
    [
        ("llada-moe", "moe_layer_freq", [1], "0 or 1 for each of 2 layers"),
        ("llada-moe", "moe_layer_freq", "x", "0 or 1 for each of 2 layers"),
        ("llada2", "n_group", 3, "it must divide the 8 experts"),
        ("llada2", "topk_group", 9, "there are 4 groups"),
    ],
)
def test_fields_at_odds_with_each_other(family, key, value, rule, tmp_path):
    with pytest.raises(UserError, match=rf"has {key} .*{rule}"):
        changed(tmp_path, family, **{key: value}).load()


@pytest.mark.parametrize("family", ["a2d", "diffugpt"])
def test_a_tied_head_may_be_in_the_files_if_it_is_the_embedding(family, tmp_path):
    checkpoint = changed(tmp_path, family)
    path = checkpoint.folder / "model.safetensors"
    tensors = load_file(path)
    table = next(tensor for name, tensor in tensors.items() if "embed_tokens" in name)
    save_file(tensors | {"lm_head.weight": table.clone()}, path)
    denoiser = checkpoint.load()
    assert denoiser.output_layer.weight is denoiser.network.get_input_embeddings().weight
    denoiser.save(tmp_path / "written", released=True)  # which holds it once
    written = load_file(tmp_path / "written" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    save_file(tensors | {"lm_head.weight": table + 1}, path)
    with pytest.raises(UserError, match=r"has a lm_head.weight of its own.*set tie_word_embeddings to false"):
        checkpoint.load()
