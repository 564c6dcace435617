"""A referee that does what its `device` says: `python -m tests.integration.fake_referee --link-fd N`. No torch."""

import asyncio
import os
import signal
import sys

from commonweight.wire.generated import control_pb2
from commonweight.wire.generated import referee_pb2 as pb
from commonweight.wire.link import connect_link

EVIDENCE = b'{"fake":true}'
OPERATORS = b"".join(bytes([number]) * 32 for number in range(5))
"""The hash of the numerics class, and those of four operators."""
VERDICTS = {"no such verdict": "guilty", "no evidence": "failed", "fraud": "failed"}
RECORDINGS = {
    "torn": pb.Recording(operators=OPERATORS[:-1]),
    "empty": pb.Recording(),
    "can't record": pb.Recording(failure="It is of another class."),
}


def opinion(how: str, unit: control_pb2.AuditUnit) -> control_pb2.AuditOpinion:
    evidence = {"idle evidence": b"{}", "fraud": EVIDENCE}.get(how, b"")
    return control_pb2.AuditOpinion(unit=unit, verdict=VERDICTS.get(how, "passed"), evidence=evidence)


async def serve(link_fd: int) -> None:
    async with await connect_link(link_fd) as link:
        how = ""
        while (command := await link.receive(pb.RefereeCommand)) is not None:
            if command.HasField("start"):
                how = command.start.device
                if how == "no start":
                    sys.exit("The referee ends: as it was told.")
                odd = pb.RefereeEvent(opinion=opinion(how, control_pb2.AuditUnit()))
                await link.send(odd if how == "odd start" else pb.RefereeEvent(ready=pb.RefereeReady(numerics="fake")))
                continue
            unit = (command.record.order if command.HasField("record") else command.audit).unit
            match how:
                case "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "silent":
                    await asyncio.Event().wait()
                case "silent on microbatch 0" if unit.microbatch == 0:
                    await asyncio.Event().wait()
                case "another unit":
                    unit.round += 1
            if command.HasField("record"):
                recording = RECORDINGS.get(how, pb.Recording(operators=OPERATORS))
                if command.record.HasField("tensors_of"):
                    recording.record = str(command.record.tensors_of).encode()
                await link.send(pb.RefereeEvent(recording=recording))
            else:
                await link.send(pb.RefereeEvent(opinion=opinion(how, unit)))


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[sys.argv.index("--link-fd") + 1])))
