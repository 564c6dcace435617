"""Which version the coordinator has its nodes serve, and what it tells whom."""

import asyncio
import ssl
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from commonweight.errors import CommonweightError, LedgerError, MalformedMessage, NotServed
from commonweight.identity import NodeIdentity
from commonweight.rules.answer import served_receipt
from commonweight.rules.canonical import canonical_json
from commonweight.rules.receipt import Domain
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import serving_pb2
from commonweight.wire.serving import route_from_proto
from commonweight.wire.tls import make_certificate
from coordinator.answer_ledger import Reported
from coordinator.gateways import MAX_WRITES, ServingService
from coordinator.members import Member, Place
from coordinator.serving import Serving
from tests.unit.tiny import tiny_spec

pytestmark = pytest.mark.asyncio

STAGES, PER_EPOCH = 3, 10
DEADLINE_S = 30
SPEC = tiny_spec(stages=STAGES)
PLACE = Place(b"\xaa" * 32, Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3"))
GATEWAY, OTHER = (NodeIdentity(bytes([number]) * 32) for number in (0x61, 0x62))
NODE = NodeIdentity(b"\x63" * 32)


class World:
    """A Serving whose ledger and nodes note what they are told."""

    def __init__(
        self, *, round_: int = 0, published: tuple[int, ...] = (), gateways: bool = True, spares: int = 0
    ) -> None:
        """`spares`: stage 1 has so many replicas more, of which the first is member number STAGES."""
        self.noted: list[int] = []
        self.served: list[Reported] = []
        """The reports that are in the ledger."""
        self.certificates = [b"gateway"]
        self.numbers = range(STAGES + spares)
        self.inboxes: dict[int, list[pb.CoordinatorMessage]] = {number: [] for number in self.numbers}
        names = frozenset({GATEWAY.address, OTHER.address} if gateways else ())
        ledger: Any = self
        self.serving = Serving(SPEC, PLACE, ledger, names, lambda: self.certificates, round_, published)
        self.members = [self.member(number) for number in self.numbers]

    def record_published(self, round_: int) -> None:
        self.noted.append(round_)

    def record_served(self, reported: Reported) -> bool:
        if reported.request_id in [each.request_id for each in self.served]:
            return False
        if reported.session in [each.session for each in self.served]:
            raise LedgerError("Session 00 was reported for another request; a session answers one.")
        self.served.append(reported)
        return True

    def member(self, number: int) -> Member:
        def send(message: pb.CoordinatorMessage | CommonweightError) -> None:
            assert isinstance(message, pb.CoordinatorMessage)
            self.inboxes[number].append(message)

        return Member(
            node=f"node {number}",
            peer_id=f"peer {number}",
            data_address="127.0.0.1:9",
            evidence_address="127.0.0.1:9",
            certificate=b"certificate %d" % number,
            owner=f"owner {number}",
            account=f"account {number}",
            has_data=True,
            stages=None,
            stays=False,
            send=send,
        )

    def join(self, *numbers: int) -> None:
        for number in numbers or self.numbers:
            self.members[number] = self.member(number)
            self.serving.joined(number if number < STAGES else 1, self.members[number])

    def leave(self, number: int) -> None:
        self.serving.lost(self.members[number])

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

    def through(self) -> list[str]:
        """Who serves."""
        return [member.peer_id for member, _ in self.serving.route()[1]]

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


@pytest.mark.parametrize("go", [lambda w: w.leave(1), lambda w: w.fail(10, 1, retrying=True)])
async def test_a_stage_that_is_away_withdraws_the_route_until_it_is_back(go: Callable[[World], None]) -> None:
    world = World()
    world.join()
    await world.train(10)
    world.ready(10)
    stale = world.members[1]
    world.told(1)
    go(world)
    assert world.version() is None
    world.serving.gateways_changed()  # there is no route to tell of
    assert world.told(1) == []
    if "node 1" not in world.serving._members:
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
    world.leave(0)
    world.told(0)
    world.join(0)
    assert world.told(0) == [("publish", 10), ("publish", 20)]
    world.ready(10, 0)
    assert world.version() == 10


async def test_after_a_restart_the_last_published_version_is_served_again() -> None:
    world = World(round_=27, published=(10, 20))
    await world.serving.resume()
    world.join()
    assert world.told(0) == [("publish", 20)]
    world.ready(20)
    assert world.version() == 20
    assert world.noted == []


@pytest.mark.parametrize(("published", "noted"), [((10,), [20]), ((10, 20), [])])
async def test_killed_before_it_could_publish_it_does_so_when_it_is_back(
    published: tuple[int, ...], noted: list[int]
) -> None:
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


async def test_answers_can_be_sealed_of_the_versions_that_nodes_keep() -> None:
    world = World()
    world.join()
    assert world.serving.kept == frozenset()
    for round_ in (10, 20, 30, 40):
        await world.train(round_)
        world.ready(round_)
        assert max(world.serving.kept) == world.version() == round_
    assert world.serving.kept == {20, 30, 40}
    await world.train(50)
    for _ in range(3):  # versions that a stage can't load: the old one is served as long as it takes
        world.fail(world.serving.published, 1, retrying=False)
        await world.train(world.serving.round + 10)
    assert world.version() == 40
    assert world.serving.kept == {40, 60, 70, 80}
    again = World(round_=81, published=(60, 70, 80))
    assert again.serving.kept == {60, 70, 80}


async def test_of_replicas_the_first_that_is_ready_serves_and_the_next_takes_its_place() -> None:
    world = World(spares=2)
    world.join()
    await world.train(10)
    assert world.told(4) == [("publish", 10)]
    world.ready(10, 3, 0, 2)
    assert world.through() == ["peer 0", "peer 3", "peer 2"]
    world.ready(10, 1, 4)
    assert world.through() == ["peer 0", "peer 3", "peer 2"]
    for number in (3, 1, 4):  # those that stand by know whom to expect
        peers = world.inboxes[number][-1].decode_peers
        assert (peers.previous.peer_id, peers.next.peer_id) == ("peer 0", "peer 2")
    assert world.inboxes[0][-1].decode_peers.next.peer_id == "peer 3"
    for number in world.numbers:
        world.told(number)
    world.leave(4)
    assert [world.told(number) for number in world.numbers] == [[]] * 5, "nobody has to do with it"
    world.leave(3)
    assert world.through() == ["peer 0", "peer 1", "peer 2"]
    assert world.inboxes[0][-1].decode_peers.next.peer_id == "peer 1"
    assert world.inboxes[2][-1].decode_peers.previous.data_address == "127.0.0.1:9001"
    world.join(3)
    world.ready(10, 3)
    assert world.through() == ["peer 0", "peer 1", "peer 2"]
    world.fail(10, 1, retrying=True)
    assert world.through() == ["peer 0", "peer 3", "peer 2"]
    world.ready(10, 1)
    world.leave(3)
    assert world.through() == ["peer 0", "peer 1", "peer 2"]
    world.leave(1)
    with pytest.raises(NotServed, match="Stage 1 of tiny can't generate"):
        world.serving.route()


async def test_a_replica_that_was_started_anew_is_reached_where_it_is_now() -> None:
    world = World(spares=1)
    world.join()
    await world.train(10)
    world.ready(10)
    world.serving.ready(world.members[1], pb.VersionReady(round=10, decode_address="127.0.0.1:7"))
    assert world.serving.route()[1][1] == (world.members[1], "127.0.0.1:7")
    assert world.inboxes[0][-1].decode_peers.next.data_address == "127.0.0.1:7"


async def test_a_version_makes_way_for_the_next_once_no_replica_of_a_stage_can_load_it() -> None:
    world = World(spares=1)
    world.join()
    await world.train(10)
    world.ready(10, 0, 2)
    world.fail(10, 1, retrying=False)
    await world.train(20)
    assert world.noted == [10], "the other one is waited for"
    world.fail(10, 3, retrying=False)
    await world.train(30)
    assert world.noted == [10, 30]
    world.fail(30, 1, retrying=False)
    world.ready(30, 0, 2, 3)
    assert world.through() == ["peer 0", "peer 3", "peer 2"]


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


class Call:
    """A gateway's call, as gRPC shows it."""

    def __init__(self, caller: NodeIdentity) -> None:
        self.certificate = make_certificate(caller)
        self.refused: list[tuple[grpc.StatusCode, str]] = []

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [ssl.DER_cert_to_PEM_cert(self.certificate.der).encode()]}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:9"

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.refused.append((code, details))
        raise ConnectionAbortedError


def served_report(signer: NodeIdentity = GATEWAY, /, **changes: Any) -> serving_pb2.ServedReport:
    """Signed as it is after the changes, unless they have a signature."""
    right = {"request_id": b"r" * 20, "session": b"s" * 16, "round": 10, "prompt_tokens": 4, "completion_tokens": 9}
    report = serving_pb2.ServedReport(**(right | changes))
    if "signature" not in changes:
        numbers = (report.prompt_tokens, report.completion_tokens)
        receipt = served_receipt(PLACE.model_id, report.round, report.session, *numbers)
        report.signature = signer.sign_digest(receipt.digest(PLACE.domain))
    return report


async def say_served(world: World, report: serving_pb2.ServedReport, caller: NodeIdentity = GATEWAY) -> Any:
    """The receipt, or why it was refused."""
    call = Call(caller)
    world.certificates.append(call.certificate.der)
    try:
        receipt = await ServingService(world.serving).Report(report, call)  # type: ignore[arg-type]
        return receipt.recorded
    except ConnectionAbortedError:
        return call.refused[0]


async def test_what_a_gateway_reports_is_recorded_with_its_signature_and_once() -> None:
    world = World(round_=27, published=(10, 20))
    report = served_report()
    assert await say_served(world, report) is True
    assert await say_served(world, report) is False
    (reported,) = world.served
    assert (reported.request_id, reported.session, reported.version) == (b"r" * 20, b"s" * 16, 10)
    assert (reported.prompt_tokens, reported.completion_tokens) == (4, 9)
    assert (reported.gateway, reported.signature) == (GATEWAY.address, report.signature)
    code, details = await say_served(world, served_report(request_id=b"q" * 20))
    assert (code, "another request" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)


@pytest.mark.parametrize(
    ("report", "match"),
    [
        (served_report(request_id=b"r" * 15), "id has 16 to 32 bytes, not 15"),
        (served_report(session=b"s" * 15), "session's id has 16 bytes, not 15"),
        (served_report(session=b""), "session's id has 16 bytes, not 0"),
        (served_report(round=0), "round 0 was never published"),
        (served_report(round=15), "round 15 was never published"),
        (served_report(round=30), "round 30 was never published"),
        (served_report(round=2**64 - 10), "was never published"),
        (served_report(prompt_tokens=0), "0 + 9 tokens: prompt and answer have one each at least"),
        (served_report(completion_tokens=0), "4 + 0 tokens: prompt and answer have one each at least"),
        (served_report(prompt_tokens=5), "must fit in the context of 12"),
        (served_report(completion_tokens=2**32 - 1), "must fit in the context of 12"),
        (served_report(signature=b""), "signature has 65 bytes"),
        (served_report(signature=served_report(completion_tokens=8).signature), "is signed by 0x"),
        (served_report(signature=served_report(session=b"t" * 16).signature), "is signed by 0x"),
        (served_report(OTHER), f"is signed by {OTHER.address}, not by {GATEWAY.address}"),
        (served_report(NODE), f"is signed by {NODE.address}"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_a_report_that_can_t_be_is_refused(report: serving_pb2.ServedReport, match: str) -> None:
    world = World(round_=30, published=(10, 20))
    code, details = await say_served(world, report)
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert match in details
    assert world.served == []


async def test_reports_leave_threads_to_the_others() -> None:
    """Those that wait for the ledger hold one each."""
    world, waiting, going, count = World(round_=27, published=(10, 20)), [], threading.Event(), 3 * MAX_WRITES
    record, enough = world.record_served, threading.Event()

    def slowly(reported: Reported) -> bool:
        waiting.append(reported)
        if len(waiting) == MAX_WRITES:
            enough.set()
        assert going.wait(DEADLINE_S)
        return record(reported)

    world.record_served = slowly  # type: ignore[method-assign]
    call = Call(GATEWAY)
    world.certificates.append(call.certificate.der)
    service = ServingService(world.serving)
    reports = [served_report(request_id=bytes([n]) * 20, session=bytes([n]) * 16) for n in range(count)]
    calls = [asyncio.create_task(service.Report(report, call)) for report in reports]  # type: ignore[arg-type]
    assert await asyncio.to_thread(enough.wait, DEADLINE_S)
    assert len(waiting) == MAX_WRITES
    going.set()
    receipts = await asyncio.gather(*calls)
    assert all(receipt.recorded for receipt in receipts)
    assert len(world.served) == count


async def test_only_a_gateway_reports() -> None:
    world = World(round_=30, published=(10, 20))
    code, details = await say_served(world, served_report(NODE), NODE)
    assert (code, "list of gateways" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    code, details = await say_served(world, served_report(), OTHER)  # another's, replayed
    assert f"is signed by {GATEWAY.address}, not by {OTHER.address}" in details
    assert world.served == []
