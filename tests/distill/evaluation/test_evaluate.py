"""`fewstep evaluate` from end to end on networks of a few thousand random weights."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console

from distill import cli
from distill.commands.evaluate import evaluate_command
from distill.config import DataConfig, EvaluateConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from distill.evaluation.evaluate import evaluate, quick_figures
from distill.evaluation.judge import load_judge
from distill.evaluation.metrics import unigram_entropy
from distill.evaluation.reports.cells import table_rows
from distill.evaluation.reports.terminal import evaluation_table
from distill.evaluation.results import Evaluation
from distill.evaluation.sample import at_precision, draw, many_steps
from distill.runtime.result_files import as_json
from distill.runtime.tables import print_table
from students.planner import add_planner
from students.samplers import Ancestral
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from tests.distill.runs import sign
from tests.forks import Command
from tests.networks import shape, stock

LENGTH = 16
SHAPE = shape(32, intermediate_size=32, initializer_range=0.3)
SMALL = {"steps": [1, 4, 8], "teacher_steps": 64, "samples": 8, "batch": 5, "bootstrap": 50, "temperatures": None}
WORDS = {
    "distinct_3", "distinct_4", "repetition_4", "longest_run", "self_bleu", "length_mean", "length_quantiles",
    "length_ended", "distinct_3_ci", "distinct_4_ci", "repetition_4_ci", "longest_run_ci", "length_mean_ci",
}  # fmt: skip
DISTANCES = {"mauve", "gradient_moment", "energy_distance", "energy_null", "length_distance"}
OVERLAPS = {"overlap_mean", "overlap_mean_ci", "overlap_max", "overlap_share", "overlap_share_ci"}
FIGURES = WORDS | {
    "samples", "judge_perplexity", "judge_perplexity_ci", "unigram_entropy", "bigram_entropy", "distinct_2",
    "unigram_entropy_ci", "bigram_entropy_ci", "distinct_2_ci",
}  # fmt: skip
COSTS = {
    "nfe", "nfe_ci", "nfe_median", "nfe_p95", "critic_nfe", "seconds", "tokens_per_second", "passes", "peak_host_bytes",
}  # fmt: skip
ROW = FIGURES | COSTS | {"model", "sampler", "steps", "temperature"}


def tiny(tokenizer, seed, attention="full", length=LENGTH):
    torch.manual_seed(seed)
    spec = DenoiserSpec(
        tokenizer.mask_token_id, len(tokenizer), length, tokenizer.eos_token_id, tokenizer.pad_token_id,
        shift=attention == "causal", attention=attention,
    )  # fmt: skip
    return create_denoiser("qwen3", SHAPE, spec).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokenizers, teacher, student and judges on disk, with a run folder."""
    root: Path = tmp_path_factory.mktemp("evaluate")
    text = root / "text.txt"
    text.write_text("".join(f"Line {i} says that {i * i} is a square. " for i in range(300)), "utf-8")
    data = DataConfig(path=str(text), length=LENGTH)
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259), data)
    other = train_tokenizer(TokenizerConfig(vocabulary=300), data)
    for name, seed, attention, words in (
        ("teacher", 1, "full", tokenizer),
        ("student", 2, "full", tokenizer),
        ("judge", 3, "causal", tokenizer),
        ("other-judge", 4, "causal", other),
    ):
        tiny(words, seed, attention, 64 if name == "other-judge" else LENGTH).save(root / name)
        words.save_pretrained(root / name)
    run = root / "run"
    checkpoint = run / "checkpoints" / "update-00000001"
    tiny(tokenizer, 2).save(checkpoint / "student-ema")
    (checkpoint / "state.json").write_text('{"update": 1}')
    sign(checkpoint)
    tokenizer.save_pretrained(run / "tokenizer")
    optimizer = {"lr": 1e-3}
    config = {
        "teacher": {"path": str(root / "teacher")},
        "objective": {"name": "integral_kl", "rollout": {"steps": [4]}},
        "data": {"path": str(text), "length": LENGTH, "heldout_fraction": 0.5},
        "train": {"updates": 1, "batch": 8, "student": optimizer, "critic": optimizer},
        "evaluate": {"judge": str(root / "judge"), **SMALL},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return SimpleNamespace(root=root, tokenizer=tokenizer, other=other, text=text, run=run)


@pytest.fixture(scope="module")
def judge(made):
    return load_judge(str(made.root / "judge"), made.tokenizer)


def rows(count: int, seed: int = 0, vocabulary: int = 256):
    return torch.randint(3, vocabulary, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def test_run_is_evaluated_and_evaluated_again(made, capsys, machine):
    path = evaluate_command(made.run, overrides=["samples=6"])
    result = json.loads(path.read_text("utf-8"))
    assert path == made.run / "evaluation.json"
    assert [(row["model"], row["steps"]) for row in result["rows"]] == [
        *(("teacher", steps) for steps in (1, 4, 8, 64)),
        *(("student", steps) for steps in (1, 4, 8)),
    ]
    for row in result["rows"]:
        assert set(row) - DISTANCES == ROW | OVERLAPS
        assert set(row) >= DISTANCES
        assert row["samples"] == 6
        assert 0 < row["nfe"] <= min(row["steps"], LENGTH)
        assert row["critic_nfe"] == 0
        # a batch's all-masked rows are one
        assert row["passes"] == (2 if row["steps"] == 1 else pytest.approx(6 * row["nfe"], abs=12))
        assert row["peak_host_bytes"] > 10**7
        low, high = row["judge_perplexity_ci"]
        assert low <= row["judge_perplexity"] <= high
        assert row["tokens_per_second"] == pytest.approx(6 * LENGTH / row["seconds"])
    assert set(result["reference"]) == FIGURES | OVERLAPS | DISTANCES
    assert result["reference"]["samples"] == 6
    assert result["sampling"]["length"] == LENGTH
    assert result["sampling"]["precision"] == "float32"
    assert result["models"]["student"]["name"].endswith("update-00000001/student-ema")
    assert (made.run / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    samples = (made.run / "samples.txt").read_text("utf-8")
    assert "=== student, 8 steps, sample 1 ===" in samples
    assert "=== teacher, 64 steps, sample 4 ===" in samples
    assert "real text" in capsys.readouterr().out

    machine(faster="bfloat16")
    evaluate_command(made.run, overrides=["evaluate.samples=4", "steps=[2]", "precision=auto"])
    again = json.loads(path.read_text("utf-8"))
    assert again["sampling"]["precision"] == "bfloat16"
    assert [row["steps"] for row in again["rows"]] == [2, 64, 2]
    assert not list(made.run.glob(".partial*"))


def test_what_is_known_is_told_before_the_teachers_many_steps_which_may_have_fewer_samples(made, judge):
    teacher, student, told = tiny(made.tokenizer, 1), tiny(made.tokenizer, 2), []
    config = EvaluateConfig(**SMALL | {"steps": [1], "teacher_samples": 5})
    whole = evaluate(teacher, student, judge, config, LENGTH, rows(8), tell=told.append)
    assert [(row.model, row.steps, row.samples) for row in whole.rows] == [
        ("teacher", 1, 8), ("teacher", 64, 5), ("student", 1, 8)
    ]  # fmt: skip
    [first] = told
    assert [figures(row) for row in first.rows] == [figures(whole.rows[0]), figures(whole.rows[2])]
    assert first.reference == whole.reference
    assert whole.rows[1].mauve is None
    assert whole.sampling.size == "8 samples of 16 tokens (5 of the teacher's many steps)"
    fewer = evaluate(teacher, None, judge, config.model_copy(update={"samples": 5}), LENGTH)
    assert figures(whole.rows[1]) == figures(fewer.rows[1])
    assert fewer.sampling.size == "5 samples of 16 tokens"


def figures(row):
    return row.judge_perplexity, row.judge_perplexity_ci, row.bigram_entropy, row.nfe, row.samples


def test_the_many_step_teacher_is_ancestral_whatever_sampler_is_tried(made, tmp_path):
    plain = evaluate_command(made.run, out=tmp_path / "plain", overrides=["samples=6"])
    tried = evaluate_command(made.run, out=tmp_path / "tried", overrides=["samples=6", "sampler=dilated"])
    first, second = (json.loads(path.read_text())["rows"] for path in (plain, tried))
    assert [row["sampler"] for row in second] == [*["dilated"] * 3, "ancestral", *["dilated"] * 3]
    assert {row["judge_perplexity"] for row in first if row["steps"] == 64} == {
        row["judge_perplexity"] for row in second if row["steps"] == 64
    }
    table = Evaluation.load(tried).markdown()
    assert "dilated (teacher, student); ancestral (teacher at 64 steps) sampler" in table


def in_blocks(tokenizer):
    sizes = {"attention": "block", "block_size": 4, "eos_id": tokenizer.eos_token_id, "sizes": SHAPE}
    return stock(len(tokenizer), LENGTH, tokenizer.mask_token_id, **sizes).requires_grad_(False)


def test_a_student_of_blocks_is_measured_as_engines_sample_from_it(made, judge):
    student, rule = in_blocks(made.tokenizer), {"name": "ancestral", "block_length": "attention", "budget": "block"}
    config = EvaluateConfig(**(SMALL | {"steps": [1, 4], "sampler": rule}))
    found = evaluate(None, student, judge, config, LENGTH, served=True)
    assert [(row.steps, row.sampler) for row in found.rows] == [
        (steps, "ancestral, blocks of 4 with steps of their own") for steps in (1, 4)
    ]
    assert found.rows[0].nfe == 4, "a pass for each of four blocks"
    assert 4 < found.rows[1].nfe <= 16
    assert [(row.model, row.steps, row.sampler) for row in found.served or ()] == [
        ("sglang", 4, "threshold 0.95, greedy, blocks of 4 with steps of their own"),
        ("lmdeploy", 4, "threshold 0.85, greedy, blocks of 4 with steps of their own"),
    ]
    assert [cells[0] for cells in table_rows(found)] == ["student", "student", "sglang", "lmdeploy"]
    assert "sglang: the student as that engine samples, threshold 0.95" in found.markdown()
    assert Evaluation(**vars(found)).quality == found.quality
    plain = evaluate(None, tiny(made.tokenizer, 2), judge, EvaluateConfig(**SMALL), LENGTH, served=True)
    assert plain.served is None, "no engine serves full attention"


@pytest.mark.parametrize(
    ("rule", "settings", "said"),
    [
        (
            {"name": "top_k", "block_length": 4, "budget": "block"},
            {"steps": [8]},
            "has 8, more steps than the 4 tokens of a block",
        ),
        ({"block_length": 4}, {"steps": [2, 8]}, "steps has 2, fewer steps than the 4 blocks of 4 tokens"),
        ({"block_length": 6}, {"steps": [8]}, "block_length is 6, which cuts the blocks of 4 tokens"),
    ],
)
def test_steps_and_blocks_that_do_not_fit_are_refused_before_anything_is_sampled(made, judge, rule, settings, said):
    config = EvaluateConfig(**(SMALL | settings | {"sampler": rule}))
    with pytest.raises(UserError, match=said):
        evaluate(None, in_blocks(made.tokenizer), judge, config, LENGTH)


@pytest.mark.parametrize(
    ("sampler", "reference"),
    [
        ({"name": "dilated", "temperature": 0.5}, Ancestral()),
        ({"name": "dilated", "draw": "float32-gumbel"}, Ancestral(draw="float32-gumbel")),
        ({"name": "top_k", "draw": "greedy"}, Ancestral()),
        ({"name": "ancestral", "temperature": 0.5}, Ancestral(temperature=0.5)),
    ],
)
def test_many_steps_are_the_reverse_process_drawn_as_published_where_samples_are(sampler, reference):
    assert many_steps(EvaluateConfig(sampler=sampler), stock(5, LENGTH)).sampler == reference


def test_many_steps_of_block_attention_are_of_one_block_after_the_other():
    teacher = stock(5, LENGTH, 4, attention="block", block_size=4)
    rule = {"name": "top_k", "block_length": "attention", "budget": "block"}
    assert many_steps(EvaluateConfig(sampler=rule), teacher).sampler == Ancestral(
        block_length="attention", budget="block"
    )
    assert many_steps(EvaluateConfig(sampler="top_k"), teacher).sampler == Ancestral()


def test_student_alone_into_a_new_folder_without_text(made, tmp_path, machine):
    machine(faster="bfloat16")
    out = tmp_path / "out"
    overrides = [*(f"{key}={json.dumps(value)}" for key, value in SMALL.items()), "precision=auto"]
    student, reader = str(made.root / "student"), str(made.root / "judge")
    result = json.loads(evaluate_command(None, student, None, reader, None, out, overrides).read_text("utf-8"))
    assert {row["model"] for row in result["rows"]} == {"student"}
    assert result["reference"] is None
    assert result["sampling"]["precision"] == "bfloat16"
    assert (out / "evaluation.png").is_file()
    with pytest.raises(UserError, match="not an empty folder"):
        evaluate_command(None, student, None, reader, None, out, overrides)
    overrides[2] = "samples=100000"
    with pytest.raises(UserError, match=r"not as many; set evaluate\.samples="):
        evaluate_command(None, student, None, reader, str(made.text), tmp_path / "new", overrides)


@pytest.mark.parametrize("samples", [4, 13])
def test_two_processes_measure_what_one_does(made, tmp_path, samples):
    """Two of them have half of the rows each, in smaller batches, so that their networks are passed more often."""
    words = ["evaluate", made.run, f"samples={samples}", "precision=bfloat16", "--out"]
    results, passes = [], []
    for processes in (1, 2):
        command = Command([*words, tmp_path / f"{processes}"], processes)
        written, said = command.communicate()
        assert command.returncode == 0, said[-3000:]
        assert said.count("written: ") == 1
        assert said.count("rows that take longer follow") == 1
        assert written.count("Quality against steps") == 2, "one process says it, before the longer rows and after them"
        result = json.loads((tmp_path / f"{processes}" / "evaluation.json").read_text("utf-8"))
        for row in result["rows"]:
            assert row.pop("seconds") > 0
            assert row.pop("tokens_per_second") > 0
            assert row.pop("peak_host_bytes") > 0
        passes.append([row.pop("passes") for row in result["rows"]])
        results.append((result, result.pop("cost")["tokens"]))
    assert results[0] == results[1]
    assert all(one <= two <= 2 * one for one, two in zip(*passes, strict=True))
    assert len({(tmp_path / name / "samples.txt").read_text("utf-8") for name in "12"}) == 1


def test_a_mistake_leaves_no_process_waiting(made, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    many = ["steps=[99]", "sampler=dilated"]
    for words, match in (([], "is not an empty folder"), (many, "more steps than the 16 tokens")):
        command = Command(["evaluate", made.run, "--out", tmp_path / "new" if words else taken, *words], processes=2)
        _, said = command.communicate(60)
        assert [process.exitcode for process in command.processes] == [2, 2], said[-3000:]
        assert match in " ".join(said.split())
        assert "Traceback" not in said
    assert not (tmp_path / "new").exists()


def test_mistakes_are_one_line_with_a_remedy(made, tmp_path):
    def refused(match, *arguments, overrides=()):
        with pytest.raises(UserError, match=match) as caught:
            evaluate_command(*arguments, overrides=list(overrides))
        assert "\n" not in str(caught.value)

    refused(
        r"has 32, more steps than the 16 tokens.*leave out", made.run, overrides=["steps=[4,32]", "sampler=dilated"]
    )
    refused(r"unknown key evaluate.sample.*'samples'", made.run, overrides=["sample=4"])
    refused(r"evaluate.length is 17 but the model takes at most 16", made.run, overrides=["length=17"])
    refused(r"leave out --student", made.run, "student")
    refused(r"name a new folder with --out", None, str(made.root / "student"))
    refused(r"give a run folder, or --student", None, None, None, None, None, tmp_path / "a")
    refused(r"not autoregressive", made.run, None, None, str(made.root / "teacher"))
    refused(r"300 tokens.*evaluate.retokenize=true", made.run, None, None, str(made.root / "other-judge"))
    early = tmp_path / "early"
    (early / "checkpoints").mkdir(parents=True)
    (early / "config.yaml").write_bytes((made.run / "config.yaml").read_bytes())
    refused(r"has no checkpoint yet", early)


def test_judge_of_another_vocabulary_retokenizes(made):
    reader = load_judge(str(made.root / "other-judge"), made.tokenizer, retokenize=True)
    text = "Line 7 says that 49 is a square.<|endoftext|>Li"
    ids = made.tokenizer(text, add_special_tokens=False)["input_ids"]
    own = made.other(text, add_special_tokens=False)["input_ids"]
    assert len(own) < len(ids)
    nats, tokens, _ = reader.score(torch.tensor([ids, [made.tokenizer.eos_token_id] * len(ids)]))
    assert tokens.tolist() == [len(own) - 1, len(ids) - 1], "real tokens but the first, and no padding"
    alone = reader.nll(torch.tensor([own])).sum()
    assert float(nats[0]) == pytest.approx(float(alone), rel=1e-4)
    config = EvaluateConfig(**SMALL, retokenize=True)
    result = evaluate(None, tiny(made.tokenizer, 2), reader, config, LENGTH)
    assert result.judge.retokenized
    assert {row.model for row in result.rows} == {"student"}
    [drawn] = draw(tiny(made.tokenizer, 2), config, 4, 8, LENGTH, 0)
    tokens, _, written = reader.retokenize(drawn.texts.tokens)
    row = result.rows[1]
    assert row.entropy("unigram") == row.judge_unigram_entropy == unigram_entropy(tokens.numpy(), written.numpy())
    assert row.judge_unigram_entropy != row.unigram_entropy


def test_judge_reads_left_to_right_and_never_expects_a_mask(made, judge):
    tokens = rows(70)  # more than one batch
    nats = judge.nll(tokens)
    assert nats.shape == (70, LENGTH - 1)
    assert nats.dtype == torch.float32
    changed = tokens.clone()
    changed[:, 10] = (tokens[:, 10] + 1 - 3) % 250 + 3
    different = judge.nll(changed) != nats
    assert not different[:, :9].any(), "the future changed the past"
    assert different[:, 9:].any(1).all()
    trained = tiny(made.tokenizer, 3, "causal")  # the law it is trained with, mask column −∞
    expected = (
        -trained.log_probs(Canvas.of(tokens, made.tokenizer.mask_token_id))[:, 1:]
        .gather(2, tokens[:, 1:, None])
        .squeeze(2)
    )
    torch.testing.assert_close(nats, expected.detach(), rtol=1e-4, atol=1e-4)


def test_padding_scores_nothing_and_changes_nothing(judge):
    tokens = rows(2)
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 6:] = False
    padded = judge.nll(tokens.masked_fill(~real, 0), real)
    torch.testing.assert_close(padded[1, :5], judge.nll(tokens[1:, :6])[0], rtol=1e-4, atol=1e-4)
    assert (padded[1, 5:] == 0).all()


def test_teacher_and_student_see_the_same_noise_and_real_text_the_same_number_of_tokens(made, judge):
    model = tiny(made.tokenizer, 1)
    config = EvaluateConfig(**SMALL)
    result = evaluate(model, model, judge, config, LENGTH, rows(20), seed=3)
    one, other = (
        [as_json(r) for r in result.rows if r.model == name and r.steps == 4] for name in ("teacher", "student")
    )
    same = FIGURES | {"nfe"}
    assert {k: one[0][k] for k in same} == {k: other[0][k] for k in same}
    assert result.reference.samples == config.samples
    first = evaluate(None, model, judge, config, LENGTH, rows(20)[:8], seed=3).reference
    assert first == result.reference, "rows beyond the samples were read"


def test_quick_figures_are_the_evaluation_at_that_step_count(made, judge):
    model = tiny(made.tokenizer, 1)
    config = EvaluateConfig(**SMALL)
    [quick] = quick_figures(model, judge, 4, 8, LENGTH, 0, MaskedProcess(), config)
    row = next(r for r in evaluate(None, model, judge, config, LENGTH).rows if r.steps == 4)
    assert set(quick) == {"judge_perplexity", "unigram_entropy", "bigram_entropy", "distinct_2"}
    assert quick == {key: getattr(row, key) for key in quick}


def test_bfloat16_is_a_copy_that_keeps_rotary_frequencies(made):
    model = tiny(made.tokenizer, 1)
    copy = at_precision(model, "bfloat16")
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert copy.model.base_model.rotary_emb.inv_freq.dtype == torch.float32
    assert copy.log_probs(Canvas.of(rows(2), made.tokenizer.mask_token_id)).dtype == torch.float32
    assert at_precision(model, "float32") is model
    [drawn] = draw(copy, EvaluateConfig(**SMALL), 4, 6, LENGTH, 0)
    assert drawn.texts.tokens.shape == (6, LENGTH)
    assert (drawn.texts.tokens != made.tokenizer.mask_token_id).all()


def test_tables_show_every_row(made, judge):
    result = evaluate(tiny(made.tokenizer, 1), tiny(made.tokenizer, 2), judge, EvaluateConfig(**SMALL), LENGTH, rows(8))
    cells = table_rows(result)
    assert [row[0] for row in cells] == ["real text", *["teacher"] * 4, *["student"] * 3]
    markdown = result.markdown().splitlines()
    assert len({line.count("|") for line in markdown[:10]}) == 1, "a row has another number of columns"
    assert markdown[2].startswith("| real text |")
    end = next(number for number, line in enumerate(markdown) if "exact draws, float32" in line)
    assert markdown[end + 2] == "Other figures:"
    assert markdown[end + 4].startswith("| model | steps | distinct-3 | distinct-4 | rep-4 | run | self- BLEU |")
    others = markdown[end + 4 : -2]
    assert [line.split(" | ")[0] for line in others[2:]] == ["| real text", *["| teacher"] * 4, *["| student"] * 3]
    assert len({line.count("|") for line in others}) == 1
    assert "rep-4: share of a text's 4-grams" in markdown[-1]
    console = Console(file=io.StringIO(), width=80)
    print_table(evaluation_table(result), console)
    printed = console.file.getvalue()
    for value in cells[3]:
        assert value in printed, "a figure was cut off"


def test_adaptive_samplers_report_how_their_passes_are_distributed(made, judge):
    torch.manual_seed(0)
    student = add_planner(tiny(made.tokenizer, 2), 4)
    config = EvaluateConfig(**SMALL, sampler="planner")
    result = evaluate(tiny(made.tokenizer, 1), student, judge, config, LENGTH, rows(8))
    row = result.rows[-1]
    assert (row.model, row.steps) == ("student", 8)
    assert 3 <= row.nfe_median <= row.nfe_p95 <= 8, "the planner's own rate, not the cap"
    assert row.nfe < 6
    teacher = next(r for r in result.rows if (r.model, r.steps) == ("teacher", 8))
    assert teacher.nfe > 6, "without a planner, the rate of the cap"
    markdown = result.markdown().splitlines()
    assert "| NFE | NFE median | NFE p95 | critic NFE |" in markdown[0]
    assert len({line.count("|") for line in markdown[:10]}) == 1
    assert "nfe" in quick_figures(student, judge, 8, 4, LENGTH, 0, MaskedProcess(), config)[0]


def test_passes_for_the_length_of_texts_have_a_column(made, judge):
    config = EvaluateConfig(**SMALL, sampler={"name": "dilated", "length": {"name": "predicted"}})
    result = evaluate(tiny(made.tokenizer, 1), None, judge, config, LENGTH, rows(8))
    assert [(row.steps, row.length_nfe) for row in result.rows] == [(1, 1.0), (4, 1.0), (8, 1.0), (64, None)]
    markdown = result.markdown().splitlines()
    assert "| NFE | length NFE | critic NFE |" in markdown[0]
    assert len({line.count("|") for line in markdown[:7]}) == 1
    assert any("length NFE: passes before these" in line for line in markdown)


# --- names on the command line -------------------------------------------------------------------------------------

QUICK = ["samples=2", "steps=[1]", "teacher_steps=1"]


def command_line(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fewstep", "evaluate", *map(str, words)])
    with contextlib.suppress(SystemExit):
        cli.main()


@pytest.mark.parametrize("name", ["lr=2e-4", "runs/lr=2e-4", "lr=2e-4/"])
def test_a_folder_with_an_equals_sign_in_its_name_is_the_run(name, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.run, name)
    command_line(monkeypatch, name, *QUICK)
    assert json.loads(Path(name, "evaluation.json").read_text("utf-8"))["rows"][0]["samples"] == 2


def test_without_a_run_the_first_word_is_an_override(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command_line(
        monkeypatch, *QUICK, "--student", made.root / "student", "--judge", made.root / "judge", "--out", "x=y"
    )
    assert json.loads(Path("x=y/evaluation.json").read_text("utf-8"))["rows"][0]["samples"] == 2


def test_names_may_begin_with_the_home_folder(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(made.root))
    command_line(monkeypatch, *QUICK, "--teacher", "~/teacher", "--judge=~/judge", "--data=~/text.txt", "--out=~/there")
    assert (made.root / "there/evaluation.json").is_file()
    shutil.copytree(made.run, made.root / "at-home")
    command_line(monkeypatch, "~/at-home", *QUICK, "judge=~/judge")
    assert (made.root / "at-home/evaluation.json").is_file()
    assert not Path("~").exists()
