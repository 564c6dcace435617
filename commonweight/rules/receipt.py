"""What a provider's key signs about a unit of work, so that a contract can hold two of its words against each other.

A receipt says what came of one unit. Two receipts by one key for one unit with different outputs prove fraud by
themselves: ProviderRegistry.slashEquivocation takes them and nothing else.
"""

from dataclasses import dataclass

from eth_hash.auto import keccak

from commonweight.rules.merkle import word

RECEIPT_TYPE = b"Receipt(bytes32 modelId,uint32 stage,bytes32 unit,bytes32 output)"


@dataclass(frozen=True)
class Domain:
    """What an EIP-712 signature is good for: one settlement contract on one chain."""

    chain_id: int
    settlement: str

    @property
    def separator(self) -> bytes:
        """hashStruct(EIP712Domain)."""
        kind = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
        names = (keccak(kind), keccak(b"Commonweight"), keccak(b"1"))
        return keccak(b"".join(names) + word(self.chain_id) + word(self.settlement))


@dataclass(frozen=True)
class Receipt:
    """One unit of work and what came of it."""

    model_id: bytes
    stage: int
    unit: bytes
    """Names what was worked on, 32 bytes: whoever signs two receipts for it must sign the same."""
    output: bytes
    """Commits to the result, 32 bytes."""

    def digest(self, domain: Domain) -> bytes:
        """The 32 bytes that are signed: keccak256(0x1901 ‖ domain ‖ hashStruct(receipt))."""
        fields = word(self.model_id) + word(self.stage) + word(self.unit) + word(self.output)
        struct_hash = keccak(keccak(RECEIPT_TYPE) + fields)
        return keccak(b"\x19\x01" + domain.separator + struct_hash)
