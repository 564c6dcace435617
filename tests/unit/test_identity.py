"""Identity: one key, an address and a PeerId, against independent implementations and published vectors."""

import copy
import hashlib
import pickle

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_keys import keys
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweight.errors import KeyStoreError, MalformedMessage
from commonweight.identity import (
    NodeIdentity,
    address_of,
    public_key_of,
    public_key_protobuf,
    recover_address,
    verify_libp2p,
)
from commonweight.rules.receipt import Domain, Receipt

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SECRETS = st.integers(1, ORDER - 1).map(lambda n: n.to_bytes(32, "big"))
bounded = settings(max_examples=25, derandomize=True, deadline=None)

# libp2p specs, peer-ids.md, "Test vectors": a Secp256k1 private and public key, as protobuf messages.
SPEC_SECRET = bytes.fromhex("53dadf1d5a164d6b4acdb15e24aa4c5b1d3461bdbd42abedb0a4404d56ced8fb")
SPEC_PUBLIC = bytes.fromhex("08021221037777e994e452c21604f91de093ce415f5432f701dd8cd1a7a6fea0e630bfca99")


@pytest.fixture
def identity() -> NodeIdentity:
    return NodeIdentity(bytes(range(1, 33)))


def test_the_peer_id_is_that_of_the_libp2p_specification():
    identity = NodeIdentity(SPEC_SECRET)
    assert public_key_protobuf(identity.public_key) == SPEC_PUBLIC
    # peer-ids.md: at most 42 bytes are inlined as an identity multihash, 0x00 and the length before them.
    assert identity.peer_id == base58_of(b"\x00\x25" + SPEC_PUBLIC)
    assert identity.peer_id == "16Uiu2HAmLhLvBoYaoZfaMUKuibM6ac163GwKY74c5kiSLg5KvLpY"


@bounded
@given(SECRETS)
def test_address_and_peer_id_are_of_the_same_key(secret):
    identity = NodeIdentity(secret)
    assert identity.address == Account.from_key(secret).address
    assert address_of(identity.peer_id) == identity.address
    assert public_key_of(identity.peer_id) == keys.PrivateKey(secret).public_key.to_compressed_bytes()
    assert identity.peer_id.startswith("16Uiu2HA")


@bounded
@given(SECRETS, st.binary(min_size=32, max_size=32))
def test_a_digest_signature_recovers_and_equals_eth_accounts(secret, digest):
    identity = NodeIdentity(secret)
    signature = identity.sign_digest(digest)
    assert signature == bytes(Account.unsafe_sign_hash(digest, secret).signature)
    assert recover_address(digest, signature) == identity.address
    assert signature[64] in (27, 28)
    assert int.from_bytes(signature[32:64], "big") <= ORDER // 2


def test_a_signed_receipt_is_what_a_wallet_would_sign(identity):
    receipt = Receipt(b"\x0d" * 32, 3, b"\x0e" * 32, b"\x0f" * 32)
    domain = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
    signable = encode_typed_data(
        domain_data={
            "name": "Commonweight",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": domain.settlement,
        },
        message_types={
            "Receipt": [
                {"name": "modelId", "type": "bytes32"},
                {"name": "stage", "type": "uint32"},
                {"name": "unit", "type": "bytes32"},
                {"name": "output", "type": "bytes32"},
            ]
        },
        message_data={
            "modelId": receipt.model_id,
            "stage": receipt.stage,
            "unit": receipt.unit,
            "output": receipt.output,
        },
    )
    signature = identity.sign_digest(receipt.digest(domain))
    assert Account.recover_message(signable, signature=signature) == identity.address
    signed = Account.from_key(bytes(range(1, 33))).sign_message(signable)
    assert bytes(signed.message_hash) == receipt.digest(domain)
    assert bytes(signed.signature) == signature


def test_a_libp2p_signature_is_ecdsa_over_sha256(identity):
    signature = identity.sign_libp2p(b"hello")
    assert verify_libp2p(identity.public_key, b"hello", signature)
    assert not verify_libp2p(identity.public_key, b"other", signature)
    assert not verify_libp2p(NodeIdentity(SPEC_SECRET).public_key, b"hello", signature)
    assert not verify_libp2p(identity.public_key, b"hello", b"no DER")
    assert not verify_libp2p(b"no key", b"hello", signature)
    public = keys.PublicKey.from_compressed_bytes(identity.public_key)
    r, s = int_pair(signature)
    assert any(
        keys.Signature(vrs=(v, r, s)).recover_public_key_from_msg_hash(hashlib.sha256(b"hello").digest()) == public
        for v in (0, 1)
    )


def test_the_secret_is_never_shown(identity):
    secret = bytes(range(1, 33))
    shown = repr(identity) + str(identity) + f"{identity}" + repr(vars(NodeIdentity))
    assert secret.hex() not in shown.lower()
    assert repr(secret)[2:-1] not in shown
    assert str(int.from_bytes(secret, "big")) not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a secret"):
            leak(identity)


@pytest.mark.parametrize("secret", [b"", bytes(32), bytes(31), bytes(33), ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_what_is_no_secret_is_refused_without_being_shown(secret):
    with pytest.raises(KeyStoreError) as caught:
        NodeIdentity(secret)
    assert "32 bytes" in str(caught.value)
    assert not secret or secret.hex() not in str(caught.value)


def test_damaged_signatures_recover_nobody_or_somebody_else(identity):
    digest = bytes(32)
    good = identity.sign_digest(digest)
    high_s = (ORDER - int.from_bytes(good[32:64], "big")).to_bytes(32, "big")
    for bad, why in (
        (good[:64], "65 bytes"),
        (good + b"\0", "65 bytes"),
        (good[:64] + b"\x00", "27 or 28"),
        (good[:64] + b"\x1d", "27 or 28"),
        (good[:32] + high_s + bytes((55 - good[64],)), "upper half"),  # the same signature, malleated
        (bytes(64) + b"\x1b", "no key"),
        (b"\xff" * 32 + good[32:], "no key"),
    ):
        with pytest.raises(MalformedMessage, match=why):
            recover_address(digest, bad)
    with pytest.raises(MalformedMessage, match="32 bytes"):
        recover_address(b"short", good)
    with pytest.raises(MalformedMessage, match="32 bytes"):
        identity.sign_digest(b"short")
    assert recover_address(hashlib.sha256(b"").digest(), good) != identity.address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "16Uiu2HA",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # a hash of an RSA key
        "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",  # Ed25519
        "16Uiu2HAmLhLvBoYaoZfaMUKuibM6ac163GwKY74c5kiSLg5KvLp0",  # no base58 digit
        "16Uiu2HAmLhLvBoYaoZfaMUKuibM6ac163GwKY74c5kiSLg5KvLpYY",
        "1" * 53,
        "1" * 1_000_000,
        "é" * 53,
    ],
)
def test_what_is_no_peer_id_is_refused_with_a_short_message(text):
    for read in (public_key_of, address_of):
        with pytest.raises(MalformedMessage, match="PeerId") as caught:
            read(text)
        assert len(str(caught.value)) < 300


def test_a_peer_id_of_no_curve_point_is_refused():
    with pytest.raises(MalformedMessage, match="no valid secp256k1"):
        public_key_of(base58_of(b"\x00\x25\x08\x02\x12\x21\x02" + b"\xff" * 32))


def base58_of(raw: bytes) -> str:
    """Base58btc by its definition, independent of the library."""
    digits, number = "", int.from_bytes(raw, "big")
    while number:
        number, digit = divmod(number, 58)
        digits = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + digits
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + digits


def int_pair(der: bytes) -> tuple[int, int]:
    """r and s of a DER signature."""
    r_size = der[3]
    return int.from_bytes(der[4 : 4 + r_size], "big"), int.from_bytes(der[6 + r_size :], "big")
