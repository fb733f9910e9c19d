"""One file per family of checkpoints; `load_denoiser` reads any of them."""

from teachers.families.causal import CausalDenoiser, load_denoiser

__all__ = ["CausalDenoiser", "load_denoiser"]
