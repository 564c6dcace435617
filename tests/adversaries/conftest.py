"""What all tests of adversaries share."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from adversary import cheat as cheat_module

Done = list[tuple[int, int | None]]


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> Iterator[None]:
    """As in the referee's process: what was there before isn't looked at after each audit."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Done:
    """The units that were cheated on, as the cheater's own events say: rounds and microbatches."""
    done: Done = []

    def emit(name: str, **fields: Any) -> None:
        assert name == "cheated"
        done.append((fields["round"], fields["microbatch"]))

    monkeypatch.setattr(cheat_module, "emit", emit)
    return done
