"""Does an 8-billion-parameter teacher distil on one GPU? Random weights shaped as LLaDA-8B, two LoRA adapters.

    python benchmarks/eight_billion.py --updates 10          # one GPU of 40 GB or more
    python benchmarks/eight_billion.py --layers 2 --hidden 64 --vocabulary 1000 --length 32 --batch 4   # anywhere

Random weights cost and weigh what trained ones do. Prints memory, seconds an update and the GPU's utilisation.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from distill.commands.distil import distil
from distill.config import DistillConfig, validate
from distill.data.tokenizers import load_tokenizer
from distill.runtime.run_folder import RunFolder
from teachers.denoiser import DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.vocabulary import token_id


def make_teacher(folder: Path, wanted: argparse.Namespace) -> int:
    """Save a random teacher in bfloat16; returns its parameters."""
    tokenizer = load_tokenizer("bundled:teacher")
    mask_id = token_id(tokenizer, "mask")
    assert mask_id is not None
    spec = DenoiserSpec(mask_id, wanted.vocabulary, wanted.length, token_id(tokenizer, "eos"))
    shape = {
        "hidden_size": wanted.hidden,
        "intermediate_size": 3 * wanted.hidden,
        "num_hidden_layers": wanted.layers,
        "num_attention_heads": max(1, wanted.hidden // 128),
        "num_key_value_heads": max(1, wanted.hidden // 128),
        "tie_word_embeddings": False,
    }
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        teacher = create_denoiser("llama", shape, spec)
    torch.set_default_dtype(torch.float32)
    teacher.save(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in teacher.parameters())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("layers", 32), ("hidden", 4096), ("vocabulary", 126464), ("length", 512), ("batch", 8), ("updates", 10),
        ("rank", 16),
    ):  # fmt: skip
        arguments.add_argument(f"--{name}", type=int, default=value)
    wanted = arguments.parse_args()
    folder = Path(tempfile.mkdtemp())
    parameters = make_teacher(folder / "teacher", wanted)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.empty_cache()
    config = validate(
        DistillConfig,
        {
            "teacher": {"path": str(folder / "teacher")},
            "student": {"adapter": {"rank": wanted.rank}},
            "objective": {"name": "integral_kl", "ratio": {"adapter": {"rank": wanted.rank}}},
            "length": wanted.length,
            "train": {
                "updates": wanted.updates,
                "batch": wanted.batch,
                "precision": "bfloat16",
                "gradient_checkpointing": True,
                "log_every": 1,
                "checkpoint_every": 10**6,
                "student": {"lr": 1e-4},
                "critic": {"lr": 5e-4},
            },
        },
    )
    watching = None
    if on_gpu:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-l", "1"]
        watching = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    distil(config, folder / "run")
    lines = [line for line in RunFolder(folder / "run").read_metrics() if "student/loss" in line]
    seconds = statistics.median(1 / line["updates_per_second"] for line in lines[1:])
    figures = {
        "parameters": parameters,
        "base, bfloat16, GB": 2 * parameters / 1e9,
        "peak allocated, GB": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "peak reserved, GB": torch.cuda.max_memory_reserved() / 1e9 if on_gpu else None,
        "seconds an update": seconds,
        "tokens a second": wanted.batch * wanted.length / seconds,
    }
    if watching is not None:
        watching.terminate()
        samples = [int(text) for text in watching.communicate()[0].split()]
        figures["GPU utilisation while updating, %"] = statistics.mean(samples[-int(seconds * len(lines)) or -1 :])
    table = Table("figure", "value", title=f"{wanted.batch} rows of {wanted.length}, LoRA rank {wanted.rank}")
    for name, value in figures.items():
        table.add_row(name, "–" if value is None else f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
    print(json.dumps(figures))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
