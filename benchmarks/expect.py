"""What a distillation needs on common cards, by model size: every figure computed, as `fewstep plan` does it.

    python -m benchmarks.expect --json docs/gpu.json     # compute what is not there yet, and print the table
    python -m benchmarks.expect --json docs/gpu.json --page docs/gpu.md    # put the table into a page

For each model, each number of cards, and all weights or adapters, it is the cheapest way that fits, its peak of memory
on the fullest card and the host's; and the time of an update, if passes reach `UTILISATION` of a card's peak. Only the
models' sizes are known here: no weight is read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.flops import Blocks
from distill.config import DistillConfig, validate
from distill.data.tokenizers import load_tokenizer
from distill.planning.propose import GB, HEADROOM, propose
from distill.planning.results import Option
from distill.planning.setup import setup_of
from distill.planning.shapes import Shapes

ROWS, LENGTH, STEPS = 32, 1024, [4, 8]
UTILISATION = 0.4  # of a card's peak, assumed
FREE, TRAINED = 5.5, 2
"""Of all rows of an `integral_kl` update: passes without a gradient, which are 2.5 of a rollout on average, 1 that
completes it, the teacher's and the critic's; and with one, the critic's and the student's own."""
WAYS = {"all weights": 2, "adapters": 1}
"""What trains → how many forward passes a backward pass is worth."""


BEGIN, END = "<!-- the table of benchmarks/expect.py -->\n\n", "\n<!-- its end -->"


@dataclass(frozen=True)
class Card:
    """A number of cards. GB (10⁹ bytes) of each; FLOP/s of each in bfloat16, by the maker's data sheet."""

    count: int
    memory: float
    flops: float

    @property
    def name(self) -> str:
        """As the table says it."""
        return f"{self.count} × {self.memory:g} GB"


CARDS = (Card(1, 24, 165.2e12), Card(1, 80, 989.4e12), Card(8, 80, 989.4e12))


@dataclass(frozen=True)
class Model:
    """A teacher, by its config.json.

    Attributes:
        config: of a checkpoint of its family. teacher: what else the config's section says.
        blocks: its size, with the weights that one token passes through.
        hidden, vocabulary: H and V of its head.
        block_size: of its attention, where that is in blocks, which a pass reads beside the clean text.
    """

    config: dict[str, Any]
    teacher: dict[str, Any]
    blocks: Blocks
    hidden: int
    vocabulary: int
    block_size: int | None = None

    def forward(self, rows: int, length: int) -> float:
        """FLOPs of a pass whose head is asked at half of the positions."""
        read = length if self.block_size is None else 2 * length - self.block_size
        return self.blocks.forward(rows, read) + rows * length * self.hidden * self.vocabulary


def decoder(hidden: int, layers: int, heads: int, kv: int, head: int, inner: int) -> Blocks:
    """A decoder's blocks; ``inner`` of all experts that a token goes to."""
    attention = hidden * head * (2 * heads + 2 * kv)
    return Blocks(layers, heads * head, layers * (attention + 3 * hidden * inner), 0)


def stock(kind: str, hidden: int, layers: int, heads: int, kv: int, inner: int, vocabulary: int) -> dict[str, Any]:
    """The config.json of a stock network with heads of 128, and an output layer of its own."""
    return {
        "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": 128, "intermediate_size": inner, "vocab_size": vocabulary,
        "max_position_embeddings": 4096, "tie_word_embeddings": kind == "qwen3", "is_causal": False,
    }  # fmt: skip


MODELS = {
    "0.17 B (MDLM)": Model(
        {"model_type": "mdlm", "vocab_size": 50258, "hidden_dim": 768, "cond_dim": 128, "n_blocks": 12, "n_heads": 12,
         "model_length": LENGTH, "time_conditioning": False, "dropout": 0.1},
        {}, Blocks(12, 768, 12 * 12 * 768**2, 0), 768, 50258,
    ),
    "1.7 B (Qwen3's shape)": Model(
        stock("qwen3", 2048, 28, 16, 8, 6144, 151936), {"mask_id": 151669, "attention": "full"},
        decoder(2048, 28, 16, 8, 128, 6144), 2048, 151936,
    ),
    "8 B (LLaDA)": Model(
        stock("llama", 4096, 32, 32, 32, 12288, 126464), {"mask_id": 126336, "attention": "full"},
        decoder(4096, 32, 32, 32, 128, 12288), 4096, 126464,
    ),
    "16 B, experts (LLaDA2-mini)": Model(
        {"model_type": "llada2_moe", "vocab_size": 157184, "hidden_size": 2048, "num_hidden_layers": 20,
         "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 5120,
         "moe_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1,
         "first_k_dense_replace": 1, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
         "partial_rotary_factor": 0.5, "rope_theta": 600000, "rope_scaling": None, "hidden_act": "silu",
         "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_bias": False,
         "use_qkv_bias": False, "norm_head": False, "norm_softmax": False, "use_rmsnorm": True,
         "moe_router_enable_expert_bias": True, "score_function": "sigmoid", "use_sliding_window": False},
        {}, decoder(2048, 20, 16, 4, 128, 9 * 512), 2048, 157184, 32,
    ),
}  # fmt: skip


def config_of(model: Model, ways: str, folder: Path) -> DistillConfig:
    """`integral_kl`, every row in one update of 32 rows of 1,024 tokens."""
    (folder / "config.json").write_text(json.dumps(model.config), "utf-8")
    load_tokenizer("bundled:teacher").save_pretrained(folder)
    adapter = {"adapter": {"rank": 16}} if ways == "adapters" else {}
    objective = {"name": "integral_kl", "rollout": {"name": "k_step", "steps": STEPS}}
    values = {
        "teacher": {"path": str(folder), **model.teacher}, "student": adapter, "length": LENGTH,
        "objective": objective | ({"ratio": adapter} if adapter else {}),
        "train": {
            "updates": 1, "batch": ROWS, "precision": "bfloat16", "student": {"lr": 1e-5}, "critic": {"lr": 1e-5},
        },
        "evaluate": {"every": None},
    }  # fmt: skip
    return validate(DistillConfig, values)


def expectations(name: str, ways: str, cards: Sequence[Card]) -> Iterator[dict[str, Any]]:
    """One for each number of cards."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(MODELS[name], ways, Path(folder))
        shapes = Shapes(config)
        assert shapes.block_size == MODELS[name].block_size
        trained = sum(network.trained for network in shapes.networks().trained.values())
        for card in cards:
            option = propose(shapes, setup_of(config, card.count), card.memory * GB * HEADROOM)
            row = {"model": name, "trains": ways, "cards": card.name, "trained": trained}
            yield row | told(option, MODELS[name], ways, card)


def told(option: Option | None, model: Model, ways: str, card: Card) -> dict[str, Any]:
    """What a row says of a way; where it trains adapters though all weights were asked for, these do not fit."""
    if option is None or (ways == "all weights" and any("adapter" in word for word in option.overrides)):
        return {"fits": False}
    seconds = update_flops(model, ways) / (UTILISATION * card.flops * card.count)
    return {
        "fits": True, "overrides": option.overrides, "GB a card": option.worst.total() / GB,
        "moment": option.worst.name, "GB of the host": option.host / GB, "seconds an update": seconds,
        "sent around": option.setup.stage == 3 or option.setup.placement == "sharded" or option.setup.offload,
    }  # fmt: skip


def update_flops(model: Model, ways: str) -> float:
    """Of an update; what checkpointing computes again, and what sampling at another length takes, is not in it."""
    return model.forward(ROWS, LENGTH) * (FREE + TRAINED * (1 + WAYS[ways]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown, a row for each model and way."""
    cards = list(dict.fromkeys(row["cards"] for row in rows))
    lines = ["| model | trains | " + " | ".join(cards) + " |", "| --- | --- |" + " --- |" * len(cards)]
    for model, ways in dict.fromkeys((row["model"], row["trains"]) for row in rows):
        here = {row["cards"]: row for row in rows if (row["model"], row["trains"]) == (model, ways)}
        if len(here) < len(cards):
            continue  # it was cut
        lines.append(f"| {model} | {ways} | " + " | ".join(cell(here[card]) for card in cards) + " |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
    """What one number of cards needs."""
    if not row["fits"]:
        return "does not fit"
    keys = {
        "train.micro_batch": "rows a pass", "deepspeed.zero_optimization.stage": "ZeRO", "teacher.placement": "teacher"
    }  # fmt: skip
    words = []
    for override in row["overrides"]:
        key, value = override.split("=", 1)
        words.append(
            "checkpointing" if "checkpointing" in key
            else "Adam on the host" if "offload" in key
            else f"{value} {keys[key]}" if key == "train.micro_batch"
            else f"{keys.get(key, key)} {value}"
        )  # fmt: skip
    mark = "≥ " if row["sent around"] else ""
    memory = f"{row['GB a card']:.1f} GB, host {at_least_one(row['GB of the host'])} GB"
    return f"{memory}; {mark}{row['seconds an update']:.2g} s an update ({', '.join(words)})"


def at_least_one(value: float) -> str:
    """A whole number, or that it is less than one."""
    return "< 1" if value < 1 else f"{value:.0f}"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Compute what is missing, print the table, and give the rows back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where rows are kept")
    parser.add_argument("--page", type=Path, help="compute nothing; put the table of what is there between its marks")
    wanted = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = json.loads(wanted.json.read_text("utf-8")) if wanted.json.exists() else []
    for name, ways in () if wanted.page else product(MODELS, WAYS):
        there = {row["cards"] for row in rows if (row["model"], row["trains"]) == (name, ways)}
        missing = [card for card in CARDS if card.name not in there]
        for row in expectations(name, ways, missing) if missing else ():
            rows.append(row)
            wanted.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(table(rows))
    if wanted.page:
        before, _, rest = wanted.page.read_text("utf-8").partition(BEGIN)
        wanted.page.write_text(before + BEGIN + table(rows) + END + rest.partition(END)[2], "utf-8")
    return rows


if __name__ == "__main__":
    main()
