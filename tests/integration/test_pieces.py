"""Pieces of a version are put with keepers and come back, whatever some of them, or their maker, do."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from commonweight.errors import CommonweightError, PiecesMissing
from commonweight.identity import NodeIdentity
from commonweight.model.stage import Stage
from commonweight.rules.canonical import canonical_json
from commonweight.rules.keeping import threshold
from commonweight.rules.receipt import Domain
from commonweight.wire import pieces as wire_pieces
from commonweight.wire.evidence import Source
from commonweight.wire.generated import control_pb2
from commonweight.wire.generated import pieces_pb2 as pb
from commonweight.wire.pieces import KeeperConnection, parts_of
from commonweight.wire.tls import make_certificate
from node import making
from node.checkpoint import Checkpoints
from node.cutting import cut
from node.evidence import Evidence
from node.keeping import HEAD_FILE, PIECE_FILE, Keeping
from node.making import Making
from node.published import MOMENTS_FILE, PARAMETERS_FILE, version_path
from node.restoring import restore_version
from tests.integration.replicas import DEADLINE_S, NEWCOMER, ROUND, SPEC, STAGE, Kept, train

pytestmark = pytest.mark.asyncio

DOMAIN = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
MAKER_KEY, STRANGER_KEY = NodeIdentity(b"\x52" * 32), NodeIdentity(b"\x53" * 32)
MAKER, STRANGER = make_certificate(MAKER_KEY), make_certificate(STRANGER_KEY)
ASSIGNMENT = control_pb2.Assignment(
    spec=canonical_json(SPEC.model_dump()), stage=0, chain_id=DOMAIN.chain_id, settlement=DOMAIN.settlement
)
"""Of the keepers; the pieces are of the other stage."""

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return train(tmp_path_factory.mktemp("version"))


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told: Told = []
    for module in ("node.making", "node.restoring", "node.keeping"):
        monkeypatch.setattr(f"{module}.emit", lambda name, **fields: told.append((name, fields)))
    return told


@dataclass
class Keeper:
    """One that runs."""

    source: Source
    keeping: Keeping
    directory: Path
    held: list[control_pb2.PiecesHeld]
    """What it has told its coordinator."""

    def folder(self, round_: int = ROUND) -> Path:
        return self.directory / "pieces" / f"stage-{STAGE}" / f"round-{round_:08d}"

    def head(self) -> pb.PieceHead:
        head: pb.PieceHead = pb.PieceHead.FromString((self.folder() / HEAD_FILE).read_bytes())
        return head

    def change(self, **fields: Any) -> None:
        head = self.head()
        for name, value in fields.items():
            setattr(head, name, value)
        (self.folder() / HEAD_FILE).write_bytes(head.SerializeToString())


def grants(maker: bytes = MAKER.der, seeker: bytes = NEWCOMER.der, stage: int = STAGE) -> control_pb2.KeepPieces:
    return control_pb2.KeepPieces(
        makers=[control_pb2.PieceGrant(stage=stage, certificate=maker)],
        seekers=[control_pb2.PieceGrant(stage=stage, certificate=seeker)],
    )


@asynccontextmanager
async def keepers(folder: Path, count: int, first: Callable[[Path], Keeping] = Keeping) -> AsyncIterator[list[Keeper]]:
    running, servers = [], []
    try:
        for number in range(count):
            certificate, directory = make_certificate(NodeIdentity(bytes([0x61 + number]) * 32)), folder / str(number)
            keeping, evidence = (Keeping if number else first)(directory), Evidence(directory, certificate)
            keeper = Keeper(Source(certificate.peer_id, "", certificate.der), keeping, directory, [])
            await keeping.begin(ASSIGNMENT, lambda message, held=keeper.held: held.append(message.pieces))
            keeping.grant(grants())
            await evidence.listen("127.0.0.1:0", None, keeping)
            servers.append(evidence)
            keeper.source = Source(certificate.peer_id, f"127.0.0.1:{evidence.port}", certificate.der)
            running.append(keeper)
        yield running
    finally:
        for evidence in servers:
            await evidence.close()


def events(told: Told, name: str) -> list[dict[str, Any]]:
    return [fields for event, fields in told if event == name]


async def make(version: Kept, running: list[Keeper], identity: NodeIdentity = MAKER_KEY) -> None:
    """Have a maker put pieces of the version with these, and tell what came of it."""
    done, emit = asyncio.Event(), making.emit

    def note(name: str, **fields: Any) -> None:
        emit(name, **fields)
        if name in ("pieces.made", "pieces.failed"):
            done.set()

    maker = Making(MAKER if identity is MAKER_KEY else STRANGER, identity)
    maker.begin(SPEC, STAGE, DOMAIN, version.checkpoint.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "emit", note)
        async with asyncio.timeout(DEADLINE_S):
            await maker.order([each.source for each in running], before_report=True)
            await maker.has(ROUND, version.version.state_root)
            await maker.kept(ROUND, version.version.state_root)
            if len(running) > 1:
                await done.wait()
        await maker.close()
    assert not (version.checkpoint.parent / making.SCRATCH).exists()


async def restore(version: Kept, folder: Path, running: list[Keeper], *more: Source) -> None:
    async with asyncio.timeout(DEADLINE_S):
        sources = [*(each.source for each in running), *more]
        await restore_version(NEWCOMER, version.version, folder, sources, {MAKER_KEY.address}, DOMAIN)


def check(version: Kept, folder: Path) -> None:
    """The version is there, and nothing else."""
    assert [path.name for path in folder.iterdir()] == [version_path(folder, ROUND).name]
    stage = Stage(SPEC, STAGE)
    Checkpoints(folder, SPEC, STAGE).load(stage, ROUND)
    assert stage.state_root() == version.version.state_root


def dropped(told: Told) -> dict[str, str]:
    return {fields["peer"]: fields["code"] for fields in events(told, "state.peer_dropped")}


@pytest.mark.parametrize("count", [2, 3, 5])
async def test_a_version_comes_back_from_its_keepers(tmp_path: Path, version: Kept, told: Told, count: int) -> None:
    async with keepers(tmp_path / "keepers", count) as running:
        await make(version, running)
        (made,) = events(told, "pieces.made")
        assert (made["kept"], made["keepers"], made["threshold"]) == (count, count, threshold(count))
        size = sum((version.checkpoint / name).stat().st_size for name in (PARAMETERS_FILE, MOMENTS_FILE))
        assert size < made["bytes"] / count * threshold(count) < size * 1.01
        for number, keeper in enumerate(running):
            assert keeper.head().number == number
            (held,) = keeper.held[-1].pieces
            assert (held.stage, held.round, held.state_root) == (STAGE, ROUND, version.version.state_root)
            assert keeper.folder().stat().st_mode & 0o077 == 0, "nobody else on the machine reads a key share"
        await restore(version, tmp_path / "new", running)
    check(version, tmp_path / "new")
    assert not dropped(told)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def lie_in_the_piece(keeper: Keeper) -> None:
    damage(keeper.folder() / PIECE_FILE)


def shorten_the_piece(keeper: Keeper) -> None:
    path = keeper.folder() / PIECE_FILE
    path.write_bytes(path.read_bytes()[:-1])


def lengthen_the_piece(keeper: Keeper) -> None:
    with (keeper.folder() / PIECE_FILE).open("ab") as file:
        file.write(b"\0")


def lie_in_the_key_share(keeper: Keeper) -> None:
    keeper.change(key_share=bytes(32))


def lie_in_the_number(keeper: Keeper) -> None:
    keeper.change(number=(keeper.head().number + 1) % 3)


def number_beyond(keeper: Keeper) -> None:
    keeper.change(number=3)


def lie_in_the_manifest(keeper: Keeper) -> None:
    manifest = keeper.head().manifest.replace(b'"threshold":2', b'"threshold":3')
    keeper.change(manifest=manifest)


def forge_the_signature(keeper: Keeper) -> None:
    keeper.change(signature=keeper.head().signature[:-1] + b"\0")


def send_no_key_share(keeper: Keeper) -> None:
    keeper.change(key_share=b"")


def have_nothing(keeper: Keeper) -> None:
    shutil.rmtree(keeper.folder())


LIES: list[tuple[Callable[[Keeper], None], str]] = [
    (lie_in_the_piece, "WIRE_COMMITMENT"),
    (shorten_the_piece, "WIRE_COMMITMENT"),
    (lengthen_the_piece, "WIRE_COMMITMENT"),
    (lie_in_the_key_share, "WIRE_COMMITMENT"),
    (lie_in_the_number, "WIRE_COMMITMENT"),
    (number_beyond, "WIRE_MALFORMED"),
    (lie_in_the_manifest, "WIRE_COMMITMENT"),
    (forge_the_signature, "WIRE_MALFORMED"),
    (send_no_key_share, "WIRE_MALFORMED"),
    (have_nothing, "WIRE_NO_STATE"),
]


@pytest.mark.parametrize(("lie", "code"), LIES)
async def test_a_keeper_that_lies_is_skipped(
    tmp_path: Path, version: Kept, told: Told, lie: Callable[[Keeper], None], code: str
) -> None:
    async with keepers(tmp_path / "keepers", 3) as running:
        await make(version, running)
        lie(running[0])
        with pytest.raises(
            PiecesMissing, match=r"of 2 keepers that are there 1 brought pieces .* it takes 2"
        ) as caught:
            await restore(version, tmp_path / "new", running[:2])
        assert dropped(told) == {running[0].source.peer_id: code}
        assert running[0].source.peer_id in caught.value.args[0]
        assert list((tmp_path / "new").iterdir()) == [], "what came is removed"
        await restore(version, tmp_path / "new", running)
    check(version, tmp_path / "new")


async def test_who_is_gone_or_silent_is_done_without(
    tmp_path: Path, version: Kept, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    class Silent(Keeping):
        async def Get(self, request: pb.PieceRequest, context: Any) -> None:
            asked.set()
            await asyncio.Event().wait()

    gone = Source(STRANGER.peer_id, "127.0.0.1:1", STRANGER.der)
    async with keepers(tmp_path / "keepers", 3, Silent) as running:
        await make(version, running)
        await restore(version, tmp_path / "new", running, gone)
        assert asked.is_set()
    check(version, tmp_path / "new")
    monkeypatch.setattr(wire_pieces, "CONNECT_S", 0.3)
    with pytest.raises(PiecesMissing, match=r"of 1 keepers that are there 0 brought .* it takes more than half"):
        await restore(version, tmp_path / "none", [], gone)
    assert dropped(told)[STRANGER.peer_id] == "WIRE_UNREACHABLE"


async def test_pieces_of_another_state_are_found_false_and_those_of_the_right_one_used(
    tmp_path: Path, version: Kept, told: Told
) -> None:
    """The first maker signs the right state root over another state's pieces."""
    other = train(tmp_path / "other", seed=1)
    root = version.version.state_root
    files = (other.checkpoint / PARAMETERS_FILE, other.checkpoint / MOMENTS_FILE)
    (tmp_path / "lie").mkdir()
    lie = await asyncio.to_thread(cut, files, SPEC.spec_hash, STAGE, ROUND, root, 2, tmp_path / "lie")
    signature = MAKER_KEY.sign_digest(lie.manifest.digest(DOMAIN))
    async with keepers(tmp_path / "keepers", 4) as running:
        for number, keeper in enumerate(running[:2]):
            head = pb.PieceHead(manifest=lie.manifest.encode(), signature=signature, number=number)
            head.key_share = lie.key_shares[number]
            connection = KeeperConnection(keeper.source, MAKER)
            await connection.put(head, lie.paths[number], lie.paths[number].stat().st_size)
            await connection.close()
        with pytest.raises(PiecesMissing):
            await restore(version, tmp_path / "new", running[:2])
        assert dropped(told) == {each.source.peer_id: "WIRE_COMMITMENT" for each in running[:2]}
        await make(version, running[2:])
        await restore(version, tmp_path / "new", running)
    check(version, tmp_path / "new")


async def test_pieces_count_only_if_a_seat_holder_of_the_stage_made_them(
    tmp_path: Path, version: Kept, told: Told
) -> None:
    async with keepers(tmp_path / "keepers", 2) as running:
        for keeper in running:
            keeper.keeping.grant(grants(maker=STRANGER.der))
        await make(version, running, STRANGER_KEY)
        assert events(told, "pieces.made")
        with pytest.raises(PiecesMissing, match="has no seat in stage"):
            await restore(version, tmp_path / "new", running)


async def test_who_isnt_granted_gets_nothing(tmp_path: Path, version: Kept, told: Told) -> None:
    async with keepers(tmp_path / "keepers", 2) as running:
        await make(version, running)
        for keeper in running:
            keeper.keeping.grant(grants(seeker=NEWCOMER.der, stage=0))  # another stage's
        with pytest.raises(PiecesMissing):
            await restore(version, tmp_path / "new", running)
        assert set(dropped(told).values()) == {"WIRE_REFUSED"}
        refused = events(told, "piece.refused")
        assert [fields["code"] for fields in refused] == ["WIRE_REFUSED"] * 2
        maker = KeeperConnection(running[0].source, MAKER)
        request = pb.PieceRequest(stage=STAGE, round=ROUND, state_root=version.version.state_root)
        with pytest.raises(CommonweightError, match="aren't granted"):  # who puts may not get
            await maker.get(request, 1 << 30, tmp_path / "piece")
        await maker.close()


async def put(keeper: Keeper, version: Kept, tmp_path: Path, **change: Any) -> str:
    """What comes of putting a piece that is changed: the error's code, or nothing."""
    folder = tmp_path / "made"
    folder.mkdir(exist_ok=True)
    files = (version.checkpoint / PARAMETERS_FILE, version.checkpoint / MOMENTS_FILE)
    root, stage, round_ = version.version.state_root, change.pop("stage", STAGE), change.pop("round", ROUND)
    made = await asyncio.to_thread(cut, files, SPEC.spec_hash, stage, round_, root, 2, folder)
    manifest = made.manifest.model_copy(update=change.pop("manifest", {}))
    signer = change.pop("signer", MAKER_KEY)
    head = pb.PieceHead(manifest=manifest.encode(), signature=signer.sign_digest(manifest.digest(DOMAIN)), number=0)
    head.key_share = made.key_shares[0]
    if change.pop("damaged", False):
        damage(made.paths[0])
    if change.pop("longer", False):
        with made.paths[0].open("ab") as file:
            file.write(bytes(1))
    for name, value in change.items():
        setattr(head, name, value)
    connection = KeeperConnection(keeper.source, MAKER)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await connection.put(head, made.paths[0], 1)
    except CommonweightError as error:
        return error.code
    finally:
        await connection.close()
    return ""


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"stage": 0}, "WIRE_REFUSED"),
        ({"signer": STRANGER_KEY}, "WIRE_COMMITMENT"),
        ({"damaged": True}, "WIRE_COMMITMENT"),
        ({"longer": True}, "WIRE_COMMITMENT"),
        ({"key_share": bytes(32)}, "WIRE_COMMITMENT"),
        ({"key_share": b""}, "WIRE_MALFORMED"),
        ({"number": 9}, "WIRE_MALFORMED"),
        ({"signature": b""}, "WIRE_MALFORMED"),
        ({"manifest": {"spec_hash": "0x" + "00" * 32}}, "WIRE_MALFORMED"),
        ({"manifest": {"files": (2**40, 2**40)}}, "WIRE_MALFORMED"),
    ],
)
async def test_what_a_keeper_doesnt_take(
    tmp_path: Path, version: Kept, told: Told, change: dict[str, Any], code: str
) -> None:
    async with keepers(tmp_path / "keepers", 1) as (keeper,):
        found = await put(keeper, version, tmp_path, **change)
        refused = events(told, "piece.refused")
        assert [fields["code"] for fields in refused] == [code]
        assert found in (code, "WIRE_REFUSED"), "of a call that was refused gRPC has the status alone"
        assert not keeper.held
        assert not list((keeper.directory / "pieces").glob("*/*"))
        assert not list((keeper.directory / "pieces").glob(".putting-*"))


async def test_a_keeper_has_the_last_two_versions_of_a_stage_and_takes_none_before(
    tmp_path: Path, version: Kept
) -> None:
    async with keepers(tmp_path / "keepers", 1) as (keeper,):
        for round_ in (5, 6, 9, 6):
            assert await put(keeper, version, tmp_path, round=round_) == ""
        assert [each.round for each in keeper.held[-1].pieces] == [6, 9]
        assert await put(keeper, version, tmp_path, round=5) != ""
        assert sorted(path.name for path in keeper.folder().parent.iterdir()) == ["round-00000006", "round-00000009"]
        (keeper.directory / "pieces" / ".putting-x").mkdir()
        again = Keeping(keeper.directory)
        assert not list((keeper.directory / "pieces").glob(".putting-*")), "what was never whole is removed"
        held: list[control_pb2.PiecesHeld] = []
        await again.begin(ASSIGNMENT, lambda message: held.append(message.pieces))
        assert held == [keeper.held[-1]], "its coordinator is told after a restart"


async def test_a_report_waits_for_its_pieces_where_that_is_wanted(
    tmp_path: Path, version: Kept, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, reached = asyncio.Event(), asyncio.Event()

    async def slow(head: pb.PieceHead, path: Path) -> AsyncIterator[pb.PiecePart]:
        reached.set()
        await gate.wait()
        async for part in parts_of(head, path):
            yield part

    monkeypatch.setattr(wire_pieces, "parts_of", slow)
    root = version.version.state_root
    async with keepers(tmp_path / "keepers", 2) as running:
        maker = Making(MAKER, MAKER_KEY)
        maker.begin(SPEC, STAGE, DOMAIN, version.checkpoint.parent)
        await maker.order([each.source for each in running], before_report=True)
        await maker.has(ROUND, root)
        waiting = asyncio.create_task(maker.kept(ROUND, root))
        await reached.wait()
        assert not waiting.done()
        gate.set()
        async with asyncio.timeout(DEADLINE_S):
            await waiting
        assert all(keeper.held for keeper in running)

        gate.clear()  # where it isn't wanted, nothing waits
        await maker.order([each.source for each in running], before_report=False)
        async with asyncio.timeout(DEADLINE_S):
            await maker.has(ROUND + 1, root)
            await maker.kept(ROUND + 1, root)
        await maker.close()


async def test_too_few_keepers_are_told_and_hold_no_report_up(
    tmp_path: Path, version: Kept, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_pieces, "CONNECT_S", 0.3)
    async with keepers(tmp_path / "keepers", 2) as running:
        running[0].keeping.grant(grants(maker=STRANGER.der))
        await make(version, running)
        (failed,) = events(told, "pieces.failed")
        assert failed["code"] == "WIRE_NO_PIECES"
        assert "1 are with keepers, of 2; 2 restore it" in failed["message"]
        (unkept,) = events(told, "piece.unkept")
        assert unkept["peer"] == running[0].source.peer_id
        await make(version, running[1:])
        assert len(events(told, "pieces.failed")) == 1, "for one keeper none are made"
        assert not events(told, "pieces.made")
