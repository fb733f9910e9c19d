"""A denoiser that is a table: every canvas has its own logits, so everything can be enumerated."""

import itertools

import torch
from torch import nn

from teachers.denoiser import Denoiser, DenoiserSpec


class TabularDenoiser(Denoiser):
    """V−1 real tokens and the mask (the last id) on canvases of ``length``; float64. Padding reads as a mask."""

    capabilities = frozenset({"hidden states", "blocks"})

    def __init__(self, vocabulary: int, length: int, seed: int, sharpness: float = 1.0):
        super().__init__()
        self.spec = DenoiserSpec(mask_id=vocabulary - 1, vocabulary=vocabulary, max_length=length)
        generator = torch.Generator().manual_seed(seed)
        shape = (vocabulary**length, length, vocabulary)
        self.table = nn.Parameter(sharpness * torch.randn(shape, generator=generator, dtype=torch.float64))
        self.register_buffer("place", vocabulary ** torch.arange(length), persistent=False)

    def features(self, canvas, select=None):
        logits = self.hidden_states(canvas)
        forbidden = torch.arange(self.spec.vocabulary) == self.spec.mask_id
        logits = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)
        return logits if select is None else logits[select]

    def hidden_states(self, canvas, embeddings=None):
        assert embeddings is None, "a table is indexed by tokens"
        z = canvas.tokens if canvas.real is None else canvas.tokens.masked_fill(~canvas.real, self.spec.mask_id)
        return self.table[(z * self.place).sum(-1)]

    def blocks(self):
        return nn.ModuleList([nn.Identity()])

    def save(self, folder):
        raise TypeError("a table is not saved")


def all_sequences(tokens: int, length: int) -> torch.Tensor:
    """(tokens^length, length) every sequence of real tokens."""
    return torch.tensor(list(itertools.product(range(tokens), repeat=length)))


def all_patterns(length: int) -> torch.Tensor:
    """(2^length, length) every mask pattern."""
    return torch.tensor(list(itertools.product([False, True], repeat=length)))
