"""Stock networks on disk, without what transformers would import to put them there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def save_network(network: PreTrainedModel, folder: Path, **options: Any) -> None:
    """``network.save_pretrained(folder, **options)``, which would import DeepSpeed to see if the network is its engine.

    Only where something else has imported DeepSpeed can it be.
    """
    from accelerate.utils import other

    other.is_deepspeed_available = _deepspeed_is_imported
    network.save_pretrained(folder, **options)


def _deepspeed_is_imported() -> bool:
    return "deepspeed" in sys.modules
