"""Weights that were released as a pickle, written once as safetensors: what `fewstep unpickle` does.

A pickle runs what its writer chose when it is read. Here torch reads it with ``weights_only``, which makes tensors and
plain containers and refuses everything else. Nothing else of the package reads pickles at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.headers import PICKLES, SINGLE
from teachers.source import READ, check_whole, reason
from teachers.weights import write_weights

USUAL = "pytorch_model.bin"
BUFFERS = "rotary_emb.inv_freq"  # saved with the parameters, and averaged with none
State = Mapping[str, Tensor]


def convert(folder: Path, out: Path) -> dict[str, int]:
    """Write the weights of a folder as safetensors into ``out``, and copy its config and tokenizer.

    Args:
        out: a folder that is there.

    Returns:
        File → how many tensors it holds.

    Raises:
        UserError: there is no config.json, no pickle or more than one, or it holds more than weights.
    """
    pickle = find_pickle(folder)
    parts = take_apart(read_pickle(pickle), pickle)
    for name, state in parts.items():
        write_weights(_unshared(state), out / name)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in READ and not path.name.endswith(".index.json"):
            shutil.copyfile(path, out / path.name)
    return {name: len(state) for name, state in parts.items()}


def find_pickle(folder: Path) -> Path:
    """The one file of a folder that holds its weights.

    Raises:
        UserError: there is none, more than one, or weights that need no conversion; no config.json says what they are.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLES]
    if "config.json" not in names:
        raise UserError(
            f"{folder} has no config.json, and a pickle does not say what its weights are; put the release's "
            "config.json beside it"
        )
    if SINGLE in names or not pickles:
        what = f"has {SINGLE} already" if SINGLE in names else f"holds no pickle ({', '.join(sorted(PICKLES))})"
        raise UserError(f"{folder} {what}; there is nothing to convert")
    if USUAL not in pickles and len(pickles) > 1:
        raise UserError(
            f"{folder} holds {len(pickles)} pickles ({', '.join(pickles)}); leave the one with the weights, or name it "
            f"{USUAL}"
        )
    path = folder / (USUAL if USUAL in pickles else pickles[0])
    check_whole(path)
    return path


def read_pickle(path: Path) -> Any:
    """What a pickle of tensors and plain containers holds, on the CPU.

    Raises:
        UserError: it holds anything else, or is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise a dozen types
        raise UserError(
            f"{path} is not read: it is damaged, or holds more than tensors and plain containers, which could run code "
            f"({reason(error)}); ask its author for safetensors"
        ) from error


def take_apart(content: Any, path: Path) -> dict[str, State]:
    """The weights that a release would hold, by the names of its files.

    A state dict is taken as it is. Of a training checkpoint (Lightning's ``state_dict``, SEDD's ``model``) the averaged
    weights are: DiDi-Instruct's ``student_ema``, beside which its discriminator stands; or the list of shadow
    parameters under ``ema``, which have the order of the parameters and no names.

    Raises:
        UserError: it is none of these.
    """
    if _is_state(content):
        return {SINGLE: content}
    fields = content if isinstance(content, Mapping) else {}
    state = next((fields[name] for name in ("state_dict", "model") if _is_state(fields.get(name))), None)
    if state is None:
        found = ", ".join(map(str, list(fields)[:8])) or type(content).__name__
        raise UserError(f"{path} holds no state dict of tensors ({found}); give the file of a release, or a checkpoint")
    students = _below(state, "student_ema.")
    if students:
        parts = {SINGLE: students, "discriminator.safetensors": _below(state, "discriminator.")}
        return {name: part for name, part in parts.items() if part}
    ema = fields.get("ema")
    shadows = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    return {SINGLE: state if shadows is None else averaged(state, shadows, path)}


def averaged(state: State, shadows: Any, path: Path) -> State:
    """A state with its parameters' averages in their place; buffers stay.

    Args:
        shadows: one tensor a parameter, in their order.

    Raises:
        UserError: they are not those of the state's parameters.
    """
    names = [name for name in state if not name.endswith(BUFFERS)]
    shapes = [tensor.shape for tensor in shadows] if isinstance(shadows, list) else []
    if shapes != [state[name].shape for name in names]:
        raise UserError(
            f"{path} has {len(shapes)} averaged parameters under ema.shadow_params and {len(names)} parameters, which "
            "do not agree; give the released file"
        )
    return {**state, **dict(zip(names, shadows, strict=True))}


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _is_state(value: Any) -> TypeGuard[State]:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _unshared(state: State) -> dict[str, Tensor]:
    """The tensors, each with memory of its own: a pickle may hold one under two names, safetensors may not."""
    places: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return tensors
