"""The package that notebooks import."""

from __future__ import annotations

import ast
import json
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from matplotlib.figure import Figure

import fewstep
from distill.config import DistillConfig, validate
from distill.training.distillation import in_run_folder
from objectives import DISTILLERS
from students.samplers import SAMPLERS

QUICK = {"updates": 2, "batch": 4, "length": 16}


@pytest.fixture(scope="module")
def teacher():
    return fewstep.load_teacher("bundled:teacher")


@pytest.fixture(scope="module")
def student(teacher):
    return fewstep.distil(teacher, fewstep.IntegralKL(), **QUICK)


def weights(model):
    return {name: value.clone() for name, value in model.denoiser.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_student_in_ten_lines(tmp_path, monkeypatch, capfd):
    """As the README has it, but for its sizes; it says nothing and leaves nothing but what it is told to."""
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    joined = dist.is_initialized()  # another test of this process may have
    capfd.readouterr()

    teacher = fewstep.load_teacher("bundled:teacher")
    student = fewstep.distil(teacher, fewstep.IntegralKL(), updates=2, batch=4, length=16)
    generated = student.generate("The boat", num=2, steps=4, seed=0)
    evaluation = fewstep.evaluate(
        student, teacher, steps=[2, 4], samples=8, teacher_steps=8, bootstrap=10, temperatures=None
    )
    table, figure = evaluation.table(), evaluation.plot()
    student.export("student")
    again = fewstep.load_student("student").generate("The boat", num=2, steps=4, seed=0)

    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert dist.is_initialized() == joined
    assert all(text.startswith("The boat") for text in generated.texts)
    assert generated.tokens.shape == (2, 16)
    assert all(1 <= passes <= 4 for passes in generated.nfe.tolist())
    assert again.texts == generated.texts
    torch.testing.assert_close(again.log_prob, generated.log_prob)
    assert [(row.model, row.steps) for row in evaluation.rows] == [
        ("teacher", 2), ("teacher", 4), ("teacher", 8), ("student", 2), ("student", 4),
    ]  # fmt: skip
    assert f"{evaluation.rows[0].judge_perplexity:.2f}" in table
    assert isinstance(figure, Figure)


def test_it_trains_as_the_command_does(teacher, student, tmp_path):
    """With a folder and without, and as a config says it: the same losses, bit for bit."""
    kept = fewstep.distil(teacher, fewstep.IntegralKL(), **QUICK, run=tmp_path / "kept", log_every=1)
    assert_equal(weights(kept), weights(student))
    section = {"updates": 2, "batch": 4, "log_every": 1, "student": {"lr": 1e-4}, "critic": {"lr": 1e-4}}
    values = {"teacher": {"path": "bundled:teacher"}, "objective": {"name": "integral_kl"}, "length": 16}
    in_run_folder(validate(DistillConfig, values | {"train": section}), tmp_path / "command")
    logged = [json.loads(line) for line in (tmp_path / "command" / "metrics.jsonl").read_text().splitlines()]
    distiller = fewstep.Distiller(teacher, fewstep.IntegralKL(), **QUICK)
    for metrics, line in zip(distiller, logged, strict=True):
        assert all(metrics[key] == value for key, value in line.items() if "second" not in key)
    assert_equal(weights(distiller.student), weights(student))
    assert_equal(weights(fewstep.load_student(tmp_path / "command")), weights(student))


def test_a_distiller_can_be_looked_at_on_its_way(teacher, student):
    distiller = fewstep.Distiller(teacher, fewstep.IntegralKL(), **QUICK)
    start = distiller.student
    assert_equal(weights(start), weights(teacher))
    assert next(iter(distiller))["update"] == 1
    middle = distiller.student
    first = weights(middle)
    assert [metrics["update"] for metrics in distiller] == [2]  # what is left
    assert list(distiller) == []
    assert_equal(weights(middle), first)  # a model of its own
    assert_equal(weights(distiller.train()), weights(student))


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": fewstep.Sdtt(rounds=1, first_steps=4), "data": "bundled:novels"},
        {"objective": fewstep.IntegralKL(), "adapter": fewstep.Adapter(rank=2)},
        {"objective": fewstep.IntegralKL(), "precision": "bfloat16"},
        {"objective": fewstep.Dimo(), "sampler": fewstep.Dilated(temperature=0.9), "lr": fewstep.Optimizer(lr=1e-3)},
        {"objective": fewstep.Consistency(), "data": fewstep.Data(path="bundled:novels", length=16), "length": None},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_settings_are_those_of_a_config_and_the_teacher_stays_as_it_is(teacher, settings):
    before = weights(teacher)
    distiller = fewstep.Distiller(teacher, **QUICK | settings)
    [_, last] = list(distiller)
    assert last["skipped"] == 0
    student = distiller.student
    assert {value.dtype for value in student.denoiser.parameters()} == {torch.float32}
    assert student.generate(num=2, seed=0).tokens.shape == (2, 16)
    assert_equal(weights(teacher), before)
    if "sampler" in settings:
        assert student.generate(seed=0).sampler == settings["sampler"]


def test_log_probs_are_those_of_the_network(student):
    mask = student.tokenizer.mask_token_id
    tokens = torch.tensor([[10, mask, 12, mask]])
    expected = student.log_probs(tokens)
    assert expected.shape == (1, 4, len(student.tokenizer))
    torch.testing.assert_close(expected.exp().sum(-1), torch.ones(1, 4))
    assert (expected[..., mask] == -torch.inf).all()
    padded = student.log_probs([[2, 2, 10, mask, 12, mask]], attention_mask=[[0, 0, 1, 1, 1, 1]], t=0.5)
    torch.testing.assert_close(padded[:, 2:], expected, atol=1e-4, rtol=1e-4)


def test_a_program_trains_and_measures_on_its_own_prompts(teacher, tmp_path):
    prompts = [f"The {animal} said" for animal in ("cat", "dog", "hen", "cow", "pig", "fox")]
    student = fewstep.distil(teacher, fewstep.IntegralKL(), data=prompts, **QUICK)
    assert student.generate(prompts[0], seed=0).texts[0].startswith(prompts[0])
    rows = [json.dumps({"prompt": prompt, "completion": " so"}) for prompt in prompts]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), "utf-8")
    data = fewstep.Data(path=str(tmp_path / "rows.jsonl"), format="prompt_completion", length=16)
    evaluation = fewstep.evaluate(student, steps=[2], samples=8, bootstrap=10, data=data)
    assert evaluation.reference is not None
    assert (evaluation.reference.samples, evaluation.rows[0].samples) == (6, 8)


def test_an_evaluation_is_kept_and_read_back(student, tmp_path):
    evaluation = fewstep.evaluate(student, steps=[2], samples=8, bootstrap=10, data="bundled:novels", sampler="dilated")
    evaluation.save(tmp_path)
    assert fewstep.Evaluation.load(tmp_path) == evaluation
    assert evaluation.rows[0].sampler.startswith("dilated")
    assert evaluation.reference is not None


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda t: fewstep.load_teacher("nowhere/at-all"), "a hub name needs a commit"),
        (lambda t: fewstep.load_teacher("bundled:judge"), "autoregressive model"),
        (lambda t: fewstep.load_student("nowhere"), "nowhere is not a folder"),
        (lambda t: fewstep.distil(t, fewstep.IntegralKL(), updates=0, batch=4, length=16), "train.updates"),
        (lambda t: fewstep.distil(t, fewstep.IntegralKL(), updates=1, batch=4), "set data, or length"),
        (
            lambda t: fewstep.distil(t, fewstep.IntegralKL(), updates=1, batch=4, length=999),
            "longer than the teacher's",
        ),
        (lambda t: fewstep.distil(t, fewstep.IntegralKL(), updates=1, batch=4, length=16, epochs=3), "train.epochs"),
        (lambda t: fewstep.evaluate(None), "nothing to evaluate"),
        (lambda t: t.generate(steps=0), "steps 0 is too small"),
        (lambda t: t.generate(sampler="dillated"), "did you mean 'dilated'"),
    ],
)
def test_mistakes_are_one_line(teacher, mistake, message):
    with pytest.raises(fewstep.UserError, match=message) as error:
        mistake(teacher)
    assert "\n" not in str(error.value)


def test_every_objective_and_every_sampler_has_a_name():
    public = {getattr(fewstep, name) for name in fewstep.__all__}
    assert public >= set(DISTILLERS)
    assert public >= set(SAMPLERS.values())
    assert fewstep.IntegralKL().name == "integral_kl"


def test_names_are_what_editors_see():
    """Imported for type checkers, listed, and found when asked for: the same names, each explained."""
    tree = ast.parse(Path(fewstep.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert set(typed) == set(fewstep.__all__) == set(dir(fewstep))
    for name, (_, own) in typed.items():
        value = getattr(fewstep, name)
        assert value.__name__ == own
        assert value.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'Ancestrel'"):
        _ = fewstep.Ancestrel


def test_a_teacher_is_read_in_the_precision_that_is_asked_for():
    assert {p.dtype for p in fewstep.load_teacher("bundled:teacher").denoiser.parameters()} == {torch.float32}
    half = fewstep.load_teacher("bundled:teacher", precision="bfloat16")
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.bfloat16}
    with pytest.raises(fewstep.UserError, match="precision 'float16' is unknown; allowed are float32 and bfloat16"):
        fewstep.load_teacher("bundled:teacher", precision="float16")
    student = fewstep.distil(half, fewstep.Sdtt(), updates=1, batch=2, length=8)
    assert {p.dtype for p in student.denoiser.parameters()} == {torch.float32}
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.bfloat16}  # it stays as it is
