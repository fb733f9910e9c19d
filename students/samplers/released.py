"""The sampler that each family was released with, in our rules: what `sampler="llada"` stands for.

Each has the settings of its release's own example, and tests hold it to traces of the released code, token for token
and pass by pass (tests/students/test_golden_traces.py). Caches that change the text, Fast-dLLM's for prefix and suffix
and Fast-dLLM v2's within a block, are off; ``cache`` turns them on. No pass is made that only stores a finished block.
"""

from __future__ import annotations

from students.samplers.ancestral import Ancestral
from students.samplers.edit import Edit
from students.samplers.remdm import Remdm
from students.samplers.sampler import Sampler
from students.samplers.stepwise import StepwiseSampler
from students.samplers.threshold import Threshold
from students.samplers.top_k import TopK
from teachers.denoiser import DenoiserSpec

_LLADA = TopK(draw="greedy", block_length=32)
_SDAR = Threshold(
    threshold=0.85, strict=True, confidence="drawn", tempered=True, timetable="sdar", block_length=4, stop=True
)

RELEASED: dict[str, Sampler] = {
    # top-k of every block, greedily; its prompt's own columns do not count (2502.09992)
    "llada": _LLADA,
    "llada-moe": _LLADA,
    # Fast-dLLM of LLaDA and Dream without its caches (2505.22618)
    "fast-dllm": Threshold(draw="greedy", threshold=0.9, block_length=32),
    # at every position's least entropy (2508.15487)
    "dream": TopK(order="entropy", tempered=True, timetable="dream", temperature=0.2, top_p=0.95),
    # small blocks of 8 within the attention's of 32 (2509.26328)
    "fast-dllm-v2": Threshold(draw="greedy", threshold=0.9, strict=True, block_length=8, stop=True),
    # "low_confidence_dynamic": all above τ, or the share of a pass (2510.06303)
    "sdar": _SDAR,
    "sdar-moe": _SDAR,
    "rnd1": TopK(draw="greedy", order="entropy", tempered=True, timetable="rnd1"),
    "llada2": Threshold(draw="greedy", threshold=0.95, strict=True, timetable="sdar", block_length=32, stop=True),
    "llada2.1": Edit(draw="greedy", block_length=32),
    # any position with the same chance (2410.17891)
    "diffullama": Ancestral(temperature=0.9, top_p=0.9),
    "diffugpt": Ancestral(temperature=0.95, top_p=0.9),
    # dllm's samplers, for full attention and for blocks
    "a2d": TopK(draw="greedy", timetable="dllm", block_length=32),
}
"""By the name of the family, and for what is published beside it."""

SERVED: dict[str, Sampler] = {
    # all above τ = 0.95, or the most probable one: its "LowConfidence" algorithm
    "sglang": Threshold(
        draw="greedy", threshold=0.95, strict=True, block_length="attention", stop=True, budget="block"
    ),
    # all that reach τ = 0.85, or the most probable one: its "low_confidence_dynamic" strategy
    "lmdeploy": Threshold(draw="greedy", threshold=0.85, block_length="attention", stop=True, budget="block"),
}
"""What inference engines run on any model that they serve, at their defaults, by the engine's name: as many steps of a
block as it has tokens."""

PRESETS: dict[str, Sampler] = {
    **RELEASED,
    **SERVED,
    # mask again what they wrote (2503.00307)
    "remdm-cap": Remdm(strategy="cap", top_p=0.9, end=1e-5),
    "remdm-rescale": Remdm(strategy="rescale", top_p=0.9, end=1e-5),
    "remdm-conf": Remdm(strategy="confidence", top_p=0.9, end=1e-5),
    "remdm-loop": Remdm(strategy="loop", top_p=0.9, end=1e-5),
}
"""All names that stand for a rule with settings."""

IN_ATTENTION_BLOCKS = frozenset({"sdar", "sdar-moe", "llada2", "llada2.1", "a2d"})
"""Whose blocks are the attention's own, where that has any."""


def released_sampler(name: str, spec: DenoiserSpec) -> Sampler | None:
    """The sampler that ``name`` was released with, in the blocks of this denoiser; None where we know of none.

    A model without an end token is written to the end of its canvas.
    """
    rule = PRESETS.get(name)
    if not isinstance(rule, StepwiseSampler):
        return rule
    size = spec.block_size if name in IN_ATTENTION_BLOCKS and spec.block_size else rule.block_length
    return rule.model_copy(update={"block_length": size, "stop": rule.stop and spec.eos_id is not None})
