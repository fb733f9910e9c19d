"""Files and folders that survive a crash: each is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

Content = str | bytes | Callable[[Path], object]
"""What `publish` writes: text in UTF-8, bytes, or a function that writes a file or a folder of the name it is given."""


def publish(path: Path, content: Content) -> Path:
    """Write a file or a folder whole or not at all, whenever this process is killed or the machine goes down.

    It is written under `partial_path`, brought to disk and renamed. What a killed process left there is removed first,
    so only one process at a time may publish a ``path``. All files get the mode of one that is newly made: safetensors
    are otherwise unreadable for others, who may be the ones to serve them.

    Args:
        path: an existing file is replaced; a folder must not exist, or be empty.

    Returns:
        ``path``.

    Raises:
        OSError: it could not be written; nothing partial is left, and ``path`` is what it was. So for any error of
            ``content``, too.
    """
    partial = partial_path(path)
    remove(partial)  # of a process that was killed
    try:
        mode = _new_file_mode(partial)
        _write(partial, content)
        for file in files_below(partial):
            file.chmod(mode)
        publish_partial(path)
    except BaseException:
        remove(partial)
        raise
    return path


def partial_path(path: Path) -> Path:
    """Where ``path`` is written before it is whole."""
    return path.with_name(f".partial-{path.name}")


def publish_partial(path: Path) -> None:
    """Bring to disk what has been written under `partial_path`, and give it its name."""
    partial = partial_path(path)
    for part in (*files_below(partial), *(p for p in partial.rglob("*") if p.is_dir()), partial):
        fsync(part)
    os.replace(partial, path)
    fsync(path.parent)


def files_below(path: Path) -> list[Path]:
    """All files of a folder and its folders; a file itself."""
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def fsync(path: Path) -> None:
    """Make sure that a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def _new_file_mode(path: Path) -> int:
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode & 0o777
