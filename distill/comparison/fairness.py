"""Who may be compared: configs that differ in the method and in nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.config import DistillConfig, is_override, load_config
from distill.runtime.run_folder import flatten
from teachers.errors import UserError

MAY_DIFFER = {
    "objective", "student", "teacher_samples", "teacher_sample_steps", "train.student", "train.critic", "train.ema",
    "train.micro_batch", "train.max_skipped", "train.gradient_checkpointing", "train.updates", "evaluate.watch_steps",
    "evaluate.watch_samples", "evaluate.entropy_floor", "evaluate.collapse",
}  # fmt: skip
"""What makes a method, with what the teacher writes for it beforehand, whose seconds stand in the table; and what has
no effect here: the budget sets the updates, and the watch is off."""
SET_HERE = {
    "train.updates": "--budget",
    "train.seed": "--seeds",
    "evaluate.every": "the comparison itself: watching costs time and picks, so every run's last average is measured",
    "train.log_every": "the comparison itself: every update is timed",
    "train.checkpoint_every": "the comparison itself: the clock says when, train.checkpoint_minutes",
}


def split_words(words: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Configs and ``key.sub=value`` overrides, from the words of a command line."""
    configs, overrides = [], []
    for word in words:
        (overrides if is_override(word) else configs).append(word)
    return [Path(os.path.expanduser(config)) for config in configs], overrides


def load_contenders(paths: list[Path], overrides: list[str]) -> dict[str, DistillConfig]:
    """The configs by label, their files' stems, with ``overrides`` and what a comparison sets in every one.

    Raises:
        UserError: a mistake in a config, two with one label, or an override of what the comparison sets.
    """
    if not paths:
        raise UserError("there is nothing to compare; name configs, such as configs/compare/*.yaml")
    for override in overrides:
        key = override.partition("=")[0]
        if key in SET_HERE:
            raise UserError(f"override {override!r}: {key} is set by {SET_HERE[key]}; leave it out")
    # checkpoints cost time, so all runs save equally often; a kill costs at most five minutes [own]
    fixed = ["evaluate.every=null", "train.log_every=1", f"train.checkpoint_every={2**31 - 1}", "train.seed=0"]
    fixed += ["train.checkpoint_minutes=5", "train.keep=1", "train.wandb=null"]
    contenders: dict[str, DistillConfig] = {}
    for path in paths:
        label = path.stem
        if label in contenders or label in ("teacher", "real text"):
            raise UserError(f"{path} would be called {label!r} in the tables, which is taken; rename the file")
        try:
            contenders[label] = load_config(DistillConfig, path, [*fixed, *overrides])
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        if contenders[label].evaluate.task is not None:
            raise UserError(
                f"{path} has evaluate.task, but a comparison judges text and asks no questions; give "
                "evaluate.task=null here, and ask each run afterwards with fewstep evaluate RUN --task FILE"
            )
    return contenders


def differences(contenders: dict[str, DistillConfig]) -> list[str]:
    """What keeps a comparison from being fair, a phrase each, every config against the first."""
    values = {label: flatten(config.model_dump(mode="json")) for label, config in contenders.items()}
    first, *others = values
    found = []
    for other in others:
        for key in sorted(values[first].keys() | values[other].keys()):
            a, b = values[first].get(key), values[other].get(key)
            parts = key.split(".")
            if a != b and not {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & MAY_DIFFER:
                found.append(f"{key} is {a!r} in {first} but {b!r} in {other}")
    return found


def check_fair(contenders: dict[str, DistillConfig]) -> None:
    """Refuse configs that differ in more than the method.

    Raises:
        UserError: naming every difference.
    """
    if found := differences(contenders):
        raise UserError(
            f"{'; '.join(found)}; a comparison needs the same teacher, data, batch, precision and evaluation: make "
            "the configs agree, or give key.sub=value here, which goes for all of them"
        )


def chosen_settings(contenders: dict[str, DistillConfig]) -> dict[str, dict[str, Any]]:
    """By label, the settings that are not the same in all configs: what a reader of the table must know."""
    values = {label: flatten(config.model_dump(mode="json")) for label, config in contenders.items()}
    keys = sorted({key for flat in values.values() for key in flat if not key.startswith("evaluate.")})
    differing = [k for k in keys if k != "train.updates" and len({repr(flat.get(k)) for flat in values.values()}) > 1]
    return {label: {k: flat[k] for k in differing if k in flat} for label, flat in values.items()}


def check_same_command(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Refuse to continue another comparison. One with more seeds is the same, to be continued.

    Raises:
        UserError: naming every difference.
    """
    old, new = flatten(before), flatten(now)
    if new["seeds"] > old["seeds"]:
        old["seeds"] = new["seeds"]
    changes = [
        f"{key} is {new.get(key)!r} but {out} was started with {old.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise UserError(f"{'; '.join(changes)}; continue with the same command, or name a new folder with --out")
