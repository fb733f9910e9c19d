"""Paths and texts of the command line."""

from pathlib import Path

import pytest

from distill.cli import at_home


@pytest.mark.parametrize("value", ["~/x", ["~/x", "~"], None, 3, Path("a/~"), Path("~nobody-of-this-name/x")])
def test_what_is_no_path_from_the_home_folder_stays(value):
    assert at_home(value) == value, "a prompt is text, and names of models are resolved where they are read"


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home(Path("~/x")) == Path("/home/me/x")
    assert at_home(Path("~")) == Path("/home/me")
