"""Announcements by GossipSub: published to one topic, and passed on only where they hold. Trio side only.

py-libp2p 0.8.1 ends the host where a topic's validator raises, or where a signed message comes with a key that can't be
parsed; a stranger can send either. It checks nothing before it has verified a signature. So every message goes through
one guarded door here, with a bound on its size and on how many each neighbour may bring.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.abc import ISubscriptionAPI
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from commonweight.errors import IdentityMismatch, MalformedMessage
from commonweight.identity import public_key_of
from commonweight.peers.announced import Announced, read_announced
from commonweight.peers.budget import Budgets
from commonweight.peers.directory import Directory
from commonweight.peers.host import Host
from commonweight.rules.announcement import MAX_BYTES

TOPIC = "/commonweight/announcements/1"
PER_NEIGHBOUR_S = 50.0
"""Messages that a neighbour may bring in a second, its own and those that it passes on."""
NEIGHBOUR_BURST = 200.0
MAX_RPC_BYTES = 64 << 10
LOG = logging.getLogger(__name__)


class Gossip:
    """One host's part in the topic. Use `open_gossip`."""

    def __init__(self, pubsub: "GuardedPubsub") -> None:
        self._pubsub = pubsub

    async def publish(self, announced: Announced) -> int:
        """Send our own announcement; to how many neighbours that listen. More get it from those."""
        await self._pubsub.publish(TOPIC, announced.data)
        return len(self.neighbours)

    @property
    def neighbours(self) -> tuple[str, ...]:
        """PeerIds of connected peers that listen to the topic."""
        return tuple(str(peer) for peer in self._pubsub.peer_topics.get(TOPIC, ()))


class GuardedPubsub(Pubsub):
    """libp2p's, with a door that nothing gets through by failing."""

    def __init__(self, host: Host, router: GossipSub, directory: Directory) -> None:
        super().__init__(
            host.libp2p,
            router,
            strict_signing=True,
            max_inbound_rpc_size=MAX_RPC_BYTES,
            allowed_topics={TOPIC},
        )
        self.counter = time.time_ns()  # of messages: from whole seconds, two processes with one key would share numbers
        self._own = ID.from_string(host.peer_id)
        self._directory = directory
        self._budgets = Budgets(NEIGHBOUR_BURST, PER_NEIGHBOUR_S, lambda: host.connected)
        self.set_topic_validator(TOPIC, self._is_worth_passing_on, is_async_validator=False)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Take a message in, from ourselves or a neighbour; drop it where it can't be an announcement."""
        if msg_forwarder != self._own and not self._budgets.spend(str(msg_forwarder)):
            return
        if list(msg.topicIDs) != [TOPIC] or len(msg.data) > MAX_BYTES:
            return
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:  # whatever a stranger's message makes libp2p raise: it would end the host
            LOG.debug("a message of %s failed", msg_forwarder, exc_info=error)

    def _is_worth_passing_on(self, forwarder: ID, msg: rpc_pb2.Message) -> bool:
        if forwarder == self._own:
            return True
        try:
            author = str(ID(msg.from_id))
            public_key_of(author)  # the key that signed the message, so `author` published it
            announced = read_announced(msg.data)
            if announced.peer_id != author:
                raise IdentityMismatch(f"{author} publishes the announcement of {announced.peer_id} as its own.")
        except (MalformedMessage, IdentityMismatch) as error:
            self._directory.refuse(error, str(forwarder))
            return False
        return self._directory.offer(announced)


@asynccontextmanager
async def open_gossip(host: Host, directory: Directory) -> AsyncIterator[Gossip]:
    """Take part in the topic: what is valid and new goes into the directory and on to the neighbours."""
    router = GossipSub(
        [PROTOCOL_ID_V11],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        max_messages_per_topic_per_second=10 * PER_NEIGHBOUR_S,  # the budgets above bound it
    )
    pubsub = GuardedPubsub(host, router, directory)
    async with background_trio_service(pubsub), background_trio_service(router):
        await pubsub.wait_until_ready()
        received = await pubsub.subscribe(TOPIC)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, received)
            yield Gossip(pubsub)
            nursery.cancel_scope.cancel()


async def _drain(received: ISubscriptionAPI) -> None:
    """The validator has taken them in; here they would only pile up."""
    while True:
        await received.get()
