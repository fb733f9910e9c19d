"""The ground floor: frozen denoisers of every family, the noise process, and the bundled models."""

from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.process import MaskedProcess

__all__ = ["Denoiser", "DenoiserSpec", "MaskedProcess"]
