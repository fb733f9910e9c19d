"""How long should a canvas be? DAEDAL (2508.00819) against a length that is read off one pass.

    python -m benchmarks.length corpus --out FOLDER [--novels FOLDER]
    fewstep pretrain FOLDER/model.yaml --run FOLDER/run
    python -m benchmarks.length measure FOLDER --out docs/length.json [--texts 96] [--slow 36] [--seeds 3]
    python -m benchmarks.length print docs/length.json

The corpus is of documents whose length the prompt tells roughly: rows of an exact Markov source of 16 words, 24 to 288
words in the mean for six prompts. So the source itself judges what is written. With ``--novels`` it is sentences of
novels, by bytes, of which the prompt is the first two words; the bundled judge judges them.

*Length passes* are those that finding out the length took, *writing passes* all others; both are means of a text.
*Distance* is the mean difference between the sorted lengths of the texts and those of real ones (Wasserstein's).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill.completions import complete
from distill.data.source_text import word
from distill.evaluation.judge import Judge, load_judge
from distill.finished import Student, open_student
from distill.generation import encoded
from students.samplers import Ancestral, Daedal, Sampler, Threshold
from students.samplers.length import AnyLength, Grown, Predicted
from teachers.oracle.markov import random_source

WORDS, LENGTH, SEED = 16, 320, 0
PROMPTS = {"tiny": 24, "small": 48, "medium": 96, "large": 160, "huge": 224, "vast": 288}
"""A document's prompt → the mean of its words; each has between 0.8 and 1.2 times as many."""
SYNTHETIC = {
    "model": {
        "type": "qwen3",
        "shape": {
            "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3,
            "head_dim": 32, "intermediate_size": 256, "tie_word_embeddings": True,
        },
    },
    "train": {"updates": 700, "batch": 8, "student": {"lr": 3e-3, "weight_decay": 0.01, "warmup": 50}},
}  # fmt: skip
NOVELS = {
    "model": {"init": "bundled:judge"},
    "train": {"updates": 400, "batch": 16, "student": {"lr": 1e-3, "weight_decay": 0.05, "warmup": 30}},
}
BYTES = 128

GREEDY = Threshold(threshold=0.9, strict=True, draw="greedy", block_length=32)
"""How DAEDAL writes, but for what it inserts."""
QUARTER = Grown(start=16, step=2, window=8, closing=4)
"""DAEDAL's numbers for canvases of 128 tokens in place of 512."""
COLUMNS = {"length_nfe": 2, "nfe": 1, "perplexity": 2, "mean": 1, "distance": 1, "seconds": 2}
"""A row's figures, and the digits behind the point that are printed."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        name: how the length is found. sampler: how the text is written. steps: passes at most.
        slow: whether it is greedy, which no seed changes, and writes about a token in each pass.
    """

    name: str
    sampler: Sampler
    steps: int
    slow: bool


def settings(longest: int) -> Iterator[Setting]:
    """All rows: DAEDAL with its published numbers, and for short canvases also with a quarter of them."""
    short = longest <= BYTES
    lengths: dict[str, AnyLength | None] = {"whole canvas": None, "grown": Grown()}
    lengths |= {"grown, a quarter": QUARTER} if short else {}
    lengths |= {"predicted": Predicted(), "predicted, 0.5": Predicted(enough=0.5)}
    for name, length in lengths.items():
        yield Setting(name, Ancestral(length=length), 32, False)
    for name in ("whole canvas", "predicted"):
        yield Setting(name, GREEDY.model_copy(update={"length": lengths[name]}), longest, True)
    yield Setting("DAEDAL", Daedal(), longest, True)
    if short:
        quarter = Daedal(length=QUARTER, block_length=8, window=8, insertion=2)
        yield Setting("DAEDAL, a quarter", quarter, longest, True)


def write_synthetic(out: Path) -> dict[str, Any]:
    """Tokenizer and documents of the source; returns the config of a model of them."""
    vocabulary = {word(number): number for number in range(WORDS)}
    vocabulary |= {name: WORDS + n for n, name in enumerate([*PROMPTS, "<|endoftext|>", "<|mask|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LENGTH, mask_token="<|mask|>", eos_token="<|endoftext|>"
    ).save_pretrained(out / "tokenizer")
    source, generator = random_source(WORDS, 1, 2.0, SEED, LENGTH), torch.Generator().manual_seed(1)
    for name, count in (("train", 8000), ("validation", 600)):
        rows = source.sample(count, generator)
        prompt = torch.randint(len(PROMPTS), (count,), generator=generator)
        share = 0.8 + 0.4 * torch.rand(count, generator=generator)
        documents = zip(rows.tolist(), prompt.tolist(), share.tolist(), strict=True)
        write_lines(out / f"{name}.jsonl", [document(*values) for values in documents])
    return {**SYNTHETIC, "tokenizer": {"path": str(out / "tokenizer")}, "data": {"length": LENGTH}}


def document(row: list[int], number: int, share: float) -> dict[str, str]:
    """A row of the source, as long as its prompt says."""
    prompt, words = list(PROMPTS.items())[number]
    return {"prompt": prompt, "completion": " " + " ".join(map(word, row[: min(round(words * share), LENGTH - 10)]))}


def write_novels(out: Path, novels: Path) -> dict[str, Any]:
    """Sentences of novels; returns the config of a model of them."""
    import pyarrow.parquet as parquet

    for name, count in (("train", 60_000), ("validation", 2_000)):
        texts = parquet.read_table(novels / f"{name}.parquet")["text"].to_pylist()
        documents = [document for text in texts for document in sentences(text)]
        random.Random(0).shuffle(documents)
        write_lines(out / f"{name}.jsonl", documents[:count])
    return {**NOVELS, "data": {"length": BYTES, "too_long": "drop"}}


def sentences(text: str) -> Iterator[dict[str, str]]:
    """Sentences of 20 to 120 letters without speech, cut after their second word."""
    plain = text.translate(str.maketrans("“”‘’—", "\"\"''-"))
    for paragraph in plain.split("\n"):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            if re.fullmatch(r"[A-Z][^\"]{18,118}[.!?]", sentence) and sentence.isascii() and sentence.count(" ") > 2:
                words = sentence.split(" ")
                yield {"prompt": " ".join(words[:2]), "completion": " " + " ".join(words[2:])}


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def corpus(out: Path, novels: Path | None) -> None:
    """Write FOLDER."""
    out.mkdir(parents=True)
    config = write_synthetic(out) if novels is None else write_novels(out, novels)
    config["data"] |= {
        "path": str(out / "train.jsonl"), "heldout": str(out / "validation.jsonl"), "format": "prompt_completion"
    }  # fmt: skip
    config["train"] |= {"ema": 0.98, "seed": SEED}
    config["train"]["student"] |= {"betas": [0.9, 0.98], "decay": 0.4, "final": 0.05, "clip": 1.0}
    (out / "model.yaml").write_text(json.dumps(config, indent=1), encoding="utf-8")  # JSON is YAML


def perplexity(model: Student, documents: list[dict[str, str]], judge: Judge | None) -> float:
    """Of completions behind their prompts: by the source, or by the judge where there is one."""
    nats, tokens, source = 0.0, 0, random_source(WORDS, 1, 2.0, SEED, LENGTH)
    for document in documents:
        before, ids = (encoded(model.tokenizer, document[name]) for name in ("prompt", "completion"))
        tokens += len(ids)
        if judge is not None:
            nats += float(judge.nll(torch.tensor([[*before, *ids]]))[0, max(len(before) - 1, 0) :].sum())
        elif ids:
            words = [token for token in ids if token < WORDS]
            nats += -float(source.log_likelihood(torch.tensor([words]))) if words else 0.0
            nats += (len(ids) - len(words)) * 2 * math.log(WORDS)  # a prompt within a text: a mistake, twice a word's
    return math.exp(nats / max(tokens, 1))


def measured(
    model: Student, setting: Setting, rows: list[dict[str, str]], longest: int, judge: Judge | None, seed: int
) -> dict[str, Any]:
    """One row of the table, by one seed of the noise."""
    prompts = [encoded(model.tokenizer, row["prompt"]) for row in rows]
    start = time.perf_counter()
    written = complete(
        model.denoiser, model.tokenizer, prompts, longest, setting.sampler, setting.steps, seed, batch=24
    )  # fmt: skip
    seconds = time.perf_counter() - start
    texts = [{**row, "completion": completion.text} for row, completion in zip(rows, written, strict=True)]
    return {
        "length": setting.name, "sampler": setting.sampler.name, "seed": seed,
        "length_nfe": mean(completion.length_nfe or 0 for completion in written),
        "nfe": mean(completion.nfe for completion in written), "seconds": seconds / len(rows),
        **judged(model, texts, rows, judge),
    }  # fmt: skip


def judged(
    model: Student, texts: list[dict[str, str]], real: list[dict[str, str]], judge: Judge | None
) -> dict[str, Any]:
    """What the texts are like: their perplexity, their lengths, and how far these are from real ones."""
    lengths, others = (
        sorted(len(encoded(model.tokenizer, row["completion"])) for row in rows) for rows in (texts, real)
    )
    distance = mean(abs(a - b) for a, b in zip(lengths, others, strict=True))
    return {
        "texts": len(texts), "perplexity": perplexity(model, texts, judge), "mean": mean(lengths), "distance": distance
    }  # fmt: skip


def measure(folder: Path, out: Path, texts: int, slow: int, seeds: int) -> None:
    """All rows, written to ``out`` as they come; those of the greedy rules on ``slow`` texts, which may be none.

    Args:
        seeds: of the noise, from 0 on, with the same prompts; of the greedy rules the first alone.
    """
    model = open_student(folder / "run")
    judge = None if (folder / "tokenizer").exists() else load_judge("bundled:judge", model.tokenizer, False, "cpu")
    assert judge is None or isinstance(judge, Judge)
    longest = LENGTH if judge is None else BYTES
    every = [json.loads(line) for line in (folder / "validation.jsonl").read_text("utf-8").splitlines()]
    rows = [row for row in every if len(encoded(model.tokenizer, row["prompt"] + row["completion"])) < longest]
    figures = json.loads(out.read_text("utf-8")) if out.exists() else {}
    counts = [count for count in (texts, slow) if count]
    real = [judged(model, rows[:count], rows[count : 2 * count], judge) for count in counts]
    part = figures["synthetic" if judge is None else "novels"] = {"longest": longest, "real": real, "rows": []}
    for setting in settings(longest):
        count, noises = (slow, 1) if setting.slow else (texts, seeds)
        for seed in range(noises if count else 0):
            part["rows"].append(measured(model, setting, rows[:count], longest, judge, seed))
            out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
            print(part["rows"][-1], flush=True)


def spread(values: list[float], digits: int) -> str:
    """Their mean, and the least and the greatest where these differ."""
    least, middle, greatest = (f"{value:.{digits}f}" for value in (min(values), mean(values), max(values)))
    return middle if least == greatest else f"{middle} ({least} to {greatest})"


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    names = ["corpus", "written by", "length", "texts", "length passes", "writing passes", "perplexity", "mean length"]
    lines = ["| " + " | ".join([*names, "distance", "seconds"]) + " |", "| --- | --- | --- " + "| ---: " * 7 + "|"]
    for kind, part in figures.items():
        for (sampler, length, texts), rows in seeds_of([*part["real"], *part["rows"]]).items():
            cells = [kind, sampler, length, str(texts)]
            for name, digits in COLUMNS.items():
                cells.append(spread([row[name] for row in rows], digits) if name in rows[0] else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Rule, kind of length and texts → its rows, one a seed."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        key = row.get("sampler", "real text"), row.get("length", ""), row["texts"]
        groups.setdefault(key, []).append(row)
    return groups


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    writing = verbs.add_parser("corpus")
    writing.add_argument("--out", type=Path, required=True)
    writing.add_argument("--novels", type=Path)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--out", type=Path, required=True)
    measuring.add_argument("--texts", type=int, default=96)
    measuring.add_argument("--slow", type=int, default=36)
    measuring.add_argument("--seeds", type=int, default=3)
    verbs.add_parser("print").add_argument("figures", type=Path)
    words = parser.parse_args()
    if words.verb == "corpus":
        corpus(words.out, words.novels)
    elif words.verb == "measure":
        measure(words.folder, words.out, words.texts, words.slow, words.seeds)
    else:
        print(table(json.loads(words.figures.read_text("utf-8"))))


if __name__ == "__main__":
    main()
