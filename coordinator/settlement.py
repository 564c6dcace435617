"""Settles closed epochs on the chain: statement, proposal, finalisation, one epoch after another.

The chain is the authority on what happened. Every step first asks it, so a coordinator that was killed between
sending a transaction and noting it down finds it there and doesn't send it again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from commonweight.chain.auditors import auditor_seats
from commonweight.chain.events import EpochRejected
from commonweight.chain.records import EpochRecord, PendingEpoch, RegisteredModel
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.token import Token
from commonweight.errors import ChainError, LedgerError, Refused, StatementMismatch
from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules.audits import Audit
from commonweight.rules.beacon import hash_chain
from commonweight.rules.canonical import canonical_json
from commonweight.rules.checking import check_statement
from commonweight.rules.epoch import drawn_audits, make_statement, signed_receipt
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import AuditLine, AuditorSeat, Carried, Opinion, Statement, to_hex
from commonweight.watch.store import StatementStore
from coordinator.auditing import Auditing
from coordinator.beacons import beacon_seed, ensure_tip
from coordinator.ledger import Ledger
from coordinator.members import Place
from coordinator.training import Training

MAX_RETRY_S = 15.0
"""Between attempts while the chain doesn't answer, or refuses; training goes on meanwhile."""
POLL_S = 1.0
"""Between looks at something that others, or the chain's next blocks, must bring about."""
MAX_WAIT_S = 15.0
"""Between looks at a pending epoch, so that a challenge is told while the arbiter can still be asked."""


@dataclass
class Settlement:
    """The settling of one model's epochs."""

    spec: ModelSpec
    place: Place
    ledger: Ledger
    chain: Chain
    contract: EpochSettlement
    model: RegisteredModel
    router: RevenueRouter
    statements: StatementStore
    statements_url: str
    """Base URL under which `statements` is served; goes into each proposal."""
    confirmations: int = 0
    """Blocks on top of a finalisation before anything is built on it."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _told: PendingEpoch | None = None
    """The last whose challenge was told."""

    async def run(self, training: Training, auditing: Auditing, end_epoch: int | None) -> None:
        """Settle epochs as they close, until `end_epoch` of them are final (None: until cancelled).

        An epoch closes when its rounds are sealed and all that was drawn in them is decided.

        Raises Refused where the arbiter has rejected an epoch: a person must look.
        """
        epoch = await asyncio.to_thread(self.ledger.final_epochs)
        while end_epoch is None or epoch < end_epoch:
            end = (epoch + 1) * self.spec.economics.rounds_per_epoch
            await training.wait_until_sealed(end)
            await auditing.wait_until_decided(end)
            await self._settle(epoch)
            epoch += 1

    async def _settle(self, epoch: int) -> None:
        retry_s = 1.0
        while True:
            try:
                wait_s = await asyncio.to_thread(self._advance, epoch)
                retry_s = 1.0
            except ChainError as error:
                # Also a revert: somebody else may have finalised the epoch first. The next look at the chain tells.
                emit("chain.failed", epoch=epoch, code=error.code, message=error.args[0], retry_s=retry_s)
                wait_s, retry_s = retry_s, min(2 * retry_s, MAX_RETRY_S)
            if wait_s is None:
                return
            await self.sleep(wait_s)

    def _advance(self, epoch: int) -> float | None:
        """Take the epoch one step further. Seconds to wait before the next; None once it is final."""
        statement = self._close(epoch)
        self.statements.put(canonical_json(statement.model_dump()))
        failpoint("settlement.closed")
        on_chain = self.contract.epoch(epoch)
        if on_chain is None:
            self._propose(self._adopt(statement))
            return 0.0
        if on_chain.statement_hash != statement.hash:
            raise LedgerError(
                f"Epoch {epoch} is on chain with statement {to_hex(on_chain.statement_hash)}; this ledger's is "
                f"{to_hex(statement.hash)}. Two coordinators with different ledgers serve this model: stop one."
            )
        if not on_chain.finalized:
            if (wait_s := self._wait_for_window(epoch)) > 0:
                return wait_s
            receipt = self.contract.finalize_epoch(epoch)
            failpoint("settlement.finalised")
            emit("epoch.finalised", epoch=epoch, minted=statement.minted, transaction=receipt.transaction)
            return 0.0
        if not self._is_confirmed(on_chain):
            return POLL_S
        self.ledger.record_final(epoch)
        failpoint("settlement.recorded")
        return None

    def _propose(self, statement: Statement) -> None:
        rejections = self.contract.events(EpochRejected, epoch=statement.epoch)
        if any(event.by_arbiter and to_hex(event.root) == statement.root for event in rejections):
            raise Refused(
                f"The arbiter has rejected epoch {statement.epoch} with root {statement.root}: to propose it again "
                "would only cost another bond. Compare the ledger with the challenge's evidence."
            )
        # Also where a reorganisation has lost it: without a tip no one could tell that the audits weren't chosen.
        ensure_tip(self.contract, statement.epoch, bytes.fromhex(statement.beacon_tip[2:]))
        self._ensure_bond()
        receipt = self.contract.propose_epoch(
            statement.epoch,
            bytes.fromhex(statement.root[2:]),
            int(statement.minted),
            statement.hash,
            uri := f"{self.statements_url}/statements/{to_hex(statement.hash)}.json",
        )
        failpoint("settlement.proposed")
        emit(
            "epoch.proposed",
            epoch=statement.epoch,
            root=statement.root,
            statement_hash=to_hex(statement.hash),
            minted=statement.minted,
            uri=uri,
            transaction=receipt.transaction,
        )

    def _ensure_bond(self) -> None:
        """Tops the standing bond up to what a proposal needs, from the coordinator's own tokens."""
        terms, sender = self.contract.terms(), self.contract.sender
        missing = terms.proposer_bond - self.contract.bond_of(sender.address)
        if missing <= 0:
            return
        Token(self.chain, terms.bond_token, sender).approve(self.contract.address, missing)
        receipt = self.contract.deposit_bond(sender.address, missing)
        emit("bond.deposited", amount=str(missing), transaction=receipt.transaction)

    def _wait_for_window(self, epoch: int) -> float:
        """Seconds until the pending epoch can be finalised, or until the next look where it is challenged."""
        pending = self.contract.pending()
        if pending is None or pending.epoch != epoch:
            return POLL_S  # it was decided between two looks
        if pending.upheld:
            return 0.0
        if pending.challenger is not None:
            if pending != self._told:
                self._told = pending
                emit("challenge.seen", epoch=epoch, challenger=pending.challenger, until=pending.resolvable_until)
            if self.chain.timestamp() > pending.resolvable_until:
                self.contract.expire_challenge(epoch)
            return POLL_S
        return min(MAX_WAIT_S, pending.finalizable_at - self.chain.timestamp())

    def _is_confirmed(self, record: EpochRecord) -> bool:
        return record.finalized_block is not None and record.finalized_block <= self.chain.confirmed_block(
            self.confirmations
        )

    def _close(self, epoch: int) -> Statement:
        """The epoch's statement: the stored one, or a new one, stored before anybody sees it."""
        if (stored := self.ledger.statement(epoch)) is not None:
            return stored
        last = self.ledger.statement(epoch - 1) if epoch else None
        previous = self.contract.epoch(epoch - 1) if epoch else None
        if epoch and (previous is None or not previous.finalized):
            raise ChainError(
                f"Epoch {epoch - 1} was final and isn't any more: the endpoint lags behind itself, or the chain is "
                f"being reorganised. Epoch {epoch} is closed when it is final again."
            )
        if self.router.unswept():
            self._sweep()
        before, earned = last.carried() if last else Carried(), self.router.operator_earned()
        if earned < before.operator_revenue:
            raise ChainError(
                f"The router has set {earned} aside for operators; epoch {epoch - 1} has divided "
                f"{before.operator_revenue}: the "
                f"endpoint lags behind itself, or the chain is being reorganised. Epoch {epoch} is closed later."
            )
        per_epoch = self.spec.economics.rounds_per_epoch
        first, end = epoch * per_epoch, (epoch + 1) * per_epoch
        seed = beacon_seed(self.ledger, epoch)
        tip = hash_chain(seed, per_epoch)[0]
        rounds, audits = self.ledger.sealed_rounds(first, end), self.ledger.verdicts(first, end)
        drawn = [audit for sealed in rounds for audit in drawn_audits(self.spec, sealed, tip, seed)]
        if drawn != [line.audit for line in audits]:
            raise LedgerError(
                f"{len(drawn)} audits were drawn in epoch {epoch}; the ledger has {len(audits)} verdicts, and not of "
                "the same units. Don't change the ledger by hand."
            )
        statement = make_statement(
            self.spec,
            chain_id=self.place.domain.chain_id,
            settlement=self.place.domain.settlement,
            model_id=self.place.model_id,
            epoch=epoch,
            beacon_seed=seed,
            auditors=self._auditors(epoch, tip),
            rounds=rounds,
            audits=[self._signed_by_us(line) for line in audits],
            equivocations=self.ledger.equivocations(),
            operator_earned=earned,
            before=before,
            accumulator_before=previous.accumulator if previous else 0,
        )
        try:
            check_statement(self.spec, statement, before)
        except StatementMismatch as error:
            raise LedgerError(
                f"Epoch {epoch} can't be closed: every watcher would challenge it. {error.args[0]} Was the ledger "
                "changed by hand, or the chain reorganised, so that others have seats than those who were asked?"
            ) from error
        self.ledger.record_statement(epoch, canonical_json(statement.model_dump()), statement.hash)
        emit("epoch.closed", epoch=epoch, statement_hash=to_hex(statement.hash))
        return statement

    def _auditors(self, epoch: int, tip: bytes) -> frozenset[AuditorSeat]:
        """As who reads the statement finds them. Where a reorganisation has lost the tip, it is committed again."""
        ensure_tip(self.contract, epoch, tip)
        return auditor_seats(self.contract, self.model, epoch, tip)

    def _adopt(self, statement: Statement) -> Statement:
        """The statement as we may propose it: another coordinator may have closed the epoch."""
        audits = tuple(map(self._signed_by_us, statement.audits))
        if audits == statement.audits:
            return statement
        adopted = statement.model_copy(update={"audits": audits})
        text = canonical_json(adopted.model_dump())
        self.ledger.replace_statement(adopted.epoch, text, adopted.hash)
        self.statements.put(text)
        return adopted

    def _signed_by_us(self, line: AuditLine) -> AuditLine:
        """The line with its referee's opinions by the epoch's proposer: a successor answers for what it takes over."""
        opinions = (self._own(line.audit, opinion) for opinion in line.opinions)
        return line.model_copy(update={"opinions": tuple(opinions)})

    def _own(self, audit: Audit, opinion: Opinion) -> Opinion:
        key = self.contract.sender.key
        if opinion.owner is not None or opinion.auditor == key.address:
            return opinion
        digest = signed_receipt(self.place.model_id, audit, opinion).digest(self.place.domain)
        return opinion.model_copy(update={"auditor": key.address, "signature": to_hex(key.sign_digest(digest))})

    def _sweep(self) -> None:
        """Splits what buyers have paid, so that this epoch's operators get their part; what can't be split waits."""
        try:
            receipt = self.router.sweep()
        except ChainError as error:
            emit("revenue.unswept", code=error.code, message=error.args[0])
        else:
            emit("revenue.swept", transaction=receipt.transaction)
