"""The links between a devnet's nodes: in front of each of a node's services stands a front of the shaping process."""

from types import TracebackType
from typing import Self

from commonweight.errors import StateError
from commonweight.events import Event
from commonweight.links.client import LinkShaper
from commonweight.links.link import LinkShape
from commonweight.links.names import ANY

SERVICES = {"worker.started": "data", "decode.started": "decode", "evidence.listening": "evidence"}
"""Of a node, by the event that tells the port on which it listens."""
HOST = "127.0.0.1"


class Wiring:
    """Whoever connects to a node goes over a path from its own name to the node's. Lasts as long as the context.

    Raises as LinkShaper.
    """

    def __init__(self, seed: int) -> None:
        """`seed`: of jitter."""
        self._shaper = LinkShaper(seed=seed)
        self._fronts: dict[str, dict[str, str]] = {}
        """By node and service, the address that others are told."""

    async def __aenter__(self) -> Self:
        await self._shaper.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._shaper.__aexit__(kind, error, traceback)

    async def watch(self) -> None:
        """Raises StateError once the shaping process is gone: nobody reaches a node any more."""
        await self._shaper.ended()
        raise StateError("The process that carries the links between nodes has ended, which ends the devnet.")

    async def front(self, node: str) -> dict[str, str]:
        """Where a node that is to be started is reached: host:port by service."""
        self._fronts[node] = {service: await self._shaper.open(node) for service in SERVICES.values()}
        return self._fronts[node]

    async def know(self, name: str, pid: int) -> None:
        """What this process and its children connect to from now on is reached from `name`."""
        await self._shaper.know(name, pid)

    async def follow(self, name: str, event: Event) -> None:
        """Take in where a node's service listens."""
        if name in self._fronts and (service := SERVICES.get(event.name)) is not None:
            await self._shaper.point(self._fronts[name][service], (HOST, event.fields["port"]))

    async def forget(self, name: str) -> None:
        """A node has ended: nobody is behind its fronts until it listens again."""
        for address in self._fronts.get(name, {}).values():
            await self._shaper.point(address, None)

    async def shape(self, shape: LinkShape) -> None:
        """Of all paths, each way."""
        await self._shaper.shape(ANY, ANY, shape)

    async def cut(self, source: str, target: str) -> None:
        """Nothing arrives any more, one way."""
        await self._shaper.cut(source, target)

    async def heal(self) -> None:
        """End all cuts."""
        await self._shaper.heal()
