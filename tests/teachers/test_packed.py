from __future__ import annotations

import json

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig

from teachers.denoiser import DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.families.stock.packed import pack, packed_state, quantization_config, scheme, scheme_of, unpack

INT8 = scheme("int8")


@pytest.mark.parametrize(
    ("shape", "scheme", "group"),
    [
        *[(shape, INT8, shape[1]) for shape in [(6, 32), (5, 33), (3, 1), (1, 127)]],
        *[((5, 256), scheme("int4", size), size) for size in [128, 64, 16]],
        *[(shape, scheme("int4"), shape[1]) for shape in [(6, 40), (3, 9)]],
    ],
)
def test_no_weight_moves_by_more_than_half_its_scale(shape, scheme, group):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, shape[0])[:, None]
    packed = pack(weight, scheme)
    bits, largest = scheme.weights.num_bits, 2 ** (scheme.weights.num_bits - 1) - 1
    assert packed["weight_packed"].dtype == torch.int32
    assert packed["weight_packed"].shape == (shape[0], -(-shape[1] * bits // 32))
    assert packed["weight_scale"].shape == (shape[0], shape[1] // group)
    error = (unpack(packed, scheme) - weight).abs().unflatten(1, (-1, group))
    assert (error <= packed["weight_scale"][..., None] / 2 * (1 + 1e-5)).all()
    # the scale is no larger than it has to be, so the bound means something
    largest_weight = weight.unflatten(1, (-1, group)).abs().amax(2)
    torch.testing.assert_close(packed["weight_scale"], largest_weight / largest)


@pytest.mark.parametrize(("scheme", "largest"), [(INT8, 127), (scheme("int4"), 7)])
def test_every_value_comes_back_exactly(scheme, largest):
    values = torch.arange(-largest, largest + 1).float()
    scales = torch.tensor([[1.0], [0.5], [2.0**-20]])
    weight = values * scales
    packed = pack(weight, scheme)
    torch.testing.assert_close(packed["weight_scale"], scales)
    torch.testing.assert_close(unpack(packed, scheme), weight, rtol=1e-6, atol=0)


def test_a_channel_of_zeros_stays_zero():
    weight = torch.zeros(2, 8)
    weight[1] = 3.0
    restored = unpack(pack(weight, INT8), INT8)
    assert torch.equal(restored[0], torch.zeros(8))
    torch.testing.assert_close(restored[1], weight[1])


def test_four_bits_lie_as_readers_of_the_format_take_them_apart():
    """The first input in the lowest bits of each int32, every value with 8 added: vLLM's uint4b8."""
    weight = torch.tensor([[-7.0, 7, 0, 1, -1, 2, -2, 3, 7, 7, 7, 7, 7, 7, 7, 7]])
    words = pack(weight, scheme("int4", 16))["weight_packed"][0].tolist()
    taken_apart = [(word >> 4 * place & 15) - 8 for word in words for place in range(8)]
    assert taken_apart == weight[0].tolist()


@pytest.mark.parametrize(("inputs", "group"), [((256, 384), 128), ((192, 576), 64), ((48, 32), 16), ((24, 32), None)])
def test_groups_are_as_large_as_every_layer_allows(inputs, group):
    shape = dict(
        hidden_size=inputs[0], num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=inputs[1],
        intermediate_size=inputs[1],
    )  # fmt: skip
    model = create_denoiser("qwen3", shape, DenoiserSpec(mask_id=1, vocabulary=20, max_length=8)).model
    weights = scheme_of(model, "int4").weights
    assert (weights.num_bits, weights.group_size, weights.symmetric) == (4, group, True)
    assert weights.strategy == ("channel" if group is None else "group")
    assert scheme_of(model, "int8").weights.group_size is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("compression", ["int8", "int4"])
def test_linear_layers_are_packed_and_embedding_head_and_norms_are_not(tied, compression):
    shape = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=24, tie_word_embeddings=tied,
    )  # fmt: skip
    model = create_denoiser("qwen3", shape, DenoiserSpec(mask_id=1, vocabulary=20, max_length=8)).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scheme = scheme_of(model, compression)
    state = packed_state(model, scheme)
    packed = {name.removesuffix(".weight_packed") for name in state if name.endswith(".weight_packed")}
    assert packed == {name for name, _ in model.named_modules() if name.endswith("_proj")}
    assert state["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert state["model.norm.weight"].dtype == torch.float32
    assert ("lm_head.weight" in state) is not tied
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    config = json.loads(json.dumps(quantization_config(model, scheme)))
    read = QuantizationConfig.model_validate(config)
    assert read.ignore == ["lm_head"]
    assert read.config_groups["group_0"].weights.num_bits == {"int8": 8, "int4": 4}[compression]
