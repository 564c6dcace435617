"""What the contracts hold and take, as frozen records.

Shares and token amounts are integers in base units, debts and `…_scaled` are times 2^96, times are Unix
seconds, hashes and ids are 32 bytes, accounts are 0x addresses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from commonweight.chain.abi_names import to_member, to_members, to_record
from commonweight.errors import ChainError
from commonweight.rules.merkle import word

NOBODY = "0x" + 40 * "0"
"""The zero address."""

_ADDRESSES = (
    *("designer", "data_recipient", "coordinator", "arbiter", "treasury", "providers", "transfer_policy"),
    "revenue_token",
)


@dataclass(frozen=True)
class ModelTerms:
    """What a model is registered with; nothing of it ever changes (IModelRegistry.Params)."""

    spec_hash: bytes
    """Keccak-256 of the spec's canonical JSON."""
    spec_uri: str
    """Where the spec can be fetched; the hash decides."""
    name: str
    """Of the share token, 1 to 64 bytes."""
    symbol: str
    """Of the share token, 1 to 16 bytes."""
    designer: str
    data_recipient: str
    coordinator: str
    """The first one: the only account that may propose epochs, until it is replaced."""
    arbiter: str
    """Decides challenges and contested slashes."""
    treasury: str
    providers: str
    """The ProviderRegistry that keeps the model's seats."""
    revenue_token: str
    """What buyers pay in, and what is bonded for epochs."""
    max_supply: int
    """At most 2^96."""
    designer_bps: int
    """Designer's part of each epoch's shares in 1/10,000."""
    data_bps: int
    """Data recipient's part in 1/10,000; the rest is the compute part."""
    initial_emission: int
    """Most shares that each of the first `halving_epochs` epochs may mint."""
    halving_epochs: int
    operator_bps: int
    """Serving operators' part of the revenue in 1/10,000."""
    treasury_bps: int
    """Treasury's part of the revenue in 1/10,000; the rest goes to the shares."""
    stream_period_s: int
    """Over which a deposit is credited to the shares, at most 30 days; 0: at once."""
    window_s: int
    """For challenging an epoch and contesting a slash: 1 s to 30 days."""
    arbitration_s: int
    """For the arbiter to decide: 1 s to 30 days."""
    proposer_bond: int
    challenger_bond: int
    stages: int
    max_stages_per_owner: int
    seat_stake: int
    """Locked by each seat."""
    seat_cooldown_s: int
    """From leaving a seat until its stake is free; at least `window_s` + 2 · `arbitration_s`."""
    transfer_policy: str = NOBODY
    """Contract that every transfer of shares must pass; NOBODY: shares transfer freely."""
    genesis_designer: int = 0
    """Shares that the designer has from the beginning."""
    genesis_data: int = 0

    def to_params(self) -> dict[str, Any]:
        """The Solidity struct Params, by its members' names."""
        params = to_members(self)
        emission = {"initial": params.pop("initialEmission"), "halvingEpochs": params.pop("halvingEpochs")}
        addresses = {to_member(field): to_checksum_address(getattr(self, field)) for field in _ADDRESSES}
        return {**params, **addresses, "emission": emission}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """From the same struct, by its members' names."""
        flat = {name: value for name, value in params.items() if name != "emission"}
        emission = params["emission"]
        flat |= {"initialEmission": emission["initial"], "halvingEpochs": emission["halvingEpochs"]}
        return to_record(cls, flat)


@dataclass(frozen=True)
class RegisteredModel:
    """A model on chain."""

    model_id: bytes
    """Binds chain, registry, registrant and spec."""
    registrant: str
    shares: str
    """Address of its ModelShares."""
    settlement: str
    """Address of its EpochSettlement."""
    router: str
    """Address of its RevenueRouter, to which buyers pay."""
    coordinator: str
    """The present one."""
    retired: bool
    """Whether no more seats can be taken."""
    terms: ModelTerms

    @property
    def spec_hash(self) -> bytes:
        return self.terms.spec_hash


@dataclass(frozen=True)
class Checkpoint:
    """A published version of the weights."""

    version: int
    weights_root: bytes
    manifest_hash: bytes


@dataclass(frozen=True)
class SettlementTerms:
    """What a settlement was registered with (IEpochSettlement.Terms)."""

    model_id: bytes
    designer: str
    data_recipient: str
    arbiter: str
    bond_token: str
    initial_emission: int
    halving_epochs: int
    window_s: int
    arbitration_s: int
    designer_bps: int
    data_bps: int
    proposer_bond: int
    challenger_bond: int


@dataclass(frozen=True)
class RouterTerms:
    """What a router was registered with (IRevenueRouter.Terms)."""

    model_id: bytes
    registry: str
    settlement: str
    shares: str
    revenue_token: str
    treasury: str
    operator_bps: int
    treasury_bps: int


@dataclass(frozen=True)
class FinalEpoch:
    """The numbers of a final epoch, of which the contract keeps the commitment."""

    root: bytes
    accumulator: int
    """The shares' accPerShare when it was finalised."""
    minted: int

    @property
    def commitment(self) -> bytes:
        return keccak(self.root + word(self.accumulator) + word(self.minted))


@dataclass(frozen=True)
class EpochRecord:
    """An epoch that is pending or final."""

    epoch: int
    root: bytes
    """Of the epoch's Merkle tree."""
    minted: int
    """Designer's, data recipient's and compute part together."""
    statement_hash: bytes
    accumulator: int
    """The shares' accPerShare when it was finalised; 0 while pending."""
    finalizable_at: int
    """From when it can, or could, be finalised if nobody challenged it."""
    finalized: bool
    proposer: str
    uri: str
    """Where the proposer says that the statement is: a stranger's text."""
    block_number: int
    """Of the proposal."""
    finalized_block: int | None
    """None while pending."""


@dataclass(frozen=True)
class PendingEpoch:
    """The epoch that is proposed and not final."""

    epoch: int
    root: bytes
    minted: int
    proposer: str
    finalizable_at: int
    """From when it can be finalised if nobody has challenged it."""
    challenger: str | None
    """None if nobody has."""
    resolvable_until: int
    """Until when the arbiter can decide; 0 if it isn't challenged."""
    upheld: bool
    """Whether the arbiter confirmed it: then it can be finalised at once."""


@dataclass(frozen=True)
class ClaimArguments:
    """One account's leaf in a final epoch's tree, with its proof."""

    epoch: int
    account: str
    cumulative_shares: int
    epoch_shares: int
    debt_before: int
    operator_revenue: int
    """Earned by serving in all epochs so far; the RevenueRouter pays it."""
    proof: Sequence[bytes]


@dataclass(frozen=True)
class Claimed:
    """What an account has claimed so far, of which the contract keeps the commitment."""

    shares: int
    debt: int

    @property
    def commitment(self) -> bytes:
        return keccak(word(self.shares) + word(self.debt))


@dataclass(frozen=True)
class Claimable:
    """What a claim would pay now."""

    shares: int
    revenue_scaled: int


@dataclass(frozen=True)
class Authorization:
    """A payer's EIP-3009 authorisation of a transfer to the RevenueRouter."""

    from_: str
    value: int
    valid_after: int
    valid_before: int
    nonce: bytes
    """Any 32 bytes that the payer hasn't used before."""
    signature: bytes
    """r ‖ s ‖ v, 65 bytes, v 27 or 28."""

    def to_struct(self) -> dict[str, Any]:
        """The Solidity struct Authorization, by its members' names. Raises ChainError for another signature."""
        if len(self.signature) != 65:
            raise ChainError(f"a signature has 65 bytes (r, s, v); this one has {len(self.signature)}")
        return {
            "from": to_checksum_address(self.from_),
            "value": self.value,
            "validAfter": self.valid_after,
            "validBefore": self.valid_before,
            "nonce": self.nonce,
            "v": self.signature[64],
            "r": self.signature[:32],
            "s": self.signature[32:64],
        }


@dataclass(frozen=True)
class Seat:
    """An owner's seat in a model."""

    stage: int
    stake: int
    """Locked; 0 once slashed."""
    releasable_at: int
    """0 while held, else when its stake is free."""
    open_slashes: int
    """Undecided proposals to slash it."""
    slashed: bool


class SlashStatus(IntEnum):
    """As in IProviderRegistry."""

    NONE = 0
    PROPOSED = 1
    CONTESTED = 2
    EXECUTED = 3
    DROPPED = 4


@dataclass(frozen=True)
class SlashRecord:
    """A proposal to slash a seat."""

    model_id: bytes
    owner: str
    stage: int
    status: SlashStatus
    deadline: int
    """End of the contest window while proposed, of the arbiter's time while contested."""
    reporter: str
    contester: str
    evidence_hash: bytes


@dataclass(frozen=True)
class ArbiterCall:
    """A call that arbiters have proposed."""

    target: str
    data: bytes
    confirmations: int
    executable_at: int
    """0 below the threshold."""
    executed: bool
