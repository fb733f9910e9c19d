"""GSM8K (2110.14168) in our columns, from the published JSONL files train.jsonl and test.jsonl of {question, answer}.

The worked answer is what is to be learned, without the calculator's notes, <<48/2=24>>. The number after #### is what
is checked.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

MARKER = "####"
NOTE = re.compile(r"<<[^>]*>>")
NUMBER = r"\$?(\d[\d,]*(?:\.\d+)?)"
EQUATION = re.compile(rf"(?<![-+*/x.,()\d$] )(?<![-+*/x.,()\d$]){NUMBER} *([-+*/x]) *{NUMBER} *= *{NUMBER}")
ROUNDING = Fraction(1, 100)


def pairs(path: Path, characters: int) -> list[tuple[str, str]]:
    """Questions, each with a line break after it, and worked answers, of at most so many characters together."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    both = [(f"{row['question'].strip()}\n", NOTE.sub("", row["answer"])) for row in rows]
    return [(question, worked) for question, worked in both if len(question) + len(worked) <= characters]


def answer(worked: str) -> str:
    """The number that a worked answer ends with, without separators of thousands.

    >>> answer("He sells 500 + 700 = 1,200 of them.\\n#### 1,200")
    '1200'
    """
    return worked.rsplit(MARKER, 1)[1].strip().replace(",", "")


def equations(prompt: str, completion: str, answer: str) -> float:
    """The part of a text's equations of two numbers that hold, 0 if it has none: a checker that reads no answer.

    Args:
        prompt, answer: not read.

    >>> equations("", "He sells 500 + 700 = 1,200 of them, for 2*$3 = $5.\\n#### 5", "")
    0.5
    """
    found = EQUATION.findall(completion)
    return sum(holds(*equation) for equation in found) / max(len(found), 1)


def holds(left: str, sign: str, right: str, result: str) -> bool:
    """Whether an equation is right, up to a cent.

    >>> holds("10", "/", "3", "3.33"), holds("1", "/", "0", "0")
    (True, False)
    """
    a, b, c = (Fraction(number.replace(",", "")) for number in (left, right, result))
    if sign == "/":
        return b != 0 and abs(a / b - c) < ROUNDING
    return {"+": a + b, "-": a - b}.get(sign, a * b) == c
