"""What the teacher writes before training: deterministic, kept in the run folder, written again only if it must be."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.config import DistillConfig, load_config
from distill.data import teacher_rows
from distill.data.corpus import Corpus
from distill.data.kept_rows import FILE, PARTS, writing_seconds
from distill.data.prompted import PromptedCorpus
from distill.data.teacher_rows import training_rows, write_rows
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from objectives.objective import Distillation
from students.fill import fill
from students.samplers import Ancestral, TopK
from students.student import trainable_copy
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.process import MaskedProcess
from tests.distill.runs import ROOT, assert_same_weights, here
from tests.tabular import TabularDenoiser

LENGTH, MASK, END = 4, 3, 2
WORLD = World(0, 1, torch.device("cpu"))
TRAJECTORY, CERTAINTY = "objective={name: trajectory}", "objective={name: certainty}"


@pytest.fixture
def teacher():
    return TabularDenoiser(MASK + 1, LENGTH, 0)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def configure(*overrides):
    quick = [f"length={LENGTH}", "teacher_samples=70", "teacher_sample_steps=3", "train.critic=null"]
    return load_config(DistillConfig, ROOT / "configs" / "smoke.yaml", [*quick, *overrides])


def rows_of(config, teacher, run, corpus=None):
    student = trainable_copy(teacher)
    objective = config.objective.build(Distillation(teacher, student, MaskedProcess(), LENGTH, teacher))
    return training_rows(objective, config, teacher, corpus, run, WORLD)


def corpus_of(rows, seed=0):
    tokens = np.random.default_rng(seed).integers(0, MASK, rows * LENGTH)
    return Corpus(tokens, LENGTH, 1.0, packed=False)


@torch.no_grad()
def test_trajectories_are_the_teachers_own(teacher, run):
    config = configure(TRAJECTORY)
    rows = rows_of(config, teacher, run)
    assert rows.tokens.shape == rows.order.shape == (70, LENGTH)
    assert (np.sort(rows.order, 1) == [0, 0, 1, 2]).all()  # 4 tokens in 3 passes
    generator = torch.Generator().manual_seed(config.train.seed)
    first = fill(teacher, Canvas.blank(64, LENGTH, MASK), TopK(), 3, generator).tokens
    assert np.array_equal(rows.tokens[:64], first)
    assert not np.array_equal(rows_of(configure(TRAJECTORY, "train.seed=1"), teacher, run).tokens, rows.tokens)


def test_rows_are_read_and_not_written_again(teacher, run, monkeypatch):
    config = configure(TRAJECTORY)
    first = rows_of(config, teacher, run)
    monkeypatch.setattr(teacher_rows, "write_rows", None)  # would fail
    again = rows_of(config, teacher, run)
    assert again.identity() == first.identity()
    assert [p.name for p in run.path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "change", ["train.seed=1", "teacher_samples=71", "teacher_sample_steps=4", "objective={name: constrained_order}"]
)
def test_rows_of_another_config_are_written_again(teacher, run, change):
    first = rows_of(configure(TRAJECTORY), teacher, run)
    other = rows_of(configure(TRAJECTORY, change), teacher, run)
    assert other.identity() != first.identity()


def test_candidates_raise_the_elbo_of_the_same_rows(teacher, run):
    plain, _ = write_rows(configure(TRAJECTORY), teacher, WORLD, "trajectories")
    best, _ = write_rows(configure(TRAJECTORY), teacher, WORLD, "trajectories", candidates=4)
    assert torch.equal(plain["tokens"][:64], best["tokens"][:64])
    assert not torch.equal(plain["order"][:64], best["order"][:64])


def test_the_data_give_the_tokens_and_the_teacher_their_order(teacher, run):
    corpus = corpus_of(90)
    rows = rows_of(configure(TRAJECTORY), teacher, run, corpus)
    assert np.array_equal(rows.tokens, corpus.batch(0, range(70)).numpy())
    given = torch.from_numpy(rows.tokens).long()
    log_p = teacher.log_probs(Canvas.blank(70, LENGTH, MASK)).gather(-1, given[..., None]).squeeze(-1)
    two = log_p.topk(2).indices.sort(1).values.numpy()
    assert np.array_equal(np.argsort(rows.order, 1, kind="stable")[:, :2], two)  # the first pass takes two
    other = rows_of(configure(TRAJECTORY), teacher, run, corpus_of(90, seed=1))  # not those that were kept
    assert not np.array_equal(other.tokens, rows.tokens)


def test_data_are_served_as_they_are_to_objectives_that_need_rows(teacher, run):
    corpus = corpus_of(5)
    assert rows_of(configure(CERTAINTY), teacher, run, corpus) is corpus
    assert not list(run.path.iterdir())
    written = rows_of(configure(CERTAINTY), teacher, run)
    assert isinstance(written, Corpus)
    assert written.rows == 70
    assert written.batch(0, range(70)).amax() < MASK


def prompts_of(rows, labelled):
    """Prompts of one token or two; what the teacher's last token but the mask is ends a text."""
    given = np.arange(rows) % 2 + 1
    tokens = np.random.default_rng(1).integers(0, MASK, (rows, LENGTH))
    corpus = PromptedCorpus.of(tokens, given, END)
    if labelled:
        return corpus
    borders = np.append(0, np.cumsum(np.stack([given, given * 0], 1)))
    prompts = np.concatenate([row[:length] for row, length in zip(tokens, given, strict=True)])
    return PromptedCorpus(prompts, borders, LENGTH, END, False, 1.0)


def test_the_teacher_writes_after_prompts(teacher, run):
    prompts = prompts_of(9, labelled=False)
    rows = rows_of(configure(CERTAINTY), teacher, run, prompts)
    assert rows.labelled
    assert rows.rows == 70
    canvas = prompts.batch(0, range(64), MASK).canvas
    generator = torch.Generator().manual_seed(0)
    written = fill(teacher, canvas, Ancestral(), 3, generator).tokens
    ended = ((written == END) & canvas.open).cumsum(1) > 0
    wanted = torch.where(ended & canvas.open, END, written)
    batch = rows.batch(0, range(70), MASK)
    served = list(zip(batch.labels.tolist(), batch.canvas.open.tolist(), strict=True))
    assert all(row in served for row in zip(wanted.tolist(), canvas.open.tolist(), strict=True))
    assert ended.any()


def test_trajectories_after_prompts_leave_them_alone(teacher, run):
    prompts = prompts_of(9, labelled=False)
    rows = rows_of(configure(TRAJECTORY), teacher, run, prompts)
    canvas = prompts.batch(0, range(70), MASK).canvas
    assert np.array_equal(rows.order >= 0, canvas.open.numpy())
    assert np.array_equal(rows.tokens[~canvas.open.numpy()], canvas.tokens[~canvas.open].numpy())
    assert rows.tokens.max() < MASK
    labelled = prompts_of(9, labelled=True)
    ordered = rows_of(configure(TRAJECTORY), teacher, run, labelled)
    assert np.array_equal(ordered.tokens, labelled.batch(0, range(70), MASK).labels.numpy())
    assert np.array_equal(ordered.order >= 0, canvas.open.numpy())


@pytest.mark.parametrize("labelled", [False, True])
def test_rows_are_written_where_they_have_to_be(labelled, teacher, run):
    written = SimpleNamespace(needs="written rows", candidates=1)
    prompts, config = prompts_of(9, labelled), configure(CERTAINTY)
    rows = training_rows(written, config, teacher, prompts, run, WORLD)
    assert rows.identity() == rows_of(config, teacher, None, prompts_of(9, labelled=False)).identity()
    own = training_rows(written, config, teacher, corpus_of(5), None, WORLD)
    assert own.identity() == rows_of(config, teacher, None).identity()


def test_prompts_are_served_as_they_are_where_no_rows_are_needed(teacher, run):
    prompts = prompts_of(9, labelled=False)
    nothing = SimpleNamespace(needs="nothing")
    assert training_rows(nothing, configure(CERTAINTY), teacher, prompts, run, WORLD) is prompts
    assert training_rows(nothing, configure(CERTAINTY), teacher, corpus_of(5), run, WORLD) is None
    labelled = prompts_of(9, labelled=True)
    assert rows_of(configure(CERTAINTY), teacher, run, labelled) is labelled
    assert not list(run.path.iterdir())


@pytest.mark.parametrize("objective", [CERTAINTY, TRAJECTORY, "objective={name: constrained_order, candidates: 2}"])
@pytest.mark.parametrize("prompted", [False, True])
def test_a_teacher_that_is_killed_goes_on_where_it_was(objective, prompted, teacher, tmp_path, monkeypatch):
    corpus = prompts_of(9, labelled=False) if prompted else None
    config = configure(objective, "teacher_samples=150")
    whole, cut = (RunFolder(tmp_path / name) for name in ("whole", "cut"))
    for run in (whole, cut):
        run.path.mkdir()
    wanted = rows_of(config, teacher, whole, corpus)
    batches = []
    write = teacher_rows._Writer.write

    def killed(writer, batch):
        batches.append(len(batch))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return write(writer, batch)

    monkeypatch.setattr(teacher_rows._Writer, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        rows_of(config, teacher, cut, corpus)
    assert [path.name for path in cut.path.iterdir()] == [PARTS]
    assert rows_of(config, teacher, cut, corpus).identity() == wanted.identity()
    assert batches == [64, 64, 22, 22]
    assert [path.name for path in cut.path.iterdir()] == [FILE]


def test_parts_of_another_config_are_written_again_and_damaged_ones_refused(teacher, run, monkeypatch):
    config = configure(TRAJECTORY)
    monkeypatch.setattr(teacher_rows, "save", None)  # would fail, when all parts are there
    with pytest.raises(TypeError):
        rows_of(config, teacher, run)
    part = run.path / PARTS / "000001.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"000001\.safetensors is damaged; remove it"):
        rows_of(config, teacher, run)
    monkeypatch.undo()
    other = rows_of(configure(TRAJECTORY, "train.seed=1"), teacher, run)
    fresh = RunFolder(run.path / "fresh")
    fresh.path.mkdir()
    assert other.identity() == rows_of(configure(TRAJECTORY, "train.seed=1"), teacher, fresh).identity()


@pytest.mark.parametrize("damage", ["cut", "flipped", "forged"])
def test_damaged_rows_are_refused(teacher, run, damage):
    config, path = configure(TRAJECTORY), run.path / FILE
    assert writing_seconds(run) == 0
    rows_of(config, teacher, run)
    assert writing_seconds(run) > 0
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-7])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        tensors = load_file(path)
        save_file({**tensors, "tokens": tensors["tokens"] * 0}, path, metadata)
    with pytest.raises(UserError, match=f"{FILE} is damaged; remove it") as caught:
        rows_of(config, teacher, run)
    assert "\n" not in str(caught.value)


def test_no_room_to_keep_them(teacher, tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*free some space"):
        rows_of(configure(TRAJECTORY), teacher, RunFolder(tmp_path / "gone"))


def test_a_run_that_is_resumed_goes_on_with_the_same_rows_and_target(tmp_path):
    """T3D has both: its reference is renewed before the second of 3 updates, and the run is cut after that."""
    overrides = ["objective={name: t3d, rounds: 2}", "train.critic=null", "length=16", "teacher_samples=12"]
    overrides += ["teacher_sample_steps=4", "train.updates=3", "train.checkpoint_every=2"]
    whole = here(tmp_path / "whole", *overrides)
    cut = RunFolder(tmp_path / "cut")
    shutil.copytree(whole.path, cut.path)
    shutil.rmtree(cut.checkpoints / "update-00000003")
    kept = (cut.path / FILE).stat()
    here(cut.path, *overrides, resume=True)
    assert_same_weights(whole, cut, rtol=0, atol=0)
    assert (cut.path / FILE).stat().st_mtime_ns == kept.st_mtime_ns
