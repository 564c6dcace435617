"""Between protobuf messages and the records that the rules work on; everything is checked on the way in."""

import math

from commonweight.errors import ConfigError, MalformedMessage
from commonweight.identity import public_key_of
from commonweight.rules.answer import MAX_TEMPERATURE, NONCE_BYTES, SESSION_BYTES, Answer
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.report import HOP_WORDS, Hop, Report
from commonweight.wire.channel import split_address
from commonweight.wire.generated import control_pb2

MAX_HOPS = 8192
"""Microbatches in one report: 1.8 MB, well within a control message."""


def audit_to_proto(audit: Audit) -> control_pb2.AuditUnit:
    """The message that names a unit of work."""
    return control_pb2.AuditUnit(
        round=audit.round,
        stage=audit.stage,
        kind=audit.kind.value,
        microbatch=audit.microbatch,
        replica=audit.replica,
    )


def audit_from_proto(message: control_pb2.AuditUnit) -> Audit:
    """The unit in a message; whether a model has such a one is the caller's to check.

    Raises MalformedMessage for a kind of audit that doesn't exist.
    """
    try:
        kind = Kind(message.kind)
    except ValueError as error:
        raise MalformedMessage(f"There are no audits of kind {message.kind!r:.40}.") from error
    microbatch = message.microbatch if message.HasField("microbatch") else None
    return Audit(message.round, message.stage, kind, microbatch, message.replica)


def report_to_proto(
    report: Report, seconds: float = 0.0, busy_s: float = 0.0, bytes_down: int = 0, bytes_up: int = 0
) -> control_pb2.StageReport:
    """The message for a report. Seconds and byte counts aren't signed."""
    hops = [
        control_pb2.Hop(microbatch=hop.microbatch, **{name: getattr(hop, name) for name in HOP_WORDS}, loss=hop.loss)
        for hop in report.hops
    ]
    return control_pb2.StageReport(
        round=report.round,
        stage=report.stage,
        hops=hops,
        gradient_hash=report.gradient_hash,
        round_gradient_hash=report.round_gradient_hash,
        state_before=report.state_before,
        state_after=report.state_after,
        seconds=seconds,
        busy_seconds=busy_s,
        bytes_down=bytes_down,
        bytes_up=bytes_up,
    )


def report_from_proto(message: control_pb2.StageReport) -> Report:
    """The report in a message.

    Raises MalformedMessage naming the field: a hash that isn't 32 bytes, more than MAX_HOPS hops, two of one
    microbatch, a loss that isn't finite or is negative, a duration that isn't. Whether the report was *planned* (its
    round, its microbatches, its stage) is the caller's to check.
    """
    if len(message.hops) > MAX_HOPS:
        raise MalformedMessage(f"hops: a report has at most {MAX_HOPS} hops; this one has {len(message.hops)}.")
    if len({hop.microbatch for hop in message.hops}) < len(message.hops):
        raise MalformedMessage("hops: two are of one microbatch.")
    for name in ("seconds", "busy_seconds"):
        if not (math.isfinite(spent := getattr(message, name)) and spent >= 0):
            raise MalformedMessage(f"{name}: {spent} is not a duration.")
    return Report(
        round=message.round,
        stage=message.stage,
        hops=tuple(_hop(hop, f"hops[{number}]") for number, hop in enumerate(message.hops)),
        gradient_hash=_hash(message.gradient_hash, "gradient_hash"),
        round_gradient_hash=_hash(message.round_gradient_hash, "round_gradient_hash"),
        state_before=_hash(message.state_before, "state_before"),
        state_after=_hash(message.state_after, "state_after"),
    )


def answer_to_proto(answer: Answer) -> control_pb2.AnswerPart:
    """The message for a stage's part of an answer."""
    return control_pb2.AnswerPart(
        round=answer.version,
        session=answer.session,
        nonce=answer.nonce,
        prompt_tokens=answer.prompt_tokens,
        fed=answer.fed,
        ids=answer.ids,
        taken=answer.taken,
        passed=answer.passed,
        temperature=answer.temperature,
        seed=answer.seed,
    )


def answer_from_proto(message: control_pb2.AnswerPart) -> Answer:
    """The part of an answer in a message; whether there was such a session is the caller's to check.

    Raises MalformedMessage naming the field: a session's id or a hash of another size, no tokens, or a temperature that
    isn't finite or is negative.
    """
    if len(message.session) != SESSION_BYTES:
        raise MalformedMessage(f"session: an id has {SESSION_BYTES} bytes; this one has {len(message.session)}.")
    if len(message.nonce) != NONCE_BYTES:
        raise MalformedMessage(f"nonce: one has {NONCE_BYTES} bytes; this one has {len(message.nonce)}.")
    if message.fed == 0:
        raise MalformedMessage("fed: no token went through the stage.")
    if message.prompt_tokens == 0:
        raise MalformedMessage("prompt_tokens: an answer begins with a prompt.")
    temperature = message.temperature
    if not 0 <= temperature <= MAX_TEMPERATURE or math.copysign(1.0, temperature) < 0:
        raise MalformedMessage(f"temperature: {temperature} isn't a number from 0 to {MAX_TEMPERATURE:g}.")
    return Answer(
        version=message.round,
        session=message.session,
        nonce=message.nonce,
        prompt_tokens=message.prompt_tokens,
        fed=message.fed,
        ids=_hash(message.ids, "ids"),
        taken=_hash(message.taken, "taken"),
        passed=_hash(message.passed, "passed"),
        temperature=temperature,
        seed=message.seed,
    )


def split_peer(text: str) -> tuple[str, str, int]:
    """PeerId, host and port of "PEERID@host:port". Raises ConfigError that shows what was given."""
    peer_id, at, address = text.partition("@")
    if not at:
        raise ConfigError(f"{text!r} is not a peer: write it as PEERID@host:port.")
    try:
        public_key_of(peer_id)
    except MalformedMessage as error:
        raise ConfigError(f"{text!r} is not a peer: {error.args[0]}") from error
    host, port = split_address(address)
    if port == 0:
        raise ConfigError(f"{text!r} is not a peer: nobody is reached at port 0.")
    return peer_id, host, port


def _hop(message: control_pb2.Hop, where: str) -> Hop:
    hashes = {name: _hash(getattr(message, name), f"{where}.{name}") for name in HOP_WORDS}
    # The loss is hashed by its bits: a negative zero would make another report of the same loss.
    if not (math.isfinite(message.loss) and message.loss >= 0) or math.copysign(1.0, message.loss) < 0:
        raise MalformedMessage(f"{where}.loss: {message.loss} is not a cross entropy: finite and not negative.")
    return Hop(microbatch=message.microbatch, **hashes, loss=message.loss)


def _hash(value: bytes, field: str) -> bytes:
    if len(value) != HASH_BYTES:
        raise MalformedMessage(f"{field}: a hash has {HASH_BYTES} bytes; this one has {len(value)}.")
    return value
