"""What a released checkpoint is besides its weights, kept so that it can be written again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachers.capability import Capability


@dataclass(frozen=True)
class Release:
    """A checkpoint in the format of its family, which a stock class computes.

    Attributes:
        config: its config.json as it is; what of it means nothing to us is kept, and written again.
        settings: what a person said and no file of the release does; a section "fewstep" of the config.json written.
        capabilities: its family's.
    """

    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    capabilities: frozenset[Capability]

    def write_config(self, folder: Path, **notes: Any) -> None:
        """Write config.json as the release has it, and "fewstep" where a person has set something, or for ``notes``."""
        config = {key: value for key, value in self.config.items() if key != "fewstep"}
        if self.settings or notes:
            config["fewstep"] = {**self.settings, **notes}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
