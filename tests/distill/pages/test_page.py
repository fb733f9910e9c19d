"""Pages: text stays text, tables are files as well, and nothing is asked of anybody."""

import base64
import csv
import hashlib
import io
import json
import re
from urllib.parse import unquote

import pytest

from distill.pages.blocks import Answers, Facts, Folded, Heading, Listing, Piece, Prose, Section, Strip, Table, Text
from distill.pages.page import Page
from tests.distill.pages.html import check, read

EVIL = """<script>alert(1)</script><img src=x onerror="alert(2)">"'&amp;\x1b[31m</style></title>{{ 7*7 }}"""
SHOWN = EVIL.replace("\x1b", "\N{REPLACEMENT CHARACTER}")


def table(**changes):
    values = {
        "name": "All rows", "caption": "told", "columns": ["model", "PPL"], "rows": [["student", "1,024.5"]],
        "left": ["model"], "tones": ["student"], "records": [{"model": "student", "ppl": 1024.51}],
    }  # fmt: skip
    return Table(**(values | changes))


def page(*blocks):
    return Page("A run", "What this is.", [Section("first", "First", "Look.", blocks), Section("none", "None", "")])


@pytest.mark.parametrize(
    "block",
    [
        Heading(EVIL),
        Prose((EVIL,), big=True),
        Facts(((EVIL, EVIL),)),
        Listing(EVIL),
        Folded(EVIL, (Prose((EVIL,)),)),
        table(name=EVIL, caption=EVIL, columns=[EVIL], rows=[[EVIL]], records=[{EVIL: EVIL}]),
        Answers(EVIL, EVIL, ((Text(EVIL, "teacher", EVIL, EVIL), None),)),
        Strip(EVIL, EVIL, "student", EVIL, (Piece(EVIL, 0), Piece(EVIL, 1))),
    ],
    ids=lambda block: block.kind,
)
def test_whatever_a_model_writes_is_shown_letter_by_letter(block):
    html = page(block).html()
    root = read(html)
    check(root)
    assert len(root.all("script")) == 1
    assert not root.all("img")
    assert SHOWN in root.all("main")[0].text
    assert "\x1b" not in html


def test_the_browser_is_told_to_run_this_script_alone_and_to_ask_nobody():
    html = page(Prose(("Words.",))).html()
    [policy] = read(html).all("meta", **{"http-equiv": "Content-Security-Policy"})
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy.attributes["content"]
    assert "default-src 'none'" in policy.attributes["content"]
    assert not re.search(r"https?://", html)


def test_a_section_without_blocks_is_left_out():
    root = read(page(Prose(("Words.",))).html())
    assert [section.attributes["id"] for section in root.all("section")] == ["first"]
    assert [link.text for link in root.all("nav")[0].all("a")] == ["First"]


def test_a_table_is_a_file_with_all_digits():
    block = table(records=[{"model": "a,b", "ppl": 10.123456789, "ci": (1.0, 2.0), "cost": {"s": 3}}, {"model": "c"}])
    link = read(page(block).html()).all("a", class_="download")[0]
    assert link.attributes["download"] == "all-rows.csv"
    head, _, text = link.attributes["href"].partition(",")
    assert head == "data:text/csv;charset=utf-8"
    assert list(csv.reader(io.StringIO(unquote(text)))) == [
        ["model", "ppl", "ci.low", "ci.high", "cost.s"],
        ["a,b", "10.123456789", "1.0", "2.0", "3"],
        ["c", "", "", "", ""],
    ]


def test_figures_are_on_the_right_and_names_on_the_left():
    root = read(page(table()).html())
    assert [cell.attributes.get("class") for cell in root.all("td")] == ["left", None]
    assert root.all("tr", class_="tone-student")


def test_a_strip_holds_what_was_written_over():
    pieces = (Piece("cat", 3, (("<'dog\">", 1), ("", 2))), Piece(" sat", 1))
    root = read(page(Strip("Student", "", "student", "told", pieces)).html())
    assert root.all("p", class_="canvas")[0].text.strip() == "cat sat"
    earlier = [token.attributes.get("data-earlier") for token in root.all("i") if "data-pass" in token.attributes]
    assert [one and json.loads(one) for one in earlier] == [[["<'dog\">", 1], ["", 2]], None]


def test_a_strip_is_a_picture_without_a_script():
    pieces = (Piece("The ", 0), Piece("cat", 3), Piece(" sat", 1), Piece("!", 2))
    root = read(page(Strip("Student", "", "student", "told", pieces)).html())
    assert root.all("p", class_="canvas")[0].text.strip() == "The cat sat!"
    written = [token.attributes for token in root.all("i") if "data-pass" in token.attributes]
    assert [token["data-pass"] for token in written] == ["3", "1", "2"]
    assert [token["style"] for token in written] == ["--at:1.0", "--at:0.0", "--at:0.5"]
    assert not any("data-earlier" in token for token in written)
    assert "hidden" in root.all("div", class_="player")[0].attributes
