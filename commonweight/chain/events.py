"""What the contracts report, as frozen records named as in Solidity.

`settlement.events(EpochFinalized, epoch=3)` reads them. Shares and token amounts are integers in base units,
`…_scaled` and debts are times 2^96, times are Unix seconds, hashes are 32 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from commonweight.chain.abi_names import to_record


@dataclass(frozen=True, kw_only=True)
class ContractEvent:
    """Where an event happened."""

    block_number: int
    transaction: str
    """Its hash, 0x and 64 digits."""
    log_index: int
    """Events of one block happened in this order."""

    @classmethod
    def from_log(cls, log: Mapping[str, Any]) -> Self:
        """From web3's decoded log."""
        place = {"blockNumber": log["blockNumber"], "logIndex": log["logIndex"]}
        transaction = "0x" + bytes(log["transactionHash"]).hex()
        return to_record(cls, {**log["args"], **place, "transaction": transaction})


# ModelRegistry


@dataclass(frozen=True)
class ModelRegistered(ContractEvent):
    """A model was registered, and its contracts deployed."""

    model_id: bytes
    registrant: str
    designer: str
    shares: str
    settlement: str
    router: str
    spec_hash: bytes
    spec_uri: str


# EpochSettlement


@dataclass(frozen=True)
class BondDeposited(ContractEvent):
    """An account's bond was added to."""

    account: str
    from_: str
    amount: int


@dataclass(frozen=True)
class BeaconCommitted(ContractEvent):
    """The values that choose an epoch's audits are fixed, for when this account is the one who proposes it."""

    epoch: int
    coordinator: str
    tip: bytes


@dataclass(frozen=True)
class EpochProposed(ContractEvent):
    """An epoch was proposed."""

    epoch: int
    root: bytes
    proposer: str
    minted: int
    statement_hash: bytes
    finalizable_at: int
    uri: str


@dataclass(frozen=True)
class EpochChallenged(ContractEvent):
    """The pending epoch was disputed."""

    epoch: int
    root: bytes
    challenger: str
    evidence_hash: bytes
    resolvable_until: int
    uri: str


@dataclass(frozen=True)
class EpochUpheld(ContractEvent):
    """The arbiter confirmed a challenged epoch."""

    epoch: int
    root: bytes


@dataclass(frozen=True)
class EpochRejected(ContractEvent):
    """A challenged epoch is open again."""

    epoch: int
    root: bytes
    by_arbiter: bool
    """False where the arbiter was silent."""


@dataclass(frozen=True)
class EpochFinalized(ContractEvent):
    """An epoch is final and minted."""

    epoch: int
    root: bytes
    minted: int
    accumulator: int
    """The shares' accPerShare at that moment, from which the epoch's shares earn."""


@dataclass(frozen=True)
class SharesClaimed(ContractEvent):
    """An account was paid its shares."""

    account: str
    epoch: int
    shares: int
    revenue_scaled: int
    claimed_shares: int
    """In all so far, as is the debt."""
    claimed_debt: int


@dataclass(frozen=True)
class SplitClaimed(ContractEvent):
    """Designer and data recipient were paid their parts of the epochs from `first_epoch` to before `end_epoch`."""

    first_epoch: int
    end_epoch: int
    designer_shares: int
    data_shares: int


# ModelShares


@dataclass(frozen=True)
class RevenueDeposited(ContractEvent):
    """Revenue came; it is credited evenly until `stream_end`."""

    from_: str
    amount: int
    stream_end: int


@dataclass(frozen=True)
class RevenueWithdrawn(ContractEvent):
    """A holder's revenue was paid to `to`."""

    holder: str
    to: str
    amount: int


# RevenueRouter


@dataclass(frozen=True)
class PaymentCollected(ContractEvent):
    """A buyer's authorisation was used; `value - charged` went back at once."""

    from_: str
    nonce: bytes
    value: int
    charged: int


@dataclass(frozen=True)
class Swept(ContractEvent):
    """What had come was split."""

    amount: int
    to_shares: int
    to_operators: int
    to_treasury: int


@dataclass(frozen=True)
class OperatorPaid(ContractEvent):
    """An account was paid for serving up to `epoch`."""

    account: str
    epoch: int
    amount: int


@dataclass(frozen=True)
class TreasuryPaid(ContractEvent):
    """The treasury took its part."""

    to: str
    amount: int


# ProviderRegistry


@dataclass(frozen=True)
class SignerBound(ContractEvent):
    """A node's key answers to an owner from now on."""

    owner: str
    signer: str


@dataclass(frozen=True)
class PayoutSet(ContractEvent):
    """An owner named the account that is paid for its work."""

    owner: str
    payout: str


@dataclass(frozen=True)
class SeatTaken(ContractEvent):
    """An owner holds a stage, with `stake` locked."""

    model_id: bytes
    owner: str
    stage: int
    stake: int


@dataclass(frozen=True)
class SeatLeft(ContractEvent):
    """An owner gave a stage up; its stake is free from `releasable_at`."""

    model_id: bytes
    owner: str
    stage: int
    releasable_at: int


@dataclass(frozen=True)
class SeatReleased(ContractEvent):
    """A left seat's stake is free."""

    model_id: bytes
    owner: str
    stage: int
    stake: int


@dataclass(frozen=True)
class Slashed(ContractEvent):
    """A seat lost its stake."""

    model_id: bytes
    owner: str
    stage: int
    amount: int
    evidence_hash: bytes
    reporter: str


@dataclass(frozen=True)
class SlashProposed(ContractEvent):
    """Somebody wants a seat slashed; it can be contested until `deadline`."""

    slash_id: int
    model_id: bytes
    owner: str
    stage: int
    reporter: str
    evidence_hash: bytes
    deadline: int
    uri: str


@dataclass(frozen=True)
class SlashContested(ContractEvent):
    """A proposal was contested; the arbiter has until `deadline`."""

    slash_id: int
    contester: str
    deadline: int
    uri: str


@dataclass(frozen=True)
class SlashDropped(ContractEvent):
    """A proposal came to nothing: it was rejected, or contested and not decided in time, or, contested or not, another
    had slashed the seat already.
    """

    slash_id: int
    by_arbiter: bool
    """Whether the arbiter rejected it."""


# Arbiter


@dataclass(frozen=True)
class CallProposed(ContractEvent):
    """A member proposes a call to `target`."""

    call_id: bytes
    target: str
    data: bytes
    salt: bytes
