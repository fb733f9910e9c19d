"""The families of checkpoints, and the one way from a model's name to a denoiser.

A family says of a config.json whether it is its own, and reads and writes what belongs to it. Adding one touches its
own file and `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachers.errors import UserError, nearest
from teachers.families.dit.bd3lm import Bd3lm
from teachers.families.dit.didi_instruct import DidiInstruct
from teachers.families.dit.duo import Duo
from teachers.families.dit.mdlm import Mdlm
from teachers.families.dit.sdtt import Sdtt
from teachers.families.dit.sedd import Sedd
from teachers.families.family import Checkpoint, Family, unknown_family
from teachers.families.language import LANGUAGE
from teachers.families.oracle import Oracle
from teachers.families.rules import check_section
from teachers.families.stock import Stock
from teachers.source import check_trust, model_folder, parse_source, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.denoiser import Denoiser

FAMILIES: tuple[Family, ...] = (
    Oracle(), Mdlm(), Sedd(), Bd3lm(), Duo(), Sdtt(), DidiInstruct(), *LANGUAGE, Stock(),
)  # fmt: skip
"""The first that recognises a checkpoint reads it."""

__all__ = ["FAMILIES", "Checkpoint", "Family", "load_denoiser", "recognise", "resolve"]


def resolve(
    name: str, revision: str | None = None, trust_remote_code: str | None = None, family: str | None = None
) -> Checkpoint:
    """Find the files of a model and the family they are of; nothing is loaded.

    Args:
        name, revision: see `teachers.source.parse_source`.
        trust_remote_code: the model's name again, to run the code that comes with it; None for code of ours only.
        family: its name, for checkpoints that do not say it.

    Raises:
        UserError: no such model, no model's folder, or one of no family; code is trusted that would not run.
    """
    trusted = check_trust(parse_source(name, revision), trust_remote_code)
    folder = model_folder(name, revision, code=trusted)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{name} is not a model folder: it has no config.json; give one as it was released or saved by "
            "save_pretrained, or, of a run, what fewstep export writes"
        )
    config = read_object(folder / "config.json")
    check_section(config, folder / "config.json")
    found = recognise(config, name, folder) if family is None else named_family(family)
    if trusted and not found.runs_code:
        raise UserError(f"model {name!r} is {found.title}, read by no code of its own; leave out trust_remote_code")
    return Checkpoint(name, folder, config, found, trusted)


def named_family(name: str) -> Family:
    """The family of that name.

    Raises:
        UserError: there is none.
    """
    families = {family.name: family for family in FAMILIES}
    if name not in families:
        raise UserError(f"family {name!r} is unknown{nearest(name, list(families))}; allowed are {', '.join(families)}")
    return families[name]


def recognise(config: Mapping[str, Any], name: str, folder: Path) -> Family:
    """The family of a checkpoint: what a person called it when the folder was written, or what its files say.

    Args:
        config: its config.json.
        name: the model's.
        folder: where its files are.

    Raises:
        UserError: it is of none.
    """
    written = config.get("fewstep")
    if isinstance(written, dict) and "family" in written:
        return named_family(str(written["family"]))
    for family in FAMILIES:
        if family.recognises_files(config, name, folder):
            return family
    raise unknown_family(config, name, [family.name for family in FAMILIES])


def load_denoiser(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: str | None = None,
    family: str | None = None,
    **options: Any,
) -> Denoiser:
    """The denoiser of a name, in float32 unless ``precision`` says otherwise; see `resolve` and `Checkpoint.load`."""
    return resolve(name, revision, trust_remote_code, family).load(tokenizer, **options)
