"""What is published is there whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import teachers.files
from teachers.files import publish


def folder_writer(folder: Path) -> None:
    (folder / "inner").mkdir(parents=True)
    save_file({"x": torch.ones(2)}, folder / "inner" / "x.safetensors")
    (folder / "card.md").write_text("a card", encoding="utf-8")


@pytest.mark.parametrize("content", ["text é\n", "text é\n".encode(), lambda p: p.write_text("text é\n", "utf-8")])
def test_a_file_is_made_and_replaced(tmp_path, content):
    path = tmp_path / "file"
    for before in (None, "older, and longer than what comes"):
        if before is not None:
            path.write_text(before, "utf-8")
        assert publish(path, content) == path
        assert path.read_bytes() == "text é\n".encode()
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_made_with_all_that_is_in_it(tmp_path):
    (tmp_path / "folder").mkdir()  # an empty one is as good as none
    publish(tmp_path / "folder", folder_writer)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "folder/card.md", "folder/inner/x.safetensors",
    ]  # fmt: skip


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError, match="not empty"):
        publish(tmp_path / "folder", folder_writer)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "old"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_mode_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        publish(tmp_path / "folder", folder_writer)
        publish(tmp_path / "x", lambda p: save_file({"x": torch.ones(2)}, p))
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 3
    assert {p.stat().st_mode & 0o777 for p in files} == {mode}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_content_and_nothing_partial(tmp_path, error):
    def fail(path: Path) -> None:
        path.write_text("half", "utf-8")
        raise error

    path = publish(tmp_path / "file", "old")
    with pytest.raises(type(error)):
        publish(path, fail)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_content_and_the_next_writes_over_what_is_left(tmp_path):
    path = publish(tmp_path / "file", "old")
    program = (
        "import os, sys; from pathlib import Path; from teachers.files import publish\n"
        "publish(Path(sys.argv[1]), lambda p: (p.mkdir(), (p / 'half').touch(), os._exit(9)))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert path.read_text("utf-8") == "old"
    assert len(list(tmp_path.iterdir())) == 2
    publish(path, "new")
    assert path.read_text("utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    calls: list[str] = []
    rename = os.replace
    monkeypatch.setattr(teachers.files, "fsync", lambda path: calls.append(path.name))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), rename(a, b)))
    publish(tmp_path / "folder", folder_writer)
    assert calls[-2:] == ["rename", tmp_path.name]
    assert set(calls[:-2]) == {".partial-folder", "inner", "card.md", "x.safetensors"}
