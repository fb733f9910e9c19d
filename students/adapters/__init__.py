"""One frozen base, many networks: the teacher is the base itself, student and critic are LoRA adapters on it (PEFT)."""

from students.adapters.config import AdapterConfig
from students.adapters.denoiser import AdaptedDenoiser
from students.adapters.layers import lora_layers
from students.adapters.merging import is_adapter, merge_adapter, merged, plain_copy

__all__ = ["AdaptedDenoiser", "AdapterConfig", "is_adapter", "lora_layers", "merge_adapter", "merged", "plain_copy"]
