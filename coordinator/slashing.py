"""Takes the stake of who was convicted: a proposal for each fraud, carried to its end on chain.

The chain is asked first what has happened already, so a coordinator that was killed proposes nothing twice. What can't
be done now (no tokens for the bond, no gas, no chain) is tried again; training goes on meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from commonweight.chain.events import SlashProposed
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import Seat, SlashStatus
from commonweight.chain.token import Token
from commonweight.errors import ChainError
from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules.receipt import Receipt
from commonweight.rules.statement import EquivocationLine
from coordinator.ledger import Fraud, Ledger
from coordinator.members import Place

MAX_WAIT_S = 15.0
"""Between looks at a proposal, so that a contest is seen while the arbiter can still be asked."""
MAX_RETRY_S = 60.0
"""Between attempts at what the chain refuses."""

Case = Fraud | EquivocationLine
"""One proof against one node in one stage."""


@dataclass
class Slashing:
    """The slashing of one model's convicted providers and auditors."""

    place: Place
    ledger: Ledger
    providers: ProviderRegistry
    base_url: str
    """Under which evidence is served."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _told: set[int] = field(default_factory=set)
    """Contested proposals that were told."""
    _ended: dict[int, str] = field(default_factory=dict)
    """By proposal, the transaction by which this process has ended it."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One at a time: each proposal's bond is approved by itself."""

    def wake(self) -> None:
        """There may be another case."""
        self._wanted.set()

    async def run(self) -> None:
        """Slash for every fraud in the ledger. Runs until cancelled."""
        self.wake()
        begun: set[Case] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                for case in await asyncio.to_thread(self._cases):
                    if case not in begun:
                        begun.add(case)
                        tasks.create_task(self._slash(case))

    def _cases(self) -> list[Case]:
        return [*self.ledger.frauds(), *self.ledger.equivocations()]

    async def _slash(self, case: Case) -> None:
        retry_s = 1.0
        while True:
            try:
                async with self._turn:
                    wait_s = await asyncio.to_thread(self._advance, case)
                retry_s = 1.0
            except ChainError as error:
                emit(
                    "slash.failed",
                    stage=case.stage,
                    node=case.node,
                    code=error.code,
                    message=error.args[0],
                    retry_s=retry_s,
                )
                wait_s, retry_s = retry_s, min(2 * retry_s, MAX_RETRY_S)
            if wait_s is None:
                return
            await self.sleep(wait_s)

    def _advance(self, case: Case) -> float | None:
        """One step further. Seconds to wait before the next; None where there is nothing more to do."""
        stage, node = case.stage, case.node
        owner = self.providers.owner_of(node)
        if isinstance(case, EquivocationLine):
            self._slash_equivocation(case, owner)
            return None
        evidence_hash = bytes.fromhex(case.evidence[2:])
        ours = [
            event
            for event in self.providers.events(SlashProposed, model_id=self.place.model_id, owner=owner)
            if (event.stage, event.evidence_hash, event.reporter)
            == (stage, evidence_hash, self.providers.sender.address)
        ]
        if ours:
            return self._carry(ours[-1].slash_id, stage, node)
        if self._slashable_seat(owner, stage) is None:
            emit("slash.dropped", stage=stage, node=node, transaction=None)
            return None
        bond = self.providers.reporter_bond()
        if bond:
            token = Token(self.providers.chain, self.providers.bond_token(), self.providers.sender)
            token.approve(self.providers.address, bond)
        uri = f"{self.base_url}/evidence/{case.evidence}.json"
        receipt = self.providers.propose_slash(self.place.model_id, owner, stage, evidence_hash, uri)
        failpoint("slash.proposed")
        emit(
            "slash.proposed",
            stage=stage,
            node=node,
            owner=owner,
            evidence=case.evidence,
            uri=uri,
            bond=str(bond),
            transaction=receipt.transaction,
        )
        return 0.0

    def _carry(self, slash_id: int, stage: int, node: str) -> float | None:
        """A proposal to its end."""
        record = self.providers.slash(slash_id)
        if record.status in (SlashStatus.EXECUTED, SlashStatus.DROPPED):
            if slash_id in self._told or slash_id in self._ended:
                name = "slash.executed" if record.status is SlashStatus.EXECUTED else "slash.dropped"
                emit(name, stage=stage, node=node, transaction=self._ended.get(slash_id))
            return None
        if record.status is SlashStatus.CONTESTED and slash_id not in self._told:
            self._told.add(slash_id)
            emit("slash.contested", stage=stage, node=node, contester=record.contester, until=record.deadline)
        left_s = record.deadline - self.providers.chain.timestamp()
        if left_s > 0:
            return min(MAX_WAIT_S, left_s)
        end = self.providers.execute_slash if record.status is SlashStatus.PROPOSED else self.providers.drop_slash
        self._ended[slash_id] = end(slash_id).transaction
        return 0.0

    def _slash_equivocation(self, found: EquivocationLine, owner: str) -> None:
        if self._slashable_seat(owner, found.stage) is None:
            return
        unit, outputs = bytes.fromhex(found.unit[2:]), (bytes.fromhex(output[2:]) for output in found.outputs)
        first, second = (Receipt(self.place.model_id, found.stage, unit, output) for output in outputs)
        signatures = [bytes.fromhex(signature[2:]) for signature in found.signatures]
        receipt = self.providers.slash_equivocation(first, signatures[0], second, signatures[1])
        emit("slash.executed", stage=found.stage, node=found.node, transaction=receipt.transaction)

    def _slashable_seat(self, owner: str, stage: int) -> Seat | None:
        """Held, or left and not free yet, and not slashed."""
        now = self.providers.chain.timestamp()
        seats = self.providers.seats_of(self.place.model_id, owner)
        return next(
            (seat for seat in seats if seat.stage == stage and not seat.slashed and not 0 < seat.releasable_at <= now),
            None,
        )
