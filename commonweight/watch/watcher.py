"""Follows a model's epochs on the chain, recomputes each from its public statement, and challenges a wrong one.

A statement that nobody serves is a fault, too: who can't recompute an epoch can't claim from it either. The watcher
waits for it until a quarter of the window is left, then challenges.
"""

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eth_hash.auto import keccak

from commonweight.chain.events import PayoutSet
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import EpochRecord, PendingEpoch, RegisteredModel
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.token import Token
from commonweight.errors import ChainError, CommonweightError, MalformedMessage, StatementMismatch, StatementUnavailable
from commonweight.events import emit
from commonweight.rules.accounting import Balance
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import parse_statement, to_hex
from commonweight.watch.fetch import fetch_statement, mirror_uris
from commonweight.watch.judge import Own, Proposal, check_epoch
from commonweight.watch.store import StatementStore

MAX_POLL_S = 5.0
MIN_POLL_S = 0.25
POLLS_PER_WINDOW = 8
RESERVE = 0.25
"""Of the window, kept for the challenge when the statement doesn't come."""


@dataclass
class Watcher:
    """One model's watcher. `step` and all that it calls block: call them off the event loop."""

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
    _balances: dict[str, Balance] = field(default_factory=dict)
    _checked: int = 0
    """Every epoch before this one is final and taken into `_balances`."""
    _last_root: bytes = b""
    """Of the last epoch that was taken in."""
    _judged: set[tuple[int, bytes]] = field(default_factory=set)
    """Proposals (block and root) about which there is nothing more to do."""
    _told: set[tuple[int, bytes]] = field(default_factory=set)
    """Those whose fault was told, whether or not a challenge could be sent."""

    @property
    def settlement(self) -> EpochSettlement:
        return EpochSettlement(self.chain, self.model.settlement, self.challenger)

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
        """Watch until cancelled. Outlasts a chain that doesn't answer."""
        while True:
            try:
                await asyncio.to_thread(self.step)
            except ChainError as error:
                emit("watch.failed", code=error.code, message=error.args[0], retry_s=self.poll_s)
            await asyncio.sleep(self.poll_s)  # JSON-RPC over HTTP has nothing to wait on

    def step(self) -> None:
        """Catch up with the final epochs, then judge the pending one. Raises ChainError where that can't be done."""
        if self._checked:
            last = self.settlement.epoch(self._checked - 1)
            if last is None or last.root != self._last_root:  # the chain was reorganised: begin anew
                self._checked, self._balances = 0, {}
        while self._checked < self.settlement.next_epoch():
            self._take_final(self._checked)
        pending = self.settlement.pending()
        if pending is None or pending.challenger is not None:
            return
        record = self.settlement.epoch(pending.epoch)
        if record is None or record.root != pending.root or record.finalized:
            return  # it was decided between the two looks
        proposal = (record.block_number, record.root)
        if proposal in self._judged:
            return
        try:
            self._judge(record)
        except StatementUnavailable as error:
            if self.chain.timestamp() < pending.finalizable_at - RESERVE * self.model.terms.window_s:
                return  # it may still come
            self._dispute(pending, proposal, error, "Its statement can't be had.")
        except (StatementMismatch, MalformedMessage) as error:
            self._dispute(pending, proposal, error, error.args[0])
        else:
            self._judged.add(proposal)

    def _take_final(self, epoch: int) -> None:
        record = self.settlement.epoch(epoch)
        if record is None or not record.finalized:
            raise ChainError(
                f"Epoch {epoch} was final and isn't any more: the chain has been reorganised. Looking again."
            )
        try:
            self._balances = self._judge(record)
        except MalformedMessage as error:
            raise StatementUnavailable(
                f"What the chain names as the statement of epoch {epoch}, which is final, is none: {error.args[0]} "
                "Nothing that follows it can be recomputed."
            ) from error
        except StatementMismatch as error:
            # Too late to challenge. What it says is what the chain pays by, so what follows is measured against it.
            emit("epoch.faulty", epoch=epoch, code=error.code, message=error.args[0])
            self._balances = parse_statement(self._fetch(record), record.statement_hash).balances()
        self._checked, self._last_root = epoch + 1, record.root

    def _judge(self, record: EpochRecord) -> dict[str, Balance]:
        """The balances after a faultless epoch. Raises StatementMismatch, MalformedMessage, StatementUnavailable."""
        text = self._fetch(record)
        statement = parse_statement(text, record.statement_hash)
        previous = self.settlement.epoch(record.epoch - 1) if record.epoch else None
        proposal = Proposal(
            chain_id=self.chain.chain_id,
            settlement=self.model.settlement,
            model_id=self.model.model_id,
            epoch=record.epoch,
            root=record.root,
            minted=record.minted,
            accumulator_before=previous.accumulator if previous else 0,
            operator_earned=RevenueRouter(self.chain, self.model.router).operator_earned(),
        )
        check_epoch(self.spec, statement, self._balances, proposal, self.own(record.epoch) if self.own else None)
        self.store.put(text)
        emit("epoch.checked", epoch=record.epoch, root=to_hex(record.root), final=record.finalized)
        return statement.balances()

    def _fetch(self, record: EpochRecord) -> bytes:
        if (kept := self.store.get(record.statement_hash)) is not None:
            return kept
        # A proposal's address is a stranger's: it may not name files of this machine.
        proposed = [record.uri] if record.uri.startswith(("http://", "https://")) else []
        uris = [*proposed, *mirror_uris(self.mirrors, record.statement_hash)]
        return fetch_statement(uris, record.statement_hash)

    def _dispute(
        self, pending: PendingEpoch, proposal: tuple[int, bytes], fault: CommonweightError, public: str
    ) -> None:
        """Tell the fault here, and challenge with `public` as evidence: what this machine saw elsewhere stays here."""
        if proposal not in self._told:
            self._told.add(proposal)
            emit(
                "epoch.disputed",
                epoch=pending.epoch,
                root=to_hex(pending.root),
                code=fault.code,
                message=fault.args[0],
            )
        if self.challenger is None:
            return
        terms = self.model.terms
        evidence = canonical_json(
            {
                "format": "commonweight.evidence/1",
                "epoch": pending.epoch,
                "root": to_hex(pending.root),
                "code": fault.code,
                "fault": public[:2000],
            }
        )
        uri = "data:application/json;base64," + base64.b64encode(evidence).decode()
        token = Token(self.chain, terms.revenue_token, self.challenger)
        if token.allowance(self.challenger.address, self.model.settlement) < terms.challenger_bond:
            token.approve(self.model.settlement, terms.challenger_bond)
        receipt = self.settlement.challenge_epoch(pending.epoch, pending.root, keccak(evidence), uri)
        emit(
            "epoch.challenged",
            epoch=pending.epoch,
            root=to_hex(pending.root),
            bond=str(terms.challenger_bond),
            evidence_hash=to_hex(keccak(evidence)),
            transaction=receipt.transaction,
        )
