"""What a failed call means to who made it."""

import grpc
import pytest

from commonweight.errors import PeerUnreachable, Refused
from commonweight.wire.status import wire_error


def failed(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"])
def test_a_call_that_nobody_answered_is_worth_repeating(code: str) -> None:
    error = wire_error(failed(grpc.StatusCode[code]), "the coordinator")
    assert isinstance(error, PeerUnreachable)
    assert code in error.args[0]


def test_a_call_that_was_answered_with_no_isnt() -> None:
    error = wire_error(failed(grpc.StatusCode.FAILED_PRECONDITION, "[WIRE_REFUSED] no"), "the coordinator")
    assert isinstance(error, Refused)
