"""Follows a model's epochs on the chain, recomputes each from its public statement, and challenges a wrong one. Tells
what is proposed against seats, too.

A statement that nobody serves is a fault, too: who can't recompute an epoch can't claim from it either. The watcher
waits for it until a quarter of the window is left, then challenges.
"""

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from eth_hash.auto import keccak

from commonweight.chain.events import PayoutSet
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import EpochRecord, RegisteredModel
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.token import Token
from commonweight.errors import ChainError, CommonweightError, MalformedMessage, StatementMismatch, StatementUnavailable
from commonweight.events import emit
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import Carried, Statement, parse_statement, to_hex
from commonweight.watch.contest import Contester
from commonweight.watch.fetch import fetch_statement, mirror_uris
from commonweight.watch.judge import Own, check_epoch
from commonweight.watch.proposals import read_proposal
from commonweight.watch.slashes import SlashWatch
from commonweight.watch.store import StatementStore

MAX_POLL_S = 5.0
MIN_POLL_S = 0.25
POLLS_PER_WINDOW = 8
RESERVE = 0.25
"""Of the window, kept for the challenge when the statement doesn't come."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a pending epoch."""

    code: str
    message: str
    """Told here."""
    public: str
    """Goes into the evidence: without what this machine saw elsewhere."""


@dataclass
class Watcher:
    """One model's watcher. `step`, `look_for_slashes` and what they call block: call them off the event loop."""

    spec: ModelSpec
    chain: Chain
    model: RegisteredModel
    store: StatementStore
    """Where every statement that was checked is kept."""
    mirrors: Sequence[str] = ()
    """Base URLs of HTTP services that may have statements which the proposal's own address doesn't give."""
    challenger: Sender | None = None
    """Who posts the challenger's bond; None: faults are only told."""
    own: Callable[[int], Own] | None = None
    """What the node knows of an epoch, where this is a node's watcher."""
    node: str | None = None
    """Its address; then only proposals to slash its owner's seats are told."""
    contester: Sender | None = None
    """Sends with the node's key, and posts the bonds of contesting these; None: they are only told."""
    _carried: Carried = field(default_factory=Carried)
    """What `_last` leaves to the next epoch."""
    _last: EpochRecord | None = None
    """The last final epoch that was taken in."""
    _verdict: tuple[EpochRecord, Fault | None] | None = None
    """The pending epoch that was judged last, and what is wrong with it."""
    _told: EpochRecord | None = None
    """The last one whose fault was told, whether or not a challenge could be sent."""

    @property
    def poll_s(self) -> float:
        """Between looks at the chain."""
        return min(MAX_POLL_S, max(MIN_POLL_S, self.model.terms.window_s / POLLS_PER_WINDOW))

    def accounts_of(self, node: str) -> frozenset[str]:
        """All accounts that may be paid for a staked node's work: its owner and all that it ever named. Blocks."""
        providers = ProviderRegistry(self.chain, self.model.terms.providers)
        owner = providers.owner_of(node)
        return frozenset({owner, *(event.payout for event in providers.events(PayoutSet, owner=owner))})

    async def run(self) -> None:
        """Watch until cancelled. Outlasts a chain that doesn't answer, and a disk that is full.

        Epochs and slashes each have a deadline of their own: neither look waits for what the other fetches or sends.
        """
        async with asyncio.TaskGroup() as looks:
            for look in (self.look_for_slashes, self.step):
                looks.create_task(self._repeat(look))

    async def _repeat(self, look: Callable[[], bool]) -> None:
        seen = b""
        while True:
            try:
                head = await asyncio.to_thread(self.chain.block_hash)
                if head != seen:  # a look takes a dozen requests, which some endpoints charge for
                    is_done = await asyncio.to_thread(look)
                    seen = head if is_done else b""
            except CommonweightError as error:
                emit("watch.failed", code=error.code, message=error.args[0], retry_s=self.poll_s)
            await asyncio.sleep(self.poll_s)  # JSON-RPC over HTTP has nothing to wait on

    def look_for_slashes(self) -> bool:
        """Tell the proposals to slash a seat that weren't told yet, and contest them. Raises ChainError.

        Returns whether it is done until the chain goes on.
        """
        return not self.model.terms.seat_stake or self._slashes.look()

    def step(self) -> bool:
        """Catch up with the final epochs, then judge the pending one. Raises ChainError where that can't be done.

        Returns whether it is done until the chain goes on: otherwise a statement is still to come.

        All is read as it stood after one block. An endpoint that lags behind itself then refuses to answer; with an
        older number of one contract beside a newer one of another, an honest epoch would look wrong.
        """
        settlement = self._settlement.at(self.chain.block_number())
        if self._last is not None and settlement.epoch(self._last.epoch) != self._last:
            self._last, self._carried, self._verdict = None, Carried(), None  # the chain was reorganised: begin anew
        while (epoch := self._next_epoch) < settlement.next_epoch():
            self._take_final(settlement, epoch)
        pending = settlement.pending()
        if pending is None or pending.epoch != epoch:
            return True
        record, is_challenged = settlement.epoch(epoch), pending.challenger is not None
        if record is None or record.finalized:
            return False  # reorganised between the two looks
        if is_challenged and record == self._told:
            return True
        try:
            fault = self._judge(settlement, record)
        except StatementUnavailable as error:
            if self.chain.timestamp() < record.finalizable_at - RESERVE * self.model.terms.window_s:
                return False  # it may still come
            fault = Fault(error.code, error.args[0], "Its statement can't be had.")
        if fault is not None:
            self._dispute(record, fault, is_challenged)
        return True

    @cached_property
    def _first_block(self) -> int:
        registry = ModelRegistry(self.chain, RevenueRouter(self.chain, self.model.router).terms().registry)
        return registry.registration_block(self.model.model_id)

    @cached_property
    def _settlement(self) -> EpochSettlement:
        return EpochSettlement(self.chain, self.model.settlement, first_block=self._first_block)

    @cached_property
    def _slashes(self) -> SlashWatch:
        address, model_id = self.model.terms.providers, self.model.model_id
        contester = None
        if self.contester is not None:
            contester = Contester(ProviderRegistry(self.chain, address, self.contester), model_id)
        providers = ProviderRegistry(self.chain, address, first_block=self._first_block)
        return SlashWatch(providers, model_id, self.node, contester)

    @property
    def _next_epoch(self) -> int:
        """Every epoch before it is in `_carried`."""
        return 0 if self._last is None else self._last.epoch + 1

    def _take_final(self, settlement: EpochSettlement, epoch: int) -> None:
        record = settlement.epoch(epoch)
        if record is None or not record.finalized:
            raise ChainError(
                f"Epoch {epoch} was final and isn't any more: the chain has been reorganised. Looking again."
            )
        text = self._fetch(record)
        try:
            statement = parse_statement(text, record.statement_hash)
        except (StatementMismatch, MalformedMessage) as error:
            raise StatementUnavailable(
                f"What the chain names as the statement of epoch {epoch}, which is final, is none: {error.args[0]} "
                "Nothing that follows it can be recomputed."
            ) from error
        try:
            self._check(settlement, record, statement)
        except StatementMismatch as error:
            # Too late to challenge. What it says is what the chain pays by, so what follows is measured against it.
            self.store.put(text)
            emit("epoch.faulty", epoch=epoch, code=error.code, message=error.args[0])
        else:
            self._keep(record, text)
        self._carried, self._last = statement.carried(), record

    def _judge(self, settlement: EpochSettlement, record: EpochRecord) -> Fault | None:
        """What is wrong with the pending epoch; looked for once. Raises StatementUnavailable."""
        if self._verdict is None or self._verdict[0] != record:
            text, fault = self._fetch(record), None
            try:
                self._check(settlement, record, parse_statement(text, record.statement_hash))
            except (StatementMismatch, MalformedMessage) as error:
                fault = Fault(error.code, error.args[0], error.args[0])
            else:
                self._keep(record, text)
            self._verdict = record, fault
        return self._verdict[1]

    def _check(self, settlement: EpochSettlement, record: EpochRecord, statement: Statement) -> None:
        """Raises StatementMismatch where the epoch after `_last` isn't faultless."""
        proposal = read_proposal(
            settlement,
            self.model,
            record,
            statement,
            accumulator_before=0 if self._last is None else self._last.accumulator,
            operator_earned=RevenueRouter(settlement.chain, self.model.router).operator_earned(),
        )
        check_epoch(self.spec, statement, self._carried, proposal, self.own(record.epoch) if self.own else None)

    def _keep(self, record: EpochRecord, text: bytes) -> None:
        self.store.put(text)
        emit("epoch.checked", epoch=record.epoch, root=to_hex(record.root), final=record.finalized)

    def _fetch(self, record: EpochRecord) -> bytes:
        if (kept := self.store.get(record.statement_hash)) is not None:
            return kept
        # A proposal's address is a stranger's: it may not name files of this machine.
        proposed = [record.uri] if record.uri.startswith(("http://", "https://")) else []
        uris = [*proposed, *mirror_uris(self.mirrors, record.statement_hash)]
        return fetch_statement(uris, record.statement_hash)

    def _dispute(self, record: EpochRecord, fault: Fault, is_challenged: bool) -> None:
        """Tell the fault. Challenge the epoch, unless somebody has already, while that can be done."""
        if record != self._told:
            self._told = record
            emit("epoch.disputed", epoch=record.epoch, root=to_hex(record.root), code=fault.code, message=fault.message)
        if is_challenged or self.challenger is None or self.chain.timestamp() >= record.finalizable_at:
            return
        terms = self.model.terms
        evidence = canonical_json(
            {
                "format": "commonweight.evidence/1",
                "epoch": record.epoch,
                "root": to_hex(record.root),
                "code": fault.code,
                "fault": fault.public[:2000],
            }
        )
        uri = "data:application/json;base64," + base64.b64encode(evidence).decode()
        token = Token(self.chain, terms.revenue_token, self.challenger)
        if token.allowance(self.challenger.address, self.model.settlement) < terms.challenger_bond:
            token.approve(self.model.settlement, terms.challenger_bond)
        contract = EpochSettlement(self.chain, self.model.settlement, self.challenger)
        receipt = contract.challenge_epoch(record.epoch, record.root, keccak(evidence), uri)
        emit(
            "epoch.challenged",
            epoch=record.epoch,
            root=to_hex(record.root),
            bond=str(terms.challenger_bond),
            evidence_hash=to_hex(keccak(evidence)),
            transaction=receipt.transaction,
        )
