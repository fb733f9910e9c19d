"""The plan of memory against what real runs need: `python -m benchmarks.plan [NAME …]`, a table on the terminal.

Each case is a whole `fewstep distill` in a process of its own, on the CPU, with a teacher of random weights. Measured
is the peak of torch's own allocations, from its profiler, until the checkpoint ("training") and with it ("run"); beside
it the peak of the process's resident memory above what it had after the imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

TRAIN = ["train.updates=2", "train.log_every=1", "evaluate.every=null", "train.checkpoint_every=100"]
# a plan is for the worst update of a run, where every position is masked and no row like another; here each update is
TRAIN += ["objective.rollout={name: one_move, random_share: 0.01}", "objective.time={clamp: [0.99, 1.0]}"]
WRITTEN = ["teacher_samples=4", "teacher_sample_steps=8"]  # the text that is before blocks
BUCKET = "deepspeed.zero_optimization.reduce_bucket_size"
CASES = {
    # 36 M parameters; every row of an update in one pass
    "float32, ZeRO 1": (
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
        {"vocabulary": 4000, "type": "llama"},
        ["train.batch=4", "length=256", f"{BUCKET}=5000000"],
    ),
    # 51 M parameters, half of them embeddings; 2 of 4 rows a pass, activations computed again
    "bfloat16, ZeRO 2, checkpointing, large V": (
        {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
        {"vocabulary": 50000, "type": "qwen3"},
        ["train.batch=4", "train.micro_batch=2", "train.precision=bfloat16", "train.gradient_checkpointing=true",
         "length=256", "deepspeed.zero_optimization.stage=2", f"{BUCKET}=5000000"],
    ),
    # 44 M parameters, of which adapters of student and critic train
    "bfloat16, LoRA": (
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
        {"vocabulary": 16000, "type": "llama"},
        ["train.batch=4", "train.precision=bfloat16", "length=256", f"{BUCKET}=5000000",
         "student.adapter={rank: 16}", "objective.ratio.adapter={rank: 16}"],
    ),
    # 36 M parameters; all networks read a text's 8 blocks in one pass, beside its clean text
    "blocks: float32, ZeRO 1": (
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
        {"vocabulary": 4000, "type": "llama", "attention": "block", "block_size": 32},
        ["train.batch=4", "length=256", f"{BUCKET}=5000000", *WRITTEN],
    ),
    # the same, of which the teacher looks at whole rows: it reads each block in a pass of its own
    "blocks: float32, ZeRO 1, teacher of whole rows": (
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
        {"vocabulary": 4000, "type": "llama"},
        ["train.batch=4", "length=256", "blocks.size=32", f"{BUCKET}=5000000", *WRITTEN],
    ),
    # 51 M parameters; the critic is an adapter on a teacher of whole rows, and learns in such passes too
    "blocks: bfloat16, checkpointing, critic of whole rows": (
        {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
        {"vocabulary": 50000, "type": "qwen3"},
        ["train.batch=4", "train.micro_batch=2", "train.precision=bfloat16", "train.gradient_checkpointing=true",
         "length=256", "blocks.size=32", "objective.ratio.adapter={rank: 16}", f"{BUCKET}=5000000", *WRITTEN],
    ),
    # 8 M parameters; the student writes what is before its blocks, and keeps keys and values of 12 layers for 32 texts
    "blocks: float32, texts of the student": (
        {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4},
        {"vocabulary": 1000, "type": "llama", "attention": "block", "block_size": 32},
        ["train.batch=32", "train.micro_batch=1", "length=256", f"{BUCKET}=1000000", "blocks.prefix=student"],
    ),
    # 44 M parameters, of which adapters of student and critic train
    "blocks: bfloat16, LoRA": (
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
        {"vocabulary": 16000, "type": "llama", "attention": "block", "block_size": 32},
        ["train.batch=4", "train.precision=bfloat16", "length=256", f"{BUCKET}=5000000",
         "student.adapter={rank: 16}", "objective.ratio.adapter={rank: 16}", *WRITTEN],
    ),
}  # fmt: skip


def make_teacher(folder: Path, shape: dict, rest: dict) -> None:
    """A teacher of random weights, with the bundled tokenizer."""
    from distill.data.tokenizers import load_tokenizer
    from teachers.denoiser import DenoiserSpec
    from teachers.families.stock.loading import create_denoiser
    from teachers.vocabulary import token_id

    tokenizer = load_tokenizer("bundled:teacher")
    mask_id = token_id(tokenizer, "mask")
    assert mask_id is not None
    ends = token_id(tokenizer, "eos"), token_id(tokenizer, "pad")
    spec = DenoiserSpec(mask_id, rest["vocabulary"], 256, *ends)
    spec = replace(spec, attention=rest.get("attention", "full"), block_size=rest.get("block_size"))
    heads = {"num_key_value_heads": shape["num_attention_heads"], "tie_word_embeddings": False}
    create_denoiser(rest["type"], {**shape, **heads}, spec).save(folder)
    tokenizer.save_pretrained(folder)


def predict(overrides: list[str], config: str = "configs/smoke.yaml") -> dict:
    """The plan's peak for one process without a device."""
    from distill.config import DistillConfig, load_config
    from distill.planning.moments import moments, peak
    from distill.planning.setup import setup_of
    from distill.planning.shapes import Shapes

    loaded = load_config(DistillConfig, config, overrides)
    shapes, setup = Shapes(loaded, "cpu"), setup_of(loaded, 1)
    found = moments(shapes.networks(), shapes.passes(setup), setup)
    training = [m for m in found if m.name != "checkpoint"]
    return {
        key: {"bytes": most.total(True), "moment": most.name}
        for key, most in (("training", peak(training, True)), ("run", peak(found, True)))
    } | {"all": {m.name: m.total(True) for m in found}}


def measure(run: str, overrides: list[str], config: str = "configs/smoke.yaml") -> dict:
    """Distil here and now, under torch's profiler; to be called once in a process."""
    import distill.commands.distil
    from distill.config import DistillConfig, load_config
    from distill.runtime import world

    world.keep_memory = lambda: None  # what is freed must go back to the system, to be seen in resident memory
    loaded = load_config(DistillConfig, config, overrides)
    world.start_world()
    from torch.profiler import ProfilerActivity, profile, record_function

    from distill.training.checkpoint import Checkpointer

    begin = Checkpointer.begin

    def marked(*args: Any, **options: Any) -> None:
        with record_function("checkpoint begins"):
            begin(*args, **options)

    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    marks = patch.object(Checkpointer, "begin", marked)
    with marks, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        distill.commands.distil.distil(loaded, run)
        resident = _status("VmHWM") - before
    trace = profiler.profiler
    assert trace is not None
    assert trace.kineto_results is not None
    every: list[Any] = trace.kineto_results.events()  # torch declares a part of what they say
    events = [e for e in every if e.name() == "[memory]"]
    mark = min(e.start_ns() for e in every if e.name() == "checkpoint begins")
    now, peaks = 0, {"training": 0, "run": 0}
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        for key in ("run", "training") if event.start_ns() < mark else ("run",):
            peaks[key] = max(peaks[key], now)
    return peaks | {"resident": resident}


def _status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def case(name: str, folder: Path) -> dict:
    """Plan and run one case."""
    shape, rest, overrides = CASES[name]
    make_teacher(folder / "teacher", shape, rest)
    overrides = [f"teacher.path={folder / 'teacher'}", *TRAIN, *overrides]
    words = [sys.executable, "-m", "benchmarks.plan", "--measure", str(folder / "run"), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return {"predicted": predict(overrides), "measured": json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """The table."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3:])))
        return
    print("| case | peak | at | predicted MB | measured MB | predicted / measured | resident MB |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = case(name, Path(folder))
        predicted, measured = found["predicted"], found["measured"]
        for key in ("training", "run"):
            told, was = predicted[key]["bytes"], measured[key]
            resident = f"{measured['resident'] / 1e6:,.0f}" if key == "run" else "–"
            print(
                f"| {name} | {key} | {predicted[key]['moment']} | {told / 1e6:,.0f} | {was / 1e6:,.0f} | "
                f"{told / was:.3f} | {resident} |",
                flush=True,
            )
        if os.environ.get("MOMENTS"):
            for key, value in predicted["all"].items():
                print("   ", key, round(value / 1e6))


if __name__ == "__main__":
    main()
