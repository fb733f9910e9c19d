"""Training, evaluating and writing with compiled passes is what it is without, and leaves what it would."""

import re
import shutil
import time

import pytest
import torch

from benchmarks.equality import make_teacher
from benchmarks.shapes import Size
from distill.evaluation.results import Evaluation
from distill.evaluation.sample import at_precision
from distill.runtime.checkpoints import checkpoint_folders
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import ALONE
from distill.training.distillation import in_memory, load_networks
from students.adapters import AdaptedDenoiser, AdapterConfig
from students.student import compile_passes
from teachers.canvas import Canvas
from tests.compilation import captured_command, capturing
from tests.distill.config.small import distil, pretrain, refused
from tests.distill.runs import assert_same_weights, here, losses, words
from tests.forks import Command
from tests.networks import shape, stock

KL = {"objective": {"name": "integral_kl", "rollout": {"name": "k_step", "steps": [4]}}}
ADAPTER = {"adapter": {"rank": 2}}
ADAPTED = {"objective": {**KL["objective"], "ratio": ADAPTER}, "student": ADAPTER}
WATCH = ["evaluate.every=2", "evaluate.precision=bfloat16", "evaluate.watch_samples=4", "evaluate.watch_steps=2"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled") / "teacher"
    make_teacher(folder)
    return f"teacher.path={folder}"


@pytest.mark.parametrize("sections", [KL, ADAPTED], ids=["full", "adapters"])
def test_updates_are_those_of_training_as_it_is(sections, tmp_path, monkeypatch):
    graphs = capturing(monkeypatch)
    train = {"critic": {"lr": 1e-4}, "gradient_checkpointing": "products"}
    size = Size("llama", 16, 2, 2, 300, 8, 4, sections=sections, train=train)
    size.teacher(tmp_path)
    found = {}
    for compilation in (False, True):
        config = size.config(tmp_path, updates=2, compile=compilation)
        trainer = in_memory(config, load_networks(config), ALONE)
        steps = [[(phase, step.loss, step.norm) for phase, step in update.steps] for update in trainer]
        found[compilation] = steps, dict(trainer.average().named_parameters())
        assert bool(graphs) == compilation
    assert found[True][0] == found[False][0]
    expected, average = found[False][1], found[True][1]
    assert list(average) == list(expected)
    assert all(torch.equal(average[name], weight) for name, weight in expected.items())


def test_an_engine_trains_what_torch_alone_trains_without(teacher, tmp_path, monkeypatch):
    overrides = [teacher, "train.updates=2", "length=16", "train.precision=bfloat16"]
    plain = here(tmp_path / "plain", *overrides)
    graphs = capturing(monkeypatch)
    zero = "deepspeed.zero_optimization.stage=2"  # 1 is that of several processes, below
    compiled = here(tmp_path / "compiled", *overrides, zero, "train.compile=true")
    assert graphs
    assert torch.equal(losses(compiled), losses(plain))
    assert_same_weights(compiled, plain, rtol=0, atol=0)


def told(processes, *words):
    """What a command says on stdout and stderr, and how many graphs its processes captured."""
    command = Command(list(words), processes, action=captured_command)
    stdout, stderr = command.communicate()
    assert command.returncode == 0, stderr[-3000:]
    return stdout, stderr, [int(line.split()[1]) for line in stderr.splitlines() if line.startswith("graphs: ")]


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    """A compiled run in two processes, watched in another precision; and its overrides."""
    path = tmp_path_factory.mktemp("run") / "whole"
    overrides = [teacher, "length=16", "train.updates=4", "train.checkpoint_every=2", *WATCH]
    _, said, graphs = told(2, *words(path, *overrides, "train.compile=true"))
    assert said.count("passes without a gradient are compiled") == 1  # by one of the two
    assert len(graphs) == 2
    assert min(graphs) > 0
    return RunFolder(path), overrides


def test_two_processes_and_a_resume_are_the_run_that_is_not_compiled(run, tmp_path):
    whole, overrides = run
    half, plain = tmp_path / "half", tmp_path / "plain"
    shutil.copytree(whole.path, half)
    shutil.rmtree(checkpoint_folders(RunFolder(half))[-1])  # as a run that was killed after its first checkpoint
    told(2, *words(half, *overrides, "train.compile=true", resume=True))
    assert told(2, *words(plain, *overrides))[2] == [0, 0]
    for other in (half, plain):
        assert torch.equal(losses(RunFolder(other)), losses(whole))
        assert_same_weights(RunFolder(other), whole, rtol=0, atol=0)
    watched = [
        [line["watch/judge_perplexity"] for line in RunFolder(path).read_metrics() if "watch/judge_perplexity" in line]
        for path in (whole.path, plain)
    ]
    assert watched[0] == watched[1]
    assert len(watched[0]) == 2


def test_a_compiled_evaluation_measures_the_same_and_leaves_compiling_out_of_its_rows_seconds(run, tmp_path):
    found, started = [], time.monotonic()
    for compilation in ("false", "true"):
        folder = shutil.copytree(run[0].path, tmp_path / compilation)
        settings = ["samples=4", "steps=[2]", "teacher_steps=4", f"compile={compilation}"]
        _, said, graphs = told(1, "evaluate", folder, *settings)
        assert bool(graphs[0]) == (compilation == "true")
        found.append(Evaluation.load(folder / "evaluation.json"))
    assert [row.judge_perplexity for row in found[1].rows] == [row.judge_perplexity for row in found[0].rows]
    compiling = float(re.search(r"compiling took ([0-9.]+) s", said)[1])
    assert compiling > 1  # two networks
    assert sum(row.seconds for row in found[1].rows) < 1 < time.monotonic() - started


def test_compiled_texts_are_the_same(run):
    texts = [told(1, "generate", run[0].path, "--num", 2, "--seed", 1, *flag) for flag in ([], ["--compile"])]
    assert texts[0][0] == texts[1][0] != ""
    assert [graphs[0] > 0 for *_, graphs in texts] == [False, True]


def test_a_copy_in_another_precision_is_compiled_as_its_network_is_but_for_graphs(monkeypatch):
    graphs = capturing(monkeypatch)
    base = stock(12, 6, sizes=shape(16, 2))
    tokens = torch.randint(2, 10, (3, 6), generator=torch.Generator().manual_seed(0))
    canvas = Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool))
    for network in (base, AdaptedDenoiser(base, AdapterConfig(rank=2))):
        assert not at_precision(network, "bfloat16").compilation
    with torch.no_grad():
        expected = at_precision(base, "bfloat16").features(canvas)
        compile_passes(base, "reduce-overhead")
        assert base.compilation == "reduce-overhead"
        for network in (base, base, AdaptedDenoiser(base, AdapterConfig(rank=2))):
            copied = at_precision(network, "bfloat16")
            assert copied.compilation is True
            assert torch.equal(copied.features(canvas), expected)
    assert len(graphs) == 1  # for as many copies as there are


def test_blocks_whose_weights_come_and_go_are_not_compiled(tmp_path):
    for word, named in (
        ("teacher.placement=dispatched", "teacher.placement 'dispatched'"),
        ("deepspeed.zero_optimization.stage=3", "deepspeed.zero_optimization.stage 3"),
    ):
        refused(lambda word=word: distil(tmp_path, "train.compile=true", word), "train.compile is True", named)
    assert distil(tmp_path, "train.compile=reduce-overhead").train.compile == "reduce-overhead"


def test_pretraining_has_no_pass_to_compile(tmp_path):
    refused(lambda: pretrain(tmp_path, "train.compile=true"), "train.compile is True", "leave it out")
