"""Each checker on texts as models write them, and what it refuses."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest

from distill.config.task import TaskConfig
from distill.evaluation.tasks.checkers import checker_of, number_in
from distill.evaluation.tasks.question import Question
from teachers.errors import UserError


def checker(name, **settings):
    return checker_of(TaskConfig(path="q.jsonl", checker=name, **settings))


def question(answer, prompt="1 + 1 =", **row):
    return Question(prompt, answer, {"prompt": prompt, "answer": answer, **row}, "line 3 of 'q.jsonl'")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("it is 72.", 72),
        ("1,234,567.50 in all", Fraction(2469135, 2)),
        ("so -3", -3),
        ("x=-3", -3),
        ("5-3", 3),  # a minus between numbers
        ("5 - 3 = 2", 2),
        ("\N{MINUS SIGN}4", -4),
        ("-$20", -20),
        ("$1,000", 1000),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1e-3", Fraction(1, 1000)),
        ("50%", 50),
        ("1, 2", 2),
        ("1,2345", 2345),  # no thousands
        ("abc12", None),
        ("1/0", None),
        ("9" * 5000, None),  # more digits than Python reads
        ("\u0663", None),  # no ASCII digit
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text, value):
    assert number_in(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7 eggs #### 1,234 and 7", 1234),
        ("#### -3.50 #### 9", Fraction(-7, 2)),
        ("####: $5", 5),
        ("#### none", None),
        ("7 eggs", None),
    ],
)
def test_the_number_after_a_marker(text, value):
    assert number_in(text, "####") == value


@pytest.mark.parametrize(
    ("settings", "answer", "right", "wrong"),
    [
        ({"name": "exact"}, " ab\n", ["ab", " ab ", "ab\n"], ["abc", "", "AB", "a b"]),
        ({"name": "exact"}, ["ab", "ba"], ["ab", "ba"], ["abba"]),
        ({"name": "numeric"}, "0.5", ["so 1/2", ".50", "1 or 0.5"], ["5", "0.51", "half", ""]),
        ({"name": "numeric", "marker": "####"}, "6 * 7 = 42 #### 42", ["1 #### 42.0", "####42"], ["42", "#### 43"]),
        ({"name": "numeric", "marker": "####"}, "42", ["#### 42"], ["42"]),
        (
            {"name": "regex", "pattern": r"answer is (\w+)"},
            "B",
            ["the answer is B."],
            ["answer is C, answer is B", "B"],
        ),
        ({"name": "regex", "pattern": r"[A-D]"}, "B", ["B or C"], ["C or B", "none"]),
        ({"name": "regex", "pattern": r"(x)?y"}, "x", ["xy"], ["y"]),
        ({"name": "ast"}, None, ["x = 1", "", "def f():\n    return 1"], ["x = = 1", "def f(:", "\0", "(" * 9999]),
        ({"name": "ast", "equal": True}, "f(x, 1)", ["f( x,1 )  # same"], ["f(x, 2)", "f(x"]),
    ],
)
def test_what_is_right(settings, answer, right, wrong):
    check = checker(settings.pop("name"), **settings)
    asked = question(answer)
    check.refuse(asked)
    assert [check.score(asked, text) for text in right] == [1.0] * len(right)
    assert [check.score(asked, text) for text in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    ("settings", "answer", "said"),
    [
        ({"name": "numeric"}, "seven", "line 3 of 'q.jsonl': answer 'seven' holds no number"),
        ({"name": "numeric", "marker": "####"}, ["1", "7 #### x"], "answer '7 #### x' holds no number"),
        ({"name": "ast", "equal": True}, "f(", "line 3 of 'q.jsonl': the answer is not Python"),
    ],
)
def test_an_answer_that_can_not_be_compared_is_refused(settings, answer, said):
    with pytest.raises(UserError, match=said):
        checker(settings.pop("name"), **settings).refuse(question(answer))


# --- functions of the user's ---------------------------------------------------------------------------------------

FUNCTIONS = """
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

@dataclass
class Board:
    size: int = 4

def same(prompt, completion, answer):
    return completion == prompt + answer

def half(prompt, completion, answer, row):
    return row["weight"] * (completion in answer)

def numpys(prompt, completion, answer):
    return np.bool_(completion == answer)

def fails(prompt, completion, answer):
    return int(completion) == int(answer)

def leaves(prompt, completion, answer):
    raise SystemExit(3)

def two(prompt, completion):
    return True

def words(prompt, completion, answer):
    return completion

def beyond(prompt, completion, answer):
    return 1.5

def nothing(prompt, completion, answer):
    return float("nan")

number = 7
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "own_checkers.py").write_text(FUNCTIONS)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "own_checkers.py"
    sys.modules.pop("own_checkers", None)


def test_a_function_is_called_with_prompt_completion_and_answer(functions):
    for name in (f"{functions}:same", "own_checkers.py:same", "own_checkers:same"):
        check = checker("python", function=name)
        assert check.score(question("2"), "1 + 1 =2") == 1.0
        assert check.score(question("2"), "2") == 0.0
    assert str(functions.parent) not in sys.path


def test_a_function_may_ask_for_the_row_and_give_a_share(functions):
    check = checker("python", function="own_checkers.py:half")
    assert check.score(question(["a", "b"], weight=0.5), "b") == 0.5
    assert check.score(question(["a", "b"], weight=0.5), "c") == 0.0


def test_numpys_truth_is_a_truth(functions):
    score = checker("python", function="own_checkers.py:numpys").score(question("a"), "a")
    assert (score, type(score)) == (1.0, float)
    assert not isinstance(score, np.generic)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_checkers.py:sme", "has no function 'sme'; it has same, half, numpys"),
        ("own_checkers.py:number", "has no function 'number'"),
        ("missing.py:same", "can not be imported .*there is no file missing.py"),
        ("missing_module:same", "can not be imported .*No module named 'missing_module'"),
        ("broken.py:same", "can not be imported .*nothing_of_this_name"),
        ("own_checkers.py:two", r"takes \(prompt, completion\); it must take \(prompt, completion, answer\[, row\]\)"),
    ],
)
def test_a_function_that_can_not_be_had_is_refused(functions, name, said):
    with pytest.raises(UserError, match=said):
        checker("python", function=name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "fails",
            "line 3 of 'q.jsonl': checker own_checkers.py:fails raised ValueError: invalid literal .* completion ''",
        ),
        ("leaves", "raised SystemExit"),
        ("words", "returned '2' for completion '2'; return True, False or a number from 0 to 1"),
        ("beyond", "returned '1.5'"),
        ("nothing", "returned 'nan'"),
    ],
)
def test_a_function_is_tried_on_the_answer_and_on_nothing_before_it_is_needed(functions, name, said):
    with pytest.raises(UserError, match=said):
        checker("python", function=f"own_checkers.py:{name}").refuse(question("2"))
