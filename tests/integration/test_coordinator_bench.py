"""`bench coordinator` measures what it says, with few nodes and short rounds."""

import pytest

from commonweight.bench.coordinator_load import CPU_LIMIT, CoordinatorBench, run_coordinator_bench


@pytest.mark.slow
def test_a_coordinator_of_light_nodes_is_measured_while_they_report() -> None:
    bench = CoordinatorBench(12, 3, microbatches=8, round_s=0.5, windows=2, window_s=1.5, joins_per_s=100)
    share, memory, growth, seconds, join = run_coordinator_bench(bench)
    assert (share.limit, growth.unit, memory.unit, seconds.unit, join.unit) == (CPU_LIMIT, "", "MiB", "s", "ms")
    assert 0 < share.candidate.min <= share.candidate.max < 1
    assert 50 < memory.candidate.min < 1000
    assert seconds.candidate.min >= 0.5, "reports come at the end of a round's time"
    assert join.candidate.min > 0
