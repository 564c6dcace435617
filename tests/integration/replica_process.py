"""A replica in a process of its own, for tests that stop it: it answers so many chunks, then says so and no more."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from commonweight.identity import NodeIdentity
from commonweight.wire.generated import state_pb2 as pb
from commonweight.wire.tls import make_certificate
from node.evidence import Evidence
from node.offering import Offering


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Falling(Offering):
    """Silent after `free` chunks."""

    def __init__(self, directory: Path, free: int) -> None:
        super().__init__(directory)
        self.free = free
        self.asked = 0

    async def Chunk(self, request: pb.ChunkRequest, context: Any) -> pb.StateChunk:
        self.asked += 1
        if self.asked > self.free:
            say(chunks=self.asked)
            await asyncio.Event().wait()
        return await super().Chunk(request, context)


async def main() -> None:
    work = json.loads(sys.stdin.readline())
    certificate = make_certificate(NodeIdentity(b"\x72" * 32))
    directory = Path(work["directory"])
    offering, evidence = Falling(directory, work["free"]), Evidence(directory, certificate)
    offering.begin(work["stage"])
    offering.grant(bytes.fromhex(work["granted"]))
    await evidence.listen("127.0.0.1:0", offering)
    address = f"127.0.0.1:{evidence.port}"
    say(peer_id=certificate.peer_id, address=address, certificate=certificate.der.hex())
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
