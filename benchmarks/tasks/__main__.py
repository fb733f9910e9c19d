"""See `benchmarks.tasks`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from benchmarks.tasks import gsm8k, sudoku, sums

Row = dict[str, str]
Draw = Callable[[random.Random], str]


def split(
    prompt: Draw, identity: Callable[[str], Hashable], train: int, test: int, draws: random.Random
) -> tuple[list[str], list[str]]:
    """Prompts to learn from, which may come again, and others to be measured by, which do not."""
    measured: dict[Hashable, str] = {}
    while len(measured) < test:
        one = prompt(draws)
        measured.setdefault(identity(one), one)
    learned: list[str] = []
    while len(learned) < train:
        one = prompt(draws)
        if identity(one) not in measured:
            learned.append(one)
    return learned, list(measured.values())


def write(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines):,} rows")


def write_sums(options: argparse.Namespace) -> None:
    """Training rows with a working each, test rows with the sum."""
    draws = random.Random(options.seed)
    task = sums.Sums(options.addends, options.digits)
    learned, measured = split(task.prompt, sums.identity, options.train, options.test, draws)
    write(options.out / "train.jsonl", ({"prompt": p, "completion": sums.completion(p, draws)} for p in learned))
    write(options.out / "test.jsonl", ({"prompt": p, "answer": sums.answer(p)} for p in measured))


def write_sudoku(options: argparse.Namespace) -> None:
    """Training rows with one of the solutions each; the answer of a test row is one of them as well."""
    draws = random.Random(options.seed)
    task = sudoku.Sudokus(options.least, options.most)
    learned, measured = split(task.prompt, str, options.train, options.test, draws)
    write(options.out / "train.jsonl", ({"prompt": p, "completion": sudoku.completion(p, draws)} for p in learned))
    write(options.out / "test.jsonl", ({"prompt": p, "answer": sudoku.completion(p, draws)} for p in measured))


def write_gsm8k(options: argparse.Namespace) -> None:
    """The published split; of both, only what is short enough."""
    pairs = {name: gsm8k.pairs(options.source / f"{name}.jsonl", options.characters) for name in ("train", "test")}
    write(options.out / "train.jsonl", ({"prompt": p, "completion": c} for p, c in pairs["train"]))
    write(options.out / "test.jsonl", ({"prompt": p, "answer": gsm8k.answer(c)} for p, c in pairs["test"]))


def write_texts(options: argparse.Namespace) -> None:
    """Training rows whose completions are a model's own."""
    from benchmarks.tasks.texts import RIGHT, texts  # loads torch

    right = RIGHT[options.right] if options.right else None
    rows = texts(options.model, options.prompts, options.rows, options.threshold, options.length, right)
    write(options.out / "train.jsonl", rows)


def parser() -> argparse.ArgumentParser:
    """A command for each task."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.tasks")
    tasks = top.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        task = tasks.add_parser(name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        task.add_argument("--out", type=Path, required=True, help="folder for train.jsonl and test.jsonl")
        task.set_defaults(run=run)
        return task

    drawn = [
        command("sums", write_sums, "sums of several numbers, worked out digit by digit"),
        command("sudoku", write_sudoku, "sudokus of 4x4 cells with several solutions"),
    ]
    for task in drawn:
        task.add_argument("--train", type=int, default=50_000, help="rows to learn from")
        task.add_argument("--test", type=int, default=1000, help="rows to be measured by")
        task.add_argument("--seed", type=int, default=0)
    drawn[0].add_argument("--addends", type=int, default=sums.Sums.addends, help="numbers of a sum")
    drawn[0].add_argument("--digits", type=int, default=sums.Sums.digits, help="digits of a number")
    drawn[1].add_argument("--least", type=int, default=sudoku.Sudokus.least, help="cells that are given, at least")
    drawn[1].add_argument("--most", type=int, default=sudoku.Sudokus.most, help="cells that are given, at most")
    published = command("gsm8k", write_gsm8k, "grade-school mathematics, as published")
    published.add_argument("--source", type=Path, required=True, help="folder with the published JSONL files")
    published.add_argument("--characters", type=int, default=600, help="of a question and its worked answer, at most")
    own = command("texts", write_texts, "what a model writes after prompts, as data to learn from")
    own.add_argument("--model", required=True, help="folder of a teacher or a student")
    own.add_argument("--prompts", type=Path, required=True, help="JSONL file with a column prompt")
    own.add_argument("--rows", type=int, default=6000, help="prompts to read")
    own.add_argument("--threshold", type=float, default=0.9, help="what is so certain is written at once")
    own.add_argument("--length", type=int, required=True, help="tokens of prompt and completion")
    own.add_argument("--right", choices=["sums", "sudoku"], help="keep only what is right in this task")
    return top


def main() -> None:
    """Write the files of a task."""
    options = parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.run(options)


if __name__ == "__main__":
    main()
