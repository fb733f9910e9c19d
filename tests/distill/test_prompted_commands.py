"""Prompts from end to end, on networks of a few thousand weights: pretrain, distill, watch, evaluate, generate."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from distill import cli
from distill.evaluation.results import Evaluation
from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.run_folder import RunFolder
from teachers.errors import UserError
from tests.forks import Command
from tests.networks import shape

LENGTH, HELD = 16, 6
ROWS = [(f"{a}+{b}=", str(a + b)) for a in range(6) for b in range(0, 50, 10)]
TRAIN = ["train.batch=4", "train.log_every=1", "train.checkpoint_every=1", "train.student.lr=1e-3"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Rows, a teacher and a judge that were trained on them."""
    home = tmp_path_factory.mktemp("prompts")
    lines = [json.dumps({"question": prompt, "answer": answer}) for prompt, answer in ROWS]
    (home / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    config = f"model: {{type: qwen3, shape: {json.dumps(shape())}}}\ntokenizer: {{vocabulary: 259}}\n"
    (home / "pretrain.yaml").write_text(config, "utf-8")
    for name, objective in (("teacher", "elbo"), ("judge", "autoregressive")):
        words = [*data(home), *TRAIN, "train.updates=2", f"objective={objective}", "--run-dir", str(home / name)]
        cli.app(["pretrain", str(home / "pretrain.yaml"), *words], standalone_mode=False)
    config = f"teacher: {{path: {home / 'teacher' / 'model'}}}\nobjective: {{name: sdtt}}\n"
    (home / "distill.yaml").write_text(config, "utf-8")
    return home


def data(home, format="prompt_completion", **columns):
    columns = {"prompt": "question"} | ({"completion": "answer"} if format == "prompt_completion" else {}) | columns
    section = {
        "path": str(home / "rows.jsonl"), "length": LENGTH, "format": format, "columns": columns,
        "heldout_fraction": HELD / len(ROWS),
    }  # fmt: skip
    return [f"data={json.dumps(section)}"]


def words(home, run, *overrides, format="prompt_completion"):
    given = [*data(home, format), *TRAIN, "train.updates=3", *overrides]
    return ["distill", str(home / "distill.yaml"), *given, "--run-dir", str(run)]


def distil(home, run, *overrides, format="prompt_completion", more=()):
    cli.app([*words(home, run, *overrides, format=format), *more], standalone_mode=False)
    return RunFolder(run)


def student(run):
    [file] = (latest_checkpoint(run) / "student-ema").glob("*.safetensors")
    return load_file(file)


def assert_same(one, other, **tolerance):
    for name, weight in student(one).items():
        torch.testing.assert_close(student(other)[name], weight, **(tolerance or {"rtol": 0, "atol": 0}))


def test_what_is_written_after_held_out_prompts_is_watched_evaluated_and_generated(home, tmp_path, capsys):
    judged = [f"evaluate.judge={home / 'judge' / 'model'}", "evaluate.every=1", "evaluate.watch_samples=8"]
    judged += ["evaluate.watch_steps=2", "evaluate.steps=[1, 4]", "evaluate.teacher_steps=16", "evaluate.samples=10"]
    run = distil(home, tmp_path / "run", *judged, "evaluate.collapse=0.01")
    lines = [json.loads(line) for line in run.metrics.read_text("utf-8").splitlines()]
    assert any("watch/judge_perplexity" in line for line in lines)
    capsys.readouterr()
    cli.app(["evaluate", str(run.path)], standalone_mode=False)
    evaluation = Evaluation.load(run.path)
    assert evaluation.reference.samples == HELD
    assert {row.samples for row in evaluation.rows} == {10}
    held_out = [prompt for prompt, _ in ROWS[-HELD:]]
    shown = (run.path / "samples.txt").read_text("utf-8").splitlines()
    texts = [after for before, after in pairwise(shown) if before.startswith("===")]
    assert len(texts) == 8
    assert all(any(text.startswith(prompt) for prompt in held_out) for text in texts)
    capsys.readouterr()
    cli.app(["generate", str(run.path), "--prompt", "4+40=", "--seed", "0"], standalone_mode=False)
    assert capsys.readouterr().out.startswith("4+40=")


def test_models_by_name_write_after_the_prompts_of_a_file(home, tmp_path):
    model, judge = (str(home / name / "model") for name in ("teacher", "judge"))
    command = ["evaluate", "--student", model, "--judge", judge, "--data", str(home / "rows.jsonl")]
    columns = ["data.format=prompt_completion", "data.columns.prompt=question", "data.columns.completion=answer"]
    quick = [f"length={LENGTH}", "samples=40", "steps=[2]", "temperatures=null"]
    cli.app([*command, "--out", str(tmp_path / "out"), *quick, *columns], standalone_mode=False)
    evaluation = Evaluation.load(tmp_path / "out")
    assert evaluation.sampling.prompted
    assert evaluation.reference.samples == len(ROWS), "each once, where there are more samples"
    assert [row.samples for row in evaluation.rows] == [40]
    for words, said in (
        ([*columns[:1], "data.columns.prompt=query"], "data.columns.prompt 'query' is not in line 1"),
        (["data.format=prompts"], "format is 'prompts'"),
        (["data.fromat=text"], "did you mean 'format'"),
    ):
        with pytest.raises(UserError, match=said):
            cli.app([*command, "--out", str(tmp_path / "none"), *quick, *words], standalone_mode=False)
    with pytest.raises(UserError, match=r"data\.format=messages says what held-out data are like, and there are none"):
        cli.app(
            ["evaluate", "--student", model, "--out", str(tmp_path / "none"), "data.format=messages"],
            standalone_mode=False,
        )


@pytest.mark.parametrize(
    ("objective", "format"),
    [("certainty", "prompt_only"), ("trajectory", "prompt_only"), ("sdtt", "prompt_completion")],
)
def test_a_run_goes_on_as_if_it_had_not_been_killed(objective, format, home, tmp_path):
    overrides = [f"objective={{name: {objective}}}", "teacher_samples=8", "teacher_sample_steps=4"]
    whole = distil(home, tmp_path / "whole", *overrides, format=format)
    cut = RunFolder(tmp_path / "cut")
    shutil.copytree(whole.path, cut.path)
    for update in (2, 3):
        shutil.rmtree(cut.checkpoints / f"update-{update:08d}", ignore_errors=True)
    distil(home, cut.path, *overrides, format=format, more=["--resume"])
    assert_same(whole, cut)


def test_other_prompts_are_no_resumption(home, tmp_path):
    integral = ["objective={name: integral_kl, rollout: {steps: [4]}}", "train.critic.lr=1e-3"]
    rows = tmp_path / "rows.jsonl"
    shutil.copy(home / "rows.jsonl", rows)
    integral.append(f"data.path={rows}")
    run = distil(home, tmp_path / "run", *integral, format="prompt_only")
    shutil.rmtree(run.checkpoints / "update-00000003")
    rows.write_text(rows.read_text("utf-8").replace("1+0=", "1+1="), "utf-8")
    with pytest.raises(UserError, match="data"):
        distil(home, run.path, *integral, format="prompt_only", more=["--resume"])


def test_two_processes_make_the_student_of_one(home, tmp_path):
    overrides = ["objective={name: certainty}", "teacher_samples=8", "teacher_sample_steps=4"]
    one = distil(home, tmp_path / "one", *overrides, format="prompt_only")
    command = Command(words(home, tmp_path / "two", *overrides, format="prompt_only"), processes=2)
    _, said = command.communicate()
    assert command.returncode == 0, said[-3000:]
    assert_same(one, RunFolder(tmp_path / "two"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.length=5", "prompts that leave no room to write in data.length 5"),
        ("data.columns.completion=solution", "data.columns.completion 'solution' is not in line 1 of"),
        ("data.format=messages", "data.columns.messages|columns.prompt does not go with format 'messages'"),
        ("data.format=text", "does not go with format 'text'"),
        ("data.tail=-1", "data.tail"),
    ],
)
def test_bad_input_leaves_no_run(change, says, home, tmp_path):
    with pytest.raises(UserError, match=says) as caught:
        distil(home, tmp_path / "run", change)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
