"""EpochSettlement: a model's epochs and what accounts claim from them.

The contract keeps one word per epoch and per account, a commitment to numbers that are in its events. They are
read from there and checked against it. Where the two differ, the chain moved between the two questions, or was
reorganised: both are asked once more, and ChainError raised if they still differ.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from commonweight.chain.abi_names import to_members, to_record
from commonweight.chain.deployed import DeployedContract
from commonweight.chain.events import EpochFinalized, EpochProposed, SharesClaimed
from commonweight.chain.records import (
    NOBODY,
    Claimable,
    ClaimArguments,
    Claimed,
    EpochRecord,
    FinalEpoch,
    PendingEpoch,
    SettlementTerms,
)
from commonweight.chain.rpc import Chain, to_address
from commonweight.chain.sender import Action, Receipt, Sender
from commonweight.errors import ChainError

MAX_SPLIT_EPOCHS = 256
"""That one `claim_split` pays: 2 million gas."""
_SETTLED_BLOCKS = 64
"""An epoch that was finalised that many blocks ago is remembered."""
_NOTHING = bytes(32)

T = TypeVar("T")


class _DiffersError(Exception):
    """Events say something else than the contract's storage."""


class EpochSettlement(DeployedContract):
    """See contracts/src/interfaces/IEpochSettlement.sol."""

    NAME = "EpochSettlement"

    def __init__(self, chain: Chain, address: str, sender: Sender | None = None, *, first_block: int = 0) -> None:
        super().__init__(chain, address, sender, first_block=first_block)
        self._settled: dict[int, EpochRecord] = {}

    # Epochs

    def next_epoch(self) -> int:
        """The first epoch that is not final: the pending one, else the one to propose next."""
        return int(self._read("nextEpoch"))

    def pending(self) -> PendingEpoch | None:
        """The epoch that is proposed and not final; None if there is none."""
        return self._progress()[1]

    def epoch(self, epoch: int) -> EpochRecord | None:
        """An epoch that is pending or final; None if it was never proposed, or rejected."""
        known = self._settled.get(epoch)
        if known is not None and self._commitment_of(epoch) == _final(known).commitment:
            return known
        record = self._agreed(lambda: self._assemble(epoch))
        final_in = None if record is None else record.finalized_block
        if record is not None and final_in is not None and final_in <= self.chain.confirmed_block(_SETTLED_BLOCKS):
            self._settled[epoch] = record
        return record

    def final_epoch(self, epoch: int) -> FinalEpoch:
        """The numbers of a final epoch. Raises ChainError for another."""
        return self._final_epochs([epoch])[epoch]

    def emission_of(self, epoch: int) -> int:
        """The most that `epoch` may mint."""
        return int(self._read("emissionOf", epoch))

    def terms(self) -> SettlementTerms:
        return to_record(SettlementTerms, self._read_struct("terms"))

    def window_s(self) -> int:
        """Seconds between a proposal and the first moment it can be finalised."""
        return self.terms().window_s

    def arbitration_s(self) -> int:
        """Seconds that the arbiter has to decide a challenge."""
        return self.terms().arbitration_s

    def shares(self) -> str:
        """Address of the model's ModelShares."""
        return str(self._read("shares"))

    def beacon_of(self, epoch: int, coordinator: str) -> bytes | None:
        """The tip that this account has committed to for `epoch`, 32 bytes; None if to none."""
        tip = bytes(self._read("beaconOf", epoch, to_address(coordinator)))
        return None if tip == _NOTHING else tip

    def commit_beacon(self, epoch: int, tip: bytes) -> Receipt:
        """Fixes the end of the sender's hash chain for `epoch`, for good."""
        return self._invoke("commitBeacon", epoch, tip)

    def propose_epoch(self, epoch: int, root: bytes, minted: int, statement_hash: bytes, uri: str) -> Receipt:
        """Proposes the next epoch; the coordinator's key only, with the proposer's bond standing."""
        return self._invoke("proposeEpoch", epoch, root, minted, statement_hash, uri)

    def challenge_epoch(self, epoch: int, root: bytes, evidence_hash: bytes, uri: str) -> Receipt:
        """Disputes the pending epoch within its window; any key that has approved the challenger's bond."""
        return self._invoke("challengeEpoch", epoch, root, evidence_hash, uri)

    def resolve_epoch(self, epoch: int, root: bytes, resolvable_until: int, uphold: bool) -> Receipt:
        """Decides the challenge that has this deadline; the arbiter's key only."""
        return self._invoke("resolveEpoch", epoch, root, resolvable_until, uphold)

    def expire_challenge(self, epoch: int) -> Receipt:
        """Rejects an epoch on whose challenge the arbiter was silent; any key."""
        return self._invoke("expireChallenge", epoch)

    def finalize_epoch(self, epoch: int) -> Receipt:
        """Mints the pending epoch; any key, once `finalizable_at` has come (else EpochSettlementWindowOpen)."""
        return self._invoke("finalizeEpoch", epoch)

    # Bonds

    def bond_of(self, account: str) -> int:
        """What stands with the settlement for `account`, in the bond token's smallest unit."""
        return int(self._read("bondOf", to_address(account)))

    def deposit_bond(self, account: str, amount: int) -> Receipt:
        """Adds `amount`, which the sender has approved, to `account`'s bond."""
        return self._invoke("depositBond", to_address(account), amount)

    def withdraw_bond(self, to: str, amount: int) -> Receipt:
        """Pays `amount` of the sender's bond to `to`."""
        return self._invoke("withdrawBond", to_address(to), amount)

    # Claims

    def claimed(self, account: str) -> Claimed:
        """What `account` has claimed so far."""
        return self._claimed([account])[to_address(account)]

    def claimable(self, claim: ClaimArguments) -> Claimable:
        """What `claim` would pay now; reverts as it would, but for what the share token refuses."""
        shares, revenue_scaled = self._read("claimable", *self._claim_arguments([claim])[0])
        return Claimable(shares, revenue_scaled)

    def leaf(self, claim: ClaimArguments) -> bytes:
        """The leaf as the contract computes it; epoch and proof play no part."""
        numbers = (claim.cumulative_shares, claim.epoch_shares, claim.debt_before, claim.operator_revenue)
        return bytes(self._read("leaf", to_address(claim.account), *numbers))

    def claim(self, claim: ClaimArguments) -> Receipt:
        """Pays `claim.account` the shares that it hasn't claimed yet; any key.

        Only the last final epoch pays: EpochSettlementRootReplaced for another.
        """
        return self._send(self.claim_action(claim))

    def claim_action(self, claim: ClaimArguments) -> Action:
        """What `claim` sends."""
        return self.action("claim", *self._claim_arguments([claim])[0])

    def claim_many(self, claims: Sequence[ClaimArguments]) -> Receipt:
        """The same for many, at least one, all of one epoch, each account at most once; any key.

        Reverts as a whole if one reverts.
        """
        return self._send(self.claim_many_action(claims))

    def claim_many_action(self, claims: Sequence[ClaimArguments]) -> Action:
        """What `claim_many` sends."""
        pairs = self._claim_arguments(claims)
        return self.action("claimMany", [claim for claim, _ in pairs], pairs[-1][1])

    def split_claimed_until(self) -> int:
        """The first epoch whose designer's and data recipient's parts have not been paid."""
        return int(self._read("splitClaimedUntil"))

    def claim_split(self) -> Receipt | None:
        """Pays designer and data recipient their parts of all final epochs (of the next 256 if there are more);
        any key. None, with nothing sent, where all are paid.
        """
        action = self.split_action()
        return None if action is None else self._send(action)

    def split_action(self) -> Action | None:
        """What `claim_split` sends."""
        first = self.split_claimed_until()
        epochs = range(first, min(self.next_epoch(), first + MAX_SPLIT_EPOCHS))
        final = self._final_epochs(epochs)
        return self.action("claimSplit", [to_members(final[epoch]) for epoch in epochs]) if epochs else None

    def leaf_arguments(self, claim: ClaimArguments) -> tuple[dict[str, Any], dict[str, Any]]:
        """Claim and FinalEpoch as structs, for what looks at the leaf alone: RevenueRouter.payOperator.

        That, too, pays by the last final epoch only.
        """
        final = self.final_epoch(claim.epoch)
        return _claim_struct(claim, Claimed(0, 0)), to_members(final)

    # Inside

    def _agreed(self, read: Callable[[], T]) -> T:
        """What `read` returns, at the second attempt if the first one finds that events and storage differ."""
        try:
            return read()
        except _DiffersError:
            pass
        try:
            return read()
        except _DiffersError as error:
            raise ChainError(
                f"{error}, twice: {self.chain.endpoint} lags behind itself or lacks old events, or the chain is being "
                "reorganised; try again, or with another endpoint"
            ) from error

    def _commitment_of(self, epoch: int) -> bytes:
        return bytes(self._read("commitmentOf", epoch))

    def _progress(self) -> tuple[int, PendingEpoch | None]:
        """The first epoch that isn't final, and the pending one if it is."""
        state = self._read_struct("pending")
        epoch = int(state["epoch"])
        if not state.pop("exists"):
            return epoch, None
        challenger = None if state["challenger"] == NOBODY else state["challenger"]
        return epoch, to_record(PendingEpoch, {**state, "challenger": challenger})

    def _assemble(self, epoch: int) -> EpochRecord | None:
        following, pending = self._progress()
        if epoch > following or (epoch == following and pending is None):
            return None
        proposals = self.events(EpochProposed, epoch=epoch)
        final = None if epoch == following else self._finalizations_of([epoch])[epoch]
        stored = pending if final is None else final
        assert stored is not None
        if not proposals or (proposals[-1].root, proposals[-1].minted) != (stored.root, stored.minted):
            raise _DiffersError(f"the last proposal of epoch {epoch} isn't the one that {self.address} keeps")
        proposal = proposals[-1]
        return EpochRecord(
            epoch=epoch,
            root=proposal.root,
            minted=proposal.minted,
            statement_hash=proposal.statement_hash,
            accumulator=0 if final is None else final.accumulator,
            finalizable_at=proposal.finalizable_at,
            finalized=final is not None,
            proposer=proposal.proposer,
            uri=proposal.uri,
            block_number=proposal.block_number,
            finalized_block=None if final is None else final.block_number,
        )

    def _final_epochs(self, epochs: Sequence[int]) -> dict[int, FinalEpoch]:
        """The numbers of final epochs. Raises ChainError where one isn't final."""
        if not epochs:
            return {}
        following = self.next_epoch()
        if max(epochs) >= following:
            raise ChainError(f"epoch {max(epochs)} of {self.address} isn't final: {following} epochs are")
        events = self._agreed(lambda: self._finalizations_of(epochs))
        return {epoch: _final(event) for epoch, event in events.items()}

    def _finalizations_of(self, epochs: Sequence[int]) -> dict[int, EpochFinalized]:
        wanted = sorted(set(epochs))
        found = {event.epoch: event for event in self.events(EpochFinalized, epoch=wanted)}
        for epoch in wanted:
            if epoch not in found or _final(found[epoch]).commitment != self._commitment_of(epoch):
                raise _DiffersError(
                    f"the events of {self.address} don't give the numbers of epoch {epoch} it commits to"
                )
        return found

    def _claimed(self, accounts: Iterable[str]) -> dict[str, Claimed]:
        """What each account has claimed so far, by checksummed address."""
        wanted: list[str] = list(dict.fromkeys(map(to_address, accounts)))
        return self._agreed(lambda: self._last_claims_of(wanted))

    def _last_claims_of(self, accounts: Sequence[str]) -> dict[str, Claimed]:
        commitments = {account: bytes(self._read("claimedCommitmentOf", account)) for account in accounts}
        earlier = [account for account, commitment in commitments.items() if commitment != _NOTHING]
        events = self.events(SharesClaimed, account=earlier) if earlier else []
        last = {event.account: Claimed(event.claimed_shares, event.claimed_debt) for event in events}
        for account in earlier:
            if account not in last or last[account].commitment != commitments[account]:
                raise _DiffersError(
                    f"the last claim of {account} in the events of {self.address} isn't the one it keeps"
                )
        return {account: last.get(account, Claimed(0, 0)) for account in accounts}

    def _claim_arguments(self, claims: Sequence[ClaimArguments]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Claim and FinalEpoch of each, as structs."""
        final = self._final_epochs([claim.epoch for claim in claims])
        claimed = self._claimed(claim.account for claim in claims)
        return [
            (_claim_struct(claim, claimed[to_address(claim.account)]), to_members(final[claim.epoch]))
            for claim in claims
        ]


def _final(epoch: EpochRecord | EpochFinalized) -> FinalEpoch:
    return FinalEpoch(epoch.root, epoch.accumulator, epoch.minted)


def _claim_struct(claim: ClaimArguments, claimed: Claimed) -> dict[str, Any]:
    return {
        **to_members(claim),
        "account": to_address(claim.account),
        "proof": list(claim.proof),
        "claimedShares": claimed.shares,
        "claimedDebt": claimed.debt,
    }
