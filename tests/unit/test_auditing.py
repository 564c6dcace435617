"""The coordinator's audits where its referee is the only auditor, with a real ledger."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak
from starlette.applications import Starlette
from starlette.testclient import TestClient

from commonweight.errors import WorkerDied
from commonweight.identity import recover_address
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.epoch import signed_receipt
from commonweight.rules.statement import to_hex
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto, report_from_proto
from commonweight.wire.referee import MAX_ATTEMPTS
from coordinator import holders
from coordinator.auditing import MAX_ROUNDS_AHEAD
from coordinator.draws import Draw
from coordinator.ledger import Fraud
from tests.unit.auditing_world import (
    DEADLINE_S,
    KEY,
    MICROBATCHES,
    NODES,
    NUMERICS,
    PER_EPOCH,
    PLACE,
    SPEC,
    STAGES,
    Bench,
    Told,
    answer_of,
    drawn_in,
    dying,
    passing,
    rounds_with,
    saying,
    signed_report,
    unit_of,
)

pytestmark = pytest.mark.asyncio

ROUNDS = rounds_with(SPEC)
"""With something to audit."""
ANSWERED = [number for number in ROUNDS if any(audit.kind is Kind.ANSWER for audit in drawn_in(number).audits)]
"""With an answer to audit, among others."""
BY_KIND = {audit.kind: (number, audit) for number in reversed(ROUNDS) for audit in drawn_in(number).audits}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(holders, "GRACE_S", 0.05)
    bench = Bench(tmp_path)
    yield bench
    bench.ledger.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    said: Told = []
    for module in ("coordinator.auditing", "commonweight.wire.referee"):
        monkeypatch.setattr(f"{module}.emit", lambda name, /, **fields: said.append((name, fields)))
    return said


def one_of(kind: Kind) -> tuple[int, Audit]:
    """A round, and an audit of this kind in it."""
    return BY_KIND[kind]


async def test_all_that_is_drawn_is_decided_once_in_order_and_signed(bench: Bench) -> None:
    numbers = [*ROUNDS[:2], *ANSWERED[:2]]
    bench.join()
    bench.seal(*numbers)
    lines = await bench.decide()
    assert [line.audit for line in lines] == [audit for number in numbers for audit in drawn_in(number).audits]
    assert [line.audit for line in lines] == [unit_of(order) for order in bench.asked]
    for line in lines:
        (opinion,) = line.opinions
        assert opinion.claim == to_hex(claim_of(line.audit))
        digest = signed_receipt(PLACE.model_id, line.audit, opinion).digest(PLACE.domain)
        assert recover_address(digest, bytes.fromhex(opinion.signature[2:])) == opinion.auditor == KEY.address
        assert (opinion.owner, opinion.account) == (None, None)
        assert (line.verdict, line.evidence) == ("passed", to_hex(bytes(32)))
    assert (bench.plans, bench.referees, bench.stopped) == (len(lines), 1, 1)
    assert bench.ledger.unaudited() == ()


def claim_of(audit: Audit) -> bytes:
    if audit.kind is Kind.ANSWER:
        return answer_of(audit).trace
    return signed_report(audit.round, audit.stage).commitments(MICROBATCHES).claim


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ANSWER])
async def test_provider_and_neighbours_are_told_whom_to_serve_what(bench: Bench, kind: Kind) -> None:
    number, wanted = one_of(kind)
    bench.join()
    bench.seal(number)
    await bench.decide()
    asked = next(order for order in bench.asked if unit_of(order) == wanted)
    due = [stage for stage in (wanted.stage, wanted.stage - 1, wanted.stage + 1) if 0 <= stage < STAGES]
    assert [source.peer_id for source in asked.sources] == [f"peer {stage}" for stage in due]
    assert [source.address for source in asked.sources] == [f"127.0.0.1:{9000 + stage}" for stage in due]
    assert report_from_proto(asked.report) == signed_report(number, wanted.stage)
    assert asked.report.numerics == NUMERICS
    assert not asked.HasField("answer")
    for stage in range(STAGES):
        grants = bench.grants(stage)
        assert any(grant.unit == asked.unit for grant in grants) == (stage in due)
        assert all(grant.auditor == b"der" for grant in grants)


async def test_an_answer_is_replayed_by_what_its_provider_alone_has_to_serve(bench: Bench) -> None:
    """Of one that was sealed in the middle of an epoch, and of one that was with its first round."""
    found = [audit for number in ANSWERED for audit in drawn_in(number).audits if audit.kind is Kind.ANSWER]
    middle = next(audit for audit in found if audit.round % PER_EPOCH > 1 and audit.stage > 0)
    begin = next(audit for audit in found if audit.round % PER_EPOCH == 0)
    bench.join()
    bench.seal(middle.round, begin.round)
    await bench.decide()
    for wanted in (middle, begin):
        (asked,) = (order for order in bench.asked if unit_of(order) == wanted)
        (source,) = asked.sources
        assert (source.peer_id, source.address) == (f"peer {wanted.stage}", f"127.0.0.1:{9000 + wanted.stage}")
        part = answer_from_proto(asked.answer)
        assert part == answer_of(wanted)
        trained = signed_report(part.version - 1, wanted.stage)
        assert asked.version_root == trained.state_after
        assert not asked.HasField("report")
        for stage in range(STAGES):
            assert any(grant.unit == asked.unit for grant in bench.grants(stage)) == (stage == wanted.stage)


def told_of(bench: Bench, drawn: Draw, stage: int = 0) -> pb.RoundSealed:
    return bench.auditing.announcement(drawn, NODES[stage])


async def test_nodes_are_told_which_rounds_to_retain(bench: Bench) -> None:
    first, second, third = ROUNDS[:3]
    (drawn,) = bench.seal(first)
    assert told_of(bench, drawn).retained == [first]
    (drawn,) = bench.seal(second)
    assert told_of(bench, drawn).retained == [first, second]
    bench.join()
    for stage in range(STAGES):
        again = [message.sealed for message in bench.inboxes[NODES[stage]]]
        assert [message.round for message in again] == [first, second]  # it may not have heard of the last one
        assert again[1] == told_of(bench, drawn, stage)
    assert told_of(bench, drawn, 0).salt != told_of(bench, drawn, 1).salt
    await bench.decide()
    (drawn,) = bench.seal(third)
    assert told_of(bench, drawn).retained == [third]


async def test_a_coordinator_that_was_killed_goes_on_with_the_same_audits(bench: Bench) -> None:
    """Killed between sealing and drawing, and again between two verdicts."""
    numbers = [*ROUNDS[:2], *ANSWERED[:2]]
    sealed = bench.seal(*numbers)
    again = Bench(bench.folder)
    await again.auditing.resume()
    assert again.auditing.retained == numbers
    again.join()
    decided = asyncio.Event()

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        if len(again.asked) == 3:
            decided.set()
            await asyncio.Event().wait()
        return await passing(order)

    again.answer = answer
    async with asyncio.timeout(DEADLINE_S), again.running():
        await decided.wait()
    for stage in range(STAGES):
        heard = [message.sealed for message in again.inboxes[NODES[stage]] if message.HasField("sealed")]
        assert [(each.stages, each.salt, each.answers) for each in heard] == [
            (each.stages, each.salt, each.answers) for each in (told_of(bench, drawn, stage) for drawn in sealed)
        ]
    assert len(again.ledger.verdicts(0, 10**6)) == 2
    third = Bench(bench.folder)
    await third.auditing.resume()
    third.join()
    lines = await third.decide()
    assert [line.audit for line in lines] == [audit for number in numbers for audit in drawn_in(number).audits]
    assert [unit_of(order) for order in third.asked] == [line.audit for line in lines[2:]]
    for order in third.asked:
        audit = unit_of(order)
        assert audit.kind is not Kind.ANSWER or answer_from_proto(order.answer) == answer_of(audit)
    for each in (again, third):
        each.ledger.close()


@pytest.mark.parametrize("kind", [Kind.ROUND, Kind.ANSWER])
async def test_fraud_convicts_once_and_its_evidence_is_kept(bench: Bench, told: Told, kind: Kind) -> None:
    number, audit = one_of(kind)
    text = b'{"format":"commonweight.fraud/3"}'

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        return await (saying("failed", text) if unit_of(order) == audit else passing)(order)

    bench.answer = answer
    bench.join()
    bench.seal(number)
    failed = [line for line in await bench.decide() if line.verdict == "failed"]
    assert [line.audit for line in failed] == [audit]
    assert failed[0].evidence == to_hex(keccak(text))
    assert bench.evidence.get(keccak(text)) == text
    assert bench.ledger.frauds() == (Fraud(audit.stage, NODES[audit.stage], failed[0].evidence),)
    assert bench.frauds == 1
    (convicted,) = [fields for name, fields in told if name == "provider.convicted"]
    assert convicted == {
        "node": NODES[audit.stage],
        "stage": audit.stage,
        "round": number,
        "evidence": failed[0].evidence,
    }
    decided = [fields for name, fields in told if name == "audit.decided"]
    assert sum(fields["verdict"] == "failed" for fields in decided) == 1
    assert len([name for name, _ in told if name == "audit.drawn"]) == len(decided)


@pytest.mark.parametrize(
    ("second", "verdict"),
    [("passed", "undecided"), ("failed", "failed"), ("withheld", "failed"), ("undecided", "failed"), (None, "failed")],
)
async def test_fraud_takes_a_second_referee_unless_the_provider_doesn_t_serve_again(
    bench: Bench, second: str | None, verdict: str
) -> None:
    number, audit = one_of(Kind.ROUND)
    text = b'{"format":"commonweight.fraud/3"}'
    later = dying if second is None else saying(second, text if second == "failed" else b"")
    answers, referees = iter((saying("failed", text), later)), []

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        if unit_of(order) != audit:
            return await passing(order)
        referees.append(bench.referees)
        return await next(answers)(order)

    bench.answer = answer
    bench.join()
    bench.seal(number)
    (line,) = [line for line in await bench.decide() if line.audit == audit]
    assert line.verdict == verdict
    assert referees == [1, 2], "the second one is another process"
    assert bench.frauds == (verdict == "failed")


async def test_more_fraud_of_who_is_convicted_takes_one_referee(bench: Bench) -> None:
    numbers, text = ROUNDS[:6], b'{"format":"commonweight.fraud/3"}'
    bench.answer = saying("failed", text)
    bench.join()
    bench.seal(*numbers)
    lines = await bench.decide()
    stages = {line.stage for line in lines}
    assert len(lines) > len(stages) > 1
    first = {stage: next(line.audit for line in lines if line.stage == stage) for stage in stages}
    asked = [unit_of(order) for order in bench.asked]
    assert asked == [audit for line in lines for audit in [line.audit] * (1 + (line.audit in first.values()))]
    assert {line.verdict for line in lines} == {"failed"}
    assert bench.referees == 1 + len(stages)


async def test_evidence_is_served_to_anybody_by_its_hash(bench: Bench) -> None:
    text = b'{"format":"commonweight.fraud/3"}'
    name = to_hex(bench.evidence.put(text))
    client = TestClient(Starlette(routes=bench.evidence.routes()))
    assert client.get(f"/evidence/{name}.json").content == text
    assert client.get(f"/evidence/{to_hex(bytes(32))}.json").status_code == 404
    assert client.get(f"/statements/{name}.json").status_code == 404


async def test_a_referee_that_dies_is_started_again(bench: Bench, told: Told) -> None:
    deaths = iter((dying, passing))

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        return await next(deaths, passing)(order)

    bench.answer = answer
    bench.join()
    bench.seal(ROUNDS[0])
    assert {line.verdict for line in await bench.decide()} == {"passed"}
    assert (bench.referees, bench.stopped) == (2, 2)
    assert [name for name, _ in told].count("referee.died") == 1


async def test_what_kills_every_referee_stays_undecided_and_nothing_hangs(bench: Bench) -> None:
    bench.answer = dying
    bench.join()
    bench.seal(ROUNDS[0])
    lines = await bench.decide()
    assert {line.verdict for line in lines} == {"undecided"}
    assert bench.referees == MAX_ATTEMPTS * len(lines)


async def test_a_referee_that_can_t_be_started_leaves_audits_undecided(bench: Bench) -> None:
    async def start() -> Any:
        raise WorkerDied("The referee said nothing for 60 s.")

    bench.panel.replays._start = start
    bench.join()
    bench.seal(ROUNDS[0])
    assert {line.verdict for line in await bench.decide()} == {"undecided"}


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.ANSWER])
async def test_who_is_gone_and_stays_away_has_withheld(bench: Bench, kind: Kind) -> None:
    number, audit = one_of(kind)
    bench.seal(number)
    lines = await bench.decide()
    assert audit in [line.audit for line in lines]
    for line in lines:  # tokens are drawn, whoever is there
        assert line.verdict == ("passed" if line.kind == "data" else "withheld")
    assert {unit_of(order).kind for order in bench.asked} <= {Kind.DATA}
    assert all(not order.sources for order in bench.asked)


async def test_who_comes_back_in_time_is_audited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "GRACE_S", DEADLINE_S)
    number, audit = one_of(Kind.ROUND)
    bench.join()
    bench.leave(audit.stage)
    bench.seal(number)
    async with asyncio.timeout(DEADLINE_S), bench.running():
        for _ in range(50):
            await asyncio.sleep(0)
        bench.join(audit.stage)
        await bench.auditing.wait_until_decided(10**6)
    assert {line.verdict for line in bench.ledger.verdicts(0, 10**6)} == {"passed"}


async def test_who_goes_away_during_its_audit_is_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "GRACE_S", DEADLINE_S)
    number, audit = one_of(Kind.ROUND)
    gone: list[Audit] = []

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        if unit_of(order) == audit and not gone:
            gone.append(audit)
            bench.leave(audit.stage)
            bench.join(audit.stage)  # the same node, another connection
            return await saying("withheld")(order)
        return await passing(order)

    bench.answer = answer
    bench.join()
    bench.seal(number)
    lines = await bench.decide()
    assert {line.verdict for line in lines} == {"passed"}
    assert [unit_of(order) for order in bench.asked].count(audit) == 2
    grants = [grant for grant in bench.grants(audit.stage) if grant.unit.kind == "round"]
    assert len(grants) == 2  # the new process has to be told again


async def test_who_keeps_going_away_has_withheld(bench: Bench) -> None:
    number, audit = one_of(Kind.ROUND)

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        if unit_of(order) != audit:
            return await passing(order)
        bench.leave(audit.stage)
        bench.join(audit.stage)
        return await saying("withheld")(order)

    bench.answer = answer
    bench.join()
    bench.seal(number)
    assert [line.audit for line in await bench.decide() if line.verdict == "withheld"] == [audit]
    assert [unit_of(order) for order in bench.asked].count(audit) == MAX_ATTEMPTS


async def test_training_runs_only_so_far_ahead(bench: Bench) -> None:
    first = ROUNDS[0]
    bench.join()
    assert bench.auditing.obstacle(10**6) is None
    bench.seal(first)
    assert bench.auditing.obstacle(first + MAX_ROUNDS_AHEAD) is None
    why = bench.auditing.obstacle(first + MAX_ROUNDS_AHEAD + 1)
    assert why is not None
    assert f"audits of round {first} aren't decided" in why
    await bench.decide()
    assert bench.auditing.obstacle(first + MAX_ROUNDS_AHEAD + 1) is None


async def test_an_epoch_waits_for_its_own_audits_only(bench: Bench) -> None:
    bench.join()
    bench.seal(*ROUNDS[:2])
    async with asyncio.timeout(DEADLINE_S):
        await bench.auditing.wait_until_decided(ROUNDS[0])  # nothing before it is open
        lines = await bench.decide(until=ROUNDS[0] + 1)
    assert {line.audit for line in lines} >= set(drawn_in(ROUNDS[0]).audits)
