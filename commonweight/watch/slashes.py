"""Tells that somebody has proposed to slash a seat, and has it contested: what nobody contests in time is executed."""

from dataclasses import dataclass, field

from commonweight.chain.events import SlashProposed
from commonweight.chain.providers import ProviderRegistry
from commonweight.events import emit
from commonweight.rules.statement import to_hex
from commonweight.watch.contest import Contester

BLOCKS_AGAIN = 64
"""Looked at again each time: the chain may have been reorganised there, or the endpoint have lagged behind itself."""


@dataclass
class SlashWatch:
    """The proposals to slash a model's seats. `look` blocks: call it off the event loop."""

    providers: ProviderRegistry
    """Its `first_block` is that of the model's registration."""
    model_id: bytes
    node: str | None = None
    """Whose owner's seats are watched; None: all of the model."""
    contester: Contester | None = None
    """Contests what is found, with that node's key; None: it is only told."""
    _next_block: int = 0
    _told: set[tuple[int, str, int, bytes]] = field(default_factory=set)

    def look(self) -> bool:
        """Emit `slash.seen` for each proposal that this process hasn't told, then contest. Raises ChainError.

        Returns whether it is done until the chain goes on: a proposal that can still be contested isn't.
        """
        head = self.providers.chain.block_number()
        providers = self.providers.at(head)
        whose = {} if self.node is None else {"owner": providers.owner_of(self.node)}
        first = max(providers.first_block, self._next_block)
        found = providers.events(SlashProposed, first, model_id=self.model_id, **whose)
        for event in found:
            case = event.slash_id, event.owner, event.stage, event.evidence_hash
            if case in self._told:
                continue
            record = providers.slash(event.slash_id)
            emit(
                "slash.seen",
                slash_id=event.slash_id,
                stage=event.stage,
                owner=event.owner,
                reporter=event.reporter,
                status=record.status.name.lower(),
                until=event.deadline,
                evidence_hash=to_hex(event.evidence_hash),
            )
            self._told.add(case)
        if self.contester is not None:
            self.contester.contest(event.slash_id for event in found)
        self._next_block = head - BLOCKS_AGAIN
        return self.contester is None or not self.contester.has_open
