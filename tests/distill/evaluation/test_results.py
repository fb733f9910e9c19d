"""Results: what is written reads back, what people see is text, and neither costs an import of torch."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill.evaluation.results import Evaluation, JudgeDescription, measure
from distill.runtime.result_files import as_json, from_json
from teachers.errors import UserError

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def quickstart():
    return Evaluation.load(DOCS / "quickstart-steps.json")


def published():
    """Every evaluation in docs, exact sources and adaptive samplers among them."""
    for name in ("novels-temperature", "rgas", "step-reduction", "quickstart-seeds", "words-seeds"):
        for label, values in json.loads((DOCS / f"{name}.json").read_text("utf-8")).items():
            yield pytest.param(values, id=f"{name}, {label}")


def test_what_was_written_is_read_and_written_again_byte_for_byte(quickstart, tmp_path):
    assert quickstart.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "evaluation.json"
    path = quickstart.save(tmp_path)
    assert path == tmp_path / "evaluation.json"
    assert path.read_bytes() == (DOCS / "quickstart-steps.json").read_bytes()
    assert Evaluation.load(tmp_path) == Evaluation.load(str(path)) == quickstart
    assert quickstart.rows[-1].steps == 64


@pytest.mark.parametrize("values", published())
def test_published_evaluations_keep_every_key_and_its_order(values):
    evaluation = from_json(Evaluation, values)
    assert json.dumps(as_json(evaluation)) == json.dumps(values)
    lines = evaluation.markdown().splitlines()
    tables = [list(part) for is_table, part in itertools.groupby(lines, lambda line: line.startswith("|")) if is_table]
    assert tables
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, "a row has another number of columns"


def test_neither_torch_nor_matplotlib_is_needed():
    heavy = "{'torch', 'matplotlib', 'transformers', 'rich'} & set(sys.modules)"
    program = f"import sys; from distill.evaluation.results import Evaluation; print({heavy})"
    program += f"; Evaluation.load('{DOCS / 'quickstart-steps.json'}'); print({heavy})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "set()"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[:-20], "Expecting"),
        (lambda text: "[]", "the whole: "),
        (lambda text: text.replace('"nfe":', '"passes":', 1), "rows.0.nfe: Field required"),
        (lambda text: text.replace('"steps": 1,', '"steps": "one",', 1), "rows.0.steps: Input should be a valid int"),
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, damage, reason):
    path = tmp_path / "evaluation.json"
    path.write_text(damage((DOCS / "quickstart-steps.json").read_text("utf-8")), "utf-8")
    with pytest.raises(UserError, match="is not a whole evaluation; run fewstep evaluate again, or remove it") as error:
        Evaluation.load(tmp_path)
    assert reason in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*evaluation\.json"):
        Evaluation.load(path)


def test_rows_are_compared_by_what_all_of_them_have(quickstart):
    one, other = quickstart.rows[:2]
    assert quickstart.quality == measure([one, other]) == "judge_perplexity"
    exact = [dataclasses.replace(row, excess_nats=0.1, divergence_nats=0.2) for row in (one, other)]
    assert measure(exact) == "divergence_nats"
    assert measure([exact[0], dataclasses.replace(exact[1], divergence_nats=None)]) == "excess_nats"
    assert measure([exact[0], other]) == "judge_perplexity"


def test_a_table_is_text_and_a_plot_is_a_figure(quickstart, capsys):
    named = dataclasses.replace(quickstart, judge=JudgeDescription("[red]judge[/red]:smile:", 1_000_000, False))
    table = named.table()
    assert "[red]judge[/red]:smile:" in " ".join(table.split())
    assert "\x1b" not in table
    for row in named.rows:
        assert f"{row.bigram_entropy:.3f}" in table
    left, right = named.plot().axes
    assert [line.get_label() for line in left.lines[:2]] == ["teacher", "student"]
    assert list(right.lines[1].get_ydata()) == [r.bigram_entropy for r in named.rows if r.model == "student"]
    assert capsys.readouterr() == ("", "")
