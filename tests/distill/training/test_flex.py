"""Training with flex attention is what it is without, and refused where it can not be."""

import pytest
import torch
from torch.nn.attention import flex_attention

from benchmarks.equality import close_figures  # noqa
