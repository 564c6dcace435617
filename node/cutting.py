"""Cuts a version's files into encrypted pieces, and joins them again. All of it blocks. No torch here.

The files, one after the other, are encrypted with AES-256-GCM, stripe by stripe, with a fresh key: the nonce is the
stripe's number, and the version and its length are authenticated with each, so none can be moved, left out or taken
from elsewhere. Each encrypted stripe is coded (Reed–Solomon, by liberasurecode with ISA-L) into one part for each
piece; a piece is its parts, one after the other. The key is shared by Shamir's scheme, its two halves alike.
"""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pyeclib.ec_iface import ECDriver

from commonweight.errors import CommitmentBroken
from commonweight.rules.keeping import (
    FORMAT,
    KEY_SHARE_BYTES,
    STRIPE_BYTES,
    TAG_BYTES,
    PiecesManifest,
    piece_bytes,
    threshold,
)

CODE = "isa_l_rs_cauchy"
_HEADER_BYTES = 80
"""Before each part: liberasurecode's. It says nothing of the data, so it isn't kept: what comes from others mustn't
reach a parser in C.
"""
_HALF = KEY_SHARE_BYTES // 2


@dataclass(frozen=True)
class Cut:
    """A version's pieces, in files."""

    manifest: PiecesManifest
    paths: tuple[Path, ...]
    """In the manifest's order."""
    key_shares: tuple[bytes, ...] = field(repr=False)


def cut(
    files: tuple[Path, Path], spec_hash: bytes, stage: int, round_: int, state_root: bytes, count: int, folder: Path
) -> Cut:
    """Cut the version's parameters and moments into `count` pieces, in files of `folder`. Raises OSError."""
    needed = threshold(count)
    key = secrets.token_bytes(2 * _HALF)
    with ExitStack() as opened:
        sources = [opened.enter_context(path.open("rb")) for path in files]
        sizes = tuple(os.fstat(source.fileno()).st_size for source in sources)
        total, left = sum(sizes), sum(sizes)
        seal, code = _Seal(key, spec_hash, stage, round_, state_root, total), _Code(needed, count)
        paths = tuple(folder / f"piece-{number}" for number in range(count))
        targets = [opened.enter_context(path.open("wb")) for path in paths]
        hashes = [sha256() for _ in paths]
        for index in range(-(-total // STRIPE_BYTES)):
            due = min(STRIPE_BYTES, left)
            data = sources[0].read(due)
            data += sources[1].read(due - len(data))
            if len(data) != due:
                raise OSError(f"the files have been cut: {total - left + len(data)} of {total} bytes")
            left -= due
            for part, target, known in zip(code.encode(seal.encrypt(index, data)), targets, hashes, strict=True):
                target.write(part)
                known.update(part)
    key_shares = _share(key, needed, count)
    manifest = PiecesManifest(
        format="commonweight.pieces/1",
        spec_hash="0x" + spec_hash.hex(),
        stage=stage,
        round=round_,
        state_root="0x" + state_root.hex(),
        files=(sizes[0], sizes[1]),
        threshold=needed,
        pieces=tuple("0x" + known.hexdigest() for known in hashes),
        key_shares=tuple("0x" + sha256(key_share).hexdigest() for key_share in key_shares),
    )
    assert all(path.stat().st_size == piece_bytes(total, needed) for path in paths), "the rule says how long they are"
    return Cut(manifest, paths, key_shares)


def join(
    manifest: PiecesManifest,
    pieces: Mapping[int, Path],
    key_shares: Mapping[int, bytes],
    files: tuple[Path, Path],
) -> None:
    """Write the version's files from as many pieces and key shares, by number, as the threshold says; they are what
    the manifest says. Raises CommitmentBroken where its maker has made something else, and OSError.
    """
    key = _recover({number: key_shares[number] for number in pieces})
    total = manifest.version_bytes
    spec_hash, state_root = bytes.fromhex(manifest.spec_hash[2:]), bytes.fromhex(manifest.state_root[2:])
    seal = _Seal(key, spec_hash, manifest.stage, manifest.round, state_root, total)
    code = _Code(manifest.threshold, len(manifest.pieces))
    with ExitStack() as opened:
        sources = {number: opened.enter_context(path.open("rb")) for number, path in pieces.items()}
        targets = [opened.enter_context(path.open("wb")) for path in files]
        done = 0
        for index, size in enumerate(_stripes(total)):
            due = -(-(size + TAG_BYTES) // manifest.threshold)
            parts = {number: source.read(due) for number, source in sources.items()}
            try:
                data = seal.decrypt(index, code.decode(parts, size + TAG_BYTES))
            except InvalidTag:
                raise CommitmentBroken(
                    f"The pieces of version {manifest.round} of stage {manifest.stage} are those of their manifest, "
                    "and can't be decrypted: whoever made them made them so."
                ) from None
            first = data[: max(0, manifest.files[0] - done)]
            targets[0].write(first)
            targets[1].write(data[len(first) :])
            done += size


def _stripes(total: int) -> Iterator[int]:
    for begin in range(0, total, STRIPE_BYTES):
        yield min(STRIPE_BYTES, total - begin)


class _Seal:
    """Encrypts the stripes of one version."""

    def __init__(self, key: bytes, spec_hash: bytes, stage: int, round_: int, state_root: bytes, total: int) -> None:
        self._cipher = AESGCM(key)
        numbers = b"".join(number.to_bytes(8, "big") for number in (stage, round_, total))
        self._about = FORMAT.encode() + spec_hash + numbers + state_root

    def encrypt(self, index: int, data: bytes) -> bytes:
        return self._cipher.encrypt(index.to_bytes(12, "big"), data, self._about)

    def decrypt(self, index: int, data: bytes) -> bytes:
        return self._cipher.decrypt(index.to_bytes(12, "big"), data, self._about)


class _Code:
    """Codes stripes into parts, of which `needed` give a stripe back."""

    def __init__(self, needed: int, count: int) -> None:
        self._count = count
        # Two of two: it has no code without a spare part, so one is made and not used.
        self._driver = ECDriver(k=needed, m=max(1, count - needed), ec_type=CODE)
        self._headers: dict[int, Sequence[bytes]] = {}
        """Of the parts of a stripe, by its size."""

    def encode(self, data: bytes) -> Sequence[bytes]:
        return [part[_HEADER_BYTES:] for part in self._driver.encode(data)[: self._count]]

    def decode(self, parts: Mapping[int, bytes], size: int) -> bytes:
        """`size`: of the stripe."""
        if size not in self._headers:
            self._headers[size] = [part[:_HEADER_BYTES] for part in self._driver.encode(bytes(size))]
        headers = self._headers[size]
        data: bytes = self._driver.decode([headers[number] + part for number, part in parts.items()])
        return data


def _share(key: bytes, needed: int, count: int) -> tuple[bytes, ...]:
    halves = [Shamir.split(needed, count, half, ssss=False) for half in (key[:_HALF], key[_HALF:])]
    return tuple(first + second for (_, first), (_, second) in zip(*halves, strict=True))


def _recover(key_shares: Mapping[int, bytes]) -> bytes:
    def half(part: slice) -> bytes:
        return bytes(Shamir.combine([(number + 1, share[part]) for number, share in key_shares.items()], ssss=False))

    return half(slice(0, _HALF)) + half(slice(_HALF, KEY_SHARE_BYTES))
