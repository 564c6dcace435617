"""A referee that dies, is silent or says nonsense is one that is started again, never a host that hangs."""

import asyncio

import pytest

from commonweight.errors import WorkerDied
from commonweight.wire import referee as module
from commonweight.wire.generated import control_pb2, referee_pb2
from commonweight.wire.referee import AUDIT_S, Referee, RefereeConfig, audit_limit_s
from tests.integration.fake_referee import OPERATORS
from tests.unit.tiny import tiny_spec

DEADLINE_S = 30
ORDER = control_pb2.AuditOrder(unit=control_pb2.AuditUnit(round=3, stage=1, kind="loss", microbatch=2))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODULE", "tests.integration.fake_referee")


def config(how: str, audit_s: float = DEADLINE_S) -> RefereeConfig:
    return RefereeConfig(referee_pb2.RefereeStart(device=how), 1, audit_s)


@pytest.mark.asyncio
async def test_it_answers_one_audit_after_the_other_and_ends_with_its_link() -> None:
    async with asyncio.timeout(DEADLINE_S):
        referee = await Referee.start(config("honest"))
        for _ in range(2):
            found = await referee.audit(ORDER)
            assert (found.unit, found.verdict) == (ORDER.unit, "passed")
        await referee.stop()
    assert referee.process.returncode == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("dies", r"pid \d+\) ended"),
        ("silent", "said nothing for 0.2 s"),
        ("another unit", "answered an audit with"),
        ("no such verdict", "'guilty'"),
        ("no evidence", "failed, with 0 bytes of evidence"),
        ("idle evidence", "passed, with 2 bytes of evidence"),
    ],
)
async def test_what_makes_no_verdict_is_as_good_as_its_death(
    how: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.2)
    async with asyncio.timeout(DEADLINE_S):
        referee = await Referee.start(config(how, 0.2 if how == "silent" else DEADLINE_S))
        with pytest.raises(WorkerDied, match=match):
            await referee.audit(ORDER)
        await referee.stop()
        with pytest.raises(WorkerDied):
            await referee.audit(ORDER)
    assert referee.process.returncode is not None


@pytest.mark.asyncio
async def test_it_records_operators_or_says_why_not() -> None:
    async with asyncio.timeout(DEADLINE_S):
        referee = await Referee.start(config("honest"))
        assert await referee.record(ORDER) == referee_pb2.Recording(operators=OPERATORS)
        assert await referee.record(ORDER, 0) == referee_pb2.Recording(operators=OPERATORS, record=b"0")
        await referee.stop()
        referee = await Referee.start(config("can't record"))
        assert (await referee.record(ORDER)).failure == "It is of another class."
        await referee.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize(("how", "match"), [("torn", "answered a recording"), ("empty", "recorded 0 bytes")])
async def test_what_makes_no_recording_is_as_good_as_its_death(how: str, match: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        referee = await Referee.start(config(how))
        with pytest.raises(WorkerDied, match=match):
            await referee.record(ORDER)
        await referee.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize(("how", "match"), [("no start", "ended"), ("odd start", "began with opinion")])
async def test_one_that_doesn_t_start_is_told_and_left_behind_by_nobody(how: str, match: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(WorkerDied, match=match):
            await Referee.start(config(how))


def test_a_larger_stage_has_more_time() -> None:
    small, large = tiny_spec(), tiny_spec(d_model=256, d_ff=1024, n_layers=8)
    assert AUDIT_S < audit_limit_s(small) < audit_limit_s(large)
