"""The section that is passed on to DeepSpeed."""

import pytest

from tests.distill.config.small import distil, pretrain, refused


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["deepspeed.zero_optimisation.stage=1"], ("zero_optimisation", "'zero_optimization'")),
        (["deepspeed.zero_optimization.stge=1"], ("stge", "'stage'")),
        (["deepspeed.train_batch_size=8"], ("train_batch_size", "train.batch")),
        (["deepspeed.gradient_clipping=1"], ("gradient_clipping", "train.student.clip")),
        (["deepspeed.bf16.enabled=true"], ("bf16", "train.precision")),
        (["deepspeed.zero_optimization.stage=4"], ("4", "0, 1, 2 and 3")),
        (["deepspeed.zero_optimization=1"], ("zero_optimization is 1",)),
        (["deepspeed.wall_clock_breakdown=true"], ("wall_clock_breakdown is True", "past DeepSpeed's engine")),
        (["deepspeed.flops_profiler={enabled: true, profile_step: 1}"], ("flops_profiler is {'enabled': True",)),
        (["deepspeed.progressive_layer_drop={enabled: true}"], ("progressive_layer_drop", "no effect; leave it out")),
        (["deepspeed.tensorboard={enabled: true}"], ("tensorboard is {'enabled': True}", "set train.wandb instead")),
        (
            ["deepspeed.zero_allow_untested_optimizer=false"],
            ("untested_optimizer is False", "True alone; leave it out"),
        ),
        (["deepspeed.managed_gradient_accumulation=false"], ("managed_gradient_accumulation is False",)),
        (["deepspeed.gradient_allreduce_op=sum"], ("gradient_allreduce_op is 'sum'", "mean alone")),
        (["deepspeed.zero_optimization.reduce_bucket_size=big"], ("reduce_bucket_size is 'big'", "valid integer")),
        (["deepspeed.communication_data_type=fp17"], ("{'communication_data_type': 'fp17'}", "Got: fp17")),
        (["deepspeed.zero_optimization.stage=0", "train.precision=bfloat16"], ("stage 0", "stage 1")),
    ],
)
@pytest.mark.parametrize("command", [distil, pretrain])
def test_deepspeed_mistakes(command, overrides, parts, tmp_path):
    refused(lambda: command(tmp_path, *overrides), *parts)


@pytest.mark.parametrize(
    "overrides",
    [
        ["deepspeed.zero_optimization.stage=0"],
        ["deepspeed.zero_optimization.stage=1", "train.precision=bfloat16"],
        ["deepspeed.zero_optimization={stage: 3, stage3_param_persistence_threshold: 0}"],
        ["deepspeed.activation_checkpointing={partition_activations: true}"],
        ["deepspeed={wall_clock_breakdown: false, flops_profiler: {enabled: false}, tensorboard: {enabled: false}}"],
        ["deepspeed.zero_allow_untested_optimizer=true"],
        ["deepspeed.communication_data_type=fp32"],
    ],
)
def test_deepspeed_sections_that_are_right(overrides, tmp_path):
    assert distil(tmp_path, *overrides).deepspeed


def test_whole_numbers_reach_deepspeed_as_such(tmp_path):
    section = distil(tmp_path, "deepspeed.zero_optimization.reduce_bucket_size=5e8").deepspeed
    size = section["zero_optimization"]["reduce_bucket_size"]
    assert (type(size), size) == (int, 500_000_000)
