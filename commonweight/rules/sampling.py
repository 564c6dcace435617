"""Which text a microbatch is made of: a pure function of the spec, so that anyone can check it.

The data is cut into windows of sequence_length tokens (each with the next token as its last target). Training
walks through a permutation of all windows, then through another one, and so on: no window is seen twice in a
pass.
"""

from hashlib import sha256

from commonweight.rules.spec import ModelSpec

_ROUNDS = 4


def window_count(spec: ModelSpec) -> int:
    """How many windows the data holds; window w is tokens [w*T, w*T + T + 1)."""
    return (spec.data.tokens - 1) // spec.training.sequence_length


def sample_indices(spec: ModelSpec, round_: int, microbatch: int) -> tuple[int, ...]:
    """The windows of one microbatch, one per sequence."""
    per_microbatch, per_round = spec.training.microbatch_sequences, spec.training.microbatches_per_round
    if round_ < 0 or not 0 <= microbatch < per_round:
        raise ValueError(f"round {round_}, microbatch {microbatch} doesn't exist: a round has {per_round} microbatches")
    count = window_count(spec)
    first = (round_ * per_round + microbatch) * per_microbatch
    return tuple(
        permute(position % count, count, f"{spec.seed}/{position // count}".encode())
        for position in range(first, first + per_microbatch)
    )


def permute(index: int, count: int, key: bytes) -> int:
    """Where a keyed pseudo-random permutation of range(count) takes `index`.

    A balanced Feistel network over the next even power of two, walked until it lands inside the range (Black
    and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): fewer than four steps on average.
    """
    if not 0 <= index < count:
        raise ValueError(f"index {index} is outside range({count})")
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for number in range(_ROUNDS):
            digest = sha256(b"%d/%d/" % (number, right) + key).digest()
            left, right = right, left ^ (int.from_bytes(digest[:8], "big") & mask)
        index = left << half_bits | right
        if index < count:
            return index
