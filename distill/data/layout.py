"""Which files a corpus consists of, in which order, and what each of them is: decided by layout and content."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from distill.config import DataConfig
from teachers.errors import UserError
from teachers.source import check_whole, read_object, reason

Kind = Literal["text", "json", "parquet", "arrow"]
KINDS: dict[str, Kind] = {
    **dict.fromkeys((".txt", ".text", ".md"), "text"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".jsonlines"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
TABLE = "a table; write its texts as JSON lines or Parquet"
COMPRESSED = "compressed; unpack it first"
ARROW = "an Arrow file; name the folder that save_to_disk wrote, or write it as Parquet"
FORMAT = "of a format that is not read; write its texts as .txt, JSON lines or Parquet"
REFUSED = {
    **dict.fromkeys((".csv", ".tsv", ".psv", ".xls", ".xlsx", ".orc", ".avro"), TABLE),
    **dict.fromkeys((".gz", ".tgz", ".zst", ".bz2", ".xz", ".lz4", ".br", ".zip", ".tar", ".7z", ".rar"), COMPRESSED),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), ARROW),
    **dict.fromkeys((".tfrecord", ".mds", ".h5", ".hdf5", ".npy", ".npz", ".pkl", ".bin", ".idx"), FORMAT),
    **dict.fromkeys((".pdf", ".epub", ".docx", ".doc", ".odt", ".rtf"), FORMAT),
}
"""Suffixes of data that fewstep does not read, each with what it is and the remedy."""
IN_FOLDERS = {suffix for suffix, what in REFUSED.items() if what is not FORMAT}
"""Those that a folder must not hold beside what is read: its text would be left out without a word."""
MAGIC = {
    b"\x1f\x8b": COMPRESSED,
    b"\x28\xb5\x2f\xfd": COMPRESSED,
    b"BZh": COMPRESSED,
    b"\xfd7zXZ": COMPRESSED,
    b"\x04\x22\x4d\x18": COMPRESSED,
    b"PK\x03\x04": COMPRESSED,
    b"ARROW1": ARROW,
    b"\xff\xff\xff\xff": ARROW,
    b"ORC": TABLE,
    b"Obj\x01": TABLE,
    b"\x93NUMPY": FORMAT,
    b"\x89HDF": FORMAT,
    b"%PDF": FORMAT,
    b"SQLite format 3": FORMAT,
    b"\xff\xfe": "UTF-16, not UTF-8; convert it, e.g. with iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "UTF-16, not UTF-8; convert it, e.g. with iconv -f utf-16 -t utf-8",
}
"""How the content of such data begins, whatever its name."""
NOT_DATA = {"readme.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
"""What describes a dataset and is none of it; `datasets` leaves out the same names."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus."""

    path: Path
    kind: Kind


def corpus_files(path: Path, config: DataConfig) -> list[CorpusFile]:
    """The files of a corpus on disk, in the order in which they are read.

    A folder is a saved dataset, or laid out as a hub dataset, of which ``config.split`` is read as `datasets` resolves
    it, or any folder, all files of which are read that are text, JSON or Parquet by name.

    Raises:
        UserError: nothing there, a format that is not read, a pointer instead of a file, or no such split.
    """
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _checked([CorpusFile(file, "arrow") for file in _saved_files(path, config)])
    if path.is_dir():
        return _checked([CorpusFile(file, _kind(file)) for file in _folder_files(path, config)])
    if path.is_file():
        return _checked([CorpusFile(path, _kind(path))])
    raise UserError(
        f"data.path {config.path!r} does not exist; give a text, JSONL or Parquet file, or a dataset's hub name "
        "with its commit (org/name@<40 hex digits>)"
    )


def corpus_file(path: Path) -> CorpusFile:
    """One file that is there, and what it is.

    Raises:
        UserError: see `corpus_files`.
    """
    return _by_content(CorpusFile(path, _kind(path)))


def _kind(path: Path) -> Kind:
    """What a file is by its name; one of an unknown name is text."""
    suffix = path.suffix.lower()
    if suffix in REFUSED:
        raise UserError(f"{path} is {REFUSED[suffix]}")
    return KINDS.get(suffix, "text")


def _checked(sources: list[CorpusFile]) -> list[CorpusFile]:
    """The same files, those whose content is Parquet as Parquet, once none holds what its name does not say."""
    return [_by_content(source) for source in sources]


def _by_content(source: CorpusFile) -> CorpusFile:
    check_whole(source.path)
    try:
        with source.path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(
            f"cannot read {source.path}: {reason(error)}; check the path, its permissions and content"
        ) from error
    if head.startswith(b"PAR1"):
        return CorpusFile(source.path, "parquet")
    for magic, what in MAGIC.items():
        if source.kind != "arrow" and head.startswith(magic):
            raise UserError(f"{source.path} is {what}")
    return source


# --- folders -------------------------------------------------------------------------------------------------------


def _folder_files(folder: Path, config: DataConfig) -> list[Path]:
    inside = sorted(p for p in folder.rglob("*") if not any(n.startswith(".") for n in p.relative_to(folder).parts))
    files = [p for p in inside if p.suffix.lower() in KINDS and p.name.lower() not in NOT_DATA and p.is_file()]
    card = _card(folder)
    has_card = card is not None and any(p.suffix.lower() != ".md" for p in files)
    if has_card or _all_of_splits(files, folder):
        return _split_files(folder, card or {}, config)
    for path in inside:
        if path.suffix.lower() in IN_FOLDERS:
            raise UserError(f"{path} is {REFUSED[path.suffix.lower()]}, or move it out of the corpus' folder")
    if all(p.suffix.lower() == ".md" for p in files):  # a corpus of such pages, whose first is called so
        files = [p for p in inside if p.suffix.lower() == ".md" and p.is_file()]
    if not files:
        raise UserError(f"data.path {config.path!r} holds no .txt, .jsonl or .parquet file; name a corpus file")
    return files


def _all_of_splits(files: list[Path], folder: Path) -> bool:
    """Whether the names of a folder's files say of which split each is."""
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    of_splits = [path for path in files if splits[path] is not None]
    of_none = [path for path in files if splits[path] is None]
    if of_none and any(splits[path] != "train" for path in of_splits):
        raise UserError(
            f"{folder} holds {of_splits[0].name} of a split beside {of_none[0].name} of none; name one file, or a "
            "folder of those that belong together"
        )
    return bool(of_splits) and not of_none


def _split_of(path: Path) -> str | None:
    """The split that the name of a file or of a folder above it names, e.g. train.jsonl or data/test-00000-of-00002."""
    if path.suffix.lower() == ".md":  # a page may well be about tests
        return None
    for part in (*path.parts[:-1], path.stem):
        shard = SHARD.fullmatch(part)
        name = shard[1] if shard else part
        if name.lower() in SPLITS:
            return SPLITS[name.lower()]
        if shard and path.parts[0] == "data":
            return name
    return None


def _card(folder: Path) -> dict[str, Any] | None:
    """What a dataset's card says in its YAML head; None where the folder has none."""
    path = folder / "README.md"
    if not path.is_file():
        return {} if (folder / "dataset_infos.json").is_file() else None
    head = re.match(r"\ufeff?---\r?\n(.*?\r?\n)?---\s*?(\r?\n|$)", path.read_text("utf-8", "replace"), re.DOTALL)
    if head is None:
        return {} if (folder / "dataset_infos.json").is_file() else None
    try:
        card = yaml.safe_load(head[1] or "")
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the head of {path} ({reason(error)}); name one of the data files") from error
    return card if isinstance(card, dict) else {}


def _split_files(folder: Path, card: dict[str, Any], config: DataConfig) -> list[Path]:
    """The files of the split that the config names, as `datasets` resolves it."""
    import datasets

    for text in _strings(card.get("configs")):
        if "://" in text or ".." in Path(text).parts or Path(text).is_absolute():
            raise UserError(f"{folder / 'README.md'} names {text!r}, which is not in its folder; name a data file")
    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(str(folder), cache_dir=cache)
        splits = {
            str(name): [Path(file) for file in files] for name, files in (builder.config.data_files or {}).items()
        }
    except Exception as error:  # a dozen types for what is one thing: no dataset
        names = re.search(r"available configs: (.*)", str(error))
        why = f"it has the configurations {names[1]}" if names else reason(error)
        raise UserError(
            f"cannot tell the data files of {folder} ({why}); name one, or a folder of some that belong together"
        ) from error
    if config.split not in splits:
        raise UserError(f"data.split {config.split!r} is not in {config.path!r}; it has {', '.join(splits)}")
    files = splits[config.split]
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{file} is a link to {file.resolve()}, out of its folder; put the file itself there")
    return files


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [s for v in (value.values() if isinstance(value, dict) else value) for s in _strings(v)]
    return [value] if isinstance(value, str) else []


# --- saved datasets ------------------------------------------------------------------------------------------------


def _saved_files(folder: Path, config: DataConfig) -> list[Path]:
    """The Arrow files of a dataset that `datasets` saved; of several splits, the one that the config names.

    Raises:
        UserError: no such split, a list of files that cannot be read, or a name in it that leads out of the folder.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _plain_names(read_object(folder / "dataset_dict.json").get("splits"), folder / "dataset_dict.json")
        if config.split not in splits:
            raise UserError(f"data.split {config.split!r} is not in {config.path!r}; it has {', '.join(splits)}")
        folder = folder / config.split
    files = read_object(folder / "state.json").get("_data_files")
    names = [f.get("filename") for f in files if isinstance(f, dict)] if isinstance(files, list) else None
    return [folder / name for name in _plain_names(names, folder / "state.json")]


def _plain_names(names: Any, named_in: Path) -> list[str]:
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"{named_in} names {name!r}, which is not in its folder; save the dataset again")
    return names
