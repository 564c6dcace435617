"""Which version the coordinator has its nodes serve, and what it tells whom."""

from collections.abc import Callable
from typing import Any

import pytest

from commonweight.errors import CommonweightError, MalformedMessage, NotServed
from commonweight.rules.canonical import canonical_json
from commonweight.rules.receipt import Domain
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import serving_pb2
from commonweight.wire.serving import route_from_proto
from coordinator.members import Member, Place
from coordinator.serving import Serving
from tests.unit.tiny import tiny_spec

pytestmark = pytest.mark.asyncio

STAGES, PER_EPOCH = 3, 10
SPEC = tiny_spec(stages=STAGES)
PLACE = Place(b"\xaa" * 32, Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3"))
GATEWAY = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


class World:
    """A Serving whose ledger and nodes note what they are told."""

    def __init__(self, *, round_: int = 0, published: int = 0, gateways: bool = True) -> None:
        self.noted: list[int] = []
        self.certificates = [b"gateway"]
        self.inboxes: dict[int, list[pb.CoordinatorMessage]] = {stage: [] for stage in range(STAGES)}
        names = frozenset({GATEWAY} if gateways else ())
        ledger: Any = self
        self.serving = Serving(SPEC, PLACE, ledger, names, lambda: self.certificates, round_, published)
        self.members = [self.member(stage) for stage in range(STAGES)]

    def record_published(self, round_: int) -> None:
        self.noted.append(round_)

    def member(self, stage: int) -> Member:
        def send(message: pb.CoordinatorMessage | CommonweightError) -> None:
            assert isinstance(message, pb.CoordinatorMessage)
            self.inboxes[stage].append(message)

        return Member(
            node=f"node {stage}",
            peer_id=f"peer {stage}",
            data_address="127.0.0.1:9",
            evidence_address="127.0.0.1:9",
            certificate=b"certificate %d" % stage,
            owner=f"owner {stage}",
            account=f"account {stage}",
            has_data=True,
            stages=None,
            send=send,
        )

    def join(self, *stages: int) -> None:
        for stage in stages or range(STAGES):
            self.members[stage] = self.member(stage)
            self.serving.joined(stage, self.members[stage])

    async def train(self, until: int) -> None:
        for round_ in range(self.serving.round, until):
            await self.serving.sealed(round_)

    def ready(self, round_: int, *stages: int) -> None:
        for stage in stages or range(STAGES):
            ready = pb.VersionReady(round=round_, decode_address=f"127.0.0.1:{9000 + stage}")
            self.serving.ready(self.members[stage], ready)

    def fail(self, round_: int, stage: int, *, retrying: bool) -> None:
        failed = pb.VersionFailed(round=round_, code="STATE_CHECKPOINT", why="gone", retrying=retrying)
        self.serving.failed(self.members[stage], failed)

    def told(self, stage: int) -> list[tuple[str, int]]:
        """What a node was told since the last look."""
        found = [(str(m.WhichOneof("body")), getattr(m, str(m.WhichOneof("body"))).round) for m in self.inboxes[stage]]
        self.inboxes[stage].clear()
        return found

    def version(self) -> int | None:
        try:
            return self.serving.route()[0]
        except NotServed:
            return None


async def test_a_version_is_served_once_every_stage_is_ready() -> None:
    world = World()
    world.join()
    await world.train(9)
    with pytest.raises(NotServed, match="9 of the first epoch's 10 rounds are sealed"):
        world.serving.route()
    await world.train(10)
    assert world.noted == [10]
    assert [world.told(stage) for stage in range(STAGES)] == [[("publish", 10)]] * STAGES
    world.ready(10, 0, 2)
    with pytest.raises(NotServed, match="Stage 1 of tiny can't generate"):
        world.serving.route()
    world.ready(10, 1)
    version, holders = world.serving.route()
    assert (version, [address for _, address in holders]) == (10, [f"127.0.0.1:{9000 + s}" for s in range(STAGES)])
    assert [member.account for member, _ in holders] == ["account 0", "account 1", "account 2"]


async def test_each_stage_is_told_its_neighbours_and_the_outer_ones_the_gateways() -> None:
    world = World()
    world.join()
    await world.train(10)
    world.ready(10)
    first, middle, last = (world.inboxes[stage][-1].decode_peers for stage in range(STAGES))
    assert (first.HasField("previous"), first.next.peer_id, list(first.gateways)) == (False, "peer 1", [b"gateway"])
    assert (middle.previous.certificate, middle.next.data_address) == (b"certificate 0", "127.0.0.1:9002")
    assert list(middle.gateways) == []
    assert (last.previous.peer_id, last.HasField("next"), list(last.gateways)) == ("peer 1", False, [b"gateway"])
    world.certificates.append(b"another")
    world.serving.gateways_changed()
    assert list(world.inboxes[0][-1].decode_peers.gateways) == [b"gateway", b"another"]


async def test_the_version_before_is_served_until_all_have_the_next_one() -> None:
    world = World()
    world.join()
    await world.train(10)
    world.ready(10)
    await world.train(20)
    world.ready(20, 0, 1)
    assert world.version() == 10
    world.ready(20, 2)
    assert world.version() == 20
    world.ready(10)
    assert world.version() == 20


async def test_a_slow_load_is_waited_for_and_not_overtaken() -> None:
    world = World()
    world.join()
    await world.train(35)
    assert world.noted == [10]
    world.ready(10)
    assert world.version() == 10
    await world.train(45)
    assert world.noted == [10, 40]


@pytest.mark.parametrize(("retrying", "noted"), [(False, [10, 20]), (True, [10])])
async def test_a_version_that_a_stage_gives_up_makes_way_for_the_next(retrying: bool, noted: list[int]) -> None:
    world = World()
    world.join()
    await world.train(10)
    world.ready(10, 0, 1)
    world.fail(10, 2, retrying=retrying)
    await world.train(25)
    assert world.noted == noted


@pytest.mark.parametrize("go", [lambda w: w.serving.lost(1), lambda w: w.fail(10, 1, retrying=True)])
async def test_a_stage_that_is_away_withdraws_the_route_until_it_is_back(go: Callable[[World], None]) -> None:
    world = World()
    world.join()
    await world.train(10)
    world.ready(10)
    stale = world.members[1]
    go(world)
    assert world.version() is None
    if 1 not in world.serving._holders:
        world.told(1)
        world.join(1)
        assert world.told(1) == [("publish", 10)]
        world.serving.ready(stale, pb.VersionReady(round=10, decode_address="127.0.0.1:1"))
        assert world.version() is None  # that connection counts no longer
    world.ready(10, 1)
    assert world.version() == 10
    assert [world.told(stage)[-1] for stage in range(STAGES)] == [("decode_peers", 10)] * STAGES


async def test_who_joins_while_the_next_version_is_loaded_is_told_of_both() -> None:
    world = World()
    world.join()
    await world.train(10)
    world.ready(10)
    await world.train(20)
    world.serving.lost(0)
    world.told(0)
    world.join(0)
    assert world.told(0) == [("publish", 10), ("publish", 20)]
    world.ready(10, 0)
    assert world.version() == 10


async def test_after_a_restart_the_last_published_version_is_served_again() -> None:
    world = World(round_=27, published=20)
    await world.serving.resume()
    world.join()
    assert world.told(0) == [("publish", 20)]
    world.ready(20)
    assert world.version() == 20
    assert world.noted == []


@pytest.mark.parametrize(("published", "noted"), [(10, [20]), (20, [])])
async def test_killed_before_it_could_publish_it_does_so_when_it_is_back(published: int, noted: list[int]) -> None:
    world = World(round_=20, published=published)
    await world.serving.resume()
    assert world.noted == noted
    world.join()
    assert world.told(0) == [("publish", 20)]


async def test_without_gateways_every_version_is_kept_and_none_is_loaded() -> None:
    world = World(gateways=False)
    world.join()
    await world.train(30)
    assert world.noted == [10, 20, 30]
    assert [message.publish.load for message in world.inboxes[0]] == [False] * 3


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:0", "127.0.0.1:99999"])
async def test_an_address_that_is_none_is_refused(address: str) -> None:
    world = World()
    world.join()
    await world.train(10)
    with pytest.raises(MalformedMessage):
        world.serving.ready(world.members[0], pb.VersionReady(round=10, decode_address=address))


@pytest.mark.parametrize("spec", [b"", b"{}", b"[]", b"\xff", canonical_json(SPEC.model_dump() | {"stages": 0})])
async def test_a_route_whose_spec_is_none_is_a_malformed_message(spec: bytes) -> None:
    with pytest.raises(MalformedMessage):
        route_from_proto(serving_pb2.ServingRoute(spec=spec))
