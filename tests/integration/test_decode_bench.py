"""`bench decode` measures what it says, on a model small enough for a test."""

import pytest

from commonweight.bench.decode import DecodeBench, run_decode_bench

TINY = DecodeBench(
    stages=2,
    d_model=32,
    boundary_dim=8,
    n_layers=2,
    sequence_length=32,
    prompt_tokens=4,
    tokens=8,
    threads=(1,),
    pairs=1,
)


@pytest.mark.slow
def test_an_answer_is_compared_with_the_unsplit_model_and_taken_apart() -> None:
    unsplit, hop, compute = run_decode_bench(TINY)
    assert unsplit.name == "unsplit, 1 thread, the best"
    assert unsplit.baseline is not None
    assert unsplit.ratio is not None
    assert unsplit.ratio.min <= unsplit.ratio.median <= unsplit.ratio.max
    assert (unsplit.target, hop.limit) == (0.4, 0.9)
    per_token_ms = 1000 / unsplit.candidate.median
    assert 0 < compute.candidate.median < per_token_ms
    assert hop.candidate.median * TINY.hops + compute.candidate.median == pytest.approx(per_token_ms)
