"""What lies beside the weights and config.json of a checkpoint and belongs to it, as bytes, to be written again.

Tokenizer files, the settings of generation, and the Python that config.json names: data, which nobody here executes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teachers.source import read_object

TOKENIZER = (
    "tokenizer*.json", "tokenizer*.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "spiece.model", "chat_template*",
)  # fmt: skip
GENERATION = "generation_config.json"


def read_companions(folder: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Name → content of the files that go with a checkpoint.

    Args:
        folder: of the checkpoint, whose files are checked by `teachers.source.model_folder`.
        config: its config.json; Python is of the checkpoint where this has an ``auto_map``.
    """
    patterns = (*TOKENIZER, GENERATION, *(["*.py"] if config.get("auto_map") else []))
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.name: path.read_bytes() for path in sorted(paths)}


def is_tokenizer(name: str) -> bool:
    """Whether a companion is a tokenizer's file."""
    return any(Path(name).match(pattern) for pattern in TOKENIZER)


def write_companions(companions: Mapping[str, bytes], folder: Path) -> None:
    """Write files into a folder."""
    for name, content in companions.items():
        (folder / name).write_bytes(content)


def end_tokens(companions: Mapping[str, bytes]) -> list[int]:
    """The end tokens of a checkpoint's generation_config.json, where there are several; its config.json holds one."""
    settings = json.loads(companions.get(GENERATION, b"{}"))
    ends = settings.get("eos_token_id")
    return ends if isinstance(ends, list) else []


def write_generation(folder: Path, defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Add settings to the folder's generation_config.json, which keeps its others, and what else it does not say."""
    path = folder / GENERATION
    present = read_object(path) if path.is_file() else {}
    present.pop("_from_model_config", None)  # it tells transformers to pass over settings of others
    path.write_text(json.dumps({**defaults, **present, **settings}, indent=2) + "\n", encoding="utf-8")
