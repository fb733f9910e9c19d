"""`fewstep oracle`, and the folder it writes as teacher, judge, corpus and start of a student."""

import itertools
import json
import math
import sys

import pytest
import torch

from distill import cli
from distill.commands.distil import distil
from distill.commands.evaluate import evaluate_command
from distill.commands.generate import generate_command
from distill.commands.oracle import oracle_command
from distill.commands.plan import plan_command
from distill.commands.pretrain import pretrain
from distill.config import DataConfig, DistillConfig, EvaluateConfig, PretrainConfig, TokenizerConfig, validate
from distill.data.corpus import load_corpus
from distill.data.source_text import word
from distill.data.teacher_rows import write_rows
from distill.data.tokenizers import load_tokenizer, train_tokenizer
from distill.evaluation.evaluate import evaluate
from distill.evaluation.judge import ExactJudge, load_judge
from distill.evaluation.results import Evaluation, measure
from distill.models import load_teacher
from distill.runtime.world import start_world
from students.samplers import Ancestral
from students.samplers.law import ancestral_law, ancestral_log_prob
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser
from teachers.families.stock.loading import create_denoiser
from teachers.oracle.denoiser import SourceDenoiser
from tests.networks import shape

LENGTH = 8
SHAPE = shape(num_attention_heads=1, head_dim=16, intermediate_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return oracle_command(
        "markov", tmp_path_factory.mktemp("markov") / "source", tokens=5, length=LENGTH, rows=64, heldout=40, seed=3
    )


@pytest.fixture(scope="module")
def start(folder, tmp_path_factory):
    """The model folder of a short pretraining on the source's rows."""
    config = {
        "model": {"type": "qwen3", "shape": SHAPE},
        "tokenizer": {"path": str(folder)},
        "data": data(folder),
        "train": {"updates": 2, "batch": 8, "student": {"lr": 1e-3}},
    }
    return pretrain(validate(PretrainConfig, config), tmp_path_factory.mktemp("start") / "run")


def data(folder):
    paths = {"path": str(folder / "train.jsonl"), "heldout": str(folder / "heldout.jsonl")}
    return {**paths, "length": LENGTH, "pack": False}


def values(folder, start, **changes):
    config = {
        "teacher": {"path": str(folder)},
        "student": {"init": str(start)},
        "objective": {"name": "integral_kl", "rollout": {"steps": [2]}},
        "data": data(folder),
        "train": {"updates": 2, "batch": 4, "student": {"lr": 1e-3}, "critic": {"lr": 1e-3}, "precision": "bfloat16"},
        "evaluate": {
            "judge": str(folder), "steps": [1, 4], "teacher_steps": 64, "samples": 32, "every": 2, "watch_steps": 2,
            "watch_samples": 16, "bootstrap": 50, "precision": "bfloat16", "collapse": 0.01,
        },
    }  # fmt: skip
    return config | changes


def refused(capture, *words):
    message = str(capture.value)
    assert "\n" not in message
    for said in words:
        assert said in message


def test_the_folder_holds_rows_that_read_back_as_the_source_wrote_them(folder):
    source, tokenizer = load_denoiser(str(folder)), load_tokenizer(str(folder))
    assert (source.tokens, source.source.order, source.spec.max_length, source.spec.mask_id) == (5, 1, LENGTH, 5)
    assert len(tokenizer) == source.spec.vocabulary
    corpus = load_corpus(DataConfig(**data(folder)), tokenizer)
    rows = corpus.batch(0, range(64))
    assert (corpus.rows, rows.shape) == (64, (64, LENGTH))
    assert len(rows.unique(dim=0)) > 50
    mean, error = source.excess_nats(rows)
    assert abs(mean) < 4 * error
    text = json.loads((folder / "train.jsonl").read_text().splitlines()[0])["text"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    (folder / "other.jsonl").write_text('{"text": "ba be"}\n{"text": "unheard of"}\n')
    with pytest.raises(UserError) as refusal:
        load_corpus(DataConfig(path=str(folder / "other.jsonl"), length=2, pack=False), tokenizer)
    refused(refusal, "document 2", "can not be encoded", "words")
    with pytest.raises(UserError) as refusal:
        load_corpus(DataConfig(path=str(folder / "train.jsonl"), length=LENGTH), tokenizer)
    refused(refusal, "end-of-text", "data.pack to false")


def test_the_same_seed_gives_the_same_folder_and_another_one_another(folder, tmp_path):
    for seed, same in ((3, True), (4, False)):
        other = oracle_command("markov", tmp_path / str(seed), tokens=5, length=LENGTH, rows=64, heldout=40, seed=seed)
        for name in ("model.safetensors", "train.jsonl", "heldout.jsonl"):
            assert ((other / name).read_bytes() == (folder / name).read_bytes()) == same
    assert (folder / "train.jsonl").read_text()[:200] != (folder / "heldout.jsonl").read_text()[:200]


def test_words_are_distinct():
    assert len({word(i) for i in range(10_000)}) == 10_000


@pytest.mark.parametrize("order", [1, 2])
def test_estimated_from_text(order, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ab. Das ist ein Satz, und noch ein Satz. " * 50, "utf-8")
    words = oracle_command(
        "markov", tmp_path / "words", tokens=11, length=8, rows=1, heldout=1
    )  # a tokenizer to read with
    if order == 2:
        text.write_text("ba be bi ba be bo ba be bi " * 50, "utf-8")
    tokenizer = str(words) if order == 2 else "bundled:teacher"
    out = oracle_command(
        "markov", tmp_path / "out", order=order, length=16, rows=30, heldout=2, text=str(text), tokenizer=tokenizer
    )
    source, own = load_denoiser(str(out)), load_tokenizer(str(out))
    assert source.source.order == order
    assert source.spec.mask_id == own.mask_token_id
    assert source.tokens == len(own) - 1
    given = own(" S" if order == 1 else "ba be")["input_ids"]
    z = torch.full((1, 3), source.spec.mask_id)
    z[0, : len(given)] = torch.tensor(given)
    law = source.posterior(z)[0, 2].exp()
    if order == 1:
        assert int(law.argmax()) == own("a")["input_ids"][0]
        assert float(law.max()) > 0.9
    else:
        assert float(law[own("bi")["input_ids"][0]]) == pytest.approx(2 / 3, abs=0.02)
    corpus = load_corpus(DataConfig(path=str(out / "train.jsonl"), length=16, pack=False), own)
    assert corpus.rows == 30


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"order": 3}, ["order is 3", "1 or 2"]),
        ({"tokens": 1}, ["tokens is 1", "at least 2"]),
        ({"sharpness": -0.5}, ["sharpness is -0.5", "0"]),
        ({"sharpness": 1e4}, ["lower sharpness"]),
        ({"length": 1}, ["length is 1", "at least 2"]),
        ({"rows": 0}, ["--rows 0", "at least 1"]),
        ({"heldout": -1}, ["--heldout -1", "at least 1"]),
        ({"seed": -1}, ["--seed -1"]),
        ({"tokens": 2000, "order": 2}, ["tokens 2000", "order 1"]),
        ({"tokenizer": "bundled:teacher"}, ["--text"]),
        ({"text": "bundled:novels"}, ["needs the tokenizer", "bundled:teacher"]),
        ({"text": "bundled:novels", "tokenizer": "bundled:teacher", "tokens": 4}, ["--tokens", "leave it out"]),
        ({"text": "bundled:novels", "tokenizer": "bundled:teacher", "smoothing": 0.0}, ["smoothing is 0.0"]),
        ({"text": "nowhere.txt", "tokenizer": "bundled:teacher"}, ["nowhere.txt", "does not exist"]),
    ],
)
def test_bad_flags_are_refused_before_there_is_a_folder(flags, words, tmp_path):
    with pytest.raises(UserError) as refusal:
        oracle_command("markov", tmp_path / "out", **{"rows": 4, "heldout": 4} | flags)
    refused(refusal, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["copies", "brackets", "templates"])
def test_a_source_with_dependence_at_a_distance_reads_back_and_judges_itself(kind, tmp_path):
    out = oracle_command(kind, tmp_path / kind, length=6, rows=200, heldout=40, seed=1)
    source, tokenizer = load_denoiser(str(out)), load_tokenizer(str(out))
    assert isinstance(source, SourceDenoiser)
    assert (source.source.kind, source.spec.max_length, len(tokenizer)) == (kind, 6, source.spec.vocabulary)
    paths = {"path": str(out / "train.jsonl"), "heldout": str(out / "heldout.jsonl")}
    rows = load_corpus(DataConfig(**paths, length=6, pack=False), tokenizer).batch(0, range(200))
    mean, error = source.excess_nats(rows)
    assert abs(mean) < 4 * error
    text = json.loads((out / "train.jsonl").read_text().splitlines()[0])["text"]
    assert set(text) <= set("([)] " if kind == "brackets" else "abdefghijklmnoprstuvwyz ")
    path = evaluate_command(
        None, teacher=str(out), judge=str(out), data=str(out / "heldout.jsonl"), out=tmp_path / "out",
        overrides=["samples=40", "steps=[1,2]", "temperatures=null", f"teacher_steps={2**20}", "bootstrap=50"],
    )  # fmt: skip
    result = Evaluation.load(path)
    many = next(row for row in result.rows if row.steps == 2**20)
    assert many.divergence_nats == pytest.approx(0, abs=1e-5), "a token a pass is the source"
    assert result.rows[0].divergence_nats > 0.1
    with pytest.raises(UserError) as refusal:
        evaluate_command(
            None, teacher=str(out), judge=str(out), out=tmp_path / "other",
            overrides=["samples=40", "steps=[1]", "length=4"],
        )  # fmt: skip
    refused(refusal, "4 tokens", f"source of {kind}", "rows of 6")


@pytest.mark.parametrize(
    ("kind", "flags", "words"),
    [
        ("copis", {}, ["source 'copis' is unknown", "did you mean 'copies'", "templates"]),
        ("copies", {"order": 1}, ["--order is no setting", "kind copies", "--noise", "leave it out"]),
        ("copies", {"text": "bundled:novels", "tokenizer": "bundled:teacher"}, ["--text", "markov"]),
        ("copies", {"length": 7}, ["length is 7", "even"]),
        ("brackets", {"depth": 12}, ["stacks", "less depth"]),
        ("brackets", {"stray": 0.0}, ["stray is 0.0", "more than 0"]),
        ("templates", {"noise": 1.5}, ["noise is 1.5", "less than 1"]),
        ("templates", {"tokens": 1}, ["at least two positions by two templates"]),
    ],
)
def test_bad_flags_of_other_sources_are_refused_before_there_is_a_folder(kind, flags, words, tmp_path):
    with pytest.raises(UserError) as refusal:
        oracle_command(kind, tmp_path / "out", **flags)
    refused(refusal, *words)
    assert not (tmp_path / "out").exists()


def test_the_command_line_refuses_with_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fewstep", "oracle", "copies", "--out", str(tmp_path / "out"), "--noise", "2"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: noise is 2.0; it must be more than 0 and less than 1\n"
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_and_a_tokenizer_with_merges_are_refused(folder, tmp_path):
    with pytest.raises(UserError) as refusal:
        oracle_command("markov", folder)
    refused(refusal, str(folder), "exists")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} says that {i * i} is a square. " for i in range(300)), "utf-8")
    merged = train_tokenizer(TokenizerConfig(vocabulary=300), DataConfig(path=str(text), length=16))
    merged.save_pretrained(tmp_path / "merged")
    with pytest.raises(UserError) as refusal:
        oracle_command(
            "markov",
            tmp_path / "out",
            text=str(text),
            tokenizer=str(tmp_path / "merged"),
            smoothing=1000.0,
            rows=300,
            heldout=1,
        )
    refused(refusal, "reads back", "without merges")


def test_as_a_judge_it_is_exact(folder):
    tokenizer = load_tokenizer(str(folder))
    judge = load_judge(str(folder), tokenizer)
    source = load_denoiser(str(folder))
    assert isinstance(judge, ExactJudge)
    rows = source.sample(50, torch.Generator().manual_seed(1), length=LENGTH)
    told = []
    nats, tokens, _ = judge.score(rows, told.append)
    assert sum(told) == 50
    assert (tokens == LENGTH).all(), "the first token is scored, too"
    table, first = source.source.transitions, source.source.initial.log()
    for row, value in zip(rows, nats, strict=True):
        by_hand = first[row[0]] + sum(table[a, b] for a, b in itertools.pairwise(row))
        assert value == pytest.approx(-float(by_hand))
    assert judge.source_entropy(LENGTH) == pytest.approx(source.entropy(LENGTH) / LENGTH)
    with pytest.raises(UserError) as refusal:
        load_judge(str(folder), tokenizer, retokenize=True)
    refused(refusal, "evaluate.retokenize", "set it to false")
    with pytest.raises(UserError) as refusal:
        load_judge(str(folder), load_tokenizer("bundled:teacher"))
    refused(refusal, str(folder), "over one vocabulary")


def test_a_whole_distillation_from_it(folder, start, tmp_path, capsys):
    config = validate(DistillConfig, values(folder, start))
    run = distil(config, tmp_path / "run")
    watched = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("watch/teacher_judge_perplexity" in line for line in watched)
    result = Evaluation.load(evaluate_command(run))
    source = load_denoiser(str(folder))
    entropy = source.entropy(LENGTH) / LENGTH
    assert result.judge.source_entropy == pytest.approx(entropy)
    for row in [result.reference, *result.rows]:
        assert row.excess_nats == pytest.approx(math.log(row.judge_perplexity) - entropy)
        low, high = row.excess_nats_ci
        assert low <= row.excess_nats <= high
    assert result.reference.divergence_nats is None
    for row in result.rows:
        low, high = row.divergence_nats_ci
        assert low <= row.divergence_nats <= high
    assert result.quality == "divergence_nats"
    teacher = {row.steps: row.excess_nats for row in result.rows if row.model == "teacher"}
    assert teacher[1] > teacher[64] + 0.2, "in one step the teacher's tokens are independent"
    assert abs(teacher[64]) < 0.3
    shown = result.markdown()
    assert "excess" in shown
    assert f"{result.rows[0].excess_nats:.4f}" in shown
    assert f"{result.rows[0].divergence_nats:.4f} ± " in shown
    assert len({line.count("|") for line in shown.splitlines()[:8]}) == 1, "a row has another number of columns"
    assert "excess" in capsys.readouterr().out
    assert generate_command(str(run), steps=4, num=1, seed=0)[0].count(" ") == LENGTH - 1
    with pytest.raises(UserError) as refusal:
        generate_command(str(run), prompts=["unheard-of"])
    refused(refusal, "unheard-of", "known words")


def test_the_divergence_is_the_bound_of_the_enumeration_and_only_the_source_has_none(tmp_path):
    length, many = 3, 2**20
    folder = oracle_command("markov", tmp_path / "source", tokens=3, length=length, rows=1, heldout=1, seed=4)
    source = load_denoiser(str(folder))
    config = EvaluateConfig(
        steps=[1, 2, 3], temperatures=None, teacher_steps=many, samples=20_000, batch=10_000, bootstrap=200
    )
    rows, judge = source.all_rows(length), load_judge(str(folder), load_tokenizer(str(folder)))

    def measured(**changes):
        result = evaluate(source, None, judge, config.model_copy(update=changes), length, seed=1)
        return {row.steps: row for row in result.rows}

    def error_of(row):
        low, high = row.divergence_nats_ci
        return (high - low) / 2 / 1.96

    found = measured()
    for steps in (1, 2, 3):
        exact = 0.0  # E_c KL(q(· | c) ‖ p), c: which transition reveals which position
        for pattern in itertools.product(range(steps), repeat=length):
            log_q = ancestral_log_prob(source, rows, torch.tensor(pattern).expand_as(rows), steps)
            exact += float((log_q.exp() * (log_q - source.log_likelihood(rows))).sum()) / steps**length
        kl = source.kl(ancestral_law(source, rows, steps), length)
        assert exact > 1.05 * kl if steps > 1 else exact == pytest.approx(kl, abs=1e-6)
        assert found[steps].divergence_nats == pytest.approx(exact / length, abs=4 * error_of(found[steps]))
        assert 20 * error_of(found[steps]) < exact / length, "the case is trivial"
    assert found[many].divergence_nats == pytest.approx(0, abs=1e-4)
    assert measure(list(found.values())) == "divergence_nats"

    sharp = measured(sampler=Ancestral(temperature=0.5))[many]
    assert sharp.excess_nats < 0 < sharp.divergence_nats - 4 * error_of(sharp)
    assert measured(sampler=Ancestral(draw="float32-gumbel"))[1].divergence_nats is None


def test_evaluated_by_name_with_held_out_rows(folder, tmp_path):
    path = evaluate_command(
        None, teacher=str(folder), judge=str(folder), data=str(folder / "heldout.jsonl"), out=tmp_path / "out",
        overrides=["samples=40", "steps=[2]", "teacher_steps=8", "temperatures=null", "bootstrap=50"],
    )  # fmt: skip
    result = json.loads(path.read_text())
    assert [row["model"] for row in result["rows"]] == ["teacher", "teacher"]
    assert result["reference"]["samples"] == 40
    assert result["sampling"]["length"] == LENGTH


def test_where_rows_are_needed_and_there_are_none_the_source_writes_them(folder, start):
    changes = {"data": None, "length": LENGTH, "teacher_samples": 500}
    config = validate(DistillConfig, values(folder, start, **changes))
    teacher, _ = load_teacher(config.teacher)
    rows = write_rows(config, teacher, start_world())[0]["tokens"].long()
    mean, error = teacher.excess_nats(rows)
    assert abs(mean) < 4 * error < 0.3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": {}}, ["student.init is 'teacher'", "RUN/model"]),
        ({"student": {"adapter": {"rank": 2}}}, ["adapter", "leave out"]),
        ({"objective": {"name": "integral_kl", "ratio": {"adapter": {"rank": 2}}}}, ["adapter", "leave out"]),
        ({"teacher": {"placement": "sharded"}}, ["teacher.placement is 'sharded'", "leave it out"]),
        ({"teacher": {"shift": True}}, ["teacher.shift", "leave it out"]),
        ({"student": {"init": "bundled:teacher"}}, ["bundled:teacher", "vocabulary"]),
        ({"student": {"init": "SOURCE"}}, ["exact source, without weights", "set student.init"]),
        ({"teacher": {"tokenizer": "bundled:teacher"}}, ["tokenizer has 259 entries"]),
    ],
)
def test_what_needs_a_network_is_refused_before_there_is_a_run(changes, words, folder, start, tmp_path):
    if changes.get("student") == {"init": "SOURCE"}:
        changes = {"student": {"init": str(folder)}}
    if "teacher" in changes:
        changes = {"teacher": {"path": str(folder), **changes["teacher"]}}
    if "objective" in changes:
        changes["objective"] = {**changes["objective"], "rollout": {"steps": [2]}}
    config = validate(DistillConfig, values(folder, start, **changes))
    with pytest.raises(UserError) as refusal:
        distil(config, tmp_path / "run")
    refused(refusal, *words)
    assert not (tmp_path / "run").exists()


def test_there_is_nothing_to_plan_and_a_short_student_is_refused(folder, start, tmp_path):
    with pytest.raises(UserError) as refusal:
        plan_command(validate(DistillConfig, values(folder, start)), 1, 80.0, None)
    refused(refusal, "exact source", "choose a model of such a family")
    create_denoiser("qwen3", SHAPE, DenoiserSpec(5, 6, LENGTH - 1)).save(tmp_path / "short")
    with pytest.raises(UserError) as refusal:
        distil(validate(DistillConfig, values(folder, tmp_path / "short")), tmp_path / "run")
    refused(refusal, f"{LENGTH - 1} positions")
