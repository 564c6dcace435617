"""The load of a replica: which of a round's microbatches it computes.

The replicas of a stage divide a round among themselves: each microbatch is in the load of exactly one of them.
"""

from collections.abc import Collection, Iterable, Sequence

Load = tuple[int, ...]
"""Microbatches, ascending."""
Loads = Sequence[Sequence[Load]]
"""Of all that was reported of a round: by stage, then by replica, in order of the replicas' addresses."""


def pack_load(load: Iterable[int], microbatches: int) -> bytes:
    """As it is signed, for a round of so many: bit j % 8 of byte j // 8, counted from the lowest, says whether j is in
    it.
    """
    packed = bytearray(-(-microbatches // 8))
    for microbatch in load:
        if not 0 <= microbatch < microbatches:
            raise ValueError(f"microbatch {microbatch} isn't one of {microbatches}")
        packed[microbatch // 8] |= 1 << microbatch % 8
    return bytes(packed)


def unpack_load(packed: bytes, microbatches: int) -> Load:
    """The reverse of `pack_load`. Raises ValueError for a wrong length, or bits beyond the round."""
    if len(packed) != -(-microbatches // 8):
        raise ValueError(f"the load of a round of {microbatches} has {-(-microbatches // 8)} bytes, not {len(packed)}")
    bits = int.from_bytes(packed, "little")
    if bits >> microbatches:
        raise ValueError(f"a load beyond the {microbatches} microbatches of a round")
    return tuple(j for j in range(microbatches) if bits >> j & 1)


def is_divided(loads: Collection[Load], microbatches: int) -> bool:
    """Whether each microbatch is in exactly one of them."""
    return sorted(j for load in loads for j in load) == list(range(microbatches))


def undivided(stages: int, microbatches: int) -> Loads:
    """Of a round in which each stage had one replica."""
    return ((tuple(range(microbatches)),),) * stages
