"""SIGKILL at random moments, start-up and saving included, over one and two processes; then compare with a quiet run.

    python benchmarks/kills.py --kills 50

After every kill each checkpoint in the folder is checked against its manifest; in the end the weights and the losses of
the killed runs must be those of a run that was left alone, bit for bit. tests/distill/test_loop.py runs a short one.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from distill.runtime.checkpoints import checkpoint_folders, verify_checkpoint
from distill.runtime.run_folder import RunFolder
from tests.distill.runs import assert_same_weights, distil, kill, losses, start

UPDATES = 150
OVERRIDES = ["train.checkpoint_every=1", f"train.updates={UPDATES}"]


def moment(run, process, chance):
    """Wait until a random moment of the run's life: starting up, computing, or within a save."""
    where = chance.choice(["start", "any", "saving", "saving"])
    if where == "start":
        time.sleep(chance.uniform(0, 12))
        return where
    before = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0
    while process.poll() is None and not (
        (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > before
    ):
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 2))
    while where == "saving" and process.poll() is None and not list((run / "checkpoints").glob(".partial-*")):
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.05) if where == "saving" else 0)
    return where


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    wanted = arguments.parse_args()
    chance, folder = random.Random(wanted.seed), Path(tempfile.mkdtemp())
    print(
        "processes  kills  by moment                                     partial folders  checkpoints verified  equal"
    )
    for processes in wanted.processes:
        whole = distil(folder / f"whole-{processes}", *OVERRIDES, processes=processes, timeout=1200)
        run, kills, partial, verified, moments = folder / f"killed-{processes}", 0, 0, 0, Counter()
        while True:
            last = kills >= wanted.kills // len(wanted.processes)
            process = start(run, *OVERRIDES, processes=processes, resume=(run / "config.yaml").exists())
            if not last:
                where = moment(run, process, chance)
                if process.poll() is None:
                    kill(process)
                    kills += 1
                    moments[where] += 1
            _, said = process.communicate(timeout=1200)
            partial += len(list((run / "checkpoints").glob(".partial-*")))
            for checkpoint in checkpoint_folders(RunFolder(run)):
                verify_checkpoint(checkpoint)
                verified += 1
            if process.returncode == 0:
                if last or len(losses(RunFolder(run))) == UPDATES:
                    break
            elif process.returncode > 0:
                sys.exit(f"a restart failed: {said[-2000:]}")
        assert_same_weights(RunFolder(run), whole, rtol=0, atol=0)
        assert torch.equal(losses(RunFolder(run)), losses(whole))
        print(f"{processes:9}  {kills:5}  {dict(moments)!s:45}  {partial:15}  {verified:20}  bit for bit", flush=True)


if __name__ == "__main__":
    main()
