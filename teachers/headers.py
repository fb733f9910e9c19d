"""What a checkpoint's safetensors files hold, read from their headers: names, shapes and dtypes, and no tensor.

A file is 8 bytes with the header's length, the header in JSON, and the tensors one after another. What is wrong with
the files is found here, before any weight is loaded, however many gigabytes they have.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from teachers.errors import UserError
from teachers.source import check_whole, read_object, reason

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""The format's dtypes, in bits a number."""
Shapes = dict[str, tuple[int, ...]]
LENGTH = struct.Struct("<Q")
LONGEST = 100_000_000  # bytes of a header; safetensors reads no longer one [code]
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file.

    Attributes:
        dtype: as the format writes it, one of `BITS`.
        file: that holds it.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """On disk."""
        return self.numbers * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Headers:
    """All tensors of a checkpoint.

    Attributes:
        tensors: by name.
        files: that hold them.
        metadata: of the files, strings of whoever wrote them.
    """

    tensors: Mapping[str, TensorHeader]
    files: tuple[Path, ...]
    metadata: Mapping[str, str]

    @cached_property
    def shapes(self) -> Shapes:
        """Name → shape."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def bytes(self) -> int:
        """Of all tensors on disk."""
        return sum(tensor.bytes for tensor in self.tensors.values())


def read_headers(folder: Path, config: Mapping[str, Any]) -> Headers:
    """Read what the weight files of a model folder say they hold.

    Args:
        config: its ``config.json``.

    Raises:
        UserError: the weights are pickles, an adapter, missing, cut off, of an unknown dtype, outside the folder, or
            not where the index says.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds an adapter, which names another model; merge it and give the merged model")
    entry = _entry(folder, config)
    if not entry.name.endswith(".json"):
        return _joined([read_header(entry)])
    shards = _weight_map(entry)
    for shard in dict.fromkeys(shards.values()):
        if not (folder / shard).is_file():
            raise UserError(f"{entry} names {shard}, which is missing in {folder}; download the model again")
    headers = _joined([read_header(folder / shard) for shard in dict.fromkeys(shards.values())])
    _check_index(entry, shards, headers)
    return headers


def check_shapes(given: Shapes, wanted: Shapes, name: str, optional: Collection[str] = ()) -> None:
    """Refuse a checkpoint whose tensors are not those that its config.json asks for.

    Args:
        given, wanted: name → shape.
        name: the model's, for the message.
        optional: of ``wanted``, what need not be there.

    Raises:
        UserError: tensors are missing, left over or of other shapes.
    """
    others = [key for key in sorted(given.keys() | wanted.keys()) if given.get(key) != wanted.get(key)]
    others = [key for key in others if key in given or key not in optional]
    if others:
        first = others[0]
        more = f", and {len(others) - 1} more tensors differ" if len(others) > 1 else ""
        raise UserError(
            f"model {name!r} has {first} of shape {given.get(first, 'none')} where its config.json asks for "
            f"{wanted.get(first, 'none')}{more}; its weights are not whole, or of another model than its config.json: "
            "download both again"
        )


def _entry(folder: Path, config: Mapping[str, Any]) -> Path:
    """The file that transformers begins with: the weights, or the index of their shards."""
    named = config.get("transformers_weights")
    if named is not None:
        check_weight_file(named, folder / "config.json", (".safetensors", ".safetensors.index.json"))
    for name in (SINGLE, INDEX) if named is None else (named,):
        if (folder / name).is_file():
            return folder / name
    raise UserError(_why_none(folder))


def _why_none(folder: Path) -> str:
    files = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    tensors = [f for f in files if f.endswith(".safetensors")]
    pickles = [f for f in files if Path(f).suffix.lower() in PICKLES]
    if tensors:
        return (
            f"{folder} has {tensors[0]} but neither {SINGLE} nor {INDEX}, which says what is where; download the model "
            "again, with that file"
        )
    if pickles:
        return (
            f"{folder} has its weights only as a pickle, {pickles[0]}, which runs code when it is read; write it as "
            f"safetensors, once: fewstep unpickle {folder} --out NEW, which runs nothing, or where you trust it "
            "save_pretrained of transformers 5"
        )
    return (
        f"{folder} holds no weights; it must have {SINGLE}, or {INDEX} with its shards: download them, too (a release "
        "that is a pickle is written as safetensors, once: fewstep unpickle NAME --out NEW)"
    )


def _weight_map(index: Path) -> dict[str, str]:
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index} has no weight_map; download the model again")
    for shard in shards.values():
        check_weight_file(shard, index)
    return shards


def check_weight_file(name: Any, place: Path, suffixes: tuple[str, ...] = (".safetensors",)) -> None:
    """Refuse the name of a weight file that would be read from elsewhere.

    Args:
        place: what names it, for the message.

    Raises:
        UserError: it is no plain name of a safetensors file.
    """
    if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(suffixes):
        raise UserError(
            f"{place} names the weight file {name!r}; it must be the plain name of a safetensors file in that folder"
        )


def _check_index(index: Path, shards: Mapping[str, str], headers: Headers) -> None:
    for name, shard in shards.items():
        tensor = headers.tensors.get(name)
        if tensor is None or tensor.file.name != shard:
            where = "none of its shards has it" if tensor is None else f"it is in {tensor.file.name}"
            raise UserError(
                f"{index} says that {name} is in {shard}, but {where}; index and shards are of two models: download "
                "them again"
            )


def _joined(headers: list[Headers]) -> Headers:
    tensors: dict[str, TensorHeader] = {}
    for header in headers:
        for name in header.tensors.keys() & tensors.keys():
            first, second = tensors[name].file, header.tensors[name].file.name
            raise UserError(
                f"{first.parent} has {name} twice, in {first.name} and in {second}; the shards are of two models: "
                "download them again"
            )
        tensors |= header.tensors
    metadata = {key: value for header in headers for key, value in header.metadata.items()}
    return Headers(tensors, tuple(file for header in headers for file in header.files), metadata)


def read_header(path: Path) -> Headers:
    """Read the header of one safetensors file.

    Raises:
        UserError: it is a Git LFS pointer, cut off, no safetensors file, or has tensors of an unknown dtype.
    """
    check_whole(path)
    try:
        header, start, size = _parse(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); it must be a whole safetensors file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the header of {path} is damaged ({reason(error)}); download the file again") from error
    metadata = header.pop("__metadata__", {})
    tensors: dict[str, TensorHeader] = {}
    end = 0
    for name, entry in header.items():
        tensors[name], last = _read_entry(path, name, entry)
        end = max(end, last)
    if start + end != size:
        raise _cut_off(path, size, start + end)
    return Headers(tensors, (path,), metadata if isinstance(metadata, dict) else {})


def _parse(path: Path) -> tuple[dict[str, Any], int, int]:
    """A file's header, where its tensors begin, and its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        length = LENGTH.unpack(start)[0] if len(start) == LENGTH.size else 0
        if size - LENGTH.size < length <= LONGEST:
            raise _cut_off(path, size, LENGTH.size + length)
        header = json.loads(file.read(length)) if 0 < length <= LONGEST else None
    if not isinstance(header, dict):
        raise UserError(f"{path}, {size} bytes, is no safetensors file; download it again")
    return header, LENGTH.size + length, size


def _cut_off(path: Path, size: int, expected: int) -> UserError:
    return UserError(f"{path} has {size} bytes and its header says {expected}; it is not whole: download it again")


def _read_entry(path: Path, name: str, entry: Any) -> tuple[TensorHeader, int]:
    """A tensor, and where its bytes end."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UserError(
            f"{name} in {path} has dtype {dtype!r:.60}, which safetensors does not know; convert the model to "
            "bfloat16 or float32"
        )
    if _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2:
        tensor = TensorHeader(dtype, tuple(shape), path)
        if tensor.bytes == offsets[1] - offsets[0]:
            return tensor, offsets[1]
    raise UserError(
        f"the header of {path} is damaged: {name}, {dtype} of shape {shape!r:.60}, cannot be bytes {offsets!r:.60}; "
        "download the file again"
    )


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
