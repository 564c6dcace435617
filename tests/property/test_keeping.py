"""Keepers are of other stages and different owners, few of them say nothing, enough of them give a version back."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import CommitmentBroken, MalformedMessage
from commonweight.rules.canonical import canonical_json
from commonweight.rules.keeping import (
    KEY_SHARE_BYTES,
    MAX_KEEPERS,
    MIN_KEEPERS,
    STRIPE_BYTES,
    TAG_BYTES,
    Holder,
    PiecesManifest,
    choose_keepers,
    piece_bytes,
    read_manifest,
    threshold,
)
from commonweight.rules.receipt import Domain
from node import cutting
from node.cutting import Cut, cut, join

owners = st.sampled_from([f"owner {number}" for number in range(12)])
swarms = st.dictionaries(
    st.integers(0, 400).map(lambda number: f"0x{number:040x}"),
    st.builds(Holder, st.integers(0, 4), owners),
    max_size=30,
)
MANIFEST: dict[str, Any] = {
    "format": "commonweight.pieces/1",
    "spec_hash": "0x" + "11" * 32,
    "stage": 1,
    "round": 7,
    "state_root": "0x" + "22" * 32,
    "files": [10, 20],
    "threshold": 2,
    "pieces": ["0x" + f"{number:02x}" * 32 for number in range(3)],
    "key_shares": ["0x" + f"{number + 8:02x}" * 32 for number in range(3)],
}


@given(swarms, st.integers(0, 4))
def test_keepers_hold_other_stages_and_no_two_have_one_owner(nodes: dict[str, Holder], stage: int) -> None:
    keepers = choose_keepers(stage, nodes)
    inside = {holder.owner for holder in nodes.values() if holder.stage == stage}
    outside = {holder.owner for holder in nodes.values()} - inside
    assert all(nodes[node].stage != stage for node in keepers)
    assert not {nodes[node].owner for node in keepers} & inside
    assert len({nodes[node].owner for node in keepers}) == len(keepers)
    assert len(keepers) == (min(len(outside), MAX_KEEPERS) if len(outside) >= MIN_KEEPERS else 0)


@given(swarms, st.integers(0, 4), st.data())
def test_who_leaves_changes_no_keeper_but_itself(nodes: dict[str, Holder], stage: int, data: st.DataObject) -> None:
    keepers = choose_keepers(stage, nodes)
    outside = sorted(node for node, holder in nodes.items() if holder.stage != stage)
    if not outside:
        return
    gone = data.draw(st.sampled_from(outside))
    left = {node: holder for node, holder in nodes.items() if node != gone}
    after = choose_keepers(stage, left)
    assert not after or set(keepers) - {gone} <= set(after)
    assert gone in keepers or after == keepers


@pytest.mark.parametrize("keepers", range(MIN_KEEPERS, MAX_KEEPERS + 1))
def test_more_than_half_restore_and_one_alone_never_does(keepers: int) -> None:
    assert keepers >= threshold(keepers) > keepers / 2
    assert threshold(keepers) > 1


@given(st.integers(1, 2**40), st.integers(MIN_KEEPERS, MAX_KEEPERS))
def test_pieces_are_as_long_as_it_takes(size: int, needed: int) -> None:
    stripes = -(-size // STRIPE_BYTES)
    assert size <= needed * piece_bytes(size, needed) < size + stripes * (TAG_BYTES + needed)


def test_a_manifest_is_what_it_was_and_its_signature_covers_all_of_it() -> None:
    manifest = read_manifest(canonical_json(MANIFEST))
    assert manifest.encode() == canonical_json(MANIFEST)
    assert manifest.version_bytes == 30
    domain = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
    others: dict[str, Any] = {
        "spec_hash": "0x" + "12" * 32,
        "stage": 2,
        "round": 8,
        "state_root": "0x" + "23" * 32,
        "files": [11, 19],
        "threshold": 3,
        "pieces": MANIFEST["pieces"][::-1],
        "key_shares": MANIFEST["key_shares"][::-1],
    }
    digests = {read_manifest(canonical_json(MANIFEST | {name: other})).digest(domain) for name, other in others.items()}
    digests |= {manifest.digest(domain), manifest.digest(Domain(31338, domain.settlement))}
    assert len(digests) == len(others) + 2


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 1},
        {"threshold": 4},
        {"key_shares": MANIFEST["key_shares"][:2]},
        {"pieces": MANIFEST["pieces"] * 3, "key_shares": MANIFEST["key_shares"] * 3},
        {"files": [0, 20]},
        {"files": [10]},
        {"round": -1},
        {"format": "commonweight.pieces/2"},
        {"more": 1},
    ],
)
def test_a_manifest_that_cant_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="manifest of pieces"):
        read_manifest(canonical_json(MANIFEST | change))


def test_a_manifest_that_is_too_long_or_no_json_is_refused() -> None:
    for data in (b"", b"{", b" " * 5000, b"[]"):
        with pytest.raises(MalformedMessage):
            read_manifest(data)


VERSIONS = [(1, 1), (STRIPE_BYTES, STRIPE_BYTES), (STRIPE_BYTES - 1, 2), (5, 3 * STRIPE_BYTES + 7)]


def make(folder: Path, sizes: tuple[int, int], count: int) -> tuple[tuple[bytes, bytes], Cut]:
    folder.mkdir(exist_ok=True)
    contents = tuple(bytes((7 * index + size) % 251 for index in range(size)) for size in sizes)
    files = (folder / "parameters", folder / "moments")
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    return (contents[0], contents[1]), cut(files, b"\x11" * 32, 1, 7, b"\x22" * 32, count, folder)


def rejoin(made: Cut, numbers: tuple[int, ...], folder: Path, manifest: PiecesManifest | None = None) -> list[bytes]:
    files = (folder / "joined-parameters", folder / "joined-moments")
    key_shares = {number: made.key_shares[number] for number in numbers}
    join(manifest or made.manifest, {number: made.paths[number] for number in numbers}, key_shares, files)
    return [path.read_bytes() for path in files]


@pytest.mark.parametrize("sizes", VERSIONS)
def test_any_pieces_that_are_enough_give_the_version_back(tmp_path: Path, sizes: tuple[int, int]) -> None:
    for count in range(MIN_KEEPERS, MAX_KEEPERS + 1):
        contents, made = make(tmp_path / str(count), sizes, count)
        assert len(made.paths) == len(made.key_shares) == len(made.manifest.pieces) == count
        for numbers in itertools.combinations(range(count), threshold(count)):
            assert rejoin(made, numbers, tmp_path) == list(contents)


def test_nothing_of_the_version_is_in_a_piece_and_no_two_makings_are_alike(tmp_path: Path) -> None:
    contents, made = make(tmp_path, (4096, 8192), 3)
    _, again = make(tmp_path / "again", (4096, 8192), 3)
    pieces = [path.read_bytes() for path in made.paths]
    assert all(contents[0][begin : begin + 16] not in piece for piece in pieces for begin in range(0, 4096, 16))
    assert not set(made.manifest.pieces) & set(again.manifest.pieces)
    assert len(set(made.key_shares) | set(again.key_shares)) == 6


def test_one_key_share_less_than_it_takes_decrypts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with all pieces: the key that fewer key shares come to is another one, whatever is taken for the missing."""
    _, made = make(tmp_path, (4096, 8192), 5)
    tried = []
    recover = cutting._recover
    for few in itertools.combinations(range(5), made.manifest.threshold - 1):
        for guess in (None, bytes(KEY_SHARE_BYTES), made.key_shares[few[0]]):
            missing = next(number for number in range(5) if number not in few)
            known = {number: made.key_shares[number] for number in few}
            known |= {} if guess is None else {missing: guess}
            key = recover(known)
            tried.append(key)
            monkeypatch.setattr(cutting, "_recover", lambda _, key=key: key)
            with pytest.raises(CommitmentBroken, match="can't be decrypted"):
                rejoin(made, (0, 1, 2), tmp_path)
    monkeypatch.setattr(cutting, "_recover", recover)
    assert recover(dict(enumerate(made.key_shares))) not in tried
    assert rejoin(made, (0, 1, 2), tmp_path)


@pytest.mark.parametrize(
    "change", [{"stage": 2}, {"round": 8}, {"spec_hash": "0x" + "12" * 32}, {"files": (4095, 8193)}]
)
def test_pieces_are_good_for_their_version_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    contents, made = make(tmp_path, (4096, 8192), 3)
    other = made.manifest.model_copy(update=change)
    if change.keys() == {"files"}:
        # Where one file ends the state root checks; what is encrypted is how long both are together.
        assert b"".join(rejoin(made, (0, 2), tmp_path, other)) == b"".join(contents)
        return
    with pytest.raises(CommitmentBroken):
        rejoin(made, (0, 2), tmp_path, other)


def test_stripes_cant_be_left_out_or_change_places(tmp_path: Path) -> None:
    seal = cutting._Seal(bytes(32), bytes(32), 0, 1, bytes(32), 2)
    sealed = [seal.encrypt(index, bytes([index])) for index in range(2)]
    assert [seal.decrypt(index, data) for index, data in enumerate(sealed)] == [b"\0", b"\1"]
    shorter = cutting._Seal(bytes(32), bytes(32), 0, 1, bytes(32), 1)
    for cipher, index, data in ((seal, 0, sealed[1]), (shorter, 0, sealed[0])):
        with pytest.raises(InvalidTag):
            cipher.decrypt(index, data)
