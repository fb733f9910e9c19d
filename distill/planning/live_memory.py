"""What is alive in memory while operations run on tensors that have shapes and no data: a count of their storages."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


@dataclass
class Peak:
    """The largest sum so far of the storages alive at one moment, in bytes.

    Attributes:
        activations: all that is neither of the two below.
        logits: tensors as wide as the vocabulary.
        gradients: gradients that parameters have accumulated.
    """

    activations: float = 0
    logits: float = 0
    gradients: float = 0

    @property
    def total(self) -> float:
        """Bytes."""
        return self.activations + self.logits + self.gradients

    def grown(self, other: Peak, times: float) -> Peak:
        """This plus ``times`` the difference to ``other``: from two depths of a network to any."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Peak(*(a + times * (a - b) for a, b in pairs))


@dataclass
class PassMemory:
    """Peaks of one forward and backward pass.

    Without the gradients that parameters accumulate, before (``forward``) and after (``backward``) the first of them is
    there; and with them, at the top of the network and at its bottom: in between both shrink and grow evenly.
    """

    forward: Peak = field(default_factory=Peak)
    backward: Peak = field(default_factory=Peak)
    kept_top: Peak = field(default_factory=Peak)
    kept_bottom: Peak = field(default_factory=Peak)

    def grown(self, other: PassMemory, times: float) -> PassMemory:
        """See `Peak.grown`."""
        return PassMemory(*(getattr(self, key).grown(getattr(other, key), times) for key in vars(self)))


class GroupedProducts(TorchDispatchMode):
    """Experts' products on tensors without data, of which torch itself knows the shape in bfloat16 alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make such a product, or else run the operation."""
        if func is aten._grouped_mm.default:
            left, right, ends = args
            # (S, K) · (E, K, N) is (S, N), and a gradient, (K, S) · (S, N), is (E, K, N): the groups are parts of S
            groups = ends.shape if left.ndim == right.ndim else ()
            return left.new_empty(*groups, left.shape[0], right.shape[-1])
        return func(*args, **(kwargs or {}))


class LiveTensors(GroupedProducts):
    """Counts the storages that operations make, while entered, within torch's fake mode.

    Data-dependent shapes take their largest value: a boolean index chooses every position.

    Args:
        there: storages that are not counted, such as parameters.
        vocabulary: V; tensors of this width are logits.
    """

    def __init__(self, there: Iterable[Tensor], vocabulary: int):
        super().__init__()
        self.memory, self.vocabulary = PassMemory(), vocabulary
        self.kind = {t.untyped_storage()._cdata: ("there", 0) for t in there}
        self.now = {"activations": 0, "logits": 0, "gradients": 0}
        self.started = self.below_top = self.at_bottom = False

    def follow_gradients(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """From now on tell gradients that ``network`` accumulates from other tensors, and where the pass is."""
        of_block = {id(p): i for i, block in enumerate(blocks) for p in block.parameters()}
        of_layer = _adapter_blocks(network)
        trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        where = {n: of_layer.get(n, of_block.get(id(p))) for n, p in trained}
        reached = [i for i in where.values() if i is not None]
        top, bottom = max(reached, default=0), min(reached, default=0)

        def watch(name: str, parameter: nn.Parameter) -> None:
            def accumulated(p: Tensor) -> None:
                assert p.grad is not None
                key = p.grad.untyped_storage()._cdata
                kind, size = self.kind[key]
                if kind != "gradients":
                    self.now[kind] -= size
                    self.now["gradients"] += size
                    self.kind[key] = ("gradients", size)
                block = where[name]
                self.started = True
                self.below_top |= block is not None and block < top
                self.at_bottom |= block == bottom
                self._note()

            parameter.register_post_accumulate_grad_hook(accumulated)

        for name, parameter in trained:
            watch(name, parameter)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        out = _all_chosen(func, args)
        if out is None:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.kind:
            return
        wide = tensor.ndim > 0 and tensor.shape[-1] == self.vocabulary
        kind, size = "logits" if wide else "activations", storage.nbytes()
        self.kind[key] = (kind, size)
        self.now[kind] += size
        weakref.finalize(storage, self._gone, key)
        self._note()

    def _gone(self, key: int) -> None:
        kind, size = self.kind.pop(key)
        self.now[kind] -= size

    def _note(self) -> None:
        now, memory = Peak(**self.now), self.memory
        loose = Peak(now.activations, now.logits)
        phase = "backward" if self.started else "forward"
        if loose.total > getattr(memory, phase).total:
            setattr(memory, phase, loose)
        if not self.below_top and now.total > memory.kept_top.total:
            memory.kept_top = now
        if self.at_bottom and now.total > memory.kept_bottom.total:
            memory.kept_bottom = now


def _adapter_blocks(network: nn.Module) -> dict[str, int]:
    """Parameter name → block, for adapters, whose layers are named by their dashed path within the base."""
    found = {}
    for name, _ in network.named_parameters():
        for part in name.split("."):
            words = part.split("-")
            if "layers" in words[:-1]:
                found[name] = int(words[words.index("layers") + 1])
    return found


def _all_chosen(func: Any, args: Any) -> Any:
    """The result of an operation whose shape depends on data, as if all of a mask were True; None for others."""
    if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
        values, (mask,) = args
        return values.reshape(-1, *values.shape[mask.ndim :]).clone()
    if func in (aten._index_put_impl_.default, aten.index_put_.default, aten.index_put.default):
        mask = args[1][0]
        if mask is not None and mask.dtype == torch.bool:
            return args[0].clone() if func is aten.index_put.default else args[0]
    if func is aten.masked_select.default:
        return args[0].reshape(-1).clone()
    if func is aten.masked_scatter_backward.default:
        return args[0].new_empty(args[2])
    if func is aten.nonzero.default:
        return args[0].new_zeros(args[0].numel(), args[0].ndim, dtype=torch.long)
    if func is aten._local_scalar_dense.default:
        return False  # "are all rows the same?": the shortcut of a first step is not the most a pass can take
    return None
