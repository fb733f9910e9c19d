"""What a command's start costs: ``fewstep --help`` and ``fewstep generate``, each beside what nobody can do without.

    python benchmarks/startup.py [EXPORT] [--rounds 5]

``generate`` on an export (by default the bundled teacher, exported here) stands beside a script that imports torch and
the transformers class, loads the same folder and makes as many forward passes. All are started in turn, so that other
work on the machine meets them alike; a ratio is of the medians. Both clocks are told: seconds on the wall, and of the
processor, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

STEPS, LENGTH = 8, 128
STOCK = f"""
import sys, torch
from transformers import AutoTokenizer, Qwen3ForCausalLM
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), Qwen3ForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    for _ in range({STEPS}):
        logits = model(torch.full((1, {LENGTH}), tokenizer.mask_token_id)).logits
print(tokenizer.decode(logits[0].argmax(-1)))
"""
BOUNDS = {"--help / import torch": 0.3, "generate / stock": 1.1}


def commands(export: str) -> dict[str, list[str]]:
    python, fewstep = [sys.executable], [sys.executable, "-m", "distill"]
    return {
        "python -c pass": [*python, "-c", "pass"],
        "import torch": [*python, "-c", "import torch"],
        "--help": [*fewstep, "--help"],
        "stock": [*python, "-c", STOCK, export],
        "generate": [*fewstep, "generate", export, "--steps", str(STEPS), "--length", str(LENGTH), "--seed", "1"],
    }


def seconds(command: list[str]) -> tuple[float, float]:
    """Of the wall's clock and of the processor's, from start to end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        export = words.export or f"{folder}/export"
        if words.export is None:
            write = [sys.executable, "-m", "distill", "export", "bundled:teacher", "--out", export]
            subprocess.run(write, check=True, capture_output=True)
        measured = {name: [] for name in commands(export)}
        for _ in range(words.rounds):
            for name, command in commands(export).items():
                measured[name].append(seconds(command))
    medians = {
        name: tuple(statistics.median(clock) for clock in zip(*runs, strict=True)) for name, runs in measured.items()
    }
    print(f"medians of {words.rounds} alternating runs, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
    for name, (wall, cpu) in medians.items():
        print(f"{name:16} {wall:6.2f} s on the wall, {cpu:6.2f} s of a core")
    for name, bound in BOUNDS.items():
        ours, beside = (medians[part] for part in name.split(" / "))
        print(f"{name:22} {ours[0] / beside[0]:.2f} on the wall, {ours[1] / beside[1]:.2f} of a core; bound {bound}")


if __name__ == "__main__":
    main()
