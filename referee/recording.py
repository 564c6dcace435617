"""One recording: fetch what an audit of the unit takes, and compute it again, noting each operator."""

import asyncio
import gc
import traceback
from collections.abc import Sequence

import safetensors.torch

from commonweight.errors import MalformedMessage, MessageTooLarge
from commonweight.model.narrowing import Recording, record
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.canonical import canonical_json
from commonweight.rules.recording import MAX_RECORD_BYTES, join_hashes
from commonweight.rules.report import Report
from commonweight.wire.generated import referee_pb2 as pb
from referee.auditor import MAX_WHY, Auditor, Case, Contradicted, Undecidable
from referee.sources import Evidence, Source, Withheld


async def record_unit(
    auditor: Auditor, unit: Audit, report: Report, sources: Sequence[Source], tensors_of: int | None = None
) -> pb.Recording:
    """The operators of a unit's replay, with the record and the tensors of number `tensors_of`; or why there are none.

    Both are empty where the replay has no such operator; the tensors, too, where they are too large to be shown.
    Raises nothing. When this returns no tensor of the stage's state is left.
    """
    try:
        found = await _record(auditor, unit, report, Evidence(unit.round, sources), tensors_of)
        return await asyncio.to_thread(_message, auditor.numerics, found, tensors_of)
    except (Contradicted, Withheld, Undecidable, MalformedMessage, MessageTooLarge) as error:
        failure = str(error)
    except Exception as error:  # noqa: BLE001 - a recording's outermost edge: the next audit mustn't suffer
        traceback.print_exc()
        failure = f"The recording broke off: {type(error).__name__}: {error}"
    finally:
        gc.collect()  # an error's traceback may hold a replay in a cycle
    return pb.Recording(failure=failure[:MAX_WHY])


async def _record(
    auditor: Auditor, unit: Audit, report: Report, evidence: Evidence, tensors_of: int | None
) -> Recording:
    if unit.kind is Kind.DATA:
        raise Undecidable("An audit of the tokens replays no operator.")
    case = Case(auditor, unit, report, evidence, exact=True)
    numbers = [hop.microbatch for hop in report.hops] if unit.microbatch is None else [unit.microbatch]
    stage, _ = await case.stage()
    tokens = [await case.tokens(stage, number) for number in numbers]
    codes = [None if stage.is_first else await case.taken("activation_in", number) for number in numbers]
    gradients = [None if stage.is_last else await case.taken("gradient_in", number) for number in numbers]
    is_own = unit.microbatch is None and report.gradient_hash == report.round_gradient_hash
    summed = None if is_own else await case.gradient(stage, report.round_gradient_hash)
    return await asyncio.to_thread(record, stage, tokens, codes, gradients, summed, tensors_of)


def _message(numerics: str, found: Recording, wanted: int | None) -> pb.Recording:
    message = pb.Recording(operators=join_hashes(numerics, found.records), numerics=numerics)
    if wanted is None or wanted >= len(found.records):
        return message
    message.record = canonical_json(found.records[wanted].model_dump(mode="json"))
    if len(message.record) > MAX_RECORD_BYTES:
        raise MessageTooLarge(f"The record of operator {wanted} has {len(message.record)} bytes.")
    if found.tensors:
        message.tensors = safetensors.torch.save(found.tensors)
    return message
