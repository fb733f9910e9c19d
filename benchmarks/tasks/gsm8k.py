"""GSM8K (2110.14168) in our columns, from the published JSONL files train.jsonl and test.jsonl of {question, answer}.

The worked answer is what is to be learned, without the calculator's notes, <<48/2=24>>. The number after #### is what
is checked.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

MARKER = "####"
NOTE = re.compile(r"<<[^>]*>>")


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
