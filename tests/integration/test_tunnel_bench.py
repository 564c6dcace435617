"""`bench tunnel` measures what it says, with messages small enough for a test."""

import pytest

from commonweight.bench.tunnel import TunnelBench, run_tunnel_bench


@pytest.mark.slow
def test_messages_through_the_tunnel_are_compared_with_those_that_go_directly() -> None:
    unary, stream = run_tunnel_bench(TunnelBench(message_bytes=1 << 16, messages=2, pairs=2))
    assert (unary.name, stream.name) == ("unary, over direct", "stream, over direct")
    for result in (unary, stream):
        assert result.baseline is not None
        assert result.ratio is not None
        assert result.ratio.min <= result.ratio.median <= result.ratio.max
        assert result.candidate.min > 0
