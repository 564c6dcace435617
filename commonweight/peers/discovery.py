"""How a process finds others and is found: by a bootstrap address, or on the LAN, and the key that is on the chain.

What is heard proves who said it. It counts once the announced address was dialled and presented the announced
certificate.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

from commonweight.errors import CommonweightError, IdentityMismatch, PeerUnreachable
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.peers.announced import Announced, next_sequence, sign_announcement
from commonweight.peers.bridge import TrioThread
from commonweight.peers.config import PeersConfig
from commonweight.peers.directory import Directory, Entry, Reach
from commonweight.peers.offered import Offered, Service
from commonweight.peers.passage import Whereabouts
from commonweight.peers.station import Station, StationStatistics, open_station
from commonweight.peers.ways import Way, find_way
from commonweight.rules.announcement import MAX_PEER_ADDRESSES, Announcement, Role
from commonweight.wire.attachment import together
from commonweight.wire.channel import split_address
from commonweight.wire.tls import fetch_certificate

TTL_S = 60
ANNOUNCE_EVERY_S = 20.0
"""Two may be lost before the announcement ends."""
ANNOUNCE_GAP_S = 2.0
"""Between two announcements at least, however many peers are met meanwhile."""
ASK_EVERY_S = 2.0
DIAL_S = 5.0
DIALS = 8
"""At a time, of addresses that strangers announce."""
MAX_WAITING = 256
"""Announcements that wait to be dialled; one that finds no room is dialled when it is announced again."""
REDIAL_S = 30.0


@dataclass(frozen=True)
class Claim:
    """What a process says of itself; when, and for how long, is added."""

    role: Role
    chain_id: int
    registry: str
    model_id: bytes
    address: str
    certificate: bytes
    stage: int | None = None
    capacity: int | None = None


class Discovery:
    """A process's part in discovery, for its asyncio side."""

    def __init__(
        self,
        identity: NodeIdentity,
        config: PeersConfig,
        model_id: bytes | None = None,
        *,
        confirms: bool = False,
        offered: Offered | None = None,
    ) -> None:
        """Peers are asked for the announcements of `model_id`, or for all. With `confirms` every announced address is
        dialled, not only what is looked for. Peers may reach what is `offered`. Nothing is started before `start`.
        """
        self._identity = identity
        self._confirms = confirms
        self.directory = Directory(time.time)
        self.directory.changed = self._on_changed
        self._own: Announced | None = None
        self._claim: Claim | None = None
        self.met = asyncio.Event()
        """Set once a peer has been connected to, and asked."""
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._waiting: asyncio.Queue[Entry] = asyncio.Queue(MAX_WAITING)
        self._thread: TrioThread[Station] = TrioThread(
            lambda: open_station(
                identity, config, model_id, self.directory, self._announced, self._on_joined, offered or Offered()
            )
        )
        self._station: Station

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs by which others reach our libp2p."""
        return self._station.host.addresses

    async def start(self) -> None:
        """Listen and connect. Raises ConfigError where it can't listen."""
        self._station = await self._thread.start()
        emit("discovery.listening", peer_id=self._identity.peer_id, addresses=list(self.addresses))

    async def run(self) -> None:
        """Announce and confirm, until cancelled. Raises what ended libp2p, if it ends by itself: whoever runs this
        waits on it beside its own work.
        """
        confirming = [self._keep_confirming() for _ in range(DIALS)] if self._confirms else []
        await together(self._wait_for_death(), self._keep_announcing(), *confirming)

    async def stop(self) -> None:
        """Hang up, and end. What was announced ends by its time."""
        await self._thread.stop()

    def announce(self, claim: Claim) -> None:
        """Say this of ourselves from now on, until something else is to be said."""
        self._claim = claim
        self._wake.set()

    async def statistics(self) -> StationStatistics:
        """What libp2p is connected to."""
        return await self._thread.acall(self._station.statistics)

    async def ask(self, model_id: bytes | None = None, role: Role | None = None) -> int:
        """Have every connected peer tell what it knows; how many announcements were news."""
        return await self._thread.acall(self._station.ask_all, model_id, role)

    async def find_way(self, model_id: bytes, peer_id: str, service: Service, address: str) -> Way:
        """The best way to the service that a node of the model has at `address`. Raises PeerUnreachable."""
        announced = self._peer_addresses(model_id, peer_id)
        if not announced:
            await self.ask(model_id, Role.NODE)
            announced = self._peer_addresses(model_id, peer_id)
        where = Whereabouts.of(peer_id, announced)
        return await find_way(self._thread, self._station.passage, where, service, address)

    async def reach_evidence(self, model_id: bytes, peer_id: str, address: str) -> str:
        """host:port at which a node's evidence is reached; `address` where there is no way."""
        try:
            return (await self.find_way(model_id, peer_id, "evidence", address)).address
        except PeerUnreachable as error:
            emit("way.missing", peer=peer_id, service="evidence", code=error.code, message=error.args[0])
            return address

    async def find_coordinator(self, model_id: bytes, account: str, timeout_s: float) -> str:
        """PEERID@host:port of the model's coordinator, whose key has this address on the chain.

        It was reached there just now, with the certificate that it announces. Raises PeerUnreachable, saying what was
        heard and tried, where that doesn't come about within `timeout_s`.
        """
        self.directory.favour(model_id, account)
        failures: dict[str, str] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._news.clear()
                    for entry in self.directory.live(model_id, Role.COORDINATOR):
                        if entry.announced.account != account:
                            continue
                        error = await self.confirm(entry.announced)
                        if error is None:
                            emit("coordinator.found", peer=entry.announced.target)
                            return entry.announced.target
                        failures[entry.announced.target] = error.args[0]
                    await self.ask(model_id, Role.COORDINATOR)
                    await _wait(self._news, ASK_EVERY_S)
        except TimeoutError:
            pass
        statistics = await self.statistics()
        heard = f"{len(self.directory.live())} announcements are known, none of them of {account} as its coordinator."
        raise PeerUnreachable(
            f"The coordinator of model 0x{model_id.hex()} wasn't found within {timeout_s:g} s. "
            f"{' '.join(failures.values()) or heard} Connected to {len(statistics.host.connected)} libp2p peers. Check "
            "that the coordinator runs with --bootstrap, and that both name the same bootstrap peer."
        )

    async def confirm(self, announced: Announced) -> CommonweightError | None:
        """Dial the announced address; None where it presents the announced certificate, otherwise what came of it."""
        host, port = split_address(announced.announcement.address)
        found: CommonweightError | None = None
        try:
            presented = await fetch_certificate(host, port, announced.peer_id, DIAL_S)
            if presented != announced.announcement.certificate:
                found = IdentityMismatch(
                    f"{announced.target} presents another certificate than it announces: it was started again a moment "
                    "ago, or runs twice."
                )
        except (PeerUnreachable, IdentityMismatch) as error:
            found = error
        self.directory.tried(announced, found)
        return found

    async def _keep_announcing(self) -> None:
        sequence = 0
        while True:
            await _wait(self._wake, ANNOUNCE_EVERY_S)
            self._wake.clear()
            if self._claim is None:
                continue
            sequence = next_sequence(sequence)
            announced = sign_announcement(self._announcement(self._claim, sequence), self._identity)
            self._own = announced
            self.directory.offer(announced)
            neighbours = await self._thread.acall(self._station.publish, announced)
            emit(
                "announcement.sent",
                role=self._claim.role.value,
                address=self._claim.address,
                stage=self._claim.stage,
                sequence=sequence,
                neighbours=neighbours,
            )
            # Asking tells, too. libp2p ignores the gossip of a key whose record it has seen with a later date: that of
            # a second process with this key, or of this one before its clock was set back.
            await self.ask(announced.announcement.model_id, Role.COORDINATOR)
            await asyncio.sleep(ANNOUNCE_GAP_S)

    async def _wait_for_death(self) -> None:
        await asyncio.shield(self._thread.died)

    async def _keep_confirming(self) -> None:
        while True:
            entry = await self._waiting.get()
            if await self.confirm(entry.announced) is None:
                emit("address.reached", peer=entry.announced.target)

    def _announcement(self, claim: Claim, sequence: int) -> Announcement:
        return Announcement(
            role=claim.role,
            chain_id=claim.chain_id,
            registry=claim.registry.lower(),
            model_id=claim.model_id,
            stage=claim.stage,
            address=claim.address,
            certificate=claim.certificate,
            capacity=claim.capacity,
            peer_addresses=(*self._station.passage.circuits.addresses, *self.addresses)[:MAX_PEER_ADDRESSES],
            sequence=sequence,
            issued_at_s=int(time.time()),
            ttl_s=TTL_S,
        )

    def _peer_addresses(self, model_id: bytes, peer_id: str) -> tuple[str, ...]:
        live = (entry.announced for entry in self.directory.live(model_id, Role.NODE))
        return next((each.announcement.peer_addresses for each in live if each.peer_id == peer_id), ())

    def _announced(self) -> Iterable[Announced]:
        own = self._own
        return () if own is None else (own,)

    def _on_joined(self) -> None:
        self._thread.tell(self.met.set)
        self._thread.tell(self._wake.set)

    def _on_changed(self, entry: Entry) -> None:
        """In whichever thread heard of it."""
        self._thread.tell(self._take_note, entry)

    def _take_note(self, entry: Entry) -> None:
        self._news.set()
        is_due = entry.reach is Reach.UNTRIED or time.time() >= entry.tried_at_s + REDIAL_S
        if self._confirms and is_due and entry.announced.peer_id != self._identity.peer_id and not self._waiting.full():
            self._waiting.put_nowait(entry)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until it is set, or for so long. `asyncio.wait_for` of Python 3.11 loses a cancellation that comes just then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
