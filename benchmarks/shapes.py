"""Teachers of random weights: they cost, weigh and launch what trained ones of the same shape do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from distill.config import DistillConfig, validate
from distill.data.tokenizers import load_tokenizer
from teachers.denoiser import Attention, Denoiser, DenoiserSpec
from teachers.families.dit.denoiser import DitDenoiser, Release
from teachers.families.dit.family import CAPABILITIES
from teachers.families.dit.network import DiffusionTransformer
from teachers.families.dit.shape import Shape as DitShape
from teachers.families.stock.loading import create_denoiser
from teachers.vocabulary import token_id


@dataclass(frozen=True)
class Size:
    """A network, the rows it is trained on, and how.

    Attributes:
        family: "mdlm", MDLM's diffusion transformer, or a stock type of transformers.
        hidden, layers, heads, inner: width, depth, attention heads, and width of the MLP where it is not four times
            the network's.
        vocabulary, length, batch: V, L, and rows of an update.
        sections: of the config, beside teacher, length and train.
        train: of that section.
        block: tokens a block of attention; None where rows are looked at whole. Of stock types alone.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    length: int
    batch: int = 8
    inner: int | None = None
    sections: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    block: int | None = None

    @property
    def stock(self) -> dict[str, Any]:
        """The fields of a stock config: full attention heads, and an output layer of its own, as LLaDA's."""
        return {
            "hidden_size": self.hidden, "intermediate_size": self.inner or 4 * self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.heads,
            "tie_word_embeddings": False,
        }  # fmt: skip

    def network(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Denoiser:
        """Random weights, made where they will be."""
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                made = self._mdlm() if self.family == "mdlm" else create_denoiser(self.family, self.stock, self._spec())
        finally:
            torch.set_default_dtype(before)
        return made.eval().requires_grad_(False)

    def teacher(self, folder: Path) -> tuple[Denoiser, PreTrainedTokenizerBase]:
        """Save a network in float32 as a checkpoint; it, and its tokenizer."""
        network, tokenizer = self.network(), load_tokenizer("bundled:teacher")
        folder.mkdir(parents=True, exist_ok=True)
        network.save(folder)
        tokenizer.save_pretrained(folder)
        return network, tokenizer

    def describe(self, folder: Path) -> None:
        """Write what a checkpoint says of itself, without the weights: enough for a config, and for `fewstep plan`."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.family == "mdlm":
            config = self._release
        else:
            with torch.device("meta"):
                config = create_denoiser(self.family, self.stock, self._spec()).model.config.to_dict()
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        load_tokenizer("bundled:teacher").save_pretrained(folder)

    def config(self, folder: Path, **train: Any) -> DistillConfig:
        """A distillation of the checkpoint in a folder."""
        common = {"batch": self.batch, "log_every": 1, "checkpoint_every": 10**6, "student": {"lr": 1e-5}}
        values = {"teacher": {"path": str(folder)}, "length": self.length, **self.sections}
        return validate(DistillConfig, {**values, "train": {**common, **self.train, **train}})

    @property
    def _release(self) -> dict[str, Any]:
        return {
            "model_type": "mdlm", "vocab_size": self.vocabulary, "hidden_dim": self.hidden,
            "cond_dim": max(8, self.hidden // 6), "n_blocks": self.layers, "n_heads": self.heads,
            "model_length": self.length, "time_conditioning": False, "dropout": 0.0,
        }  # fmt: skip

    def _spec(self) -> DenoiserSpec:
        if self.family == "mdlm":
            return DenoiserSpec(self.vocabulary - 1, self.vocabulary, self.length)
        tokenizer = load_tokenizer("bundled:teacher")
        mask_id = token_id(tokenizer, "mask")
        assert mask_id is not None
        attention: Attention = "full" if self.block is None else "block"
        return DenoiserSpec(
            mask_id,
            self.vocabulary,
            self.length,
            token_id(tokenizer, "eos"),
            attention=attention,
            block_size=self.block,
        )

    def _mdlm(self) -> Denoiser:
        sizes = DitShape(self.vocabulary, self.hidden, self._release["cond_dim"], self.layers, self.heads)
        network = DiffusionTransformer(sizes)
        return DitDenoiser(network, self._spec(), Release("backbone.", self._release, CAPABILITIES))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
