"""`fewstep evaluate --task` from end to end, on models that write one letter and on random ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from transformers import AutoTokenizer

import fewstep
from distill import cli
from distill.commands.evaluate import evaluate_command
from distill.commands.export import export_command
from distill.config.task import TaskConfig
from distill.evaluation import subject
from distill.evaluation.tasks.results import TaskEvaluation
from distill.evaluation.tasks.task import load_task
from distill.runtime.world import ALONE
from students.samplers import TopK
from teachers.errors import UserError
from tests.distill.runs import sign
from tests.distill.test_generate import write_student
from tests.forks import Command

SMALL = ["steps=[2,4]", "teacher_steps=12", "length=12", "batch=3"]
QUESTIONS = [{"prompt": "1+", "answer": "7" * 10}, {"prompt": "2+2=", "answer": "7" * 8}, {"prompt": "", "answer": "x"}]


def write_task(path, rows=QUESTIONS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Students that write sevens, one that ends each text at once, a random teacher, and a task."""
    root = tmp_path_factory.mktemp("tasks")
    return SimpleNamespace(
        root=root,
        sevens=write_student(root / "sevens", only="7"),
        greedy=write_student(root / "greedy", only="7", sampler=TopK(draw="greedy")),
        silent=write_student(root / "silent", only="<|endoftext|>"),
        teacher=write_student(root / "teacher", length=32),
        task=write_task(root / "seven.jsonl"),
    )


@pytest.fixture(autouse=True)
def no_judge(monkeypatch):
    """A task is not judged."""
    monkeypatch.setattr(subject, "load_judge", lambda *_: pytest.fail("a judge was loaded"))


def measured(made, out, *overrides, student=None, teacher=None, task=None):
    path = evaluate_command(
        None, student, teacher, out=out, overrides=[*SMALL, *overrides], task=str(task or made.task)
    )
    return TaskEvaluation.load(path)


def test_a_student_is_measured_beside_its_teacher(made, tmp_path, capsys):
    evaluation = measured(made, tmp_path / "out", student=made.sevens, teacher=made.teacher)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "task-seven.json", "task-seven.png", "task-seven.jsonl"
    }  # fmt: skip
    assert [(row.model, row.steps) for row in evaluation.rows] == [
        ("teacher", 2), ("teacher", 4), ("teacher", 12), ("student", 2), ("student", 4)
    ]  # fmt: skip
    assert evaluation.task.questions == 3
    row = evaluation.rows[3]
    assert row.accuracy == pytest.approx(2 / 3)
    assert row.accuracy_ci == pytest.approx((0.2077, 0.9385), abs=1e-4)
    assert (row.nfe, row.ended) == (2.0, 0.0)
    assert row.tokens == pytest.approx((10 + 8 + 12) / 3)
    assert row.tpf == pytest.approx((10 + 8 + 12) / 6)
    assert row.seconds > 0
    assert [(curve.model, curve.sampler) for curve in evaluation.curves] == [
        ("teacher", "ancestral"), ("student", "ancestral")
    ]  # fmt: skip
    # the student's rows are as accurate, and 2 passes write 5 tokens each, 4 passes 2.5
    assert evaluation.curves[1].aup == pytest.approx(66.6667 * 5, abs=0.01)
    printed = capsys.readouterr().out
    assert "66.7" in printed
    assert "+66.7" in printed


def test_a_student_is_compared_with_the_teachers_best_row_of_no_more_passes(made, tmp_path):
    """Here the one that writes sevens is the teacher, and is right however few passes it makes."""
    evaluation = measured(
        made, tmp_path / "out", "task.teacher_samplers=[dilated]", "steps=[1,4]", student=made.teacher,
        teacher=made.sevens,
    )  # fmt: skip
    one, four = evaluation.rows[-2:]
    assert four.to_same.steps == 1  # of equally good rows that with the fewest passes
    assert four.to_full.steps == 12
    assert one.to_full.difference == pytest.approx(-2 / 3)
    assert one.to_full.difference_ci == pytest.approx((-1, -0.4 + 1.959964 * (0.64 / 5) ** 0.5), abs=1e-6)
    assert one.to_same.accuracy == pytest.approx(2 / 3)
    assert {row.sampler for row in evaluation.rows} == {"ancestral", "dilated"}


def test_the_table_of_an_exports_task_is_verified(made, tmp_path):
    task = write_task(tmp_path / "own.jsonl")
    stated = measured(made, tmp_path / "out", student=made.sevens, teacher=made.teacher, task=task)
    export = export_command(Path(made.sevens), tmp_path / "export")
    stated.save(export)
    verification = fewstep.verify(export)
    assert verification.passed, verification.table()
    assert verification.seed == 1
    checked = {(check.row, check.figure) for check in verification.checks}
    assert {("task own, student, ancestral, 2 steps", "accuracy"), ("task own", "questions")} <= checked
    assert "3 questions of own" in " ".join(verification.table().split())
    # one row that says something else
    wrong = replace(stated.rows[3], accuracy=0.0, accuracy_ci=(0.0, 0.1))
    replace(stated, rows=(*stated.rows[:3], wrong, *stated.rows[4:])).save(export)
    failures = fewstep.verify(export, same_seed=True).failures
    assert [(check.row, check.figure) for check in failures] == [("task own, student, ancestral, 2 steps", "accuracy")]
    write_task(tmp_path / "own.jsonl", QUESTIONS[:2])
    with pytest.raises(UserError, match=r"own\.jsonl is not the file of questions that .* was asked"):
        fewstep.verify(export)


def test_each_rule_is_tried_at_each_temperature_and_none_twice(made, tmp_path):
    rules = "task.samplers=[ancestral,{name: threshold,threshold: 0.5}]"
    teachers = "task.teacher_samplers=[{name: threshold,threshold: 0.9}]"
    words = [rules, teachers, "task.temperatures=[0,0.5]", "steps=[2]", "teacher_steps=2"]
    evaluation = measured(made, tmp_path / "out", *words, teacher=made.teacher)
    names = [row.sampler for row in evaluation.rows]
    assert len(names) == len(set(names)) == 6
    assert names[:2] == ["ancestral, greedy", "ancestral, temperature 0.5"]
    assert sum("threshold 0.9" in name for name in names) == 2


def test_other_rules_are_tried_at_the_steps_that_they_can_make(made, tmp_path):
    """Blocks of 4 share their steps, so that 12 tokens need 3 of them; or have steps of their own, 4 at most."""
    blocks = ["{name: top_k, block_length: 4}", "{name: top_k, block_length: 4, budget: block}"]
    words = [f"task.samplers=[{', '.join(blocks)}]", "steps=[2,4,8]"]
    evaluation = measured(made, tmp_path / "out", *words, student=made.sevens)
    assert [(row.sampler, row.steps) for row in evaluation.rows] == [
        *(("ancestral", steps) for steps in (2, 4, 8)),
        *(("top_k, blocks of 4", steps) for steps in (4, 8)),
        *(("top_k, blocks of 4 with steps of their own", steps) for steps in (2, 4)),
    ]
    assert evaluation.rows[-2].nfe == pytest.approx((3 + 2 + 3) * 2 / 3)


def test_what_ends_at_once_has_one_token(made, tmp_path):
    task = write_task(tmp_path / "none.jsonl", [{"prompt": "a", "answer": ""}, {"prompt": "ab", "answer": "b"}])
    evaluation = measured(made, tmp_path / "out", student=made.silent, task=task)
    row = evaluation.rows[0]
    assert (row.accuracy, row.tokens, row.ended, row.tpf) == (0.5, 1.0, 1.0, 0.5)
    assert row.to_full is None


def test_passes_for_the_length_have_a_column_and_count_as_passes(made, tmp_path):
    """Of a model that writes no end tokens: one pass, after which the row is as long as it was."""
    words = ["task.samplers=[{name: ancestral, length: {name: predicted}}]", "steps=[2]", "teacher_steps=2"]
    evaluation = measured(made, tmp_path / "out", *words, student=made.sevens, teacher=made.sevens)
    plain, sized = evaluation.rows[2:]
    assert (plain.nfe, plain.length_nfe) == (2.0, None)
    assert (sized.nfe, sized.length_nfe) == (2.0, 1.0)
    assert sized.tpf == pytest.approx(plain.tpf * 2 / 3)
    assert sized.to_same.sampler == "ancestral"  # of the teacher's equally good rows that with the fewest passes
    assert "| student | ancestral, predicted length | 2 | 2.0 | 1.0 |" in evaluation.markdown()
    assert "| student | ancestral | 2 | 2.0 | – |" in evaluation.markdown()
    stored = json.loads((tmp_path / "out" / "task-seven.json").read_text("utf-8"))["rows"]
    assert ["length_nfe" in row for row in stored] == [False, True, False, True]


def test_answers_are_written_one_a_line(made, tmp_path):
    measured(made, tmp_path / "out", student=made.sevens)
    lines = [json.loads(line) for line in (tmp_path / "out" / "task-seven.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 2 * 3
    assert lines[0] == {
        "model": "student", "sampler": "ancestral", "steps": 2, "question": 1, "score": 1.0, "text": "7" * 10,
        "tokens": 10, "ended": False, "nfe": 2, "critic_nfe": 0, "length_nfe": None,
    }  # fmt: skip


def test_an_export_is_measured_by_its_own_rule_however_it_is_named(made, tmp_path):
    for number, names in enumerate(((made.greedy,), (None, made.greedy))):
        path = evaluate_command(*names, out=tmp_path / str(number), overrides=["steps=[2]"], task=made.task)
        evaluation = TaskEvaluation.load(path)
        assert evaluation.asking.length == 12  # the canvas it was exported with
        assert [(row.model, row.sampler) for row in evaluation.rows] == [("student", "top_k, greedy")]


@pytest.fixture(scope="module")
def run(made):
    """A finished run with the student of sevens, whose config says which task."""
    run = made.root / "run"
    checkpoint = run / "checkpoints" / "update-00000001"
    shutil.copytree(made.sevens, checkpoint / "student-ema")
    (checkpoint / "state.json").write_text('{"update": 1}')
    sign(checkpoint)
    AutoTokenizer.from_pretrained(made.sevens).save_pretrained(run / "tokenizer")
    task = {"path": made.task, "samplers": ["dilated"]}
    config = {
        "teacher": {"path": made.teacher},
        "objective": {"name": "sdtt"},
        "length": 10,
        "train": {"updates": 1, "batch": 8, "student": {"lr": 1e-3}},
        "evaluate": {"steps": [2], "teacher_steps": 8, "task": task},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_a_run_is_measured_by_the_task_of_its_config(run):
    path = evaluate_command(run)
    assert path == run / "task-seven.json"
    evaluation = TaskEvaluation.load(path)
    assert evaluation.asking.length == 10  # the run's own
    assert evaluation.models["student"].name.endswith("student-ema")
    assert [(row.model, row.sampler, row.steps) for row in evaluation.rows] == [
        *(("teacher", sampler, steps) for sampler in ("ancestral", "dilated") for steps in (2, 8)),
        *(("student", sampler, 2) for sampler in ("ancestral", "dilated")),
    ]


def test_a_teacher_that_was_asked_before_is_left_out(run, tmp_path):
    path = evaluate_command(run, out=tmp_path / "out", overrides=["task.teacher=false"])
    assert {row.model for row in TaskEvaluation.load(path).rows} == {"student"}


def test_results_depend_on_the_seed_alone(made, tmp_path):
    rows = []
    for number, words in enumerate((["batch=1"], ["batch=3"], ["batch=3", "seed=1"])):
        out = tmp_path / str(number)
        measured(made, out, *words, "task.temperatures=[1]", student=made.teacher)
        rows.append([json.loads(line) for line in (out / "task-seven.jsonl").read_text("utf-8").splitlines()])
    assert rows[0] == rows[1] != rows[2]


def test_two_processes_measure_what_one_does(made, tmp_path):
    texts = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        words = ["evaluate", "--student", made.teacher, "--teacher", made.sevens, "--task", made.task, "--out", out]
        command = Command([*words, *SMALL, "batch=1"], processes)
        _, said = command.communicate(120)
        assert [process.exitcode for process in command.processes] == [0] * processes, said[-3000:]
        texts.append((out / "task-seven.jsonl").read_text("utf-8"))
    assert texts[0] == texts[1]


def test_columns_have_any_names_and_rows_may_be_conversations_or_parquet(made, tmp_path):
    rows = [{"question": "1+", "solutions": ["a", "7" * 10]}, {"question": "22", "solutions": ["7" * 10]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "named.parquet")
    columns = ["task.columns.prompt=question", "task.columns.answer=solutions", "steps=[2]"]
    evaluation = measured(made, tmp_path / "out", *columns, student=made.sevens, task=tmp_path / "named.parquet")
    assert evaluation.rows[0].accuracy == 1.0


def test_a_function_of_the_users_checks(made, tmp_path):
    (tmp_path / "check.py").write_text("def sevens(prompt, completion, answer, row):\n    return row['share']\n")
    task = write_task(tmp_path / "share.jsonl", [{"prompt": "a", "answer": "", "share": s} for s in (0.25, 0.5)])
    words = ["task.checker=python", f"task.function={tmp_path / 'check.py'}:sevens", "steps=[2]"]
    evaluation = measured(made, tmp_path / "out", *words, student=made.sevens, task=task)
    assert evaluation.rows[0].accuracy == 0.375
    assert evaluation.task.settings == {"function": f"{tmp_path / 'check.py'}:sevens"}


def test_a_function_that_fails_on_an_answer_only_ends_the_command_with_its_row(made, tmp_path):
    (tmp_path / "check.py").write_text(
        "def picky(prompt, completion, answer):\n    return '7' not in completion or 1 / 0\n"
    )
    task = write_task(tmp_path / "picky.jsonl", [{"prompt": "a", "answer": "b"}])
    words = ["task.checker=python", f"task.function={tmp_path / 'check.py'}:picky", "steps=[2]"]
    with pytest.raises(UserError, match=r"line 1 of .*picky raised ZeroDivisionError: .* on completion '77777777777'"):
        measured(made, tmp_path / "out", *words, student=made.sevens, task=task)


def test_conversations_are_asked_in_the_words_of_the_chat_template(made, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made.sevens)
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}bot: {% endif %}"
    talk = [{"role": "user", "content": "1+1?"}]
    path = write_task(tmp_path / "talk.jsonl", [{"prompt": talk, "answer": ["2", "two"]}])
    task = load_task(TaskConfig(path=path), tokenizer, ALONE)
    [question] = task.questions
    assert question.prompt == "user: 1+1?\nbot: "
    assert question.answers == ["2", "two"]
    assert tokenizer.decode(task.prompts[0]) == question.prompt
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(UserError, match=r"line 1 of .* chat template fails .*no users"):
        load_task(TaskConfig(path=path), tokenizer, ALONE)


def test_the_door_measures_a_task(made, tmp_path):
    student, teacher = fewstep.load_student(made.greedy), fewstep.load_student(made.teacher)
    evaluation = fewstep.evaluate(
        student, teacher, steps=[2], teacher_steps=4, task={"path": made.task, "questions": 2}, batch=2
    )
    assert [row.model for row in evaluation.rows] == ["teacher", "teacher", "student"]
    assert evaluation.rows[-1].accuracy == 1.0
    assert "seven" in evaluation.table()
    assert fewstep.TaskEvaluation.load(evaluation.save(tmp_path)) == evaluation
    alone = fewstep.evaluate(student, steps=[2], task=made.task)
    assert alone.rows[0].sampler == "top_k, greedy"


def test_a_model_card_has_the_tables_of_tasks(made, tmp_path):
    folder = tmp_path / "model"
    write_student(folder, only="7")
    evaluate_command(None, str(folder), out=tmp_path / "out", overrides=[*SMALL, "task.name=sevens"], task=made.task)
    (tmp_path / "out" / "task-sevens.json").rename(folder / "task-sevens.json")
    card = (export_command(folder, tmp_path / "export") / "README.md").read_text("utf-8")
    assert "Task sevens:" in card
    assert "| student | ancestral | 2 | 2.0 |" in card
    assert "Not measured" not in card


REFUSED = [
    (["--task", "none.jsonl"], "task file 'none.jsonl' does not exist"),
    (["--task", "empty.jsonl"], "task file 'empty.jsonl' holds no question"),
    (["--task", "notes.txt"], "task file 'notes.txt' is text; give JSON lines or Parquet"),
    (["--task", "unanswered.jsonl"], "task.columns.answer 'answer' is not in line 2 of"),
    (["--task", "seven.jsonl", "task.columns.answer=solution"], "its columns are prompt, answer"),
    (["--task", "numbers.jsonl"], "line 1 of 'numbers.jsonl': column 'answer' holds int, not text"),
    (["--task", "nothing.jsonl"], "line 2 of 'nothing.jsonl': column 'answer' holds no answer"),
    (["--task", "masked.jsonl"], "the prompt in line 1 of 'masked.jsonl' holds the mask token"),
    (
        ["--task", "long.jsonl"],
        "the prompt in line 1 of 'long.jsonl' has 12 tokens and the canvas 12, which leaves none",
    ),
    (["--task", "chat.jsonl"], "holds messages, but the tokenizer has no chat template"),
    (["--task", "seven.jsonl", "task.checker=numerc"], "did you mean 'numeric'"),
    (["--task", "seven.jsonl", "task.checker=numeric"], "line 3 of 'seven.jsonl': answer 'x' holds no number"),
    (["--task", "seven.jsonl", "task.checker=regex"], "checker 'regex' needs a regular expression; set pattern"),
    (["--task", "seven.jsonl", "task.checker=regex", "task.pattern=("], "'(' is no regular expression"),
    (["--task", "seven.jsonl", "task.marker=x"], "marker is set, which is of checker 'numeric'"),
    (["--task", "seven.jsonl", "task.checker=python"], "checker 'python' needs a function; set function"),
    (["--task", "seven.jsonl", "task.checker=python", "task.function=check.py:fails"], "raised ZeroDivisionError"),
    (["--task", "seven.jsonl", "task.checker=python", "task.function=none.py:f"], "there is no file none.py"),
    (
        ["--task", "seven.jsonl", "sampler=dilated", "steps=[13]"],
        "evaluate.steps has 13, more steps than the 12 tokens",
    ),
    (["--task", "seven.jsonl", "length=64"], "evaluate.length is 64 but the model takes at most 16 tokens"),
    (["--task", "seven.jsonl", "sampler={name: top_k, block_length: 4}", "steps=[1]"], "needs at least 3"),
    (
        ["--task", "seven.jsonl", "sampler={name: top_k, block_length: 4, budget: block}", "steps=[8]"],
        "than the 4 tokens",
    ),
    (["--task", "seven.jsonl", "--judge", "x"], "leave out --judge and --data, or --task"),
    (["--task", "seven.jsonl", "task.path=other.jsonl", "task.columns.prmpt=q"], "did you mean 'prompt'"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_mistakes_are_one_line_before_anything_is_computed(made, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distill.evaluation.tasks.measure.complete", lambda *_: pytest.fail("a model was asked"))
    write_task(tmp_path / "seven.jsonl")
    write_task(tmp_path / "empty.jsonl", [])
    write_task(tmp_path / "unanswered.jsonl", [QUESTIONS[0], {"prompt": "a"}])
    write_task(tmp_path / "numbers.jsonl", [{"prompt": "a", "answer": 3}])
    write_task(tmp_path / "nothing.jsonl", [QUESTIONS[0], {"prompt": "a", "answer": []}])
    write_task(tmp_path / "masked.jsonl", [{"prompt": "a<|mask|>", "answer": "x"}])
    write_task(tmp_path / "long.jsonl", [{"prompt": "a" * 12, "answer": "x"}])
    write_task(tmp_path / "chat.jsonl", [{"prompt": [{"role": "user", "content": "a"}], "answer": "x"}])
    (tmp_path / "notes.txt").write_text("a question\n")
    (tmp_path / "check.py").write_text("def fails(prompt, completion, answer):\n    return 1 / 0\n")
    settings = [word for word in SMALL if not any(word.split("=")[0] + "=" in w for w in words)]
    monkeypatch.setattr(
        "sys.argv", ["fewstep", "evaluate", "--student", made.sevens, "--out", "out", *settings, *words]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_place_for_results_is_refused(made):
    with pytest.raises(UserError, match="name a new folder with --out"):
        evaluate_command(made.sevens, task=made.task)


def test_what_an_engine_runs_is_asked_in_the_blocks_of_the_model(made):
    teacher = fewstep.load_teacher(made.teacher)
    blocks = replace(teacher.finished, denoiser=teacher.denoiser.with_blocks(4))
    evaluation = fewstep.evaluate(
        None, replace(teacher, finished=blocks), steps=[2], teacher_steps=4, length=12, sampler="sglang", task=made.task
    )
    assert [row.steps for row in evaluation.rows] == [2, 4]
    assert all("blocks of the attention" in row.sampler for row in evaluation.rows)
    assert 3 <= evaluation.rows[0].nfe <= 3 * 2, "three blocks of at most two passes"
