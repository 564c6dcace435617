"""The coordinator's audits where two replicas share every round of every stage."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from commonweight.rules.audits import Kind
from commonweight.rules.load import unpack_load
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto, report_from_proto
from coordinator import holders
from coordinator.ledger import Fraud
from tests.unit.auditing_world import (
    MICROBATCHES,
    PER_EPOCH,
    SPEC,
    STAGES,
    Bench,
    answer_of,
    drawn_in,
    nodes_of,
    passing,
    saying,
    signed_report,
    unit_of,
)

pytestmark = pytest.mark.asyncio

REPLICAS = 2
ROUNDS = range(PER_EPOCH, PER_EPOCH + 6)
AUDITS = [audit for number in ROUNDS for audit in drawn_in(number, SPEC, REPLICAS).audits]
"""All that is drawn in them."""
SHARED = {(stage, replica) for stage in range(STAGES) for replica in range(REPLICAS)}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(holders, "GRACE_S", 0.05)
    bench = Bench(tmp_path, SPEC, REPLICAS)
    yield bench
    bench.ledger.close()


async def test_units_of_each_replica_are_drawn_and_its_own_report_is_shown(bench: Bench) -> None:
    assert {(audit.stage, audit.replica) for audit in AUDITS} == SHARED
    assert {audit.kind for audit in AUDITS} == set(Kind)
    bench.join()
    bench.seal(*ROUNDS)
    lines = await bench.decide()
    assert [line.audit for line in lines] == AUDITS == [unit_of(order) for order in bench.asked]
    for order, audit in zip(bench.asked, AUDITS, strict=True):
        own = f"peer {audit.stage}.{audit.replica}"
        assert order.sources[0].peer_id == own
        if audit.kind is Kind.ANSWER:
            assert answer_from_proto(order.answer) == answer_of(audit)
            assert len(order.sources) == 1
            continue
        report = report_from_proto(order.report)
        assert report == signed_report(audit.round, audit.stage, audit.replica, REPLICAS)
        assert audit.microbatch is None or audit.microbatch in report.load


async def test_neighbours_that_computed_the_same_microbatch_are_asked_first(bench: Bench) -> None:
    bench.join()
    bench.seal(*ROUNDS)
    await bench.decide()
    for order, audit in zip(bench.asked, AUDITS, strict=True):
        around = [stage for stage in (audit.stage - 1, audit.stage + 1) if 0 <= stage < STAGES]
        asked = [source.peer_id for source in order.sources][1:]
        if audit.kind is Kind.ANSWER:
            assert asked == []
            continue
        assert sorted(asked) == [f"peer {stage}.{replica}" for stage in around for replica in range(REPLICAS)]
        if audit.microbatch is not None:
            holder = audit.microbatch % REPLICAS  # the loads take turns
            assert asked[: len(around)] == [f"peer {stage}.{holder}" for stage in around]
        let = {
            (stage, replica)
            for stage, replica in SHARED
            if any(grant.unit == order.unit for grant in bench.grants(stage, replica))
        }
        assert let == {(audit.stage, audit.replica)} | {(s, r) for s, r in SHARED if s in around}


async def test_who_is_gone_has_withheld_its_own_work_and_nobody_else_s(bench: Bench) -> None:
    bench.join()
    bench.leave(1, 1)
    bench.seal(*ROUNDS)
    withheld = [line.audit for line in await bench.decide() if line.verdict == "withheld"]
    assert withheld == [audit for audit in AUDITS if (audit.stage, audit.replica) == (1, 1)] != []
    for order in bench.asked:
        assert "peer 1.1" not in [source.peer_id for source in order.sources]


async def test_fraud_convicts_the_replica_that_has_signed_it(bench: Bench) -> None:
    wanted = next(audit for audit in AUDITS if audit.kind is Kind.MICROBATCH and audit.replica == 1)
    text = b'{"format":"commonweight.fraud/3"}'

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        return await (saying("failed", text) if unit_of(order) == wanted else passing)(order)

    bench.answer = answer
    bench.join()
    bench.seal(*ROUNDS)
    (failed,) = (line for line in await bench.decide() if line.verdict == "failed")
    assert failed.audit == wanted
    node = nodes_of(wanted.stage, REPLICAS)[1]
    assert bench.ledger.frauds() == (Fraud(wanted.stage, node, failed.evidence),)


async def test_a_coordinator_that_was_killed_tells_each_replica_its_own(bench: Bench) -> None:
    (sealed, *_) = bench.seal(ROUNDS[0])
    again = Bench(bench.folder, SPEC, REPLICAS)
    await again.auditing.resume()
    again.join()
    for stage, replica in sorted(SHARED):
        node = nodes_of(stage, REPLICAS)[replica]
        (heard,) = [message.sealed for message in again.inboxes[node]]
        assert heard == bench.auditing.announcement(sealed, node)
        assert heard.replica == replica
        loads = [unpack_load(load, MICROBATCHES) for load in heard.stages[stage].loads]
        assert loads == [tuple(range(each, MICROBATCHES, REPLICAS)) for each in range(REPLICAS)]
    again.ledger.close()
