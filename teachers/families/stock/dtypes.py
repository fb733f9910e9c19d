"""In which types a checkpoint holds its tensors, so that they can be written in the same again.

Networks are read and trained in float32, and a run's checkpoints are; those say what they came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.headers import Headers

TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""How safetensors calls the types that are kept → torch's; others hold packed weights."""
KEY = "dtypes"


@dataclass(frozen=True)
class Dtypes:
    """Of a checkpoint's tensors, as safetensors writes them.

    Attributes:
        usual: what most numbers have.
        others: of the tensors that have another one, by their names in the files.
    """

    usual: str = "F32"
    others: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, headers: Headers, config: Mapping[str, Any]) -> Dtypes:
        """Those of a checkpoint's files, or of the checkpoint that a run's came from.

        Args:
            config: its config.json; a section "fewstep" says it where a run has written it.

        Raises:
            UserError: that section is damaged.
        """
        section = config.get("fewstep")
        if isinstance(section, dict) and KEY in section:
            return cls._of_run(section[KEY])
        plain = {name: tensor for name, tensor in headers.tensors.items() if tensor.dtype in TORCH}
        if config.get("quantization_config") or not plain:
            return cls()
        numbers: Counter[str] = Counter()
        for tensor in plain.values():
            numbers[tensor.dtype] += tensor.numbers
        usual = numbers.most_common(1)[0][0]
        return cls(usual, {name: tensor.dtype for name, tensor in plain.items() if tensor.dtype != usual})

    @classmethod
    def _of_run(cls, written: Any) -> Dtypes:
        usual, others = (written.get("usual"), written.get("others")) if isinstance(written, dict) else (None, None)
        if usual not in TORCH or not isinstance(others, dict) or not all(str(v) in TORCH for v in others.values()):
            raise UserError(
                f"config.json has fewstep.{KEY} {written!r}; it must name {', '.join(TORCH)} as the usual type and for "
                "other tensors, as fewstep wrote it; leave it out for float32"
            )
        return cls(usual, others)

    @property
    def are_float32(self) -> bool:
        """Whether all are."""
        return self.usual == "F32" and not self.others

    @property
    def usual_type(self) -> torch.dtype:
        """The usual one."""
        return TORCH[self.usual]

    def only(self, names: Collection[str]) -> Dtypes:
        """Without those of tensors that are none of ``names``."""
        return Dtypes(self.usual, {name: dtype for name, dtype in self.others.items() if name in names})

    def cast(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under the names of the files, in these types; what is no floating-point number stays as it is."""
        return {
            name: tensor.to(TORCH[self.others.get(name, self.usual)]) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values, which `of` reads."""
        return {KEY: {"usual": self.usual, "others": dict(self.others)}}


FLOAT32 = Dtypes()
