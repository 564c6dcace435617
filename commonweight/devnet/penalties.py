"""What cheating has cost on a devnet, from the chain and the statements: stakes, and work that isn't paid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


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


def read_penalties(folder: Path, spec_file: Path) -> Penalties:
    """All penalties up to now. `folder` holds deployments.json. Blocking, and imports web3: call from a thread.

    Raises ChainError, such as StatementUnavailable where a statement is missing.
    """
    from commonweight.chain.events import Slashed
    from commonweight.chain.providers import ProviderRegistry
    from commonweight.cli.place import find_place
    from commonweight.cli.statements import find_statement
    from commonweight.rules.epoch import report_units
    from commonweight.rules.spec import parse_spec

    place, spec = find_place(None, None, None, folder), parse_spec(spec_file.read_bytes())
    first = place.settlement.first_block
    providers = ProviderRegistry(place.chain, place.model.terms.providers, first_block=first)
    events = providers.events(Slashed, model_id=place.model.model_id)
    slashed = tuple(Penalty(each.owner, each.stage, each.amount, "0x" + each.evidence_hash.hex()) for each in events)
    unpaid: dict[str, int] = {}
    for epoch in range(place.settlement.next_epoch()):
        record = place.settlement.epoch(epoch)
        assert record is not None, "every epoch before the next one is on the chain"
        for sealed in find_statement(place, record).statement.rounds:
            for report in sealed.reports:
                if report.units == "0":
                    unpaid[report.node] = unpaid.get(report.node, 0) + report_units(spec, report.stage)
    return Penalties(slashed, unpaid)
