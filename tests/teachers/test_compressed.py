"""Compressed checkpoints are read as plain ones, or refused in a line, and need no shared memory."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import resolve
from teachers.families.stock.loading import create_denoiser
from tests.forks import Command
from tests.networks import shape

SPEC = DenoiserSpec(mask_id=1, vocabulary=64, max_length=16, eos_id=0)


def network():
    torch.manual_seed(0)
    return create_denoiser("llama", shape(32, 2, num_attention_heads=2, intermediate_size=64), SPEC)


@pytest.fixture(params=["int8", "int4"])
def packed(request, tmp_path):
    network().save(tmp_path / "packed", request.param)
    return tmp_path / "packed"


def test_of_a_compressed_network_nothing_says_that_it_was(packed, tmp_path):
    read = resolve(str(packed)).load()
    assert not hasattr(read.model.config, "quantization_config")
    assert not hasattr(read.model, "hf_quantizer")
    assert all(p.dtype == torch.float32 and p.requires_grad for p in read.parameters())
    read.save(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    again = resolve(str(tmp_path / "plain")).load()
    assert again.state_dict().keys() == network().state_dict().keys()
    canvas = Canvas.blank(1, 8, 1)
    assert torch.equal(again.log_probs(canvas), read.log_probs(canvas))


def test_its_weights_are_rounded_once_to_what_is_computed_in(packed):
    exact, rounded = (resolve(str(packed)).load(precision=precision) for precision in (None, torch.bfloat16))
    for (name, one), other in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other), name


def test_a_packed_weight_without_its_scale_is_refused(packed):
    tensors = load_file(packed / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("weight_scale"))
    save_file({name: t for name, t in tensors.items() if name != lost}, packed / "model.safetensors")
    with pytest.raises(UserError, match="without its weight_scale and weight_shape; download it again"):
        resolve(str(packed)).load()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "compressed by 'bitsandbytes'"),
        ({"quant_method": "gptq", "bits": 4}, "compressed by 'gptq'"),
        ({"quant_method": "awq", "bits": 4}, "compressed by 'awq'"),
        ({"quant_method": "fp8"}, "compressed by 'fp8'"),
        ({"format": "float-quantized"}, "compressed as 'float-quantized'"),
        ({"activations": True}, "rounds activations as well as weights"),
        ({"config_groups": {"group_0": 3}}, "quantization_config of model .* is damaged"),
    ],
)
def test_other_formats_are_refused_in_a_line(section, said, tmp_path):
    network().save(tmp_path, "int8")
    config = json.loads((tmp_path / "config.json").read_text())
    own = config["quantization_config"]
    if section.pop("activations", False):
        group = own["config_groups"]["group_0"]
        group["input_activations"] = {**group["weights"], "dynamic": True, "strategy": "token"}
    if "format" in section:
        own["config_groups"]["group_0"]["format"] = section["format"]
    config["quantization_config"] = section if "quant_method" in section else own | section
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said) as caught:
        resolve(str(tmp_path)).load()
    assert "give the model it was made from" in str(caught.value)
    assert "\n" not in str(caught.value)


def without_shared_memory(folder):
    """Export, check and load in a process that has a group, where compressed-tensors would share what it unpacks."""
    from students.export import export_student
    from tests.students.test_export import make

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Cannot allocate memory")

    for name in ("_share_filename_cpu_", "_share_fd_cpu_"):
        setattr(torch.UntypedStorage, name, refuse)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    denoiser, tokenizer = make()
    export = export_student(denoiser, tokenizer, Path(folder), 4, "int8", "not measured")
    resolve(str(export)).load(tokenizer)
    print("loaded")


def test_none_needs_shared_memory(tmp_path):
    command = Command([tmp_path / "out"], action=without_shared_memory)
    written, said = command.communicate()
    assert command.returncode == 0, said[-3000:]
    assert written.splitlines()[-1] == "loaded"
