"""One rule a file; passes counted."""

from students.samplers import ancestral, top_k
from students.samplers.sampler import LOG_LINEAR, CountedDenoiser, Draw, SampleOutput, Sampler, draw_tokens

SAMPLERS: dict[str, Sampler] = {"ancestral": ancestral.sample, "top_k": top_k.sample}
"""What ``evaluate.sampler`` may name."""

__all__ = ["LOG_LINEAR", "SAMPLERS", "CountedDenoiser", "Draw", "SampleOutput", "Sampler", "draw_tokens"]
