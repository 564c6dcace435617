"""Between our errors and gRPC's status codes, so that both ends of a call name a failure alike."""

from typing import Any, NoReturn

import grpc

from commonweight.errors import (
    CommonweightError,
    EvidenceMissing,
    IdentityMismatch,
    MalformedMessage,
    MessageTooLarge,
    NonFiniteTensor,
    NoRoom,
    NotServed,
    PeerUnreachable,
    Refused,
    StageLost,
    StateUnavailable,
    UnplannedMessage,
    WireError,
)

_CODES: tuple[tuple[type[CommonweightError], grpc.StatusCode], ...] = (
    (IdentityMismatch, grpc.StatusCode.PERMISSION_DENIED),
    (MessageTooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (MalformedMessage, grpc.StatusCode.INVALID_ARGUMENT),
    (NonFiniteTensor, grpc.StatusCode.INVALID_ARGUMENT),
    (UnplannedMessage, grpc.StatusCode.FAILED_PRECONDITION),
    (Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (NotServed, grpc.StatusCode.UNAVAILABLE),
    (NoRoom, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StageLost, grpc.StatusCode.UNAVAILABLE),
    (EvidenceMissing, grpc.StatusCode.NOT_FOUND),
    (StateUnavailable, grpc.StatusCode.NOT_FOUND),
)
_UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""Nobody says these: a call is cancelled where its connection ends, or its server does."""
_NAMED = (NotServed, NoRoom, StageLost, EvidenceMissing, StateUnavailable)
"""Said by the other side's code: gRPC has the same status for what it finds out by itself."""


async def refuse(context: Any, error: CommonweightError) -> NoReturn:
    """End a call on a grpc.aio server with the code and the message of `error`; never returns."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    await context.abort(code, str(error))
    raise AssertionError("abort() raises")


def wire_error(error: grpc.RpcError, peer: str) -> WireError:
    """What a failed call means. `peer` names for the message who was called: a PeerId and its address."""
    code, details = error.code(), error.details() or ""
    for kind in _NAMED:
        if details.startswith(f"[{kind.code}] "):
            return kind(details.removeprefix(f"[{kind.code}] "))
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return IdentityMismatch(
            f"{peer} presented another certificate than the one expected: it restarted, or somebody else answers there."
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return MessageTooLarge(f"A message to or from {peer} is over the limit: {details}.")
    if code in _UNANSWERED:
        return PeerUnreachable(
            f"{peer} doesn't answer ({details or code.name}). Check that it runs, its address, and that it "
            "admits this node's certificate: a server that doesn't just closes the connection."
        )
    return Refused(f"{peer} refused the call ({code.name}): {details}")
