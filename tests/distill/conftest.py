"""What the tests of this folder share."""

import pytest
import torch

from distill.config import precision


@pytest.fixture
def machine(monkeypatch):
    """Says what this machine is faster in, as often as a test likes."""

    def be(faster):
        precision.faster_precision.cache_clear()
        monkeypatch.setattr(precision, "product_seconds", lambda dtype: 1.0 if dtype == getattr(torch, faster) else 2.0)

    yield be
    precision.faster_precision.cache_clear()
