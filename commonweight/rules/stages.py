"""Where a model is cut, and what a stage's work on one microbatch costs.

The unit of work is one floating-point operation (a multiply and an add are two), computed from the spec and
never reported by the one who is paid for it.
"""

from dataclasses import dataclass

from commonweight.rules.spec import Dtype, ModelSpec

_ITEMSIZE: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


def layer_flops(spec: ModelSpec) -> int:
    """Forward FLOPs of one decoder layer for one microbatch: matrix products and causal attention."""
    a = spec.architecture
    kv_dim = a.n_kv_heads * a.head_dim
    weights = (
        a.d_model * (a.d_model + 2 * kv_dim)  # query, key and value
        + a.d_model * a.boundary_dim  # attention output, into the subspace
        + 2 * a.d_model * a.d_ff  # gate and up
        + a.d_ff * a.boundary_dim  # down, into the subspace
    )
    if not a.is_dense:
        weights += 2 * a.boundary_dim * a.d_model  # each sublayer reads the stream back as c Uᵀ
    tokens = spec.training.tokens_per_microbatch
    # Scores and weighted values: two products over, on average, half of the sequence.
    attention = 2 * a.d_model * (spec.training.sequence_length + 1)
    return tokens * (2 * weights + attention)


def head_flops(spec: ModelSpec) -> int:
    """Forward FLOPs of the output head for one microbatch."""
    a = spec.architecture
    rebuild = 0 if a.is_dense else a.boundary_dim * a.d_model
    return spec.training.tokens_per_microbatch * 2 * (a.vocab_size * a.d_model + rebuild)


def stage_layers(spec: ModelSpec) -> tuple[range, ...]:
    """The layers of each stage, contiguous and in order; every stage has at least one.

    The last stage also computes the head, so it gets as many layers as make the slowest stage fastest; the
    others share the rest evenly, the earlier ones taking what doesn't divide.
    """
    n_layers, n_others = spec.architecture.n_layers, spec.stages - 1
    if n_others == 0:
        return (range(n_layers),)
    layer, head = layer_flops(spec), head_flops(spec)

    def slowest(tail: int) -> int:
        return max(-(-(n_layers - tail) // n_others) * layer, tail * layer + head)

    # At most the even share and at least one; of equals the largest, so that a small head changes nothing.
    tail = min(range(n_layers // spec.stages, 0, -1), key=slowest)
    share, extra = divmod(n_layers - tail, n_others)
    sizes = [share + (i < extra) for i in range(n_others)] + [tail]
    starts = [sum(sizes[:i]) for i in range(spec.stages)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


def stage_units(spec: ModelSpec, stage: int) -> int:
    """Work units (FLOPs, forward and backward) of `stage` for one microbatch.

    The backward pass costs twice the forward pass: one product for the input's gradient, one for the
    weight's.
    """
    forward = len(stage_layers(spec)[stage]) * layer_flops(spec)
    if stage == spec.stages - 1:
        forward += head_flops(spec)
    return 3 * forward


def in_flight_limit(spec: ModelSpec, stage: int) -> int:
    """How many microbatches `stage` may have sent on without their gradients having come back.

    One for each stage from this one to the last keeps them all busy (1F1B; PipeDream, SOSP 2019); one more
    hides the time on the wire.
    """
    return min(spec.stages - stage + 1, spec.training.microbatches_per_round)


def stage_parameters(spec: ModelSpec, stage: int) -> int:
    """Trained parameters of `stage`. The frozen U and F, which follow from the seed, are not counted."""
    a = spec.architecture
    attention = a.d_model + (a.n_heads + 2 * a.n_kv_heads) * a.head_dim * a.d_model + a.d_model * a.boundary_dim
    ffn = a.d_model + 2 * a.d_ff * a.d_model + a.d_ff * a.boundary_dim
    count = len(stage_layers(spec)[stage]) * (attention + ffn)
    if stage == 0:
        count += a.vocab_size * a.boundary_dim  # E
    if stage == spec.stages - 1:
        count += a.d_model + a.vocab_size * a.d_model  # final norm and head
    return count


def state_bytes(spec: ModelSpec, stage: int) -> int:
    """Bytes of a version of `stage`, float32: each parameter, and what the optimizer keeps for it."""
    return 4 * (1 + len(spec.training.optimizer_parts)) * stage_parameters(spec, stage)


@dataclass(frozen=True)
class BoundaryBytes:
    """What one token costs on the way over one boundary and back, in bytes."""

    sent: int
    """k numbers down, k back, and the token's id; without the one further id per sequence, and framing."""
    uncompressed: int
    """The same with the d numbers of the residual stream, and nothing else."""


def boundary_bytes_per_token(spec: ModelSpec) -> BoundaryBytes:
    """Bytes per trained token over a boundary between two stages, as this spec sends them and
    uncompressed."""
    a, itemsize = spec.architecture, _ITEMSIZE[spec.training.boundary_dtype]
    return BoundaryBytes(2 * code_bytes(spec) + token_id_bytes(a.vocab_size), 2 * a.d_model * itemsize)


def code_bytes(spec: ModelSpec) -> int:
    """Bytes of one token's k numbers, as they travel."""
    return spec.architecture.boundary_dim * _ITEMSIZE[spec.training.boundary_dtype]


def token_id_bytes(vocab_size: int) -> int:
    """Bytes of one token id on the wire: the smallest of the wire's integer types that holds all ids."""
    return 1 if vocab_size <= 2**8 else 2 if vocab_size <= 2**16 else 4
