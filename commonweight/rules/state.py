"""How a stage's version is named: one hash over its parts."""

from hashlib import sha256

MOMENTS_HASH = "moments_hash"
"""Beside a version's parameters, in a file or from a node: the `tensors_hash` of its moments, [32] of uint8."""


def state_root(round_: int, frozen_hash: bytes, parameters_hash: bytes, moments_hash: bytes) -> bytes:
    """The hash of a stage's version that is ready to train `round_`, from the `tensors_hash`es of its parts.

    With the 32 bytes of the moments' hash parameters are checked without the moments, which are twice as large or more.
    """
    return sha256(round_.to_bytes(8, "little") + frozen_hash + parameters_hash + moments_hash).digest()
