"""The model type of lm-evaluation-harness, on an exact source and on task files that lie here: no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

import fewstep.harness
from distill.commands.evaluate import evaluate_command
from distill.commands.oracle import oracle_command
from distill.completions import complete
from distill.finished import open_student
from distill.generation import at_temperature, encoded
from fewstep.harness.__main__ import main
from students.samplers import Threshold, TopK
from teachers.errors import UserError
from teachers.families import load_denoiser
from tests.distill.test_generate import write_student

ROOT = Path(__file__).parents[1]
FILES = ROOT / "tests" / "harness"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of an exact source of five words."""
    return oracle_command(
        "markov", tmp_path_factory.mktemp("harness") / "source", tokens=5, length=16, rows=1, heldout=1, seed=3
    )


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The folder of a random network of letters, for canvases of 12 tokens of at most 32."""
    return write_student(tmp_path_factory.mktemp("harness") / "student", length=32)


def model(**arguments: Any) -> Any:
    return get_model("fewstep")(**arguments)


def test_temperature_0_is_the_rule_that_a_task_has_at_0(student):
    rule = model(pretrained=student, sampler={"name": "threshold", "temperature": 0.5, "tempered": True}, temperature=0)
    assert rule.rule == at_temperature(Threshold(temperature=0.5, tempered=True), 0)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, values, number) for number, values in enumerate(arguments)]


def results(task: str, folder: Path, cache: Path, **arguments: Any) -> dict[str, Any]:
    """What the harness says of a task file here."""
    config = load_yaml(FILES / f"{task}.yaml")
    config["dataset_kwargs"] = {"data_files": {"test": str(FILES / f"{task}.jsonl")}, "cache_dir": str(cache)}
    return lm_eval.simple_evaluate(
        "fewstep", {"pretrained": str(folder), "device": "cpu", **arguments}, [config], batch_size=4,
        bootstrap_iters=0, task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip


def lines(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FILES / f"{task}.jsonl").read_text("utf-8").splitlines()]


def law(folder, context: str, continuation: str) -> float:
    """log p(continuation | context) of the source itself."""
    tokenizer, denoiser = open_student(folder).tokenizer, load_denoiser(str(folder))
    before, whole = (torch.tensor([encoded(tokenizer, text)]) for text in (context, f"{context} {continuation}"))
    return float(denoiser.log_likelihood(whole) - denoiser.log_likelihood(before))


@pytest.mark.parametrize("likelihood", ["elbo", "left_to_right"])
def test_multiple_choice_is_what_the_exact_law_answers(source, tmp_path, likelihood):
    found = results("next", source, tmp_path, samples=7, likelihood=likelihood)
    right = []
    for line in lines("next"):
        scores = [law(source, line["question"], choice) for choice in line["choices"]]
        right.append(max(range(4), key=scores.__getitem__) == line["gold"])
    assert 0 < sum(right) < len(right)
    assert found["results"]["next"]["acc,none"] == pytest.approx(sum(right) / len(right))
    first = found["samples"]["next"][0]
    expected = [law(source, first["doc"]["question"], choice) for choice in first["doc"]["choices"]]
    assert [answer[0][0] for answer in first["resps"]] == pytest.approx(expected, abs=1e-4)


def test_generation_is_what_fewstep_writes(source, tmp_path):
    """In canvases as training has them, the same texts and so the same figure."""
    settings = {"steps": 3, "seed": 5, "length": 12}
    found = results("continue", source, tmp_path, sampler={"name": "threshold", "threshold": 0.4}, **settings)
    finished = open_student(source)
    prompts = [encoded(finished.tokenizer, line["prompt"]) for line in lines("continue")]
    rule = Threshold(threshold=0.4)
    written = complete(finished.denoiser, finished.tokenizer, prompts, 12, rule, 3, 5)
    samples = sorted(found["samples"]["continue"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples] == [completion.text for completion in written]
    right = [c.text == line["answer"] for c, line in zip(written, lines("continue"), strict=True)]
    assert 0 < sum(right) < len(right)
    assert found["results"]["continue"]["exact_match,none"] == pytest.approx(sum(right) / len(right))
    assert found["config"]["nfe"] == pytest.approx(sum(c.nfe for c in written) / len(written))
    assert found["config"]["sampler"]["threshold"] == 0.4


def test_the_figure_is_that_of_fewstep_evaluate(source, tmp_path):
    """The same questions, canvases, rule, steps and seed."""
    settings = {"sampler": "top_k", "temperature": 0.5, "steps": 4, "seed": 2, "length": 14}
    found = results("continue", source, tmp_path, **settings)
    words = ["steps=[4]", "seed=2", "length=14", "sampler={name: top_k, temperature: 0.5}", "batch=3"]
    task = str(FILES / "continue.jsonl")
    path = evaluate_command(None, student=str(source), out=tmp_path / "evaluation", task=task, overrides=words)
    [row] = json.loads(path.read_text("utf-8"))["rows"]
    assert found["results"]["continue"]["exact_match,none"] == pytest.approx(row["accuracy"])
    assert found["config"]["nfe"] == pytest.approx(row["nfe"])
    assert found["config"]["tokens_per_forward"] == pytest.approx(row["tpf"])
    answers = [json.loads(line)["text"] for line in path.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    samples = sorted(found["samples"]["continue"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples] == answers


def test_prompts_of_different_lengths_are_written_in_one_batch_as_alone(student):
    prompts = ["say ", "a", "to be or not", ""]
    asked = [(prompt, {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}) for prompt in prompts]
    arguments = {"pretrained": student, "sampler": "top_k", "temperature": 0, "steps": 4}
    together = model(**arguments, batch_size=4).generate_until(requests("generate_until", *asked))
    alone = model(**arguments, batch_size=1)
    assert together == [alone.generate_until(requests("generate_until", one))[0] for one in asked]
    assert all(completion.nfe == 4 and completion.tokens <= 8 for completion in alone.completions)


def test_a_text_ends_before_the_first_stop_string_and_a_request_has_settings_of_its_own(student):
    harness = model(pretrained=student, steps=4, batch_size=2)
    plain, again, stopped, other, sharp = harness.generate_until(
        requests(
            "generate_until",
            ("say ", {"max_gen_toks": 8}),
            ("say ", {"max_gen_toks": 8, "seed": 0}),
            ("say ", {"max_gen_toks": 8, "until": ["zzz", ""]}),
            ("say ", {"max_gen_toks": 8, "seed": 1}),
            ("say ", {"max_gen_toks": 8, "do_sample": True, "temperature": 0.01, "steps": 8}),
        )
    )
    assert plain == again == stopped  # each is the first of those that are written alike
    assert other != plain != sharp
    assert [completion.nfe for completion in harness.completions][-1] > 4
    cut = harness.generate_until(requests("generate_until", ("say ", {"max_gen_toks": 8, "until": plain[3]})))
    assert cut == [plain[: plain.index(plain[3])]]


def test_repeated_requests_are_drawn_anew(student):
    same = [("say ", {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0})] * 3
    assert len(set(model(pretrained=student, batch_size=2).generate_until(requests("generate_until", *same)))) == 3


def test_one_token_takes_one_pass_and_says_whether_it_is_the_greedy_one(source):
    harness = model(pretrained=str(source), batch_size=8)
    words = ["ba", "be", "bi", "bo", "bu"]
    answers = harness.loglikelihood(requests("loglikelihood", *(("bo ba", f" {word}") for word in words)))
    scores = [law(source, "bo ba", word) for word in words]
    assert [score for score, _ in answers] == pytest.approx(scores, abs=1e-4)
    assert [greedy for _, greedy in answers] == [score == max(scores) for score in scores]
    assert [answer.passes for answer in harness.log_likelihoods([harness.encoded_pair("bo ba", " be")])] == [1]


def test_several_tokens_are_greedy_where_the_rule_writes_them(source):
    finished, rule = open_student(source), TopK(draw="greedy")
    prompt = encoded(finished.tokenizer, "bo ba")
    [written] = complete(finished.denoiser, finished.tokenizer, [prompt], len(prompt) + 3, rule, 3, 0)
    asked = requests("loglikelihood", ("bo ba", written.text), ("bo ba", " bu bu bu"))
    arguments = {"pretrained": str(source), "sampler": "top_k", "steps": 3, "samples": 8}
    assert [greedy for _, greedy in model(**arguments).loglikelihood(asked)] == [True, False]
    assert [greedy for _, greedy in model(**arguments, greedy=False).loglikelihood(asked)] == [False, False]


def test_a_rolling_likelihood_is_that_of_the_windows(source, student):
    harness = model(pretrained=str(source), samples=2000, batch_size=64, likelihood="left_to_right")
    text = "ba be bi bo bu ba ba be"
    tokens = torch.tensor([harness.tok_encode(text)])
    whole = float(harness.denoiser.log_likelihood(tokens))
    assert harness.loglikelihood_rolling(requests("loglikelihood_rolling", (text,))) == pytest.approx([whole], abs=1e-4)
    letters = model(pretrained=student, samples=4)
    windows = list(letters.windows(letters.tok_encode("to be or not to be, that is the question, they say")))
    assert len(windows) > 1
    assert [token for pair in windows for token in pair.continuation] == letters.tok_encode(
        "to be or not to be, that is the question, they say"
    )
    assert all(len(pair.context) + len(pair.continuation) <= 32 for pair in windows)
    assert len(windows[-1].context) + len(windows[-1].continuation) == 32  # behind as much as fits


def test_a_text_without_context_stands_behind_the_end_of_another(student):
    harness = model(pretrained=student, samples=4)
    assert harness.encoded_pair("", "say").context == [harness.eot_token_id]
    assert harness.loglikelihood(requests("loglikelihood", ("", "say"))) == [
        pytest.approx(harness.loglikelihood(requests("loglikelihood", ("<|endoftext|>", "say")))[0])
    ]


def test_a_context_that_is_too_long_is_refused_or_loses_its_beginning(student):
    asked, long = {"max_gen_toks": 8, "do_sample": False}, "abcdefghij" * 4
    with pytest.raises(UserError, match="is more than the model's 32 positions"):
        model(pretrained=student).generate_until(requests("generate_until", (long, asked)))
    with pytest.raises(UserError, match="have 43 tokens, and the model 32 positions"):
        model(pretrained=student).loglikelihood(requests("loglikelihood", (long, "xyz")))
    harness = model(pretrained=student, truncation=True, samples=4, sampler="top_k", temperature=0)
    texts = harness.generate_until(requests("generate_until", (long, asked), (long[-24:], asked)))
    assert texts[0] == texts[1]
    answers = harness.loglikelihood(requests("loglikelihood", (long, "xyz"), (long[-29:], "xyz")))
    assert answers[0] == pytest.approx(answers[1])


def test_chat_templates_are_the_tokenizer_s(student):
    harness = model(pretrained=student)
    with pytest.raises(UserError, match="no chat template"):
        harness.apply_chat_template([{"role": "user", "content": "hi"}])
    harness.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[you]{% endif %}"
    )
    assert harness.apply_chat_template([{"role": "user", "content": "hi"}]) == "[user]hi[you]"
    assert harness.chat_template(True) == harness.tokenizer.chat_template
    assert "/" not in harness.tokenizer_name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stpes": 4}, "unknown key stpes; did you mean 'steps'"),
        ({"steps": 0}, "steps"),
        ({"sampler": "thresold"}, "sampler 'thresold' is unknown"),
        ({"sampler": {"name": "threshold", "thresh": 1}}, "unknown key sampler.thresh"),
        ({"batch_size": "many"}, "is no number of rows"),
        ({"device": "nowhere"}, "device 'nowhere' is unknown"),
        ({"likelihood": "exact"}, "likelihood"),
        ({"mask_id": 3}, "mask"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(source, arguments, said):
    with pytest.raises(UserError, match=said) as error:
        model(pretrained=str(source), **arguments)
    assert "\n" not in str(error.value)


def test_a_teacher_s_options_are_taken(student):
    harness = model(pretrained=student, tokenizer=student, precision="bfloat16", batch_size="auto:4", max_batch_size=9)
    assert harness.denoiser.head(torch.zeros(1, 16, dtype=torch.bfloat16)).dtype == torch.float32
    assert next(harness.denoiser.parameters()).dtype == torch.bfloat16
    assert harness.settings.rows == 9


def test_the_command_line_knows_the_type_and_says_a_mistake_in_one_line(source, tmp_path, monkeypatch, capsys):
    """In this process and without the harness's own tasks, of which there are thousands to look through."""
    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", lambda root: iter(()))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.chdir(ROOT)
    words = [
        "--model",
        fewstep.harness.MODEL,
        "--tasks",
        str(FILES / "next.yaml"),
        "--output_path",
        str(tmp_path),
        "--batch_size",
        "4",
    ]

    def run(arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lm_eval", *words, "--model_args", f"pretrained={source},{arguments}"])
        main()
        return capsys.readouterr().out

    assert "|next |" in run("samples=2,greedy=false").replace("  ", " ")
    [written] = tmp_path.rglob("results_*.json")
    assert json.loads(written.read_text("utf-8"))["config"]["model_args"]["samples"] == 2
    with pytest.raises(SystemExit) as end:
        run("stpes=4")
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: unknown key stpes; did you mean 'steps'")


def test_a_task_file_can_make_the_type_known(tmp_path):
    """Of the plain ``lm_eval``, which imports what a file that is given by its path names."""
    path = tmp_path / "own.yaml"
    path.write_text("task: own\nmetadata: {model: !function fewstep.harness.MODEL}\n", encoding="utf-8")
    assert load_yaml(path)["metadata"] == {"model": "fewstep"}
