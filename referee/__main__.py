"""The referee: `python -m referee --link-fd N`. Its only link to who started it, a coordinator or an auditor, is that
socket.

It replays one unit at a time, at the lowest claim to the processor, and goes on after whatever befalls an audit. The
event loop fetches; one other thread computes, and nothing runs beside it.
"""

import argparse
import asyncio
import gc
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from commonweight.errors import CommonweightError, UnplannedMessage
from commonweight.model.data import Dataset
from commonweight.rules.audits import Kind
from commonweight.rules.spec import parse_spec
from commonweight.wire.evidence import EvidenceClient
from commonweight.wire.generated import control_pb2
from commonweight.wire.generated import referee_pb2 as pb
from commonweight.wire.link import Link, connect_link
from commonweight.wire.messages import answer_from_proto, audit_from_proto, report_from_proto
from commonweight.wire.tls import Certificate, peer_id_of
from referee.answers import audit_answer
from referee.auditor import Auditor
from referee.nodes import NodeSource
from referee.recording import record_unit

NICENESS = 19


async def serve(link: Link) -> None:
    """Answer commands, one after the other, until the link is closed.

    Raises what makes a start impossible: SpecError, IdentityMismatch, or DataError where the text isn't the spec's.
    """
    auditor: Auditor | None = None
    client: EvidenceClient | None = None
    try:
        while (command := await link.receive(pb.RefereeCommand)) is not None:
            match command.WhichOneof("body"):
                case "start" if auditor is None:
                    start = command.start
                    client = EvidenceClient(
                        Certificate(start.certificate, start.private_key, peer_id_of(start.certificate))
                    )
                    auditor = await asyncio.to_thread(_open_auditor, start)
                    gc.collect()
                    gc.freeze()  # of a module's hundred thousand objects none is looked at again after each audit
                    await link.send(pb.RefereeEvent(ready=pb.RefereeReady(numerics=auditor.numerics)))
                case "audit" if auditor is not None and client is not None:
                    opinion = await _audit(auditor, client, command.audit)
                    await link.send(pb.RefereeEvent(opinion=opinion))
                case "record" if auditor is not None and client is not None:
                    recording = await _record(auditor, client, command.record)
                    await link.send(pb.RefereeEvent(recording=recording))
                case other:
                    raise UnplannedMessage(f"{other!r} came, which this referee doesn't expect now.")
    finally:
        if client is not None:
            await client.close()


def _open_auditor(start: pb.RefereeStart) -> Auditor:
    spec = parse_spec(start.spec)
    dataset = Dataset.open(start.data_dir, spec) if start.data_dir else None
    return Auditor(spec, start.device or "cpu", dataset)


async def _audit(auditor: Auditor, client: EvidenceClient, order: control_pb2.AuditOrder) -> control_pb2.AuditOpinion:
    started_s, cpu_started_s = time.monotonic(), time.process_time()
    unit, sources = audit_from_proto(order.unit), [NodeSource(client, source) for source in order.sources]
    if unit.kind is Kind.ANSWER:
        outcome = await audit_answer(auditor, unit, answer_from_proto(order.answer), order.version_root, sources)
    else:
        outcome = await auditor.audit(unit, report_from_proto(order.report), order.report.numerics, sources)
    return control_pb2.AuditOpinion(
        unit=order.unit,
        verdict=outcome.verdict.value,
        why=outcome.why,
        evidence=outcome.evidence,
        seconds=time.monotonic() - started_s,
        cpu_seconds=time.process_time() - cpu_started_s,
        fetched_bytes=outcome.fetched_bytes,
    )


async def _record(auditor: Auditor, client: EvidenceClient, wanted: pb.RecordOperators) -> pb.Recording:
    order = wanted.order
    return await record_unit(
        auditor,
        audit_from_proto(order.unit),
        report_from_proto(order.report),
        [NodeSource(client, source) for source in order.sources],
        wanted.tensors_of if wanted.HasField("tensors_of") else None,
    )


def main() -> None:
    """Run until the link is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link-fd", type=int, required=True)
    link_fd: int = parser.parse_args().link_fd
    os.nice(NICENESS)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    async def run() -> None:
        # One thread, so that every replay runs where the numerics class was measured.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "compute"))
        async with await connect_link(link_fd) as link:
            await serve(link)

    try:
        asyncio.run(run())
    except CommonweightError as error:
        sys.exit(f"The referee ends: {error}")


if __name__ == "__main__":
    main()
