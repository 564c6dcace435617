"""What an epoch's auditors did: who was asked, what they said of what, and whose words were proven false."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from commonweight.rules.epoch import drawn_auditors, sealed_beacon
from commonweight.rules.panel import Owner, Standing, left_to_ask
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import AuditLine, Conviction, EquivocationLine, Statement


@dataclass(frozen=True)
class Panels:
    """An epoch's opinions, counted."""

    seats: int
    """Whose holders might audit."""
    by_seats: int
    """Opinions by their holders."""
    by_referee: int
    passed_over: int
    """Times that the holder of a seat was drawn and wasn't there."""
    known_bad: Counter[str]
    """What was shown in place of the provider's claim, by what was said of it: "failed" is right."""
    overruled: int
    """Opinions that the verdict contradicts."""
    convicted: tuple[Conviction, ...]
    """Auditors with an opinion that was disproven."""
    equivocations: tuple[EquivocationLine, ...]

    def facts(self) -> dict[str, Any]:
        """For programs."""
        return {
            "auditor_seats": self.seats,
            "opinions": {"seats": self.by_seats, "referee": self.by_referee, "overruled": self.overruled},
            "passed_over": self.passed_over,
            "known_bad": {
                "shown": self.known_bad.total(),
                "caught": self.known_bad["failed"],
                "passed": self.known_bad["passed"],
            },
            "convicted_auditors": [auditor.model_dump() for auditor in self.convicted],
            "equivocations": [line.model_dump(include={"stage", "node", "unit"}) for line in self.equivocations],
        }

    def fields(self) -> dict[str, object]:
        """For people; of what there was."""
        shown = self.known_bad
        fields: dict[str, object] = {}
        if self.seats:
            fields["auditors"] = (
                f"{self.seats} seats: {self.by_seats} opinions by their holders, {self.by_referee} by the referee; "
                f"{self.passed_over} passed over, {self.overruled} overruled"
            )
        if shown:
            fields["known bad"] = f"{shown.total()} shown: {shown['failed']} caught, {shown['passed']} passed"
        if self.convicted:
            fields["disproven"] = [f"stage {each.stage}, auditor {each.node}" for each in self.convicted]
        if self.equivocations:
            fields["signed twice"] = [
                f"stage {each.stage}, node {each.node}: unit {each.unit}" for each in self.equivocations
            ]
        return fields


def count_panels(spec: ModelSpec, statement: Statement) -> Panels:
    """Of a statement that is right."""
    opinions = [(line, opinion) for line in statement.audits for opinion in line.opinions]
    disproven = {
        Conviction(stage=line.stage, node=opinion.auditor) for line in statement.audits for opinion in line.disproven
    }
    by_referee = sum(opinion.owner is None for _, opinion in opinions)
    return Panels(
        seats=len(statement.auditors),
        by_seats=len(opinions) - by_referee,
        by_referee=by_referee,
        passed_over=sum(_passed_over(line, ranking) for line, ranking in _ranked(spec, statement)),
        known_bad=Counter(opinion.verdict for line, opinion in opinions if line.is_known_bad(opinion)),
        overruled=sum(line.standing_of(opinion) is Standing.OVERRULED for line, opinion in opinions),
        convicted=tuple(sorted(disproven, key=lambda each: (each.stage, each.node))),
        equivocations=statement.equivocations,
    )


def _ranked(spec: ModelSpec, statement: Statement) -> Iterator[tuple[AuditLine, Sequence[Owner]]]:
    """Every audit, with who was to be asked."""
    rounds = {sealed.round: sealed for sealed in statement.rounds}
    tip, seed = bytes.fromhex(statement.beacon_tip[2:]), bytes.fromhex(statement.beacon_seed[2:])
    beacons = {number: sealed_beacon(spec, sealed, tip, seed) for number, sealed in rounds.items()}
    for line in statement.audits:
        yield line, drawn_auditors(rounds[line.round], line.audit, beacons[line.round], statement.auditors)


def _passed_over(line: AuditLine, ranking: Sequence[Owner]) -> int:
    """How many were to be asked before one who spoke, and said nothing."""
    left, on_claim, count = ranking, 0, 0
    for opinion in line.opinions:
        left = left_to_ask(left, on_claim)
        place = left.index(opinion.owner)
        left, count = left[place + 1 :], count + place
        on_claim += not line.is_known_bad(opinion)
    return count
