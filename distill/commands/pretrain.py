"""`fewstep pretrain`: a masked-diffusion teacher or an autoregressive judge, from text."""

from __future__ import annotations

from pathlib import Path

from distill.config import PretrainConfig
from distill.runtime.messages import say
from distill.training.pretraining import from_text


def pretrain(config: PretrainConfig, run_path: str | Path, resume: bool = False, allow_changes: bool = False) -> Path:
    """Train a model from text, see `from_text`, and say how good it is.

    Returns:
        The model folder, which `fewstep distill` takes as ``teacher.path`` or ``evaluate.judge``.
    """
    folder, figures = from_text(config, run_path, resume, allow_changes)
    if figures is not None:  # on the main process
        say(
            f"held out: {figures['heldout_nats']:.4f} nats a token, {figures['bits_per_byte']:.4f} bits per byte "
            f"({'ELBO, an upper bound' if config.objective == 'elbo' else 'exact'}); model in {folder}"
        )
    return folder
