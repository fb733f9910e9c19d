"""The layer that an adapter sits on, in fewer launches than PEFT's.

PEFT computes base(x) + B A x · alpha/rank with two products, a multiplication and a sum. Here the second product is
added to the base's output as it is computed; in place, where no gradient is asked for. The adapter is not merged into
the base: others compute with the same weights, and in bfloat16 their rounding would lose most of a small adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from teachers.weights import weight_of


class AdaptedLinear(LoraLinear):
    """PEFT's layer, with the same bits with and without a gradient."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, in) → (…, out), by the base and by the active adapters that it has."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if len(names) != 1 or args or kwargs:
            return super().forward(x, *args, **kwargs)
        low, high, scale = self.lora_A[names[0]], self.lora_B[names[0]], self.scaling[names[0]]
        if not self._addable(x, low, high):
            return super().forward(x)
        out = self.base_layer(x)
        rows, narrow, wide = out.view(-1, out.shape[-1]), low(x).flatten(0, -2), weight_of(high).T
        if torch.is_grad_enabled():
            return torch.addmm(rows, narrow, wide, alpha=scale).view_as(out)
        rows.addmm_(narrow, wide, alpha=scale)
        return out

    def _addable(self, x: Tensor, low: nn.Module, high: nn.Module) -> bool:
        """Whether all is in one precision, and the adapter whole: under ZeRO 3 only a module's own pass gathers it."""
        weights = [weight_of(layer) for layer in (self.get_base_layer(), low, high)]
        return all(weight.dtype == x.dtype and not hasattr(weight, "ds_id") for weight in weights)
