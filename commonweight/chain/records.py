"""What the contracts hold and report, as frozen records. Shares and token amounts are integers in base units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from eth_utils.address import to_checksum_address


@dataclass(frozen=True)
class ModelTerms:
    """What a model is registered with; nothing of it ever changes (IModelRegistry.Params)."""

    spec_hash: bytes
    """Keccak-256 of the spec's canonical JSON, 32 bytes."""
    spec_uri: str
    """Where the spec can be fetched; the hash decides."""
    name: str
    """Of the share token, 1 to 64 bytes."""
    symbol: str
    """Of the share token, 1 to 16 bytes."""
    designer: str
    data_recipient: str
    coordinator: str
    """The only account that may propose epochs."""
    revenue_token: str
    max_supply: int
    """At most 2^96."""
    designer_bps: int
    """Designer's part of each epoch's shares in 1/10,000."""
    data_bps: int
    """Data recipient's part in 1/10,000; the rest is the compute part."""
    initial_emission: int
    """Most shares that each of the first `halving_epochs` epochs may mint."""
    halving_epochs: int
    window_s: int
    """Between an epoch's proposal and the first moment it can be finalised: 1 s to 30 days."""
    stages: int

    def to_params(self) -> dict[str, Any]:
        """The Solidity struct Params, by its members' names."""
        return {
            "specHash": self.spec_hash,
            "specURI": self.spec_uri,
            "name": self.name,
            "symbol": self.symbol,
            "designer": to_checksum_address(self.designer),
            "dataRecipient": to_checksum_address(self.data_recipient),
            "coordinator": to_checksum_address(self.coordinator),
            "revenueToken": to_checksum_address(self.revenue_token),
            "maxSupply": self.max_supply,
            "designerBps": self.designer_bps,
            "dataBps": self.data_bps,
            "emission": {"initial": self.initial_emission, "halvingEpochs": self.halving_epochs},
            "window": self.window_s,
            "stages": self.stages,
        }

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """From the same struct, by its members' names."""
        return cls(
            spec_hash=bytes(params["specHash"]),
            spec_uri=params["specURI"],
            name=params["name"],
            symbol=params["symbol"],
            designer=params["designer"],
            data_recipient=params["dataRecipient"],
            coordinator=params["coordinator"],
            revenue_token=params["revenueToken"],
            max_supply=params["maxSupply"],
            designer_bps=params["designerBps"],
            data_bps=params["dataBps"],
            initial_emission=params["emission"]["initial"],
            halving_epochs=params["emission"]["halvingEpochs"],
            window_s=params["window"],
            stages=params["stages"],
        )


@dataclass(frozen=True)
class RegisteredModel:
    """A model on chain."""

    model_id: bytes
    """32 bytes: binds chain, registry, registrant and spec."""
    registrant: str
    shares: str
    """Address of its ModelShares."""
    settlement: str
    """Address of its EpochSettlement."""
    terms: ModelTerms

    @property
    def spec_hash(self) -> bytes:
        return self.terms.spec_hash


@dataclass(frozen=True)
class EpochRecord:
    """An epoch that was proposed, be it pending or final."""

    epoch: int
    root: bytes
    """Of the epoch's Merkle tree, 32 bytes."""
    minted: int
    """Designer's, data recipient's and compute part together."""
    statement_hash: bytes
    accumulator: int
    """The shares' accPerShare, times 2^96, when it was finalised; 0 while pending."""
    finalizable_at: int
    """Unix time from which it can be finalised; 0 once it is."""
    finalized: bool


@dataclass(frozen=True)
class ClaimArguments:
    """One account's leaf in an epoch's tree, with its proof."""

    epoch: int
    account: str
    cumulative_shares: int
    epoch_shares: int
    debt_before: int
    proof: Sequence[bytes]


@dataclass(frozen=True)
class Claimed:
    """What an account has claimed so far."""

    shares: int
    debt: int
    """Scaled by 2^96."""


@dataclass(frozen=True)
class Claimable:
    """What a claim would pay now."""

    shares: int
    revenue_scaled: int
    """In 2^-96 of the revenue token's smallest unit."""


@dataclass(frozen=True)
class EpochProposed:
    """Event: an epoch was proposed."""

    epoch: int
    root: bytes
    minted: int
    statement_hash: bytes
    finalizable_at: int
    uri: str
    block_number: int
    transaction: str

    @classmethod
    def from_log(cls, log: Mapping[str, Any]) -> Self:
        """From web3's decoded log."""
        args = log["args"]
        return cls(
            epoch=args["epoch"],
            root=bytes(args["root"]),
            minted=args["minted"],
            statement_hash=bytes(args["statementHash"]),
            finalizable_at=args["finalizableAt"],
            uri=args["uri"],
            block_number=log["blockNumber"],
            transaction="0x" + bytes(log["transactionHash"]).hex(),
        )


@dataclass(frozen=True)
class EpochFinalized:
    """Event: an epoch was finalised and minted."""

    epoch: int
    designer_shares: int
    data_shares: int
    compute_shares: int
    accumulator: int
    block_number: int
    transaction: str

    @classmethod
    def from_log(cls, log: Mapping[str, Any]) -> Self:
        """From web3's decoded log."""
        args = log["args"]
        return cls(
            epoch=args["epoch"],
            designer_shares=args["designerShares"],
            data_shares=args["dataShares"],
            compute_shares=args["computeShares"],
            accumulator=args["accAt"],
            block_number=log["blockNumber"],
            transaction="0x" + bytes(log["transactionHash"]).hex(),
        )


@dataclass(frozen=True)
class SharesClaimed:
    """Event: an account was paid its shares."""

    account: str
    epoch: int
    shares: int
    revenue_scaled: int
    block_number: int
    transaction: str

    @classmethod
    def from_log(cls, log: Mapping[str, Any]) -> Self:
        """From web3's decoded log."""
        args = log["args"]
        return cls(
            account=args["account"],
            epoch=args["epoch"],
            shares=args["shares"],
            revenue_scaled=args["revenueScaled"],
            block_number=log["blockNumber"],
            transaction="0x" + bytes(log["transactionHash"]).hex(),
        )
