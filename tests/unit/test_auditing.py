"""The coordinator's audits, with a real ledger and a referee that says what the test wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak
from starlette.applications import Starlette
from starlette.testclient import TestClient

from commonweight.chain.keys import Key
from commonweight.errors import CommonweightError, WorkerDied
from commonweight.identity import recover_address
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.epoch import audit_receipt, credit_report
from commonweight.rules.receipt import Domain
from commonweight.rules.statement import SealedRound, to_hex
from commonweight.watch.store import StatementStore
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import referee_pb2
from commonweight.wire.messages import report_to_proto
from coordinator import auditing as module
from coordinator.auditing import MAX_ATTEMPTS, MAX_ROUNDS_AHEAD, Auditing
from coordinator.draws import Draw, draw
from coordinator.ledger import Ledger
from coordinator.members import Member, Place
from tests.integration.scripted import honest_report
from tests.unit.tiny import tiny_spec
from tools.build_vectors import beacon_chain, mark, seal

pytestmark = pytest.mark.asyncio

DEADLINE_S = 20
SPEC = tiny_spec(stages=3, round_rate="0.2", microbatch_rate="0.4", data_rate="0.3")
STAGES, MICROBATCHES = SPEC.stages, SPEC.training.microbatches_per_round
PLACE = Place(b"\xaa" * 32, Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3"))
KEY = Key(b"\x07" * 32)
NODES = tuple(Key(bytes([stage + 1]) * 32).address for stage in range(STAGES))

Answer = Callable[[referee_pb2.RefereeAudit], Awaitable[referee_pb2.RefereeVerdict]]


def sealed_round(number: int) -> SealedRound:
    reports = (honest_report(number, stage, STAGES, MICROBATCHES) for stage in range(STAGES))
    lines = [
        credit_report(SPEC, report, node=node, account=node, generation=1, signature=bytes(65))
        for report, node in zip(reports, NODES, strict=True)
    ]
    return seal(SPEC, number, lines)


def drawn_in(number: int) -> Draw:
    return draw(SPEC, sealed_round(number), beacon_chain(SPEC, number // SPEC.economics.rounds_per_epoch)[0])


ROUNDS = [number for number in range(40) if drawn_in(number).audits]
"""With something to audit."""
BY_KIND = {audit.kind: (number, audit) for number in reversed(ROUNDS) for audit in drawn_in(number).audits}


class Bench:
    """An Auditing, its ledger, its nodes' inboxes and its referees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
        ids = {"model_id": PLACE.model_id, "spec_hash": SPEC.spec_hash}
        self.ledger.open_model(**ids, settlement=PLACE.domain.settlement, chain_id=PLACE.domain.chain_id)
        for epoch in range(4):
            self.ledger.beacon_seed(epoch, mark("seed", epoch))
        self.asked: list[referee_pb2.RefereeAudit] = []
        self.referees = 0
        self.stopped = 0
        self.plans = 0
        """How often training was told to look again."""
        self.frauds = 0
        self.answer: Answer = passing
        self.inboxes: dict[int, list[pb.CoordinatorMessage]] = {stage: [] for stage in range(STAGES)}
        self.evidence = StatementStore(folder / "evidence", "evidence")
        self.auditing = Auditing(SPEC, PLACE, self.ledger, KEY, b"der", self.start, self.evidence, self.convicted)

    # What the referee does.

    async def start(self) -> Any:
        self.referees += 1
        return self

    async def audit(self, command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
        self.asked.append(command)
        return await self.answer(command)

    async def stop(self) -> None:
        self.stopped += 1

    # What training does.

    def seal(self, number: int) -> pb.RoundSealed:
        drawn = drawn_in(number)
        reports = {s: report_to_proto(honest_report(number, s, STAGES, MICROBATCHES)) for s in drawn.stages}
        self.ledger.record_round(drawn.sealed, {s: report.SerializeToString() for s, report in reports.items()})
        return self.auditing.sealed(drawn)

    def join(self, *stages: int) -> None:
        for stage in stages or range(STAGES):
            self.auditing.joined(stage, self.member(stage))

    def member(self, stage: int) -> Member:
        def send(message: pb.CoordinatorMessage | CommonweightError) -> None:
            assert isinstance(message, pb.CoordinatorMessage)
            self.inboxes[stage].append(message)

        address, certificate = f"127.0.0.1:{9000 + stage}", b"of %d" % stage
        return Member(NODES[stage], f"peer {stage}", "", address, certificate, NODES[stage], True, None, send)

    def convicted(self) -> None:
        self.frauds += 1

    def planned(self) -> None:
        self.plans += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.auditing.run(self.planned))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def decide(self, *, until: int = 10**6) -> list[Any]:
        """The verdicts on all that is open."""
        async with asyncio.timeout(DEADLINE_S), self.running():
            await self.auditing.wait_until_decided(until)
        return list(self.ledger.verdicts(0, 10**6))


async def passing(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
    return referee_pb2.RefereeVerdict(unit=command.unit, verdict="passed", seconds=0.5)


async def dying(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
    raise WorkerDied("The referee (pid 1) ended.")


def saying(verdict: str, evidence: bytes = b"") -> Answer:
    async def answer(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
        return referee_pb2.RefereeVerdict(unit=command.unit, verdict=verdict, evidence=evidence)

    return answer


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    bench = Bench(tmp_path)
    yield bench
    bench.ledger.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("coordinator.auditing.emit", lambda name, /, **fields: said.append((name, fields)))
    return said


def one_of(kind: Kind) -> tuple[int, Audit]:
    """A round, and an audit of this kind in it."""
    return BY_KIND[kind]


async def test_all_that_is_drawn_is_decided_once_in_order_and_signed(bench: Bench) -> None:
    bench.join()
    for number in ROUNDS[:4]:
        bench.seal(number)
    lines = await bench.decide()
    assert [line.audit for line in lines] == [audit for number in ROUNDS[:4] for audit in drawn_in(number).audits]
    assert [line.audit for line in lines] == [unit_of(command) for command in bench.asked]
    for line in lines:
        digest = audit_receipt(PLACE.model_id, line).digest(PLACE.domain)
        assert recover_address(digest, bytes.fromhex(line.signature[2:])) == line.auditor == KEY.address
        assert (line.verdict, line.evidence) == ("passed", to_hex(bytes(32)))
    assert (bench.plans, bench.referees, bench.stopped) == (len(lines), 1, 1)
    assert bench.ledger.unaudited() == ()


def unit_of(command: referee_pb2.RefereeAudit) -> Audit:
    unit = command.unit
    return Audit(unit.round, unit.stage, Kind(unit.kind), unit.microbatch if unit.HasField("microbatch") else None)


@pytest.mark.parametrize("kind", Kind)
async def test_provider_and_neighbours_are_told_whom_to_serve_what(bench: Bench, kind: Kind) -> None:
    number, wanted = one_of(kind)
    bench.join()
    bench.seal(number)
    await bench.decide()
    asked = next(command for command in bench.asked if unit_of(command) == wanted)
    due = [stage for stage in (wanted.stage, wanted.stage - 1, wanted.stage + 1) if 0 <= stage < STAGES]
    assert [source.peer_id for source in asked.sources] == [f"peer {stage}" for stage in due]
    assert [source.address for source in asked.sources] == [f"127.0.0.1:{9000 + stage}" for stage in due]
    assert asked.report == report_to_proto(honest_report(number, wanted.stage, STAGES, MICROBATCHES))
    for stage in range(STAGES):
        grants = [message.audit for message in bench.inboxes[stage] if message.HasField("audit")]
        assert any(grant.unit == asked.unit for grant in grants) == (stage in due)
        assert all(grant.auditor == b"der" for grant in grants)


async def test_nodes_are_told_which_rounds_to_retain(bench: Bench) -> None:
    first, second, third = ROUNDS[:3]
    assert bench.seal(first).retained == [first]
    sealed = bench.seal(second)
    assert sealed.retained == [first, second]
    bench.join()
    again = [message.sealed for message in bench.inboxes[0]]
    assert [message.round for message in again] == [first, second]  # it may not have heard of the last one
    assert again[1] == sealed
    await bench.decide()
    assert bench.seal(third).retained == [third]


async def test_a_coordinator_that_was_killed_goes_on_with_the_same_audits(bench: Bench) -> None:
    """Killed between sealing and drawing, and again between two verdicts."""
    for number in ROUNDS[:3]:
        drawn = drawn_in(number)
        report = dict.fromkeys(drawn.stages, b"")
        bench.ledger.record_round(drawn.sealed, report)
    again = Bench(bench.folder)
    await again.auditing.resume()
    assert again.auditing.retained == ROUNDS[:3]
    again.join()
    decided = asyncio.Event()

    async def answer(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
        if len(again.asked) == 3:
            decided.set()
            await asyncio.Event().wait()
        return await passing(command)

    again.answer = answer
    async with asyncio.timeout(DEADLINE_S), again.running():
        await decided.wait()
    assert len(again.ledger.verdicts(0, 10**6)) == 2
    third = Bench(bench.folder)
    await third.auditing.resume()
    third.join()
    lines = await third.decide()
    assert [line.audit for line in lines] == [audit for number in ROUNDS[:3] for audit in drawn_in(number).audits]
    assert [unit_of(command) for command in third.asked] == [line.audit for line in lines[2:]]
    for each in (again, third):
        each.ledger.close()


async def test_fraud_convicts_once_and_its_evidence_is_kept(
    bench: Bench, told: list[tuple[str, dict[str, Any]]]
) -> None:
    number, audit = one_of(Kind.ROUND)
    text = b'{"format":"commonweight.fraud/1"}'

    async def answer(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
        return await (saying("failed", text) if unit_of(command) == audit else passing)(command)

    bench.answer = answer
    bench.join()
    bench.seal(number)
    failed = [line for line in await bench.decide() if line.verdict == "failed"]
    assert [line.audit for line in failed] == [audit]
    assert failed[0].evidence == to_hex(keccak(text))
    assert bench.evidence.get(keccak(text)) == text
    assert bench.ledger.frauds() == ((NODES[audit.stage], failed[0]),)
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
    text = b'{"format":"commonweight.fraud/1"}'
    later = dying if second is None else saying(second, text if second == "failed" else b"")
    answers, referees = iter((saying("failed", text), later)), []

    async def answer(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
        if unit_of(command) != audit:
            return await passing(command)
        referees.append(bench.referees)
        return await next(answers)(command)

    bench.answer = answer
    bench.join()
    bench.seal(number)
    (line,) = [line for line in await bench.decide() if line.audit == audit]
    assert line.verdict == verdict
    assert referees == [1, 2], "the second one is another process"
    assert bench.frauds == (verdict == "failed")


async def test_evidence_is_served_to_anybody_by_its_hash(bench: Bench) -> None:
    text = b'{"format":"commonweight.fraud/1"}'
    name = to_hex(bench.evidence.put(text))
    client = TestClient(Starlette(routes=bench.evidence.routes()))
    assert client.get(f"/evidence/{name}.json").content == text
    assert client.get(f"/evidence/{to_hex(bytes(32))}.json").status_code == 404
    assert client.get(f"/statements/{name}.json").status_code == 404


async def test_a_referee_that_dies_is_started_again(bench: Bench, told: list[tuple[str, dict[str, Any]]]) -> None:
    deaths = iter((dying, passing))

    async def answer(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
        return await next(deaths, passing)(command)

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

    bench.auditing.start_referee = start
    bench.join()
    bench.seal(ROUNDS[0])
    assert {line.verdict for line in await bench.decide()} == {"undecided"}


async def test_who_is_gone_and_stays_away_has_withheld(bench: Bench) -> None:
    number, _ = one_of(Kind.DATA)
    bench.seal(number)
    lines = await bench.decide()
    for line in lines:  # tokens are drawn, whoever is there
        assert line.verdict == ("passed" if line.kind == "data" else "withheld")
    assert {unit_of(command).kind for command in bench.asked} == {Kind.DATA}
    assert all(not command.sources for command in bench.asked)


async def test_who_comes_back_in_time_is_audited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", DEADLINE_S)
    number, audit = one_of(Kind.ROUND)
    bench.join()
    bench.auditing.lost(audit.stage)
    bench.seal(number)
    async with asyncio.timeout(DEADLINE_S), bench.running():
        for _ in range(50):
            await asyncio.sleep(0)
        bench.join(audit.stage)
        await bench.auditing.wait_until_decided(10**6)
    assert {line.verdict for line in bench.ledger.verdicts(0, 10**6)} == {"passed"}


async def test_who_goes_away_during_its_audit_is_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", DEADLINE_S)
    number, audit = one_of(Kind.ROUND)
    gone: list[Audit] = []

    async def answer(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
        if unit_of(command) == audit and not gone:
            gone.append(audit)
            bench.auditing.lost(audit.stage)
            bench.join(audit.stage)  # the same node, another connection
            return await saying("withheld")(command)
        return await passing(command)

    bench.answer = answer
    bench.join()
    bench.seal(number)
    lines = await bench.decide()
    assert {line.verdict for line in lines} == {"passed"}
    assert [unit_of(command) for command in bench.asked].count(audit) == 2
    grants = [m.audit for m in bench.inboxes[audit.stage] if m.HasField("audit") and m.audit.unit.kind == "round"]
    assert len(grants) == 2  # the new process has to be told again


async def test_who_keeps_going_away_has_withheld(bench: Bench) -> None:
    number, audit = one_of(Kind.ROUND)

    async def answer(command: referee_pb2.RefereeAudit) -> referee_pb2.RefereeVerdict:
        if unit_of(command) != audit:
            return await passing(command)
        bench.auditing.lost(audit.stage)
        bench.join(audit.stage)
        return await saying("withheld")(command)

    bench.answer = answer
    bench.join()
    bench.seal(number)
    assert [line.audit for line in await bench.decide() if line.verdict == "withheld"] == [audit]
    assert [unit_of(command) for command in bench.asked].count(audit) == MAX_ATTEMPTS


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
    for number in ROUNDS[:2]:
        bench.seal(number)
    async with asyncio.timeout(DEADLINE_S):
        await bench.auditing.wait_until_decided(ROUNDS[0])  # nothing before it is open
        lines = await bench.decide(until=ROUNDS[0] + 1)
    assert {line.audit for line in lines} >= set(drawn_in(ROUNDS[0]).audits)
