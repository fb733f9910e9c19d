"""Where a model, a tokenizer or a dataset comes from, and what its folder may hold.

Three kinds of name: ``bundled:NAME``, a path, and a hub name with its commit, ``org/name@<40 hex digits>``. What comes
from elsewhere is data: pickles are refused, files stay within their folder, and code runs only where a config names it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from teachers.errors import UserError, nearest

BUNDLED = Path(__file__).parent / "bundled"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
# what is downloaded of a model; never a pickle, and Python only where it was asked for
TOKENIZER_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
MODEL_FILES = ["*.safetensors", *TOKENIZER_FILES]
PICKLED_FILES = ["*.bin", "*.ckpt", "*.pt", "*.pth"]
READ = {Path(pattern).suffix for pattern in MODEL_FILES} | {".py"}


@dataclass(frozen=True)
class Source:
    """A name, taken apart.

    Attributes:
        path: a file or folder, which may not exist; or a hub name, ``org/name``.
        revision: the commit of a hub name; None for a path.
    """

    path: str
    revision: str | None


def parse_source(name: str, revision: str | None = None, kind: Literal["model", "dataset"] = "model") -> Source:
    """Take a name apart, without reading or downloading anything.

    Args:
        name: ``bundled:NAME``, a path, which may begin with ~, or a hub name with its commit,
            ``org/name@<40 hex digits>``.
        revision: the commit, where a config gives it as a key of its own.
        kind: decides what ``bundled:`` names.

    Raises:
        UserError: an unknown bundled name, a hub name without a commit, or a commit of a path.
    """
    name = os.path.expanduser(name)  # ~ is the shell's, which does not see into a config
    base, at, commit = name.partition("@")
    is_path = name.startswith("bundled:") or os.path.exists(name) or not HUB_NAME.fullmatch(base)
    if is_path:
        if revision is not None:
            raise UserError(f"revision {revision!r} is the commit of a hub name, and {name!r} is a path; leave it out")
        return Source(_bundled(name, kind) if name.startswith("bundled:") else name, None)
    if at and revision not in (None, commit):
        raise UserError(f"{kind} {name!r} and revision {revision!r} are two commits; give one of them")
    commit = commit if at else revision
    if commit is None:
        raise UserError(
            f"{kind} {name!r} does not exist here, and a hub name needs a commit; correct the path, or write "
            f"{base}@<40 hex digits> with a commit from the list on its page"
        )
    if not COMMIT.fullmatch(commit):
        raise UserError(
            f"{commit!r} of {kind} {name!r} is not a commit, and may be another one tomorrow; write "
            f"{base}@<40 hex digits> with a commit from the list on its page"
        )
    return Source(base, commit)


def _bundled(name: str, kind: str) -> str:
    """The folder or text that comes with the package."""
    wanted = name.removeprefix("bundled:")
    models = (p for p in BUNDLED.iterdir() if p.is_dir() and not p.name.startswith("_"))
    found = {p.stem: p for p in (BUNDLED.glob("*.txt") if kind == "dataset" else models)}
    if wanted not in found:
        what = "text" if kind == "dataset" else "model"
        names = ", ".join(f"bundled:{n}" for n in sorted(found)) or "none in this installation"
        raise UserError(f"no bundled {what} {wanted!r}{nearest(wanted, sorted(found))}; bundled {what}s: {names}")
    return str(found[wanted])


def check_trust(source: Source, trust_remote_code: Any) -> bool:
    """Whether a model's own code may run: only when the model itself is named, not with a plain yes.

    Raises:
        UserError: ``trust_remote_code`` is anything but None or the model's name.
    """
    if trust_remote_code is None:
        return False
    if not isinstance(trust_remote_code, str) or os.path.expanduser(trust_remote_code) != source.path:
        raise UserError(
            f"trust_remote_code is {trust_remote_code!r}; to run the code that comes with this model name it, "
            f"trust_remote_code: {source.path}, else leave it out"
        )
    return True


def model_folder(
    name: str, revision: str | None = None, code: bool = False, weights: bool = True, pickles: bool = False
) -> Path:
    """The folder of a model or tokenizer, downloaded if it is a hub name.

    Args:
        name, revision: see `parse_source`.
        code: Python files are downloaded, too.
        weights: False for what a tokenizer needs.
        pickles: weights that are pickled are downloaded, too; read them with `teachers.pickles` alone.

    Raises:
        UserError: see `parse_source`; it does not exist, cannot be downloaded, or a file in it is a link to elsewhere
            or a Git LFS pointer.
    """
    source = parse_source(name, revision)
    if source.revision is not None:
        folder = _download(source, name, _patterns(code, weights, pickles))
    elif os.path.exists(source.path):
        folder = Path(source.path)
    else:
        raise UserError(
            f"model {name!r} does not exist; give a folder, a hub name with its commit (org/name@<40 hex digits>) "
            "or bundled:NAME"
        )
    _check_files(folder)
    return folder


def _patterns(code: bool, weights: bool, pickles: bool) -> list[str]:
    return (MODEL_FILES if weights else TOKENIZER_FILES) + ["*.py"] * code + PICKLED_FILES * pickles


def _download(source: Source, name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    answers = _answers(source)
    try:
        # the folders of a repository hold other formats of the same weights
        found = snapshot_download(
            source.path, revision=source.revision, allow_patterns=patterns, ignore_patterns=["*/*", "consolidated*"],
            local_files_only=not answers,
        )  # fmt: skip
    except Exception as error:  # the hub, the connection and the disk raise a dozen types
        why = reason(error) if answers else "the hub does not answer, and nothing was downloaded before"
        raise UserError(f"cannot download model {name!r} ({why}); check name, commit, access and connection") from error
    return Path(found)


def _answers(source: Source) -> bool:
    """Whether the hub can be reached; a download would ask for half a minute before it looks at what is here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(source.path, revision=source.revision, timeout=10)
    except HfHubHTTPError:  # it says no, and the download will say why
        return True
    except Exception:  # offline: of a type that depends on the library beneath
        return False
    return True


def check_code(folder: Path, config: dict[str, Any], trusted: bool) -> None:
    """Check what code transformers would run for a model, before it does.

    Args:
        config: the folder's ``config.json``.
        trusted: the model's own code may run.

    Raises:
        UserError: code of another repository, or code that was not asked for.
    """
    other = _code_elsewhere(config)
    if other is not None:
        raise UserError(
            f"{folder / 'config.json'} names code in another repository, {other!r}; no commit pins that: use a model "
            "that holds its own code"
        )
    if config.get("auto_map") and not trusted and not _is_stock(config.get("model_type")):
        raise UserError(
            f"{folder} comes with its own model code; read it, and if you trust it set trust_remote_code to the "
            "model's name"
        )


def _is_stock(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def _code_elsewhere(config: Any) -> str | None:
    """The first reference in a model config to code that transformers would fetch from some other hub repository."""
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        if key == "auto_map":
            found = [v for v in _strings(value) if "--" in v]
        elif key.lstrip("_").removesuffix("_internal") in ("attn_implementation", "experts_implementation"):
            found = [v for v in _strings(value) if "/" in v]  # a kernel, downloaded compiled
        else:
            found = [v for v in [_code_elsewhere(value)] if v is not None]
        if found:
            return found[0]
    return None


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict | list | tuple):
        return [s for v in (value.values() if isinstance(value, dict) else value) for s in _strings(v)]
    return [value] if isinstance(value, str) else []


def _check_files(folder: Path) -> None:
    """Refuse Git LFS pointers, and links out of a folder, except into the store of the hub's own cache, which keeps
    every file that way.
    """
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parents[1] / "blobs")
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix not in READ:
            continue
        if path.is_symlink() and not any(path.resolve().is_relative_to(i) for i in inside):
            raise UserError(f"{path} is a link to {path.resolve()}, out of its folder; put the file itself there")
        check_whole(path)


POINTER = b"version https://git-lfs"


def check_whole(path: Path) -> None:
    """Refuse the few lines that a clone without Git LFS holds in place of a large file.

    Raises:
        UserError: it is such a pointer.
    """
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise UserError(f"{path} is a Git LFS pointer, not the file; run git lfs pull in its folder")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; a `UserError` if it holds anything else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({reason(error)}); it must be a JSON object") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}; it must be a JSON object")
    return value


def reason(error: BaseException) -> str:
    """The first line of another library's error, with those that it announces, short enough to quote in ours."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return (" ".join(" ".join(lines).split()) if lines[0].endswith(":") else lines[0])[:200]
