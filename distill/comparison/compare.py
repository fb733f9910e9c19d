"""What `fewstep compare` computes: who may be compared, what a budget is in updates, rows, means over seeds, who leads.

Nothing here loads a network or starts a process; see `distill.commands.compare` for that.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config import DistillConfig, is_override, load_config
from distill.runtime.run_folder import flatten
from teachers.errors import UserError

CALIBRATION = 20
"""Updates of the short run that measures how long one takes, where the budget is time [own]."""
WARM_UP = 3
"""Updates at its start that are not representative [own]: memory is allocated, kernels are chosen."""
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
MEASURES = ("divergence_nats", "excess_nats", "judge_perplexity")
"""Of quality, the most telling first: without sharpness counted as a gain, without an error of a judge."""
FIGURES = (
    "excess_nats",
    "unigram_entropy",
    "bigram_entropy",
    "distinct_2",
    "nfe",
    "critic_nfe",
    "seconds",
    "train_seconds",
    "rows_seconds",
)


@dataclass(frozen=True)
class Budget:
    """What every run may spend: ``minutes`` of training or ``updates``; the other is None."""

    minutes: float | None
    updates: int | None

    def __str__(self) -> str:
        return f"{self.minutes:g}m" if self.minutes is not None else f"{self.updates}u"

    def in_updates(self, seconds_per_update: float | None) -> int:
        """How many updates a run makes.

        Args:
            seconds_per_update: as calibrated; only a budget of time needs it.
        """
        if self.updates is not None:
            return self.updates
        assert self.minutes is not None
        assert seconds_per_update is not None, "a budget of time needs a calibration"
        return max(1, round(self.minutes * 60 / seconds_per_update))


def parse_budget(text: str) -> Budget:
    """``10m`` (minutes) or ``2000u`` (updates).

    Raises:
        UserError: anything else, or nothing.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)m|(\d{1,9})u", text.strip())
    if found is None or float(found[1] or found[2]) == 0:
        raise UserError(f"--budget {text!r} is not a budget; give minutes of training, 10m, or updates, 2000u")
    return Budget(float(found[1]) if found[1] else None, int(found[2]) if found[2] else None)


def split_words(words: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Configs and ``key.sub=value`` overrides, from the words of a command line."""
    configs, overrides = [], []
    for word in words:
        (overrides if is_override(word) else configs).append(word)
    return [Path(config) for config in configs], overrides


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


def update_seconds(lines: list[dict[str, Any]]) -> list[float]:
    """How long the updates took, by the lines of a metrics.jsonl; start-up, watching and the last checkpoint are
    between no two lines, so they do not count."""
    return [line["tokens"] / line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]


def seconds_per_update(lines: list[dict[str, Any]]) -> float:
    """Mean time of an update of a calibration run, without its first ones."""
    seconds = update_seconds(lines)[WARM_UP:]
    return sum(seconds) / len(seconds)


def why_failed(code: int, log: str) -> str:
    """Why a run ended with exit code ``code``, in a line.

    Args:
        log: what it said.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*error\b", line, re.IGNORECASE)]
    said = (errors or lines or ["it said nothing"])[-1][:300]
    if code >= 0:
        return f"exit code {code}: {said}"
    hint = ", as for want of memory" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}; last line: {said}"


def comparison_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of ``comparison.json``.

    Args:
        results: one a run: label, objective, seed, updates, planned_seconds, train_seconds, rows_seconds (of what the
            teacher wrote beforehand), parameters_trained, failed (None or why), and ``rows``, the student's of an
            evaluation, at every number of steps.

    Returns:
        One a run and number of steps; of a failed run one, whose ``steps`` is None.
    """
    rows = []
    for result in results:
        common = {key: value for key, value in result.items() if key != "rows"}
        rows += [common | row for row in result["rows"] or [{"steps": None}]]
    return rows


def measure(rows: list[dict[str, Any]]) -> str:
    """By which of their figures rows are compared: the first of `MEASURES` that all of them have.

    Args:
        rows: of models, in an evaluation or a comparison; those of runs that failed do not count.
    """
    return next(name for name in MEASURES if all(name in row for row in rows if row["steps"] is not None))


def t_quantile(degrees: int) -> float:
    """Student's t at 97.5%: exact to 3 digits; the Cornish–Fisher expansion from 5 degrees of freedom on."""
    z = 1.959964
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return table.get(degrees) or z + sum(term / degrees ** (i + 1) for i, term in enumerate(terms))


def interval(values: list[float]) -> tuple[float, float] | None:
    """95% t-interval of the mean over seeds; None for a single one."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5
    half = t_quantile(n - 1) * deviation / n**0.5
    return mean - half, mean + half


def summarise(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Means over seeds of each label at each number of steps.

    Args:
        key: what quality is, see `measure`.

    Returns:
        In the order of steps, then labels: label, steps, seeds, updates, ``quality`` (of ``key``), ``values`` (each
        seed's), ``interval`` (see `interval`), the means of those `FIGURES` that rows have, bigram entropy's
        ``entropy_interval``, and ``dominated_by``: labels whose quality is lower, that is better, at equal or higher
        bigram entropy, best first.
    """
    rows = [row for row in rows if row["steps"] is not None]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["steps"], row["label"]), []).append(row)
    labels = list(dict.fromkeys(row["label"] for row in rows))
    out = []
    for steps, label in sorted(groups, key=lambda group: (group[0], labels.index(group[1]))):
        group = groups[steps, label]
        values = [row[key] for row in group]
        out.append(
            {
                "label": label,
                "steps": steps,
                "seeds": len(group),
                "updates": group[0]["updates"],
                **_pooled(values, key),
                "entropy_interval": interval([row["bigram_entropy"] for row in group]),
                "entropies": [row["bigram_entropy"] for row in group],
                "samples": group[0]["samples"],
                **{name: _mean([row[name] for row in group]) for name in FIGURES if name in group[0]},
            }
        )
    for one in out:
        one["dominated_by"] = [
            other["label"]
            for other in sorted(out, key=lambda each: each["quality"])
            if other["steps"] == one["steps"]
            and other["quality"] < one["quality"]
            and other["bigram_entropy"] >= one["bigram_entropy"]
        ]
    return out


def _pooled(values: list[float], key: str) -> dict[str, Any]:
    """Perplexities are averaged as nats a token: their mean is that of all seeds' samples together."""
    if key != "judge_perplexity" or not all(math.isfinite(value) for value in values):
        return {"quality": _mean(values), "values": values, "interval": interval(values)}
    nats = [math.log(value) for value in values]
    ends = interval(nats)
    between = None if ends is None else (math.exp(ends[0]), math.exp(ends[1]))
    return {"quality": math.exp(_mean(nats)), "values": values, "interval": between}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
