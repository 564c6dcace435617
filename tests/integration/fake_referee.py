"""A referee that does what its `device` says: `python -m tests.integration.fake_referee --link-fd N`. No torch."""

import asyncio
import os
import signal
import sys

from commonweight.wire.generated import referee_pb2 as pb
from commonweight.wire.link import connect_link


async def serve(link_fd: int) -> None:
    async with await connect_link(link_fd) as link:
        how = ""
        while (command := await link.receive(pb.RefereeCommand)) is not None:
            if command.HasField("start"):
                how = command.start.device
                if how == "no start":
                    sys.exit("The referee ends: as it was told.")
                verdict = pb.RefereeVerdict(verdict="passed")
                odd = pb.RefereeEvent(verdict=verdict)
                await link.send(odd if how == "odd start" else pb.RefereeEvent(ready=pb.RefereeReady(numerics="fake")))
                continue
            unit = command.audit.unit
            match how:
                case "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "silent":
                    await asyncio.Event().wait()
                case "another unit":
                    unit.round += 1
            verdicts = {"no such verdict": "guilty", "no evidence": "failed", "idle evidence": "passed"}
            evidence = {"idle evidence": b"{}"}.get(how, b"")
            found = pb.RefereeVerdict(unit=unit, verdict=verdicts.get(how, "passed"), evidence=evidence)
            await link.send(pb.RefereeEvent(verdict=found))


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[sys.argv.index("--link-fd") + 1])))
