"""`fewstep pretrain`: a masked-diffusion teacher or an autoregressive judge, from text; and `fewstep convert`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from distill.config import PretrainConfig, load_config
from distill.runtime.messages import say
from distill.training.pretraining import from_text
from teachers.errors import UserError


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


def config_of_conversion(model: str, path: Path, overrides: Sequence[str]) -> PretrainConfig:
    """A config of pretraining, read as that of a model's conversion.

    Args:
        model: what is to be converted, which becomes ``model.init``.

    Raises:
        UserError: the config or an override names another one; see `load_config`.
    """
    said = load_config(PretrainConfig, path, overrides).model.init
    config = load_config(PretrainConfig, path, [*overrides, f"model.init={json.dumps(model)}"])
    if said not in (None, config.model.init):
        raise UserError(f"model.init is {said!r}, but the model to convert is {model!r}; leave model.init out")
    return config


def convert(config: PretrainConfig, run_path: str | Path, resume: bool = False, allow_changes: bool = False) -> Path:
    """Pretrain from an autoregressive model, ``model.init``; see `pretrain`.

    Raises:
        UserError: the config trains an autoregressive model, or makes a network of a shape of its own.
    """
    if config.objective != "elbo":
        raise UserError(
            f"objective {config.objective!r} makes no diffusion model; leave it out, or use fewstep pretrain"
        )
    if config.model.shape:
        raise UserError("model.shape is set, but a converted model has that of its start; leave it out")
    return pretrain(config, run_path, resume, allow_changes)
