"""The ledger of work: all that the coordinator must not forget, in a SQL database.

Everything else that it knows can be asked again (from the nodes that reconnect) or computed. Each method is one
transaction; what it records, it records once: the keys make a second credit for a unit impossible.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from commonweight.database import open_database, transaction
from commonweight.errors import LedgerError
from commonweight.rules.audits import Verdict
from commonweight.rules.statement import (
    AuditLine,
    Conviction,
    CreditedReport,
    EquivocationLine,
    SealedRound,
    Statement,
    parse_statement,
)
from coordinator.answer_ledger import AnswerLedger, UnauditedParts, add_answers, sealed_answers, take_turn
from coordinator.tables import (
    BeaconRow,
    EpochRow,
    EquivocationRow,
    ModelRow,
    PublishedRow,
    ReportRow,
    RoundRow,
    SeatRow,
    Table,
    UnauditedPartRow,
    UnauditedRow,
    VerdictRow,
)


@dataclass(frozen=True)
class Fraud:
    """What an audit, or the dispute that followed, has proven against a node."""

    stage: int
    node: str
    """Whose: the provider's, or an auditor's."""
    evidence: str
    """Its hash, 0x and 64 digits."""


@dataclass(frozen=True)
class Progress:
    """Where training stands."""

    generation: int
    round: int
    """Next to be sealed."""
    seats: Mapping[str, int]
    """By node."""
    roots: tuple[Mapping[str, bytes], ...]
    """Of each stage, by node, the state root that it ended the last round with; empty before the first."""


class Ledger(AnswerLedger):
    """One model's ledger. Methods block on the database; call them off the event loop."""

    def __init__(self, url: str) -> None:
        """Open the database at an SQLAlchemy URL, such as sqlite:///ledger.db; raises as `open_database`."""
        super().__init__(open_database(url, Table))

    def open_model(self, *, model_id: bytes, spec_hash: bytes, settlement: str, chain_id: int) -> Progress:
        """Where this model stands. Raises LedgerError if the ledger is of another one."""
        with transaction(self._engine, "Another coordinator has just begun this ledger.") as session:
            row = session.scalar(select(ModelRow))
            wanted = (model_id, spec_hash, settlement, chain_id)
            if row is None:
                row = ModelRow(
                    model_id=model_id,
                    spec_hash=spec_hash,
                    settlement=settlement,
                    chain_id=chain_id,
                    generation=0,
                )
                session.add(row)
            elif (found := (row.model_id, row.spec_hash, row.settlement, row.chain_id)) != wanted:
                raise LedgerError(
                    f"The ledger is of model 0x{found[0].hex()} with spec 0x{found[1].hex()} on chain {found[3]}; "
                    f"asked for was 0x{model_id.hex()} with spec 0x{spec_hash.hex()} on chain {chain_id}. "
                    "Each model has its own ledger: give another --ledger."
                )
            last = session.scalar(select(ReportRow.round).order_by(ReportRow.round.desc()).limit(1))
            reports = () if last is None else _sealed(session, last, last + 1)[0].reports
            roots: dict[int, dict[str, bytes]] = {}
            for report in reports:  # in order
                roots.setdefault(report.stage, {})[report.node] = bytes.fromhex(report.state_after[2:])
            return Progress(
                generation=row.generation,
                round=0 if last is None else last + 1,
                seats={seat.node: seat.stage for seat in session.scalars(select(SeatRow))},
                roots=tuple(roots.values()),
            )

    def record_seat(self, stage: int, node: str) -> None:
        """This node holds this stage from now on. Raises LedgerError if it holds one already."""
        with transaction(self._engine, f"{node} holds a stage already.") as session:
            session.add(SeatRow(stage=stage, node=node))

    def move_seat(self, stage: int, node: str) -> None:
        """This node, which holds another stage, holds this one from now on."""
        with transaction(self._engine) as session:
            session.get_one(SeatRow, node).stage = stage

    def record_generation(self, generation: int) -> None:
        """This generation was formed; its number is never used again."""
        with transaction(self._engine) as session:
            session.scalars(select(ModelRow)).one().generation = generation

    def beacon_seed(self, epoch: int, fresh: bytes) -> bytes:
        """The seed of an epoch's beacon values; where there is none yet it is `fresh` from now on."""
        with transaction(self._engine, f"Another coordinator has just drawn the seed of epoch {epoch}.") as session:
            if (row := session.get(BeaconRow, epoch)) is None:
                session.add(row := BeaconRow(epoch=epoch, seed=fresh))
            return row.seed

    def record_round(
        self, sealed: SealedRound, unaudited: Mapping[tuple[int, int], bytes], unaudited_parts: UnauditedParts
    ) -> None:
        """A round is sealed, with the credit of every replica, and with its answers. Raises LedgerError if it, or one
        of these, is sealed already.

        `unaudited`: by stage and replica, the whole reports of those of which something was drawn; `unaudited_parts`,
        the whole parts of answers that were drawn.
        """
        rows: list[Table] = [RoundRow(round=sealed.round, beacon=sealed.beacon)]
        rows += [
            ReportRow(round=sealed.round, stage=report.stage, node=report.node, credited=report.model_dump())
            for report in sealed.reports
        ]
        rows += [
            UnauditedRow(round=sealed.round, stage=stage, replica=replica, report=report)
            for (stage, replica), report in unaudited.items()
        ]
        already = f"Round {sealed.round} is sealed already; it can't be credited twice."
        with transaction(self._engine, already) as session:
            take_turn(session)
            session.add_all(rows)
            add_answers(session, sealed, unaudited_parts)

    def sealed_rounds(self, first: int, end: int) -> tuple[SealedRound, ...]:
        """The sealed rounds in range(first, end), in order."""
        with transaction(self._engine) as session:
            return _sealed(session, first, end)

    def unaudited(self) -> tuple[int, ...]:
        """The sealed rounds with audits that aren't decided, in order."""
        with transaction(self._engine) as session:
            return tuple(session.scalars(select(UnauditedRow.round).distinct().order_by(UnauditedRow.round)))

    def unaudited_report(self, round_: int, stage: int, replica: int) -> bytes:
        """The whole report of a replica with audits that aren't decided."""
        with transaction(self._engine) as session:
            return session.get_one(UnauditedRow, (round_, stage, replica)).report

    def record_verdict(self, line: AuditLine, *, last: bool) -> None:
        """An audit is decided; `last`: of its round, whose whole reports and parts aren't kept any longer.

        Raises LedgerError where the unit has a verdict already.
        """
        row = VerdictRow(
            round=line.round,
            stage=line.stage,
            replica=line.replica,
            kind=line.kind,
            microbatch=-1 if line.microbatch is None else line.microbatch,
            convicts=bool(_frauds(line, "")),
            line=line.model_dump(),
        )
        with transaction(self._engine, f"This audit of round {line.round} is decided already: {line!r}.") as session:
            session.add(row)
            if last:
                session.execute(delete(UnauditedRow).where(UnauditedRow.round == line.round))
                session.execute(delete(UnauditedPartRow).where(UnauditedPartRow.round == line.round))

    def verdicts(self, first: int, end: int) -> tuple[AuditLine, ...]:
        """The decided audits of the rounds in range(first, end), in their order."""
        with transaction(self._engine) as session:
            rows = session.scalars(select(VerdictRow).where(VerdictRow.round >= first, VerdictRow.round < end)).all()
            return tuple(sorted(map(_line, rows), key=lambda line: line.audit.order))

    def frauds(self) -> tuple[Fraud, ...]:
        """The first of each node and stage, in the order of the audits: work that failed, opinions that are false."""
        found: dict[tuple[int, str], Fraud] = {}
        with transaction(self._engine) as session:
            rows = session.scalars(select(VerdictRow).where(VerdictRow.convicts))
            for line in sorted(map(_line, rows), key=lambda line: line.audit.order):
                nodes = select(ReportRow.node).where(ReportRow.round == line.round, ReportRow.stage == line.stage)
                provider = sorted(session.scalars(nodes))[line.replica]
                for fraud in _frauds(line, provider):
                    found.setdefault((fraud.stage, fraud.node), fraud)
        return tuple(found.values())

    def convicted(self) -> frozenset[Conviction]:
        """Whose fraud is proven, whichever: they aren't asked for opinions any more."""
        proofs: list[Fraud | EquivocationLine] = [*self.frauds(), *self.equivocations()]
        return frozenset(Conviction(stage=proof.stage, node=proof.node) for proof in proofs)

    def record_equivocation(self, found: EquivocationLine) -> bool:
        """A node has signed two outputs of one unit; of each node and stage the first is kept. Whether it is."""
        with transaction(self._engine) as session:
            if session.get(EquivocationRow, (found.stage, found.node)) is not None:
                return False
            session.add(EquivocationRow(stage=found.stage, node=found.node, line=found.model_dump()))
            return True

    def equivocations(self) -> tuple[EquivocationLine, ...]:
        """All that were recorded, in order of stage and node."""
        with transaction(self._engine) as session:
            rows = session.scalars(select(EquivocationRow).order_by(EquivocationRow.stage, EquivocationRow.node))
            return tuple(EquivocationLine.model_validate(row.line, strict=False) for row in rows)

    def record_published(self, round_: int) -> None:
        """The version that is ready to train `round_` is about to be published."""
        with transaction(self._engine, f"The version of round {round_} was published before.") as session:
            session.add(PublishedRow(round=round_))

    def published(self, count: int) -> tuple[int, ...]:
        """The versions that were published last, at most `count`, ascending."""
        with transaction(self._engine) as session:
            last = session.scalars(select(PublishedRow.round).order_by(PublishedRow.round.desc()).limit(count))
            return tuple(sorted(last))

    def record_statement(self, epoch: int, statement: bytes, statement_hash: bytes) -> None:
        """The epoch is closed with this statement, and with no other. Raises LedgerError if it is closed already."""
        with transaction(self._engine, f"Epoch {epoch} is closed already; it can't have another statement.") as session:
            session.add(EpochRow(epoch=epoch, statement=statement, statement_hash=statement_hash))

    def replace_statement(self, epoch: int, statement: bytes, statement_hash: bytes) -> None:
        """The closed epoch's statement, which isn't on chain, by another coordinator."""
        with transaction(self._engine) as session:
            row = session.get_one(EpochRow, epoch)
            row.statement, row.statement_hash = statement, statement_hash

    def record_final(self, epoch: int) -> None:
        """The chain has finalised the epoch."""
        with transaction(self._engine) as session:
            row = session.get(EpochRow, epoch)
            if row is None:
                raise LedgerError(f"Epoch {epoch} is final on chain, but the ledger has no statement of it.")
            row.final = True

    def statement(self, epoch: int) -> Statement | None:
        """The statement of a closed epoch, or None where it isn't closed."""
        with transaction(self._engine) as session:
            row = session.get(EpochRow, epoch)
            return None if row is None else parse_statement(row.statement, row.statement_hash)

    def final_epochs(self) -> int:
        """How many epochs the chain has made final: also the number of the next one."""
        with transaction(self._engine) as session:
            return len(session.scalars(select(EpochRow.epoch).where(EpochRow.final)).all())

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()


def _line(row: VerdictRow) -> AuditLine:
    return AuditLine.model_validate(row.line, strict=False)  # JSON has lists for tuples


def _frauds(line: AuditLine, provider: str) -> list[Fraud]:
    """What the audit of this provider's work has proven."""
    failed = [Fraud(line.stage, provider, line.evidence)] if Verdict(line.verdict) is Verdict.FAILED else []
    return failed + [Fraud(line.stage, opinion.auditor, opinion.disproof) for opinion in line.disproven]


def _sealed(session: Session, first: int, end: int) -> tuple[SealedRound, ...]:
    by_round: dict[int, list[CreditedReport]] = {}
    rows = session.scalars(select(ReportRow).where(ReportRow.round >= first, ReportRow.round < end))
    # Not the database's order of text: that of some locales isn't ours.
    for row in sorted(rows, key=lambda row: (row.round, row.stage, row.node)):
        by_round.setdefault(row.round, []).append(CreditedReport.model_validate(row.credited))
    beacons = select(RoundRow).where(RoundRow.round >= first, RoundRow.round < end)
    values = {row.round: row.beacon for row in session.scalars(beacons)}
    answers = sealed_answers(session, first, end)
    return tuple(
        SealedRound(round=number, beacon=values[number], reports=tuple(reports), answers=tuple(answers.get(number, ())))
        for number, reports in by_round.items()
    )
