"""Layers of different kinds learn at rates of their own, whichever engine steps them."""

import pytest
import torch

from distill.config import OptimizerConfig, TrainConfig
from distill.config.schema import RatesConfig
from distill.runtime.world import ALONE
from distill.training.engine import layer_kind, parameter_groups
from distill.training.engines import rehearse, start_engine
from teachers.canvas import Canvas
from teachers.errors import UserError
from tests.networks import shape, stock

LR = 1e-2
RATES = {"attention": 2.0, "mlp": 0.5, "rest": 0.25}


def network():
    return stock(11, 8, mask_id=10, sizes=shape(layers=2)).requires_grad_(True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.model.layers.0.self_attn.q_norm.weight", "rest"),
        ("model.model.layers.1.post_attention_layernorm.weight", "rest"),
        ("model.model.layers.1.mlp.gate_proj.weight", "mlp"),
        ("model.model.layers.1.mlp.experts.3.up_proj.weight", "mlp"),
        ("model.model.layers.1.block_sparse_moe.gate.weight", "mlp"),
        ("model.model.embed_tokens.weight", "rest"),
        ("model.lm_head.weight", "rest"),
        ("model.model.norm.weight", "rest"),
        ("model.transformer.h.0.attn.c_attn.weight", "attention"),
        ("model.transformer.h.0.ln_1.weight", "rest"),
        ("model.transformer.h.0.mlp.c_fc.bias", "mlp"),
        ("model.gpt_neox.layers.0.attention.query_key_value.weight", "attention"),
        ("model.model.decoder.layers.0.fc1.weight", "mlp"),
        ("transformer.blocks.0.attn_qkv.weight", "attention"),
        ("inner.model.model.layers.0.self_attn.q_proj.lora_A.weight", "attention"),
    ],
)
def test_the_kind_of_a_layer_is_in_its_name(name, kind):
    assert layer_kind(name) == kind


def test_equal_rates_are_one_group_in_the_order_of_the_network():
    trained = list(network().named_parameters())
    assert parameter_groups(trained, OptimizerConfig(lr=LR)) == [(1.0, list(range(len(trained))))]
    three = parameter_groups(trained, OptimizerConfig(lr=LR, rates=RatesConfig(**RATES)))
    assert sorted(index for _, indices in three for index in indices) == list(range(len(trained)))
    assert {factor for factor, _ in three} == set(RATES.values())


@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
def test_a_step_moves_each_layer_by_its_rate(stage):
    """Adam's first step is the rate itself, whatever the gradient, so long as there is one."""
    torch.manual_seed(0)
    train = TrainConfig(updates=4, batch=2, student=OptimizerConfig(lr=LR, clip=0, rates=RatesConfig(**RATES)))
    section = None if stage is None else {"zero_optimization": {"stage": stage}}
    denoiser = network()
    engine = start_engine(denoiser, train.student, train, section, ALONE)
    before = {name: weight.clone() for name, weight in engine.gather("weight")}
    canvas = Canvas(torch.randint(0, 10, (2, 8)), torch.ones(2, 8).bool())
    engine.backward(-denoiser.log_probs(canvas)[..., :10].square().sum())
    assert engine.step(0, torch.tensor(1.0))[1]
    gradients = dict(engine.gather("exp_avg"))
    for name, weight in engine.gather("weight"):
        moved = (weight - before[name]).abs()[gradients[name].abs() > 1e-4]
        assert len(moved), name
        torch.testing.assert_close(moved, torch.full_like(moved, LR * RATES[layer_kind(name)]), rtol=1e-2, atol=1e-6)
    assert engine.learning_rate(0) == LR
    engine.destroy()


def test_a_rate_of_layers_that_do_not_train_is_refused():
    train = TrainConfig(updates=4, batch=2, student=OptimizerConfig(lr=LR, rates=RatesConfig(attention=2)))
    with pytest.raises(UserError, match=r"rates\.attention is 2, but no layer of that kind trains"):
        start_engine(torch.nn.Linear(2, 2), train.student, train, None, ALONE)


def test_a_rehearsal_has_no_layers_and_no_rates():
    train = TrainConfig(updates=4, batch=2, student=OptimizerConfig(lr=LR, rates=RatesConfig(attention=2)))
    rehearse({"zero_optimization": {"stage": 2}}, train, ALONE)
