"""What the commands import sooner or later, so that a process forked after it need not: ten seconds of a core."""

# ruff: noqa: F401, I001
import gc
import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has none of its parent's threads, and would wait for them for ever
from distill import cli  # first: it says in the environment how the libraries below shall behave
import datasets
import matplotlib.pyplot
import peft
import transformers.models.llama.modeling_llama
import transformers.models.qwen3.modeling_qwen3

import distill.commands.distil
import distill.commands.evaluate
import distill.commands.export
import distill.commands.generate
import distill.commands.plan
import distill.commands.pretrain
from distill.evaluation.reports.plots import plot_training
from distill.runtime.deepspeed import import_deepspeed
from teachers.families import load_denoiser

import_deepspeed()
load_denoiser("bundled:teacher")
with tempfile.TemporaryDirectory() as folder:
    plot_training([{"update": 1, "student/loss": 1.0}], Path(folder) / "plot.png")
gc.freeze()  # a fork that collects garbage would copy every page of the above
