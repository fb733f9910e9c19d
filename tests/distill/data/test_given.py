"""Rows that a program hands over become a file that a config can name."""

import json
from pathlib import Path

import datasets
import pytest

from distill.data.given import data_section
from teachers.errors import UserError

PAIRS = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "2+2=", "completion": "4"}]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("given", "format", "rows"),
    [
        (PAIRS, "prompt_completion", PAIRS),
        ({"prompt": ["1+2=", "2+2="], "completion": ["3", "4"]}, "prompt_completion", PAIRS),
        (datasets.Dataset.from_list([{**row, "n": 1} for row in PAIRS]), "prompt_completion", PAIRS),
        (["1+2=", "2+2="], "prompt_only", [{"prompt": "1+2="}, {"prompt": "2+2="}]),
        ([{"messages": TURNS}], "messages", [{"messages": TURNS}]),
        (datasets.Dataset.from_dict({"text": ["a", "b"]}), "text", [{"text": "a"}, {"text": "b"}]),
    ],
)
def test_rows_are_kept_as_lines_of_the_format_that_they_are_of(given, format, rows):
    section = data_section(given)
    lines = Path(section["path"]).read_text("utf-8").splitlines()
    assert section["format"] == format
    assert [json.loads(line) for line in lines] == rows
    assert data_section(given) == section


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no row"),
        ([{"question": "a", "answer": "b"}], "columns question, answer; call them"),
        ([PAIRS[0], {"prompt": "a"}], "row 2 of data has no 'completion'"),
        ([PAIRS[0], 3], "row 2 of data is int"),
        ([{"prompt": b"a"}], "row 1 of data is no text"),
        ({"prompt": ["a", "b"], "completion": ["a"]}, "different lengths .prompt 2, completion 1"),
    ],
)
def test_what_is_no_data_is_refused(given, says):
    with pytest.raises(UserError, match=says) as caught:
        data_section(given)
    assert "\n" not in str(caught.value)
