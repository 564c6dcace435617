"""How whoever works for a coordinator knows where it is: it was told, or finds it by the key that is on the chain."""

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from commonweight.errors import ChainError, ConfigError, PeerUnreachable
from commonweight.identity import NodeIdentity
from commonweight.peers.config import PeersConfig
from commonweight.peers.offered import Offered, Service
from commonweight.rules.announcement import Role
from commonweight.wire.messages import split_peer

if TYPE_CHECKING:  # libp2p takes most of a second to import, web3 as well
    from commonweight.chain.registry import ModelRegistry
    from commonweight.peers.discovery import Discovery

FIND_S = 30.0
"""For one attempt to find the coordinator."""


@dataclass(frozen=True)
class Lookup:
    """A coordinator that is to be found: whoever the registry names as the model's."""

    peers: PeersConfig
    rpc_url: str
    registry: str
    model_id: bytes


class Locator(Protocol):
    """Where the coordinator is, and telling others where we are."""

    async def run(self) -> None:
        """Keep looking until cancelled; `coordinator` waits for it to begin. Raises what ends it by itself."""

    async def coordinator(self) -> str:
        """PEERID@host:port. Raises PeerUnreachable where it isn't to be found now, and may be later."""

    def announce(self, address: str, certificate: bytes, stage: int | None) -> None:
        """Have others know where a node is, and what it holds."""

    async def reach(self, peer_id: str, service: Service, address: str) -> str:
        """host:port at which this process reaches the service that a node of the model says it has at `address`.

        Raises PeerUnreachable.
        """

    async def reach_evidence(self, peer_id: str, address: str) -> str:
        """The same of the evidence service; `address` where there is no way: the audit finds that out, and says so."""


def make_locator(coordinator: str | Lookup, identity: NodeIdentity, offered: Offered | None = None) -> Locator:
    """The locator for a coordinator that is known, or is to be found; then peers may reach what is `offered`, too."""
    return Discovered(coordinator, identity, offered) if isinstance(coordinator, Lookup) else Told(coordinator)


def read_coordinator(
    coordinator: str | None, peers: PeersConfig | None, rpc: str | None, registry: str | None, model_id: str | None
) -> str | Lookup:
    """Who is worked for, from a command's options. Raises ConfigError that says which are missing."""
    if coordinator is not None:
        if peers is not None or model_id is not None:
            raise ConfigError("Give --coordinator, or --bootstrap (or --mdns) with --model-id to find it: not both.")
        split_peer(coordinator)
        return coordinator
    if peers is None:
        raise ConfigError(
            "Where is the coordinator? Give --coordinator PEERID@HOST:PORT, or let it be found: --bootstrap MULTIADDR, "
            "--rpc URL, --registry ADDRESS and --model-id ID."
        )
    if rpc is None or registry is None or model_id is None:
        raise ConfigError("To find the coordinator, --bootstrap needs --rpc URL, --registry ADDRESS and --model-id ID.")
    return Lookup(peers, rpc, registry, parse_model_id(model_id))


def parse_model_id(text: str) -> bytes:
    """The 32 bytes of a model's id. Raises ConfigError."""
    if not re.fullmatch("0x[0-9a-fA-F]{64}", text):
        raise ConfigError(f"{text!r:.100} is not a model's id: it has 0x and 64 hexadecimal digits.")
    return bytes.fromhex(text[2:])


class Told:
    """The coordinator was given."""

    def __init__(self, coordinator: str) -> None:
        self._coordinator = coordinator

    async def run(self) -> None:
        """Nothing has to be done."""
        await asyncio.Event().wait()

    async def coordinator(self) -> str:
        """As it was given."""
        return self._coordinator

    def announce(self, address: str, certificate: bytes, stage: int | None) -> None:
        """The coordinator tells those who have to know."""

    async def reach(self, peer_id: str, service: Service, address: str) -> str:
        """There."""
        return address

    async def reach_evidence(self, peer_id: str, address: str) -> str:
        """There."""
        return address


class Discovered:
    """The coordinator announces itself, and its key is on the chain."""

    def __init__(self, lookup: Lookup, identity: NodeIdentity, offered: Offered | None) -> None:
        """Nothing is started before `run`."""
        self._lookup = lookup
        self._offered = offered
        self._identity = identity
        self._discovery: Discovery
        self._started = asyncio.Event()
        self._registry: ModelRegistry | None = None

    async def run(self) -> None:
        """Take part in discovery."""
        from commonweight.peers.discovery import Discovery

        lookup = self._lookup
        self._discovery = Discovery(self._identity, lookup.peers, lookup.model_id, offered=self._offered)
        await self._discovery.start()
        self._started.set()
        try:
            await self._discovery.run()
        finally:
            await self._discovery.stop()

    async def coordinator(self) -> str:
        """Asked of the chain each time: a model's coordinator can change. Raises PeerUnreachable, of the chain, too."""
        await self._started.wait()
        try:
            account = await asyncio.to_thread(self._account)
        except ChainError as error:
            raise PeerUnreachable(f"The chain doesn't say who coordinates the model. {error.args[0]}") from error
        return await self._discovery.find_coordinator(self._lookup.model_id, account, FIND_S)

    def announce(self, address: str, certificate: bytes, stage: int | None) -> None:
        """From the first time on that the coordinator was found."""
        from commonweight.peers.discovery import Claim

        assert self._registry is not None, "a node is assigned a stage by a coordinator that it has found"
        self._discovery.announce(
            Claim(
                role=Role.NODE,
                chain_id=self._registry.chain.chain_id,
                registry=self._registry.address,
                model_id=self._lookup.model_id,
                address=address,
                certificate=certificate,
                stage=stage,
            )
        )

    async def reach(self, peer_id: str, service: Service, address: str) -> str:
        """Directly, or through libp2p."""
        await self._started.wait()
        return (await self._discovery.find_way(self._lookup.model_id, peer_id, service, address)).address

    async def reach_evidence(self, peer_id: str, address: str) -> str:
        """Directly, or through libp2p."""
        await self._started.wait()
        return await self._discovery.reach_evidence(self._lookup.model_id, peer_id, address)

    def _account(self) -> str:
        from commonweight.chain.records import NOBODY
        from commonweight.chain.registry import ModelRegistry
        from commonweight.chain.rpc import Chain

        if self._registry is None:
            self._registry = ModelRegistry(Chain.connect(self._lookup.rpc_url), self._lookup.registry)
        account = self._registry.coordinator_of(self._lookup.model_id)
        if account == NOBODY:
            raise ConfigError(
                f"The registry {self._lookup.registry} has no model 0x{self._lookup.model_id.hex()}. Check --registry "
                "and --model-id."
            )
        return account
