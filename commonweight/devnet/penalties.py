"""What cheating has cost on a devnet, from the chain and the statements: stakes, and work that isn't paid."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from commonweight.rules.epoch import credited_load, report_units
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import Statement

if TYPE_CHECKING:
    from commonweight.cli.place import Place


@dataclass(frozen=True)
class Penalty:
    """A seat's stake that is gone."""

    address: str
    """Its owner, who on a devnet is the node, or the auditor."""
    stage: int
    amount: int
    """Base units of play money."""
    evidence_hash: str
    """0x and 64 digits."""


@dataclass(frozen=True)
class Penalties:
    """Everybody's."""

    slashed: tuple[Penalty, ...] = ()
    """In the order in which it happened."""
    unpaid: Mapping[str, int] = field(default_factory=dict)
    """FLOPs of reports that weren't paid, over all final epochs, by the node's address."""


def read_statements(place: "Place") -> list[Statement]:
    """Of all final epochs, in order. Blocking. Raises ChainError, such as StatementUnavailable where one is missing."""
    from commonweight.cli.statements import find_statement

    statements = []
    for epoch in range(place.settlement.next_epoch()):
        record = place.settlement.epoch(epoch)
        assert record is not None, "every epoch before the next one is on the chain"
        statements.append(find_statement(place, record).statement)
    return statements


def read_penalties(place: "Place", spec: ModelSpec, statements: Iterable[Statement]) -> Penalties:
    """All penalties up to now. Blocking. Raises ChainError."""
    from commonweight.chain.events import Slashed
    from commonweight.chain.providers import ProviderRegistry

    first = place.settlement.first_block
    providers = ProviderRegistry(place.chain, place.model.terms.providers, first_block=first)
    events = providers.events(Slashed, model_id=place.model.model_id)
    slashed = tuple(Penalty(each.owner, each.stage, each.amount, "0x" + each.evidence_hash.hex()) for each in events)
    unpaid: dict[str, int] = {}
    for statement in statements:
        for sealed in statement.rounds:
            for report in sealed.reports:
                if report.units == "0":
                    unpaid[report.node] = unpaid.get(report.node, 0) + report_units(
                        spec, report.stage, len(credited_load(spec, report))
                    )
    return Penalties(slashed, unpaid)
