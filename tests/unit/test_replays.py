"""Referees that die or contradict each other, and what a host makes of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from commonweight.errors import WorkerDied
from commonweight.wire import referee as module
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import referee_pb2
from commonweight.wire.referee import MAX_ATTEMPTS, Replays

pytestmark = pytest.mark.asyncio

ORDER = pb.AuditOrder(unit=pb.AuditUnit(round=3, stage=1, kind="round"))
RECORDING = referee_pb2.Recording(operators=bytes(64))
DIES, HANGS = "dies", "hangs"


class FakeReferee:
    """Answers each question with the next of `answers`, which all referees share."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.asked = 0
        self.stopped = False

    async def answer(self) -> str:
        assert not self.stopped
        self.asked += 1
        answer = self.answers.pop(0)
        if answer == HANGS:
            await asyncio.Event().wait()
        if answer == DIES:
            raise WorkerDied("It ended.")
        return answer

    async def audit(self, order: pb.AuditOrder) -> pb.AuditOpinion:
        verdict = await self.answer()
        return pb.AuditOpinion(unit=order.unit, verdict=verdict, why=f"It {verdict}.")

    async def record(self, order: pb.AuditOrder, tensors_of: int | None) -> referee_pb2.Recording:
        await self.answer()
        return RECORDING if tensors_of is None else referee_pb2.Recording(failure=f"None of {tensors_of}.")

    async def stop(self) -> None:
        self.stopped = True


class Bench:
    def __init__(self, *answers: str, unstartable: int = 0) -> None:
        self.answers = list(answers)
        self.referees: list[FakeReferee] = []
        self.unstartable = unstartable
        start: Callable[[], Any] = self.start
        self.replays = Replays(start)

    async def start(self) -> FakeReferee:
        if self.unstartable:
            self.unstartable -= 1
            raise WorkerDied("It didn't start.")
        self.referees.append(FakeReferee(self.answers))
        return self.referees[-1]

    @property
    def asked(self) -> list[int]:
        """How often each referee was."""
        return [referee.asked for referee in self.referees]


async def test_one_referee_answers_all_while_nothing_happens() -> None:
    bench = Bench("passed", "withheld", "undecided", "record")
    assert bench.referees == []
    for verdict in ("passed", "withheld", "undecided"):
        assert (await bench.replays.judge(ORDER)).verdict == verdict
    assert await bench.replays.record(ORDER) == RECORDING
    assert bench.asked == [4]
    await bench.replays.stop()
    await bench.replays.stop()
    assert bench.referees[0].stopped


@pytest.mark.parametrize(
    ("answers", "verdict", "why", "asked"),
    [
        (["failed", "failed"], "failed", "It failed.", [1, 1]),
        (["failed", "withheld"], "failed", "It failed.", [1, 1]),
        (["failed", "undecided"], "failed", "It failed.", [1, 1]),
        (["failed", DIES], "failed", "It failed.", [1, 1]),
        (["failed", "passed"], "undecided", "One replay passed, another failed: It failed.", [1, 1]),
        ([DIES, "passed"], "passed", "It passed.", [1, 1]),
        ([DIES, DIES, "failed", "failed"], "failed", "It failed.", [1, 1, 1, 1]),
        ([DIES, DIES, DIES], "undecided", "3 attempts. It ended.", [1, 1, 1]),
    ],
)
async def test_a_death_is_repeated_and_fraud_confirmed(
    answers: list[str], verdict: str, why: str, asked: list[int]
) -> None:
    bench = Bench(*answers)
    found = await bench.replays.judge_twice(ORDER)
    assert (found.unit, found.verdict, found.why) == (ORDER.unit, verdict, why)
    assert bench.asked == asked
    assert bench.answers == []
    assert all(referee.stopped for referee in bench.referees[:-1])


async def test_who_hasn_t_the_last_word_says_what_it_has_seen_once() -> None:
    bench = Bench("failed")
    assert (await bench.replays.judge(ORDER)).verdict == "failed"
    assert bench.asked == [1]


async def test_a_referee_that_does_not_start_is_one_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "emit", lambda name, **fields: told.append({"name": name} | fields))
    bench = Bench("passed", unstartable=MAX_ATTEMPTS - 1)
    assert (await bench.replays.judge(ORDER)).verdict == "passed"
    died = {"name": "referee.died", "code": "STATE_WORKER", "message": "It didn't start.", "round": 3, "stage": 1}
    assert told == [died] * (MAX_ATTEMPTS - 1)
    bench = Bench(unstartable=MAX_ATTEMPTS)
    assert (await bench.replays.judge(ORDER)).why == "3 attempts. It didn't start."


async def test_a_recording_is_tried_as_often() -> None:
    bench = Bench(DIES, DIES, "record", "record")
    assert await bench.replays.record(ORDER) == RECORDING
    assert (await bench.replays.record(ORDER, 7)).failure == "None of 7."
    assert bench.asked == [1, 1, 2]
    assert (await Bench(DIES, DIES, DIES).replays.record(ORDER)).failure == "3 attempts. It ended."


async def test_an_answer_that_nobody_awaits_any_more_is_none_to_a_later_question() -> None:
    bench = Bench(HANGS, "passed")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bench.replays.judge(ORDER)
    assert bench.referees[0].stopped
    assert (await bench.replays.judge(ORDER)).verdict == "passed"
    assert bench.asked == [1, 1]
