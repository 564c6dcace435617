"""`bench pipeline` measures what it says, on a model small enough for a test."""

import pytest

from commonweight.bench.pipeline import PipelineBench, run_pipeline_bench

TINY = PipelineBench(
    stages=2,
    d_model=32,
    boundary_dim=8,
    n_layers=2,
    sequence_length=32,
    microbatch_sequences=2,
    microbatches=4,
    pairs=2,
    best_of=(1, 2),
)


@pytest.mark.slow
def test_turns_are_compared_and_each_stage_says_what_it_did_with_its_time() -> None:
    results = {result.name: result for result in run_pipeline_bench(TINY, ("float32",))}
    title = "2 stages, float32: "
    assert next(iter(results)) == f"{title}unsplit, 2 threads, 4 × 2"
    small = results[f"{title}torch 1F1B over gloo, 8 × 1"]
    assert small.ratio is not None
    assert small.ratio.min <= small.ratio.median <= small.ratio.max
    assert small.target == 1.14
    crossed = results[f"{title}a boundary, both ways"].candidate.median
    assert 2 * 8 * 4 + 1 < crossed < 2 * 8 * 4 + 10
    for stage in range(2):
        computes = results[f"{title}stage {stage} computes, hashes, writes"].candidate
        waits = results[f"{title}stage {stage} waits"].candidate
        assert 0 < computes.min <= computes.max < 1.05
        assert computes.max + waits.min == pytest.approx(1)
        assert results[f"{title}stage {stage} transport, beside it"].candidate.median > 0
