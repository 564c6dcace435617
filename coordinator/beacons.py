"""The epochs' beacon chains: drawn in secret, and fixed on chain before the work that they choose audits of.

See commonweight/rules/beacon.py. Tips are committed an epoch ahead, so that a chain that is away for less than an epoch
doesn't stop training. The seeds are in the ledger before anything of them is on chain: a coordinator that was killed in
between commits the same.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from commonweight.chain.auditors import auditor_seats
from commonweight.chain.events import BeaconCommitted
from commonweight.chain.records import RegisteredModel
from commonweight.chain.settlement import EpochSettlement
from commonweight.errors import ChainError, LedgerError
from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules.beacon import hash_chain
from commonweight.rules.statement import AuditorSeat, to_hex
from coordinator.ledger import Ledger
from coordinator.training import Training

POLL_S = 1.0
"""Between looks at a commitment that isn't deep enough."""
MAX_RETRY_S = 15.0
"""Between attempts while the chain doesn't answer, or refuses."""
SEED_BYTES = 32


def beacon_seed(ledger: Ledger, epoch: int) -> bytes:
    """What all of the epoch's values come from; secret until the epoch is closed. Blocks."""
    return ledger.beacon_seed(epoch, secrets.token_bytes(SEED_BYTES))


@dataclass(frozen=True)
class _Beacon:
    """An epoch's, whose tip is on chain."""

    seed: bytes
    chain: tuple[bytes, ...]
    """The tip, then the value of each round."""
    auditors: frozenset[AuditorSeat]


@dataclass
class Beacons:
    """Those of one model."""

    rounds_per_epoch: int
    ledger: Ledger
    contract: EpochSettlement
    model: RegisteredModel
    confirmations: int = 0
    """Blocks on top of a commitment before a round of its epoch is planned."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _beacons: dict[int, _Beacon] = field(default_factory=dict, repr=False)
    """By epoch: that of the last epoch, too, for reports that come after the seal."""

    def tip(self, round_: int) -> bytes | None:
        """As `Tips.tip`."""
        beacon = self._beacons.get(round_ // self.rounds_per_epoch)
        return None if beacon is None else beacon.chain[0]

    def value(self, round_: int) -> bytes:
        """As `Tips.value`."""
        epoch, index = divmod(round_, self.rounds_per_epoch)
        return self._beacons[epoch].chain[index + 1]

    def seed(self, round_: int) -> bytes:
        """As `Tips.seed`."""
        return self._beacons[round_ // self.rounds_per_epoch].seed

    def auditors(self, epoch: int) -> frozenset[AuditorSeat]:
        """As `Panels.auditors`."""
        return self._beacons[epoch].auditors

    async def run(self, training: Training, end_epoch: int | None) -> None:
        """Commit what the epoch that is trained, and the next one, need. Runs until cancelled.

        Raises LedgerError where the chain has another tip: that of another coordinator.
        """
        while True:
            epoch = training.round // self.rounds_per_epoch
            for past in [known for known in self._beacons if known < epoch - 1]:
                del self._beacons[past]
            for each in (epoch, epoch + 1):
                if end_epoch is None or each < end_epoch:
                    await self.commit(each)
                    training.reconsider()
            await training.wait_until_sealed((epoch + 1) * self.rounds_per_epoch)

    async def commit(self, epoch: int) -> None:
        """As `Panels.commit`; also for an epoch that is over, of which audits are open after a restart."""
        retry_s = 1.0
        while epoch not in self._beacons:
            try:
                found = await asyncio.to_thread(self._advance, epoch)
            except ChainError as error:
                emit("chain.failed", epoch=epoch, code=error.code, message=error.args[0], retry_s=retry_s)
                await self.sleep(retry_s)
                retry_s = min(2 * retry_s, MAX_RETRY_S)
                continue
            if found is None:
                await self.sleep(POLL_S)
            else:
                self._beacons[epoch] = found

    def _advance(self, epoch: int) -> _Beacon | None:
        """The epoch's, once its tip is on chain, and deep enough."""
        seed = beacon_seed(self.ledger, epoch)
        chain = hash_chain(seed, self.rounds_per_epoch)
        failpoint("beacon.drawn")
        ensure_tip(self.contract, epoch, chain[0])
        failpoint("beacon.committed")
        if self.confirmations:
            deep = self.contract.chain.confirmed_block(self.confirmations)
            commitments = self.contract.events(BeaconCommitted, epoch=epoch, coordinator=self.contract.sender.address)
            if not commitments or commitments[-1].block_number > deep:
                return None
        return _Beacon(seed, chain, auditor_seats(self.contract, self.model, epoch, chain[0]))


def ensure_tip(contract: EpochSettlement, epoch: int, tip: bytes) -> None:
    """Commit the epoch's tip where none is on chain. Raises LedgerError where another one is, otherwise ChainError."""
    found = contract.beacon_of(epoch, contract.sender.address)
    if found is None:
        receipt = contract.commit_beacon(epoch, tip)
        emit("beacon.committed", epoch=epoch, tip=to_hex(tip), transaction=receipt.transaction)
    elif found != tip:
        raise LedgerError(
            f"Epoch {epoch} is on chain with the beacon tip {to_hex(found)}; this ledger's is {to_hex(tip)}. Two "
            "coordinators with different ledgers serve this model: stop one."
        )
