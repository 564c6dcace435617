"""Churn while it runs: each fault begins and ends in its turn, and none is left behind."""

import asyncio

import pytest

from commonweight.links.churn import Fault, PlannedFault, run_churn

pytestmark = pytest.mark.asyncio

PLAN = [
    PlannedFault(0.00, 0.03, Fault.PAUSE, "a"),
    PlannedFault(0.01, 0.02, Fault.KILL, "b"),
    PlannedFault(0.03, 0.04, Fault.SLOW, "a"),
]


async def test_faults_begin_and_end_in_order_and_never_early() -> None:
    said: list[tuple[str, str, str]] = []
    started_s = asyncio.get_running_loop().time()

    async def begin(fault: PlannedFault) -> None:
        assert asyncio.get_running_loop().time() - started_s >= fault.begins_s
        said.append(("begin", fault.fault, fault.target))

    async def end(fault: PlannedFault) -> None:
        assert asyncio.get_running_loop().time() - started_s >= fault.ends_s
        said.append(("end", fault.fault, fault.target))

    await run_churn(PLAN, begin, end)
    assert said == [
        ("begin", "pause", "a"),
        ("begin", "kill", "b"),
        ("end", "kill", "b"),
        ("end", "pause", "a"),
        ("begin", "slow", "a"),
        ("end", "slow", "a"),
    ]


async def test_what_is_under_way_ends_with_a_churn_that_is_cancelled() -> None:
    begun, ended = asyncio.Event(), []

    async def begin(fault: PlannedFault) -> None:
        begun.set()

    async def end(fault: PlannedFault) -> None:
        ended.append(fault)

    plan = [PlannedFault(0.0, 3600.0, Fault.PARTITION, "a"), PlannedFault(1800.0, 1900.0, Fault.KILL, "b")]
    running = asyncio.create_task(run_churn(plan, begin, end))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == plan[:1]


async def test_a_fault_that_cant_be_inflicted_ends_the_churn() -> None:
    ended = []

    async def begin(fault: PlannedFault) -> None:
        if fault.target == "b":
            raise OSError("no such process")

    async def end(fault: PlannedFault) -> None:
        ended.append(fault.target)

    with pytest.raises(OSError, match="no such process"):
        await run_churn(PLAN, begin, end)
    assert ended == ["b", "a"]
