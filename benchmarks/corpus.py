"""A corpus of many tokens: memory, time to the first batch, and how fast it is tokenized.

    python benchmarks/corpus.py FOLDER [--tokens 1e9] [--tokenizer bundled:teacher] [--processes 2 1] [--fill]

writes made-up text of about so many tokens into FOLDER, if it is not there, and starts a new Python for each
measurement: the first run (a cache without the corpus) for each number of tokenizing processes, a second run (the
cache has it), and a thousand batches. Peak memory is that of the process that would train.

With --fill the first run does not tokenize: the cache's file is written straight from the bytes of the text, which a
tokenizer of bytes, such as bundled:teacher, makes the same tokens of; the tokens a second of that line mean nothing.

The load of the machine is printed: seconds are worth something where there is none, and processor seconds otherwise.
FOLDER needs room for the text and, for each number of processes, twice or four times as many bytes as tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

LENGTH, BATCH, BATCHES = 1024, 32, 1000
WORDS = 20_000
SAMPLE = 1 << 20


def write_text(path: Path, size: float, seed: int = 0) -> None:
    """Lines of made-up words, of which the frequent are short and many, as in any language: ``size`` bytes.

    The same lines come again and again, each time in another order, which takes no time to write.
    """
    random = np.random.default_rng(seed)
    letters = list("etaoinshrdlucmfwypvbgk")
    words = np.array(["".join(random.choice(letters, 2 + int(np.log2(i + 1) / 1.7))) for i in range(WORDS)])
    share = 1 / np.arange(1, WORDS + 1)
    ends = np.array([" ", " ", " ", " ", " ", " ", " ", ", ", ". ", ".\n"])
    chosen = random.choice(words, SAMPLE, p=share / share.sum())
    lines = np.array("".join(np.char.add(chosen, random.choice(ends, SAMPLE)).tolist()).splitlines(), dtype=object)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            content = "\n".join(random.permutation(lines).tolist())
            written += file.write(f"{content[: int(size) - written]}\n")


def fill(text: Path, tokenizer: str) -> None:
    """Write the cache's file of a text in ASCII for a tokenizer whose tokens are bytes."""
    from distill.config import DataConfig
    from distill.data.corpus import cache_key
    from distill.data.encoders import encoder_of
    from distill.data.token_files import Figures, shared_file, write_figures, write_tokens
    from distill.data.tokenizers import load_tokenizer

    words, config = load_tokenizer(tokenizer), DataConfig(path=str(text), length=LENGTH)
    table = np.zeros(256, np.uint16)
    for character in map(chr, range(128)):
        table[ord(character)] = words(character)["input_ids"][0]

    def parts() -> Iterator[np.ndarray]:
        with text.open("rb") as file:
            for content in iter(partial(file.read, 1 << 24), b""):
                yield table[np.frombuffer(content, np.uint8)]
        yield np.asarray([words.eos_token_id])

    def write(folder: Path) -> None:
        write_figures(folder, Figures(*write_tokens(folder, parts(), len(words)), 1.0, 0))

    shared_file(cache_key(config, words, encoder_of(words, config.special_tokens)), write)


def measure(text: Path, tokenizer: str, processes: int, batches: int) -> dict[str, float]:
    """What one run of a training would see: load the corpus, and take batches."""
    from distill.config import DataConfig
    from distill.data.corpus import load_corpus
    from distill.data.tokenizers import load_tokenizer

    words = load_tokenizer(tokenizer)
    before, worked, start = peak(), processor_seconds(), time.perf_counter()
    corpus = load_corpus(DataConfig(path=str(text), length=LENGTH), words, processes=processes)
    corpus.identity()
    loaded = time.perf_counter()
    corpus.batch(0, range(BATCH))
    first = time.perf_counter()
    for number in range(1, batches):
        corpus.batch(0, range(number * BATCH, (number + 1) * BATCH))
    last = time.perf_counter()
    return {
        "tokens": len(corpus.tokens),
        "seconds_to_first_batch": first - start,
        "tokens_per_second": len(corpus.tokens) / (loaded - start),
        "tokens_per_processor_second": len(corpus.tokens) / (processor_seconds() - worked),
        "milliseconds_per_further_batch": 1e3 * (last - first) / max(1, batches - 1),
        "peak_megabytes_before": before,
        "peak_megabytes": peak(),
    }


def processor_seconds() -> float:
    """Of this process and of those it has started, which other work on the machine does not lengthen much."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak() -> float:
    """Megabytes of resident memory at most, mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def in_a_new_process(folder: Path, cache: str, text: Path, tokenizer: str, processes: int, batches: int) -> dict:
    """`measure` with a cache of its own."""
    environment = os.environ | {"FEWSTEP_CACHE": str(folder / cache), "RAYON_NUM_THREADS": str(processes)}
    words = [sys.executable, __file__, str(folder), "--tokenizer", tokenizer, "--processes", str(processes)]
    words += ["--measure", str(text), "--batches", str(batches)]
    return json.loads(subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=float, default=1e9)
    parser.add_argument("--tokenizer", default="bundled:teacher")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--text", type=Path, help="a text of your own, instead of a made-up one")
    parser.add_argument("--fill", action="store_true", help="do not tokenize")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.tokenizer, given.processes[0], given.batches)))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    text = given.text or made_up(given.folder, given.tokens, given.tokenizer)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, tokenizer {given.tokenizer}, rows of {LENGTH}")
    print(f"{text}: {text.stat().st_size / 1e9:.3f} GB", flush=True)
    for processes in given.processes:
        if given.fill:
            os.environ["FEWSTEP_CACHE"] = str(given.folder / f"cache-{processes}")
            fill(text, given.tokenizer)
        for run, batches in (("first", 1), ("second", 1), ("thousand batches", BATCHES)):
            figures = in_a_new_process(given.folder, f"cache-{processes}", text, given.tokenizer, processes, batches)
            shown = ", ".join(f"{name.replace('_', ' ')} {value:,.2f}" for name, value in figures.items())
            print(f"{processes} tokenizing, {run}: {shown}", flush=True)


def made_up(folder: Path, tokens: float, tokenizer: str) -> Path:
    """The text of a size, written once; how many bytes make a token is seen on its first megabyte."""
    from distill.data.tokenizers import load_tokenizer

    path = folder / f"{tokens:.0f}.txt"
    if not path.is_file():
        part = path.with_suffix(".partial")
        write_text(part, SAMPLE)
        sample = part.read_text("utf-8")[: SAMPLE // 16]
        write_text(part, tokens * len(sample) / len(load_tokenizer(tokenizer)(sample)["input_ids"]))
        part.rename(path)
    return path


if __name__ == "__main__":
    main()
