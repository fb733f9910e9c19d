"""What is said is said as it is."""

import pytest

from distill.runtime.messages import say, say_error, silence, warn
from distill.runtime.progress import progress_bar
from tests.forks import fewstep


@pytest.mark.parametrize(
    "text",
    ["[red]runs/[lr=2e-4][/red]", r"\[y] :100: :a: :runner:", "name\tprice", "one\r\ntwo", "naïve 🏃", "x" * 500],
    ids=["brackets", "colons", "tab", "return and line feed", "beyond ASCII", "wider than any terminal"],
)
def test_words_are_not_markup(text, capfd):
    say(text)
    warn(text)
    warn(text, "failed")
    say_error(text)
    # the stream itself makes no difference between line ends when it is read back as text
    expected = f"{text}\nwarning: {text}\nfailed: {text}\nerror: {text}\n".replace("\r\n", "\n")
    assert capfd.readouterr().err.replace("\r\n", "\n") == expected


def test_control_characters_do_not_reach_the_terminal(capfd):
    say("a\x1b[2Jb\rc\x07")
    assert capfd.readouterr().err == "a�[2Jb�c�\n"


def test_within_another_program_nothing_is_said(capfd):
    with silence():
        say("a")
        warn("b")
        say_error("c")
        assert progress_bar().disable
    assert capfd.readouterr() == ("", "")
    say("d")
    assert capfd.readouterr().err == "d\n"


def test_a_path_in_an_error_line_is_the_path(tmp_path):
    name = "runs/[bold]:100:[/bold] lr=2e-4"
    _, said = fewstep("evaluate", tmp_path / name, code=2)
    assert f"{tmp_path}/{name}" in said
