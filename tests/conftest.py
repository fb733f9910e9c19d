"""What all tests and the processes they start have in common."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Generator

import pytest
from torch.nn import functional

from teachers.errors import UserError

# tokens of the tests' corpora; removed by the process that made the folder, not by one that was forked from it
if "FEWSTEP_CACHE" not in os.environ:
    cache, maker = tempfile.mkdtemp(prefix="fewstep-cache-"), os.getpid()
    os.environ["FEWSTEP_CACHE"] = cache
    atexit.register(lambda: os.getpid() == maker and shutil.rmtree(cache, ignore_errors=True))

LINEAR = functional.linear

OLDER = re.compile(r"which transformers \S+ does not have; install transformers \S+ or later")
"""What a teacher says whose stock class came after the oldest transformers that fewstep runs with."""


@pytest.fixture
def torchs_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers as torch computes them, whatever DeepSpeed's stage 3 has left behind in this process."""
    monkeypatch.setattr(functional, "linear", LINEAR)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, object, object]:
    """Skip the tests that need a fixture with such a teacher."""
    return (yield from _skipped_where_older())


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Skip a test of such a teacher."""
    return (yield from _skipped_where_older())


def _skipped_where_older() -> Generator[None, object, object]:
    try:
        return (yield)
    except UserError as error:
        if OLDER.search(str(error)):
            pytest.skip(str(error))
        raise
