"""Settles closed epochs on the chain: statement, proposal, finalisation, one epoch after another.

The chain is the authority on what happened. Every step first asks it, so a coordinator that was killed between
sending a transaction and noting it down finds it there and doesn't send it again.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from commonweight.chain.contracts import EpochSettlement
from commonweight.chain.rpc import Chain
from commonweight.errors import ChainError, LedgerError
from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import Statement, make_statement, to_hex
from coordinator.ledger import Ledger
from coordinator.training import Place, Training

MAX_RETRY_S = 15.0
"""Between attempts while the chain doesn't answer, or refuses; training goes on meanwhile."""


def publish_statement(statement: Statement, folder: Path) -> str:
    """Write a statement as FOLDER/<hash>.json, atomically, where it isn't there yet; returns its URI."""
    path = folder / f"{statement.hash.hex()}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        scratch.write_bytes(canonical_json(statement.model_dump()))
        scratch.replace(path)
    return path.resolve().as_uri()


@dataclass
class Settlement:
    """The settling of one model's epochs."""

    spec: ModelSpec
    place: Place
    ledger: Ledger
    chain: Chain
    contract: EpochSettlement
    statements: Path

    async def run(self, training: Training, end_epoch: int | None) -> None:
        """Settle epochs as they close, until `end_epoch` of them are final (None: until cancelled)."""
        epoch = await asyncio.to_thread(self.ledger.final_epochs)
        while end_epoch is None or epoch < end_epoch:
            await training.wait_until_sealed((epoch + 1) * self.spec.economics.rounds_per_epoch)
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
            await asyncio.sleep(wait_s)

    def _advance(self, epoch: int) -> float | None:
        """Take the epoch one step further. Seconds to wait before the next; None once it is final."""
        statement = self._close(epoch)
        uri = publish_statement(statement, self.statements)
        failpoint("settlement.closed")
        on_chain = self.contract.epoch(epoch)
        if on_chain is None:
            receipt = self.contract.propose_epoch(
                epoch, bytes.fromhex(statement.root[2:]), int(statement.minted), statement.hash, uri
            )
            failpoint("settlement.proposed")
            emit(
                "epoch.proposed",
                epoch=epoch,
                root=statement.root,
                statement_hash=to_hex(statement.hash),
                minted=statement.minted,
                uri=uri,
                transaction=receipt.transaction,
            )
            return 0.0
        if on_chain.statement_hash != statement.hash:
            raise LedgerError(
                f"Epoch {epoch} is on chain with statement {to_hex(on_chain.statement_hash)}; this ledger's is "
                f"{to_hex(statement.hash)}. Two coordinators with different ledgers serve this model: stop one."
            )
        if not on_chain.finalized:
            left_s = on_chain.finalizable_at - self.chain.timestamp()
            if left_s > 0:
                return float(left_s)
            receipt = self.contract.finalize_epoch(epoch)
            failpoint("settlement.finalised")
            emit("epoch.finalised", epoch=epoch, minted=statement.minted, transaction=receipt.transaction)
        self.ledger.record_final(epoch)
        failpoint("settlement.recorded")
        return None

    def _close(self, epoch: int) -> Statement:
        """The epoch's statement: the stored one, or a new one, stored before anybody sees it."""
        if (stored := self.ledger.statement(epoch)) is not None:
            return stored
        before = self.ledger.statement(epoch - 1) if epoch else None
        previous = self.contract.epoch(epoch - 1) if epoch else None
        per_epoch = self.spec.economics.rounds_per_epoch
        statement = make_statement(
            self.spec,
            chain_id=self.place.domain.chain_id,
            settlement=self.place.domain.settlement,
            model_id=self.place.model_id,
            epoch=epoch,
            rounds=self.ledger.sealed_rounds(epoch * per_epoch, (epoch + 1) * per_epoch),
            balances_before=before.balances() if before else {},
            accumulator_before=previous.accumulator if previous else 0,
        )
        self.ledger.record_statement(epoch, canonical_json(statement.model_dump()), statement.hash)
        emit("epoch.closed", epoch=epoch, statement_hash=to_hex(statement.hash))
        return statement
