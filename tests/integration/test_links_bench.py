"""`bench links` compares what it says, over links that lose packets, on a model that is small enough for a test."""

import pytest
from typer.testing import CliRunner

from commonweight.bench.links import LinksBench, count_packets, run_links_bench
from commonweight.cli.main import app
from commonweight.errors import ConfigError, StateError
from commonweight.links.link import parse_shape
from commonweight.links.namespaces import allowed_congestion, why_not
from commonweight.links.path import PathStatistics

WHY_NOT = why_not()
in_namespaces = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

LINK = "8mbit:100ms:loss=5%"
TINY = LinksBench(
    d_model=32,
    boundary_dims=(8,),
    slow="20ms",
    links=(LINK,),
    asynchrony=("none",),
    congestion="reno",
    sequence_length=32,
    microbatches=8,
    rounds=2,
    turns=1,
)


@pytest.mark.slow
@in_namespaces
def test_a_link_is_compared_with_loopback_and_loses_packets() -> None:
    told: list[str] = []
    results = {result.name: result for result in run_links_bench(TINY, told.append)}
    assert len(told) == 4, "two contenders, a turn each and one to warm up"
    title = "k 8, with a flush"
    assert 2 * 8 * 4 + 1 < results[f"{title}: a boundary, both ways"].candidate.median < 2 * 8 * 4 + 10
    over_loopback = results[f"{title}: {LINK}, reno, over loopback"]
    assert over_loopback.ratio is not None
    # A round takes 200 ms longer at least: its first activation's way, and its last gradient's.
    tokens_per_round = 8 * 2 * 32
    assert over_loopback.candidate.max < tokens_per_round / 0.2
    assert over_loopback.ratio.max < 1
    assert over_loopback.target is None
    assert results[f"{title}: {LINK}, reno: packets lost"].candidate.median > 0


def test_a_link_that_was_to_lose_packets_and_lost_none_is_no_result() -> None:
    path = PathStatistics(1000, 1000, 0, 0, lost=0, dropped=3, cut=False)
    lost, dropped = count_packets("x", parse_shape("8mbit:50ms"), [path, path])
    assert (lost.candidate.median, dropped.candidate.median) == (0, 6)
    with pytest.raises(StateError, match="no packet was lost"):
        count_packets("x", parse_shape(LINK), [path])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--link", "8mbit"), "'8mbit' is no link"),
        (("--slow", "fast"), "'fast' is no time"),
        (("--asynchrony", "often"), "--asynchrony often isn't known: take none, delayed, look_ahead."),
    ],
)
def test_bad_input_is_refused_before_anything_runs(options: tuple[str, ...], said: str) -> None:
    error = CliRunner().invoke(app, ["bench", "links", *options]).exception
    assert isinstance(error, ConfigError)
    assert said in error.args[0]


def test_where_there_can_be_no_namespaces_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commonweight.links.namespaces.why_not", lambda: "/dev/net/tun: no such file")
    with pytest.raises(ConfigError, match="no hosts of their own here: /dev/net/tun"):
        run_links_bench(TINY, print)


@in_namespaces
def test_a_congestion_control_that_namespaces_may_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"congestion control 'warp': it allows {allowed_congestion()[0]}"):
        run_links_bench(LinksBench(congestion="warp"), print)
