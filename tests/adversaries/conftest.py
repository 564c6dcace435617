"""What all tests of adversaries share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> Iterator[None]:
    """As in the referee's process: what was there before isn't looked at after each audit."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
