"""What a coordinator may order an auditor to replay."""

from commonweight.errors import MalformedMessage
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.report import NO_TENSOR, Report
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import audit_from_proto, report_from_proto
from commonweight.wire.referee import SOURCES


def read_order(spec: ModelSpec, order: pb.AuditOrder) -> tuple[Audit, Report]:
    """The unit that is to be replayed, and the report that it is held against.

    Raises MalformedMessage where this model has no such unit, where only the coordinator's own referee audits it, or
    where the report isn't of its round, or says nothing about it.
    """
    unit, microbatches = order.unit, spec.training.microbatches_per_round
    if unit.stage >= spec.stages:
        raise MalformedMessage(f"unit.stage: {unit.stage} of a model with {spec.stages} stages.")
    single = Kind.LOSS if unit.stage == spec.stages - 1 else Kind.MICROBATCH
    kind = single if unit.HasField("microbatch") else Kind.ROUND
    if unit.kind != kind.value:
        raise MalformedMessage(f"unit.kind: {unit.kind!r:.40} where a {kind.value} audit is the only one.")
    report = report_from_proto(order.report)
    if (report.round, report.stage) != (unit.round, unit.stage):
        raise MalformedMessage(
            f"report: of round {report.round}, stage {report.stage}, for the audit of round {unit.round}, stage "
            f"{unit.stage}."
        )
    load = report.load
    if not load or load[-1] >= microbatches:
        raise MalformedMessage(
            f"report: of the microbatches {list(load)!r:.100}, where a round's are numbered up to {microbatches}."
        )
    if unit.HasField("microbatch") and unit.microbatch not in load:
        raise MalformedMessage(f"unit.microbatch: {unit.microbatch} of a report on {list(load)!r:.100}.")
    # No replay looks there: an auditor could be made to pass another claim than the provider's.
    outer = ["activation_in", "gradient_out"] if unit.stage == 0 else []
    outer += ["activation_out", "gradient_in"] if unit.stage == spec.stages - 1 else []
    if any(getattr(hop, side) != NO_TENSOR for hop in report.hops for side in outer):
        raise MalformedMessage(f"report: a tensor crosses the outer side of stage {unit.stage}, where nothing does.")
    if len(order.sources) > SOURCES:
        raise MalformedMessage(f"sources: {len(order.sources)}, of at most {SOURCES}.")
    return audit_from_proto(unit), report
