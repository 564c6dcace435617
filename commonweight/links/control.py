"""What a shaping process does when it is told: one JSON object per line and direction, answered in order.

A request has `do`, a `number` and the fields of that order; the answer has its number and the result, or `error` (a
code) and `message`. The other side is always LinkShaper in client.py.
"""

import asyncio
import json
from typing import Any

from commonweight.errors import CommonweightError, ConfigError
from commonweight.links.link import LinkShape
from commonweight.links.names import covers
from commonweight.links.path import PacketPath, StreamPath
from commonweight.links.paths import Paths
from commonweight.links.proxy import Front
from commonweight.links.sources import Sources

MAX_LINE_BYTES = 4 << 20
"""The statistics of 10,000 paths."""

Fields = dict[str, Any]


class Orders:
    """Orders that concern paths, whatever goes over them."""

    def __init__(self, paths: Paths[StreamPath] | Paths[PacketPath]) -> None:
        self._paths = paths

    async def obey(self, do: str, fields: Fields) -> Fields:
        """Do it, and say what came of it. Raises ConfigError for an order that there isn't, or with other fields."""
        match do, fields:
            case "shape", {"source": str(source), "target": str(target), "shape": dict(shape)}:
                self.check(wanted := LinkShape(**shape))
                self._paths.change(source, target, wanted)
                return {}
            case "cut", {"source": str(source), "target": str(target), "cut": bool(cut)}:
                self._paths.set_cut(source, target, cut)
                return {}
            case "statistics", {}:
                return {"paths": self._paths.statistics()}
        raise ConfigError(f"A shaping process knows no order {do!r} with {', '.join(fields) or 'nothing'}.")

    def check(self, shape: LinkShape) -> None:
        """Raises ConfigError for a shape that these links can't have."""


class Fronts(Orders):
    """Links that connections go over, through fronts."""

    def __init__(self, paths: Paths[StreamPath]) -> None:
        super().__init__(paths)
        self._streams = paths
        self._sources = Sources()
        self._fronts: dict[str, Front] = {}

    async def obey(self, do: str, fields: Fields) -> Fields:
        match do, fields:
            case "open", {"target": str(target)}:
                front = Front(target, self._streams, self._sources)
                host, port = await front.listen()
                self._fronts[f"{host}:{port}"] = front
                return {"address": f"{host}:{port}"}
            case "point", {"address": str(address), "back": None | [str(), int()] as back}:
                self._front(address).back = None if back is None else (back[0], back[1])
                return {}
            case "know", {"source": str(source), "session": int(session)}:
                self._sources.know(source, session)
                return {}
            case "reset", {"source": str(source), "target": str(target)}:
                chosen = [front for front in self._fronts.values() if covers(target, front.target)]
                return {"connections": sum(front.reset(source) for front in chosen)}
            case "statistics", {}:
                fronts = [
                    {"address": address, "target": front.target, "connections": front.connections()}
                    for address, front in self._fronts.items()
                ]
                return {**await super().obey(do, fields), "fronts": fronts}
        return await super().obey(do, fields)

    def check(self, shape: LinkShape) -> None:
        check_stream_shape(shape)

    def _front(self, address: str) -> Front:
        if address not in self._fronts:
            raise ConfigError(f"There is no front {address}.")
        return self._fronts[address]


def check_stream_shape(shape: LinkShape) -> None:
    """Raises ConfigError for a shape that a link between processes can't have."""
    if shape.loss:
        raise ConfigError(
            f"A link between processes can't lose {shape.loss:.3g} of its packets: the connections over it are "
            "carried as streams, which have none. Leave the loss out, or join network namespaces."
        )


async def serve(orders: Orders, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Obey until the other side has gone."""
    while line := await reader.readline():
        request = json.loads(line)
        number = request.pop("number")
        try:
            answer = await orders.obey(request.pop("do"), request)
        except CommonweightError as error:
            answer = {"error": error.code, "message": error.args[0]}
        writer.write(json.dumps({"number": number, **answer}).encode() + b"\n")
        await writer.drain()
