"""The generators of benchmarks/tasks: right values, no test prompt in training, and the same files again."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.tasks import gsm8k, sudoku, sums, texts
from benchmarks.tasks.__main__ import main
from distill.commands.distil import distil
from distill.commands.evaluate import evaluate_command
from distill.commands.pretrain import pretrain
from distill.completions import Completion
from distill.config import DistillConfig, PretrainConfig, load_config
from distill.evaluation.tasks.results import TaskEvaluation

ROOT = Path(__file__).parents[1]


def generate(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tasks", *map(str, arguments)])
    main()


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def files(tmp_path, monkeypatch):
    def of(task, *arguments):
        generate(monkeypatch, task, "--out", tmp_path / task, *arguments)
        return rows(tmp_path / task / "train.jsonl"), rows(tmp_path / task / "test.jsonl")

    return of


def worked(prompt, working):
    """Follow a working column by column; the sum that it comes to."""
    carry, total = 0, ""
    addends = [str(number) for number in sums.numbers(prompt)]
    for column, step in zip(list(zip(*addends, strict=True))[::-1], working.split(";"), strict=True):
        assert int(step[0]) == carry
        assert sorted(step[1:-2]) == sorted(column)
        assert int(step[-2:]) == carry + sum(map(int, column))
        carry, total = int(step[-2:]) // 10, f"{int(step[-2:]) % 10}{total}"
    return int(f"{carry}{total}")


@pytest.mark.parametrize(("addends", "digits"), [(2, 1), (3, 2), (4, 3)])
def test_a_sum_is_worked_out_digit_by_digit(files, addends, digits):
    train, test = files("sums", "--addends", addends, "--digits", digits, "--train", 200, "--test", 5)
    for row in train:
        assert [len(str(number)) for number in sums.numbers(row["prompt"])] == [digits] * addends
        working, answer = row["completion"].split(sums.MARKER)
        assert worked(row["prompt"], working) == int(answer) == sum(sums.numbers(row["prompt"]))
    assert all(int(row["answer"]) == sum(sums.numbers(row["prompt"])) for row in test)


def test_a_working_is_right_if_each_of_its_steps_is():
    prompt = "37+85+46="
    assert sums.is_worked_out(prompt, "075618;138416#168", "168")
    assert sums.is_worked_out(prompt, "056718;184316#168", "168")  # other orders
    assert not sums.is_worked_out(prompt, "075619;138416#168", "168")  # another total
    assert not sums.is_worked_out(prompt, "075618;038415#168", "168")  # no carry
    assert not sums.is_worked_out(prompt, "075618;138416#169", "168")  # another sum
    assert not sums.is_worked_out(prompt, "077618;138416#168", "168")  # a digit twice
    assert not sums.is_worked_out(prompt, "075618#168", "168")  # a column is missing
    assert not any(sums.is_worked_out(prompt, text, "168") for text in ("", "168", "#168", ";#168"))


def test_the_digits_of_a_column_come_in_any_order():
    draws = random.Random(0)
    workings = {sums.completion("12+34+56=", draws) for _ in range(400)}
    assert len(workings) == 36  # 3! orders in each of two columns
    assert {worked("12+34+56=", text.split(sums.MARKER)[0]) for text in workings} == {102}


def test_no_sum_of_the_test_is_learned_in_another_order(files):
    train, test = files("sums", "--addends", 2, "--digits", 1, "--train", 3000, "--test", 20)
    learned = {sums.identity(row["prompt"]) for row in train}
    measured = {sums.identity(row["prompt"]) for row in test}
    assert len(measured) == 20
    assert not learned & measured
    assert len(learned) == 55 - 20  # all other pairs of digits


def test_a_sudoku_has_several_solutions_and_one_of_them_is_learned(files):
    train, test = files("sudoku", "--train", 100, "--test", 50)
    for row in train:
        assert sudoku.fits(row["prompt"], row["completion"])
        assert sudoku.is_filled(row["completion"])
    assert all(len(sudoku.solutions(row["prompt"])) > 1 for row in [*train, *test])
    assert len({row["prompt"] for row in test}) == 50
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}


def test_every_filled_grid_is_known():
    assert len(set(sudoku.grids())) == 288  # the number of 4x4 sudokus
    assert all(map(sudoku.is_filled, sudoku.grids()))
    assert not sudoku.is_filled("1234341221434312")  # a number twice in a column
    assert not sudoku.is_filled("1234234134124123")  # rows and columns are right, boxes are not
    assert not sudoku.is_filled("1234")


def test_solutions_keep_what_is_given():
    assert sudoku.solutions("1234341221434321=") == ["1234341221434321"]
    assert len(sudoku.solutions("................=")) == 288
    assert len(sudoku.solutions("1...............=")) == 72
    assert sudoku.solutions("11..............=") == []


def test_any_solution_is_right_and_nothing_else():
    prompt, answer = "12..........4321=", "1234341221434321"
    right = sudoku.solutions(prompt)
    assert len(right) == 2
    assert all(sudoku.is_solution(prompt, grid, answer) for grid in right)
    assert not sudoku.is_solution("21..............=", answer, answer)
    mixed = right[0][:8] + right[1][8:]
    assert not any(sudoku.is_solution(prompt, text, answer) for text in ("", "1234", f"{answer}1", mixed))


def test_gsm8k_keeps_the_working_without_its_notes(tmp_path, files):
    source = tmp_path / "published"
    source.mkdir()
    short = {"question": "How many are 2 x 600? ", "answer": "They are 2*600=<<2*600=1200>>1,200.\n#### 1,200"}
    long = {"question": "How many? " * 100, "answer": "#### 1"}
    for split in ("train", "test"):
        (source / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (short, long)), "utf-8")
    train, test = files("gsm8k", "--source", source)
    assert train == [{"prompt": "How many are 2 x 600?\n", "completion": "They are 2*600=1,200.\n#### 1,200"}]
    assert test == [{"prompt": "How many are 2 x 600?\n", "answer": "1200"}]
    assert gsm8k.answer("#### -5") == "-5"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("He sells 500 + 700 = 1,200 of them, for 2*$3 = $5.\n#### 5", 0.5),
        ("10/3 = 3.33 and 1/0 = 0 and 7 - 2=5", 2 / 3),
        ("2+3+4=10, and 3+4=7", 1.0),
        ("#### 5", 0.0),
    ],
)
def test_equations_of_a_worked_answer_are_checked(text, part):
    assert gsm8k.equations("", text, "") == pytest.approx(part)


def test_the_same_seed_writes_the_same_files(files):
    first = files("sums", "--train", 20, "--test", 5)
    assert files("sums", "--train", 20, "--test", 5) == first
    assert files("sums", "--train", 20, "--test", 5, "--seed", 1) != first


@pytest.mark.parametrize(
    ("task", "prompt", "written", "right"),
    [
        ("sums", "37+85+46=", ["075618;138416#168", "077618;138416#168", "057618;184316#168"], [0, 2]),
        ("sudoku", "1...............=", ["1234341221434321", "1234341221434312", "2143341212344321"], [0]),
    ],
)
def test_a_models_texts_can_be_kept_where_they_are_right(tmp_path, monkeypatch, task, prompt, written, right):
    (tmp_path / "prompts.jsonl").write_text((json.dumps({"prompt": prompt}) + "\n") * 3)
    completions = [Completion(text, len(text), True, 4, 0) for text in written]
    monkeypatch.setattr(texts, "open_student", lambda model: SimpleNamespace(denoiser=None, tokenizer=None))
    monkeypatch.setattr(texts, "encoded", lambda tokenizer, prompt: [])
    monkeypatch.setattr(texts, "complete", lambda *arguments, **settings: completions)
    asked = ["texts", "--model", "any", "--prompts", tmp_path / "prompts.jsonl", "--length", 34]
    generate(monkeypatch, *asked, "--out", tmp_path / "all")
    generate(monkeypatch, *asked, "--out", tmp_path / "right", "--right", task)
    assert [row["completion"] for row in rows(tmp_path / "all" / "train.jsonl")] == written
    assert [row["completion"] for row in rows(tmp_path / "right" / "train.jsonl")] == [written[n] for n in right]


def test_a_bench_from_generator_to_accuracy(tmp_path, files, monkeypatch):
    """The commands of configs/tasks at a size that takes seconds: what one writes is what the next one reads."""
    files("sudoku", "--train", 60, "--test", 6)
    folder, tasks = tmp_path / "sudoku", ROOT / "configs" / "tasks" / "sudoku"
    data = [f"data.path={folder / 'train.jsonl'}", "train.updates=2", "train.batch=4"]
    small = ["model.shape.num_hidden_layers=1", "train.student.warmup=0", "train.checkpoint_every=2"]
    teacher = pretrain(load_config(PretrainConfig, tasks / "teacher.yaml", [*data, *small]), tmp_path / "teacher")
    config = load_config(DistillConfig, tasks / "integral_kl.yaml", [*data, f"teacher.path={teacher}"])
    distil(config, tmp_path / "run")
    own = ["--model", teacher, "--prompts", folder / "train.jsonl", "--rows", 5, "--threshold", 0.1, "--length", 34]
    generate(monkeypatch, "texts", "--out", tmp_path / "own", *own)
    prompts = [row["prompt"] for row in rows(folder / "train.jsonl")[:5]]
    assert all(row["prompt"] in prompts for row in rows(tmp_path / "own" / "train.jsonl"))
    asked = ["steps=[2]", "teacher_steps=17", "task.teacher_samplers=[]", f"task.path={folder / 'test.jsonl'}"]
    checker = f"task.function={ROOT / 'benchmarks/tasks/sudoku.py'}:is_solution"
    evaluation = TaskEvaluation.load(evaluate_command(tmp_path / "run", overrides=[*asked, checker]))
    assert evaluation.task.questions == 6
    assert [(row.model, row.nfe) for row in evaluation.rows] == [("teacher", 2), ("teacher", 17), ("student", 2)]
