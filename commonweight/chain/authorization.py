"""Signatures that move a token without a transaction of its owner: EIP-3009 transfers and EIP-2612 permits.

Pure hashing, following EIP-712; nothing here asks a chain.
"""

from dataclasses import dataclass

from eth_hash.auto import keccak

from commonweight.chain.keys import Key
from commonweight.chain.records import Authorization
from commonweight.rules.merkle import word

_DOMAIN_TYPE = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_TRANSFER_TYPE = (
    b"TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    b"bytes32 nonce)"
)
_PERMIT_TYPE = b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"


@dataclass(frozen=True)
class TokenDomain:
    """What the signatures are good for: one token on one chain. `name` and `version` are the token's own."""

    name: str
    version: str
    chain_id: int
    token: str

    @property
    def separator(self) -> bytes:
        """hashStruct(EIP712Domain)."""
        texts = (keccak(text) for text in (_DOMAIN_TYPE, self.name.encode(), self.version.encode()))
        return keccak(b"".join(texts) + word(self.chain_id) + word(self.token))


def authorization_digest(
    domain: TokenDomain, from_: str, to: str, value: int, valid_after: int, valid_before: int, nonce: bytes
) -> bytes:
    """The 32 bytes that a payer signs to let anybody move `value` from it to `to` once, after `valid_after` and
    before `valid_before` (Unix seconds).
    """
    return _digest(domain, _TRANSFER_TYPE, from_, to, value, valid_after, valid_before, nonce)


def permit_digest(domain: TokenDomain, owner: str, spender: str, value: int, nonce: int, deadline: int) -> bytes:
    """The 32 bytes that an owner signs to let `spender` take `value`, until `deadline` (Unix seconds)."""
    return _digest(domain, _PERMIT_TYPE, owner, spender, value, nonce, deadline)


def sign_authorization(
    key: Key, domain: TokenDomain, to: str, value: int, valid_after: int, valid_before: int, nonce: bytes
) -> Authorization:
    """The authorisation of `key`'s account, signed."""
    digest = authorization_digest(domain, key.address, to, value, valid_after, valid_before, nonce)
    return Authorization(key.address, value, valid_after, valid_before, nonce, key.sign_digest(digest))


def _digest(domain: TokenDomain, kind: bytes, *values: int | bytes | str) -> bytes:
    struct_hash = keccak(keccak(kind) + b"".join(map(word, values)))
    return keccak(b"\x19\x01" + domain.separator + struct_hash)
