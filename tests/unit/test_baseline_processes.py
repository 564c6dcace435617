"""A baseline that stands still is given up."""

import pytest

from commonweight.bench.processes import Baseline
from commonweight.errors import WorkerDied


def test_who_says_nothing_is_ended_with_all_that_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commonweight.bench.processes.ANSWER_S", 0.5)
    with pytest.raises(WorkerDied, match=r"exit code -9, or said nothing for 0\.5 s"):
        Baseline([{}], 1, module="code")  # Python's console, which reads orders and waits for more
