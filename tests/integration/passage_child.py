"""A relay, a node that serves, or one that calls it, in a process of its own.

    relay  KEY LISTEN
    serve  KEY LISTEN FOLDER GRPC_LISTEN [RELAY]
    call   KEY LISTEN FOLDER PEER_ID ADDRESS PEER_ADDRESS…

KEY is a text from which the node's key follows; "near" and "far" admit each other. Certificates lie in FOLDER, by
PeerId.
"""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from eth_hash.auto import keccak

from commonweight.errors import CommonweightError
from commonweight.events import emit, log_to_stdout
from commonweight.identity import NodeIdentity
from commonweight.peers.address import PeerAddress, parse_peer
from commonweight.peers.bridge import TrioThread
from commonweight.peers.host import HostConfig, open_host
from commonweight.peers.offered import Offered, Service
from commonweight.peers.passage import Passage, Whereabouts, open_passage
from commonweight.peers.relay import serve_relay
from commonweight.peers.ways import find_way
from commonweight.wire.channel import PIPE_FRAME_BYTES, serve, split_address
from commonweight.wire.tls import Certificate, make_certificate, server_credentials
from tests.integration.passages import MIB, Echo, calling, stream, unary

MESSAGES = 4


def identity_of(key: str) -> NodeIdentity:
    return NodeIdentity(keccak(key.encode()))


EVERYBODY = frozenset(identity_of(key).peer_id for key in ("near", "far"))


async def relay(key: str, listen: str) -> None:
    thread = TrioThread(lambda: open_host(HostConfig(identity_of(key), listen)))
    serve_relay(await thread.start())
    emit("child.ready", peer_id=identity_of(key).peer_id)
    await thread.died


@asynccontextmanager
async def node(
    key: str, listen: str, folder: Path, relays: Sequence[PeerAddress], services: dict[Service, str]
) -> AsyncIterator[tuple[TrioThread[Passage], Passage, Certificate]]:
    certificate = make_certificate(identity_of(key))
    (folder / certificate.peer_id).write_bytes(certificate.der)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Passage]:
        async with (
            open_host(HostConfig(identity_of(key), listen, advertise=f"{key}.example")) as host,
            open_passage(host, relays, Offered(services, EVERYBODY)) as passage,
        ):
            yield passage

    thread = TrioThread(opened)
    yield thread, await thread.start(), certificate
    await thread.stop()


async def serve_echo(key: str, listen: str, folder: str, grpc_listen: str, *relays: str) -> None:
    services: dict[Service, str] = {}
    async with node(key, listen, Path(folder), [parse_peer(each) for each in relays], services) as (thread, _, mine):
        everybody = server_credentials(mine, lambda: [path.read_bytes() for path in Path(folder).iterdir()])
        _, port = await serve([(Echo().add, None)], grpc_listen, everybody, max_message_bytes=PIPE_FRAME_BYTES)
        services["data"] = f"127.0.0.1:{port}"
        emit("child.ready", peer_id=mine.peer_id, address=f"{split_address(grpc_listen)[0]}:{port}")
        await thread.died


async def call(key: str, listen: str, folder: str, peer_id: str, address: str, *peer_addresses: str) -> None:
    async with node(key, listen, Path(folder), (), {}) as (thread, passage, mine):
        where = Whereabouts.of(peer_id, peer_addresses)
        began = time.monotonic()
        try:
            way = await find_way(thread, passage, where, "data", address)
        except CommonweightError as error:
            emit("child.failed", code=error.code, message=error.args[0])
            return
        emit("child.found", kind=way.kind, why=way.why, seconds=time.monotonic() - began)
        theirs = (Path(folder) / peer_id).read_bytes()
        async with calling(way.address, mine, theirs) as channel:
            began = time.monotonic()
            for _ in range(MESSAGES):
                payload = secrets.token_bytes(MIB)
                assert await unary(channel)(payload, timeout=60) == payload
            emit("child.echoed", bytes=MESSAGES * MIB, seconds=time.monotonic() - began)
            opened = stream(channel)(timeout=60)
            try:
                while True:
                    payload = secrets.token_bytes(MIB)
                    await opened.write(payload)
                    assert await opened.read() == payload
                    emit("child.streamed")
            except grpc.aio.AioRpcError as error:
                emit("child.broken", status=error.code().name)


if __name__ == "__main__":
    log_to_stdout()
    roles = {"relay": relay, "serve": serve_echo, "call": call}
    asyncio.run(roles[sys.argv[1]](*sys.argv[2:]))
