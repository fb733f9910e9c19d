from __future__ import annotations

import json

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig

from teachers.denoiser import DenoiserSpec
from teachers.families.stock.int8 import int8_config, int8_state, pack_int8, unpack_int8
from teachers.families.stock.loading import create_denoiser


@pytest.mark.parametrize("shape", [(6, 32), (5, 33), (3, 1), (1, 127)])
def test_no_weight_moves_by_more_than_half_its_channels_scale(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, shape[0])[:, None]
    packed = pack_int8(weight)
    assert packed["weight_packed"].dtype == torch.int32
    assert packed["weight_packed"].shape == (shape[0], -(-shape[1] // 4))
    assert packed["weight_scale"].shape == (shape[0], 1)
    error = (unpack_int8(packed) - weight).abs()
    assert (error <= packed["weight_scale"] / 2 * (1 + 1e-5)).all()
    # the scale is no larger than it has to be, so the bound means something
    torch.testing.assert_close(packed["weight_scale"][:, 0], weight.abs().amax(1) / 127)


def test_every_int8_value_comes_back_exactly():
    values = torch.arange(-127, 128).float()
    scales = torch.tensor([[1.0], [0.5], [2.0**-20]])
    weight = values * scales
    packed = pack_int8(weight)
    torch.testing.assert_close(packed["weight_scale"], scales)
    torch.testing.assert_close(unpack_int8(packed), weight, rtol=1e-6, atol=0)


def test_a_channel_of_zeros_stays_zero():
    weight = torch.zeros(2, 8)
    weight[1] = 3.0
    restored = unpack_int8(pack_int8(weight))
    assert torch.equal(restored[0], torch.zeros(8))
    torch.testing.assert_close(restored[1], weight[1])


@pytest.mark.parametrize("tied", [True, False])
def test_linear_layers_are_packed_and_embedding_head_and_norms_are_not(tied):
    shape = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=24, tie_word_embeddings=tied,
    )  # fmt: skip
    model = create_denoiser("qwen3", shape, DenoiserSpec(mask_id=1, vocabulary=20, max_length=8)).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = int8_state(model)
    packed = {name.removesuffix(".weight_packed") for name in state if name.endswith(".weight_packed")}
    assert packed == {name for name, _ in model.named_modules() if name.endswith("_proj")}
    assert state["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert state["model.norm.weight"].dtype == torch.float32
    assert ("lm_head.weight" in state) is not tied
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    config = json.loads(json.dumps(int8_config(model)))
    read = QuantizationConfig.model_validate(config)
    assert read.ignore == ["lm_head"]
    assert read.config_groups["group_0"].weights.num_bits == 8
