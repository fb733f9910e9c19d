"""Tensors on disk: read whole and finite, written readable for others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from teachers.errors import UserError
from teachers.headers import Headers
from teachers.source import reason


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        name: the model's, for the message.

    Raises:
        UserError: there is no such file, or it is not whole.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot load model {name!r} ({reason(error)}); give a folder with config.json and a whole {path.name}"
        ) from error


def weight_of(layer: nn.Module | None) -> nn.Parameter:
    """The table of an embedding, or the matrix of a linear layer: (rows, columns)."""
    assert layer is not None, "a model without this layer is refused before"
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def rows_of(layer: nn.Module | None) -> int:
    """Entries of an embedding's table, or outputs of a linear layer, also where DeepSpeed holds it in shards."""
    weight = weight_of(layer)
    return getattr(weight, "ds_shape", weight.shape)[0]


def write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, into a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, path, metadata={"format": "pt"})
    # safetensors are created unreadable for others; the folder says who may read
    path.chmod(path.parent.stat().st_mode & 0o666)


def file_tensors(headers: Headers) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all floating numbers in a checkpoint's files, one at a time; none is copied into memory."""
    for path in headers.files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if tensor.is_floating_point():
                    yield name, tensor


def check_finite(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse weights with numbers that are none.

    Raises:
        UserError: there are some.
    """
    for key, tensor in tensors:
        smallest, largest = tensor.aminmax()  # a NaN is both; no tensor of the same size is made
        if not (smallest.isfinite() and largest.isfinite()):
            raise UserError(
                f"model {name!r} has weights in {key} that are not finite; its safetensors files are damaged"
            )
