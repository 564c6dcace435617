"""Whom a node lets in, and where its processes are told to go."""

import pytest

from commonweight.errors import IdentityMismatch, PeerUnreachable
from commonweight.events import Event
from commonweight.identity import NodeIdentity
from commonweight.peers.offered import Offered, Service
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.tls import make_certificate
from node import routing
from node.routing import MAX_AUDITORS, TRIES, Routing

pytestmark = pytest.mark.asyncio


class Locator:
    """Finds a way after so many failures."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.asked: list[tuple[str, Service, str]] = []

    async def reach(self, peer_id: str, service: Service, address: str) -> str:
        self.asked.append((peer_id, service, address))
        if len(self.asked) <= self.failures:
            raise PeerUnreachable("No way.")
        return "127.0.0.1:4242"

    async def run(self) -> None: ...

    async def coordinator(self) -> str:
        return ""

    def announce(self, address: str, certificate: bytes, stage: int | None) -> None: ...

    async def reach_evidence(self, peer_id: str, address: str) -> str:
        return address


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "RETRY_S", 0.0)


OWN, *REPLICAS = sorted((NodeIdentity(bytes([n]) * 32) for n in range(1, 4)), key=lambda each: each.address)


def formation() -> pb.Formation:
    return pb.Formation(
        generation=3,
        previous=[pb.Neighbour(peer_id="before", data_address="192.0.2.1:1")],
        next=[pb.Neighbour(peer_id="after", data_address="192.0.2.2:2")],
    )


async def test_the_worker_is_told_the_way_and_both_neighbours_are_let_in() -> None:
    locator, offered = Locator(), Offered()
    message = formation()
    assert await Routing(locator, offered, OWN.address).form(message) == {}
    assert locator.asked == [("after", "data", "192.0.2.2:2")]
    assert (message.next[0].data_address, message.previous[0].data_address) == ("127.0.0.1:4242", "192.0.2.1:1")
    assert offered.admitted == {"before", "after"}


async def test_of_two_replicas_the_one_with_the_lower_address_looks_for_the_other() -> None:
    middle, last = REPLICAS
    message = pb.Formation(
        replicas=[pb.Neighbour(peer_id=each.peer_id, data_address="192.0.2.3:3") for each in (OWN, last)]
    )
    locator, offered = Locator(), Offered()
    await Routing(locator, offered, middle.address).form(message)
    assert locator.asked == [(last.peer_id, "data", "192.0.2.3:3")]
    assert [each.data_address for each in message.replicas] == ["192.0.2.3:3", "127.0.0.1:4242"]
    assert offered.admitted == {OWN.peer_id, last.peer_id}


async def test_the_last_stage_looks_for_nobody() -> None:
    locator, offered = Locator(), Offered()
    message = formation()
    message.ClearField("next")
    await Routing(locator, offered, OWN.address).form(message)
    assert locator.asked == []
    assert offered.admitted == {"before"}


async def test_a_neighbour_that_is_not_ready_is_asked_again_and_then_given_up() -> None:
    locator = Locator(failures=TRIES - 1)
    message = formation()
    await Routing(locator, Offered(), OWN.address).form(message)
    assert message.next[0].data_address == "127.0.0.1:4242"
    message = formation()
    failed = await Routing(Locator(failures=TRIES), Offered(), OWN.address).form(message)
    assert failed.keys() == {"after"}
    assert message.next[0].data_address == "192.0.2.2:2"


async def test_a_source_of_the_state_is_reached_where_there_is_a_way() -> None:
    version = pb.Version(sources=[pb.EvidenceSource(peer_id=name, address="192.0.2.4:4") for name in "ab"])
    await Routing(Locator(failures=1), Offered(), OWN.address).find_sources(*version.sources)
    assert [source.address for source in version.sources] == ["192.0.2.4:4", "127.0.0.1:4242"]


async def test_a_decode_process_without_a_way_keeps_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Event] = []
    monkeypatch.setattr("commonweight.events._sinks", [told.append])
    offered = Offered()
    node = Routing(Locator(failures=1), offered, OWN.address)
    await node.form(pb.Formation(previous=[pb.Neighbour(peer_id="before")]))
    peers = pb.DecodePeers(round=1, next=pb.Neighbour(peer_id="after", data_address="192.0.2.2:3"))
    await node.meet(peers)
    assert peers.next.data_address == "192.0.2.2:3"
    assert [(event.name, event.fields["service"]) for event in told] == [("way.missing", "decode")]
    assert offered.admitted == {"before", "after"}
    await node.meet(peers)
    assert peers.next.data_address == "127.0.0.1:4242"


@pytest.mark.parametrize(
    ("listen", "served"),
    [("0.0.0.0:7701", "127.0.0.1:9"), ("[::]:0", "127.0.0.1:9"), ("10.0.0.7:1", "10.0.0.7:9"), ("a.b:1", "a.b:9")],
)
async def test_a_service_is_reached_on_this_machine(listen: str, served: str) -> None:
    offered = Offered()
    node = Routing(Locator(), offered, OWN.address)
    node.serve("data", listen, 9)
    node.serve("evidence", listen, 10)
    assert offered.services["data"] == served
    assert set(offered.services) == {"data", "evidence"}


async def test_so_many_auditors_are_let_in_the_last_ones() -> None:
    offered = Offered()
    node = Routing(Locator(), offered, OWN.address)
    certificates = [make_certificate(NodeIdentity(n.to_bytes(32, "big"))) for n in range(1, MAX_AUDITORS + 2)]
    for certificate in certificates:
        node.grant(certificate.der)
    assert offered.admitted == {certificate.peer_id for certificate in certificates[1:]}
    with pytest.raises(IdentityMismatch):
        node.grant(b"no certificate")
