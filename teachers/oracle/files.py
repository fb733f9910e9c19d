"""Sources in folders: tables in ``model.safetensors``, numbers in ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.family import Checkpoint
from teachers.families.oracle import MODEL_TYPE
from teachers.oracle.source import Source
from teachers.source import reason

if TYPE_CHECKING:
    from teachers.oracle.denoiser import SourceDenoiser


class OracleConfig(PreTrainedConfig):
    """Makes the model type known to transformers, which reads ``config.json`` when it loads the tokenizer beside it."""

    model_type = MODEL_TYPE


AutoConfig.register(MODEL_TYPE, OracleConfig, exist_ok=True)


def save_source(source: Source, spec: DenoiserSpec, folder: Path) -> None:
    """Write a source and what a denoiser of it says of itself; `load_source` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = source.arguments()
    tables = {name: value.cpu().contiguous() for name, value in arguments.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
    save_file(tables, folder / "model.safetensors")
    config = {"model_type": MODEL_TYPE, "kind": source.kind, "numbers": numbers, "fewstep": spec.as_dict()}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    # safetensors are created unreadable for others
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def load_source(checkpoint: Checkpoint) -> SourceDenoiser:
    """Load what `SourceDenoiser.save` wrote.

    Raises:
        UserError: it cannot be read, or its tables and numbers are not those of a source.
    """
    from teachers.oracle import SOURCES
    from teachers.oracle.denoiser import SourceDenoiser

    spec: dict[str, Any] = checkpoint.config.get("fewstep") or {}
    try:
        kind, numbers = SOURCES[checkpoint.config["kind"]], checkpoint.config["numbers"]
        tables: dict[str, torch.Tensor] = load_file(checkpoint.folder / "model.safetensors")
        values = {key: spec[key] for key in ("mask_id", "eos_id", "pad_id")}
        length = int(spec["max_length"])
        source = kind(**numbers, **tables)
    except UserError:
        raise
    except Exception as error:  # safetensors, the disk and a config of another kind raise half a dozen types
        raise UserError(
            f"cannot load exact source {checkpoint.name!r} ({reason(error)}); give a folder that fewstep oracle wrote"
        ) from error
    return SourceDenoiser(source, length, **values)
