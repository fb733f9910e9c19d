"""`fewstep unpickle`: weights that were released as a pickle, as safetensors."""

from __future__ import annotations

from pathlib import Path

from distill.runtime.messages import say
from distill.runtime.run_folder import check_new_folder, new_folder
from teachers.files import publish
from teachers.pickles import convert
from teachers.source import model_folder


def unpickle_command(name: str, out: Path) -> Path:
    """Write the weights of a folder or a hub name, and what lies beside them, into the new folder ``out``.

    Raises:
        UserError: see `convert`; nothing is left behind.
    """
    check_new_folder(out)
    folder, tensors = model_folder(name, pickles=True), dict[str, int]()

    def write(partial: Path) -> None:
        partial.mkdir()
        tensors.update(convert(folder, partial))

    publish(new_folder(out), write)
    files = ", ".join(f"{file} with {count} tensors" for file, count in tensors.items())
    say(f"written: {files} in {out}; next: teacher.path={out}")
    return out
