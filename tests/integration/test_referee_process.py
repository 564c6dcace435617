"""A referee that dies, is silent or says nonsense is one that is started again, never a coordinator that hangs."""

import asyncio

import pytest

from commonweight.errors import WorkerDied
from commonweight.wire.generated import control_pb2, referee_pb2
from coordinator import referee as module
from coordinator.referee import AUDIT_S, Referee, RefereeConfig, audit_limit_s
from tests.unit.tiny import tiny_spec

DEADLINE_S = 30
AUDIT = referee_pb2.RefereeAudit(unit=control_pb2.AuditUnit(round=3, stage=1, kind="loss", microbatch=2))


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
            found = await referee.audit(AUDIT)
            assert (found.unit, found.verdict) == (AUDIT.unit, "passed")
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
            await referee.audit(AUDIT)
        await referee.stop()
        with pytest.raises(WorkerDied):
            await referee.audit(AUDIT)
    assert referee.process.returncode is not None


@pytest.mark.asyncio
@pytest.mark.parametrize(("how", "match"), [("no start", "ended"), ("odd start", "began with verdict")])
async def test_one_that_doesn_t_start_is_told_and_left_behind_by_nobody(how: str, match: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(WorkerDied, match=match):
            await Referee.start(config(how))


def test_a_larger_stage_has_more_time() -> None:
    small, large = tiny_spec(), tiny_spec(d_model=256, d_ff=1024, n_layers=8)
    assert AUDIT_S < audit_limit_s(small) < audit_limit_s(large)
