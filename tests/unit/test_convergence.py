"""`bench convergence` compares models of one size, and says so where one doesn't get there."""

from dataclasses import replace

import pytest

from commonweight.bench.convergence import Convergence, match_d_ff, run_convergence
from commonweight.bench.pipeline import PipelineBench
from commonweight.rules.stages import stage_parameters

TINY = Convergence(
    shape=PipelineBench(d_model=32, n_layers=2, sequence_length=16, microbatches=2),
    over=(4,),
    asynchrony=(),
    averaging_rounds=(),
    target_loss=4.5,
    max_rounds=30,
    held_out_microbatches=1,
    learning_rates=("0.001", "0.01"),
)


def test_models_are_of_one_size_and_the_best_learning_rate_of_each_counts() -> None:
    said: list[str] = []
    results, details = run_convergence(TINY, said.append)
    dense, compressed = details["models"].values()
    assert (dense["boundary_dim"], compressed["boundary_dim"]) == (32, 8)
    assert compressed["parameters"] == pytest.approx(dense["parameters"], rel=0.01)
    assert compressed["boundary_bytes_per_token"] < dense["boundary_bytes_per_token"]
    assert len(said) == 4
    tokens = results[0]
    assert tokens.name == "k = d/4: tokens to 4.5 nats"
    assert tokens.baseline is not None
    assert tokens.ratio is not None
    assert tokens.ratio.median == tokens.candidate.median / tokens.baseline.median
    for runs in details["runs"].values():
        (tried,) = runs
        reached = [run for run in tried if run["reached"]]
        assert reached
        for run in reached:
            *before, last = [loss for _, loss in run["curve"]]
            assert last <= 4.5 < min(before, default=9.0)
    best = min(run["curve"][-1][0] for run in details["runs"]["k = d/4"][0] if run["reached"])
    assert tokens.candidate.median == best


def test_asynchronous_models_differ_from_the_dense_one_in_their_steps_alone() -> None:
    modes = replace(TINY, over=(), asynchrony=("delayed", "look_ahead"), learning_rates=("0.01",), evaluate_every=1)
    results, details = run_convergence(modes, lambda _: None)
    sizes = [{**model, "asynchrony": ""} for model in details["models"].values()]
    assert sizes == [sizes[0]] * 3
    dense, delayed, looking = (runs[0][0]["curve"] for runs in details["runs"].values())
    assert dense[0] != delayed[0] == looking[0], "no step has come through yet"
    assert results[0].name == "dense, delayed: tokens to 4.5 nats"
    assert results[0].ratio is not None
    assert results[0].ratio.median > 1
    assert delayed[2] != looking[2]


def test_replicas_that_step_alone_are_as_one_until_they_have_stepped() -> None:
    modes = replace(TINY, over=(), averaging_rounds=(2,), learning_rates=("0.01",), evaluate_every=1)
    results, details = run_convergence(modes, lambda _: None)
    dense, alone = details["models"].values()
    assert dense | {"averaging_rounds": 2} == alone
    assert results[0].name == "dense, two replicas that average every 2 rounds: tokens to 4.5 nats"
    assert results[0].ratio is not None
    first, second = (runs[0][0]["curve"] for runs in details["runs"].values())
    assert first[:2] != second[:2]
    assert second[-1][1] <= 4.5


def test_a_loss_that_isnt_reached_gives_no_ratio() -> None:
    bench = replace(TINY, target_loss=0.1, max_rounds=2, learning_rates=("0.001",))
    results, _ = run_convergence(bench, lambda _: None)
    assert results[0].name == "k = d/4: tokens to 0.1 nats, not reached by all"
    assert results[0].ratio is None
    again, _ = run_convergence(bench, lambda _: None)
    assert [result.candidate for result in again] == [result.candidate for result in results]


@pytest.mark.parametrize("over", [2, 8, 16, 32, 64])
def test_the_wider_feed_forward_makes_up_for_smaller_projections(over: int) -> None:
    shape = PipelineBench(boundary_dim=256)
    dense = shape.spec("0x" + "00" * 32, 10_000, "float32", 2)
    fitted = {"boundary_dim": 256 // over, "d_ff": match_d_ff(dense, 256 // over)}
    model = dense.model_copy(update={"architecture": dense.architecture.model_copy(update=fitted)})
    sizes = [sum(stage_parameters(each, stage) for stage in range(2)) for each in (model, dense)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.001)
