"""One rule a file."""

from typing import Any

from pydantic import ValidationError

from students.samplers.ancestral import Ancestral
from students.samplers.daedal import Daedal
from students.samplers.dilated import Dilated
from students.samplers.edit import Edit
from students.samplers.entropy_bound import EntropyBound
from students.samplers.factor import Factor
from students.samplers.joint import Joint
from students.samplers.planner import Planner
from students.samplers.random_start import RandomStart
from students.samplers.released import PRESETS, RELEASED, SERVED, released_sampler
from students.samplers.remdm import Remdm
from students.samplers.rgas import Rgas
from students.samplers.sampler import Sampler
from students.samplers.threshold import Threshold
from students.samplers.top_k import TopK
from students.samplers.work import LOG_LINEAR
from teachers.errors import UserError

SAMPLERS: dict[str, type[Sampler]] = {
    "ancestral": Ancestral,
    "joint": Joint,
    "dilated": Dilated,
    "random_start": RandomStart,
    "rgas": Rgas,
    "top_k": TopK,
    "threshold": Threshold,
    "factor": Factor,
    "entropy_bound": EntropyBound,
    "edit": Edit,
    "remdm": Remdm,
    "planner": Planner,
    "daedal": Daedal,
}
"""What a ``sampler:`` section may name."""


def written_sampler(written: Any) -> Sampler:
    """The sampler that a run folder or an export names, with the settings that are still known.

    Ancestral where none is named, or one that asks a critic, which no export has.

    Raises:
        UserError: a setting is out of range.
    """
    if isinstance(written, str) and written in PRESETS:
        return PRESETS[written]
    values: dict[str, Any] = written if isinstance(written, dict) else {"name": written}
    kind = SAMPLERS.get(str(values.get("name")), Ancestral)
    if kind.needs_critic:
        return Ancestral()
    try:
        return kind(**{key: value for key, value in values.items() if key in kind.model_fields and key != "name"})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"sampler {values['name']!r} was written with {'.'.join(map(str, first['loc']))} = {first['input']!r}: "
            f"{first['msg']}; mend it in generation_config.json"
        ) from error


__all__ = [
    "LOG_LINEAR",
    "PRESETS",
    "RELEASED",
    "SAMPLERS",
    "SERVED",
    "Ancestral",
    "Daedal",
    "Dilated",
    "Edit",
    "EntropyBound",
    "Factor",
    "Joint",
    "Planner",
    "RandomStart",
    "Remdm",
    "Rgas",
    "Sampler",
    "Threshold",
    "TopK",
    "released_sampler",
    "written_sampler",
]
