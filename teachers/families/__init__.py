"""The families of checkpoints, and the one way from a model's name to a denoiser.

A family says of a config.json whether it is its own, and reads and writes what belongs to it. Adding one touches its
own file and `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teachers.errors import UserError
from teachers.families.dit.bd3lm import Bd3lm
from teachers.families.dit.didi_instruct import DidiInstruct
from teachers.families.dit.duo import Duo
from teachers.families.dit.mdlm import Mdlm
from teachers.families.dit.sdtt import Sdtt
from teachers.families.dit.sedd import Sedd
from teachers.families.family import Checkpoint, Family
from teachers.families.markov import Markov
from teachers.families.stock import Stock
from teachers.source import check_trust, model_folder, parse_source, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.denoiser import Denoiser

FAMILIES: tuple[Family, ...] = (Markov(), Mdlm(), Sedd(), Bd3lm(), Duo(), Sdtt(), DidiInstruct(), Stock())
"""The first that recognises a checkpoint reads it."""

__all__ = ["FAMILIES", "Checkpoint", "Family", "load_denoiser", "recognise", "resolve"]


def resolve(name: str, revision: str | None = None, trust_remote_code: str | None = None) -> Checkpoint:
    """Find the files of a model and the family they are of; nothing is loaded.

    Args:
        name, revision: see `teachers.source.parse_source`.
        trust_remote_code: the model's name again, to run the code that comes with it; None for code of ours only.

    Raises:
        UserError: no such model, no model's folder, or one of no family.
    """
    trusted = check_trust(parse_source(name, revision), trust_remote_code)
    folder = model_folder(name, revision, code=trusted)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} is not a model folder: it has no config.json; give a folder saved by save_pretrained")
    config = read_object(folder / "config.json")
    return Checkpoint(name, folder, config, recognise(config, name), trusted)


def recognise(config: Mapping[str, Any], name: str) -> Family:
    """The family of a config.json.

    Args:
        name: the model's, for the message.

    Raises:
        UserError: it is of none.
    """
    for family in FAMILIES:
        if family.recognises(config):
            return family
    raise UserError(
        f"the config.json of model {name!r} is of no family that is read here ({', '.join(f.name for f in FAMILIES)}); "
        "it must name its model_type"
    )


def load_denoiser(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: str | None = None,
    **options: Any,
) -> Denoiser:
    """The denoiser of a name, in float32 unless ``precision`` says otherwise; see `resolve` and `Checkpoint.load`."""
    return resolve(name, revision, trust_remote_code).load(tokenizer, **options)
