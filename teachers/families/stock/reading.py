"""Stock networks read from files by transformers' own loader: in one precision, tensor by tensor, to where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from accelerate.utils import convert_file_size_to_int
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from teachers.environment import environment
from teachers.errors import UserError
from teachers.families.family import Checkpoint, Partition, Reading, Spread
from teachers.families.stock.compressed import compression_of, plain_tensors
from teachers.headers import Headers
from teachers.source import reason
from teachers.weights import check_finite, file_tensors

ONE_AFTER_ANOTHER = "HF_DEACTIVATE_ASYNC_LOAD", "1"
"""Has transformers read tensors when it comes to them.

By default threads read ahead, and where tensors are cast or stacked, as experts are, they are all there before the
first is used: a second copy of the network.
"""


def read_network(
    checkpoint: Checkpoint,
    headers: Headers,
    reading: Reading,
    config: PretrainedConfig | None = None,
    key_names: Mapping[str, str] | None = None,
) -> PreTrainedModel:
    """The network of a checkpoint; compressed weights are unpacked, and nothing says any more that they were.

    Args:
        headers: of its files.
        config: of the stock class that computes it; by default what its config.json says.
        key_names: pattern of a tensor's name in the files → in that class.

    Raises:
        UserError: whatever is wrong with the files.
    """
    schemes = compression_of(checkpoint.config, checkpoint.name)
    check_finite(file_tensors(headers), checkpoint.name)
    try:
        if schemes:
            read = _packed_reader(checkpoint, plain_tensors(headers, schemes, checkpoint.name), config)
        else:
            read = _reader(checkpoint, config)
        with environment(*ONE_AFTER_ANOTHER), partitioned(reading.spread):
            model, report = read(
                **_spread_options(reading.spread),
                key_mapping=None if key_names is None else dict(key_names),
                use_safetensors=True,
                dtype=reading.precision,
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and the hub raise a dozen types for one thing: unreadable
        raise UserError(
            f"cannot load model {checkpoint.name!r} ({reason(error)}); give a folder with config.json and whole "
            "safetensors weights"
        ) from error
    if report["missing_keys"]:  # transformers makes these up at random and only warns
        raise UserError(
            f"model {checkpoint.name!r} has no weights for {min(report['missing_keys'])}; its safetensors files are "
            "not whole, or of another architecture than its config.json"
        )
    model.name_or_path = model.config.name_or_path = str(checkpoint.folder)
    return model


def _reader(checkpoint: Checkpoint, config: PretrainedConfig | None) -> Callable[..., Any]:
    """The `from_pretrained` of a plain checkpoint."""
    named = {} if config is None else {"config": config}
    folder, trusted = checkpoint.folder, checkpoint.trusted
    return partial(AutoModelForCausalLM.from_pretrained, folder, **named, trust_remote_code=trusted)


def _packed_reader(
    checkpoint: Checkpoint, tensors: Mapping[str, Any], config: PretrainedConfig | None
) -> Callable[..., Any]:
    """The `from_pretrained` of a compressed one, for which it is a plain one without a folder.

    Args:
        tensors: of `plain_tensors`.
    """
    if config is None:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        vars(config).pop("quantization_config")
    stock_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return partial(stock_class.from_pretrained, None, config=config, state_dict=tensors)


def _spread_options(spread: Spread | Partition | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` by which layers go to devices and to the disk as they are read."""
    if not isinstance(spread, Spread):
        return {}
    memory = spread.memory and {device: convert_file_size_to_int(size) for device, size in spread.memory.items()}
    return {"device_map": "sequential", "max_memory": memory, "offload_folder": str(spread.folder)}


@contextmanager
def partitioned(spread: Spread | Partition | None) -> Iterator[None]:
    """Have transformers read a network into DeepSpeed's shards, layer by layer; the first process reads for all."""
    if not isinstance(spread, Partition):
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    config = HfDeepSpeedConfig(dict(spread.config))  # transformers asks for it while it lives
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del config
