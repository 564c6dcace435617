"""Stages in processes of their own, over gRPC, are the same computation as the same stages chained in one process."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from commonweight.bench.pipeline import PipelineBench
from commonweight.bench.pipeline_workers import START_S, PipelineWorkers, StageRound, _neighbour
from commonweight.rules.report import NO_TENSOR, find_mismatch
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import boundary_bytes_per_token
from commonweight.wire.channel import PIPE_PART_BYTES
from commonweight.wire.generated import control_pb2, worker_pb2
from tests.integration.network import pack_text, tiny_spec, train_in_process

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]


class Pipeline(PipelineWorkers):
    """Workers that can be told to go on from any round that they have."""

    generation = 1

    async def form(self, round_: int) -> None:
        """New pipes, from this round on."""
        self.generation += 1
        for stage, worker in enumerate(self._workers):
            formation = control_pb2.Formation(generation=self.generation, round=round_)
            formation.previous.extend(map(_neighbour, self._workers[:stage][-1:]))
            formation.next.extend(map(_neighbour, self._workers[stage + 1 :][:1]))
            await worker.link.send(worker_pb2.WorkerCommand(formation=formation))
        for worker in self._workers:
            async with asyncio.timeout(START_S):
                while (event := await worker.link.receive(worker_pb2.WorkerEvent)) is not None:
                    if event.WhichOneof("body") != "failure" or event.failure.generation == self.generation:
                        break  # a failure of the generation before: its pipes have just been closed
            assert event is not None
            assert event.pipes_open.generation == self.generation, event

    async def _broadcast(self, **body: Any) -> None:
        if "plan" in body:
            body["plan"].generation = self.generation
        await super()._broadcast(**body)


def packed_spec(folder: Path, stages: int = 2, **training: Any) -> ModelSpec:
    return tiny_spec(*pack_text(folder / "data"), stages=stages, **training)


def losses_of(parts: list[StageRound]) -> list[float]:
    return [hop.loss for hop in parts[-1].report.hops]


def check_hops(parts: list[StageRound]) -> None:
    """Neighbours name the same bytes, and name some wherever there is a boundary."""
    assert find_mismatch([{"its only node": part.report} for part in parts]) is None
    for above, below in zip(parts, parts[1:], strict=False):
        for sent, taken in zip(above.report.hops, below.report.hops, strict=True):
            named = {sent.tokens, sent.activation_out, taken.gradient_out}
            assert len(named) == 3
            assert NO_TENSOR not in named


async def train_alike(spec: ModelSpec, folder: Path, rounds: int) -> list[StageRound]:
    """The last round's parts, after rounds that were all those of one process to the bit."""
    expected_losses, expected_roots = train_in_process(spec, folder / "data", rounds)
    before = None
    async with Pipeline(spec, folder / "data", folder / "state") as pipeline:
        for round_ in range(rounds):
            parts = await pipeline.train(round_)
            check_hops(parts)
            assert losses_of(parts) == expected_losses[round_]
            assert [part.report.state_after for part in parts] == expected_roots[round_]
            if before is not None:
                assert [part.report.state_before for part in parts] == before
            before = [part.report.state_after for part in parts]
    assert rounds == 1 or sum(expected_losses[-1]) < sum(expected_losses[0])
    return parts


@pytest.mark.parametrize("asynchrony", ["none", "delayed", "look_ahead"])
async def test_rounds_that_are_planned_ahead_are_those_of_one_process(tmp_path: Path, asynchrony: str) -> None:
    spec = packed_spec(tmp_path, stages=3, asynchrony=asynchrony)
    expected_losses, expected_roots = train_in_process(spec, tmp_path / "data", 6)
    async with Pipeline(spec, tmp_path / "data", tmp_path / "state") as pipeline:
        rounds = await pipeline.train_rounds(range(6))
    assert [losses_of(parts) for parts in rounds] == expected_losses
    assert [[part.report.state_after for part in parts] for parts in rounds] == expected_roots
    for parts in rounds:
        check_hops(parts)


@pytest.mark.parametrize(("stages", "rounds"), [(2, 20), (4, 6)], ids=str)
async def test_a_pipeline_of_processes_is_bit_equal_to_one_process(tmp_path: Path, stages: int, rounds: int) -> None:
    await train_alike(packed_spec(tmp_path, stages), tmp_path, rounds)


def check_bytes(spec: ModelSpec, parts: list[StageRound], algebra: int) -> None:
    """What went over the boundary of two stages is what the algebra says for a token, and hardly more."""
    above, below = parts
    assert (above.bytes_up, below.bytes_down) == (0, 0)
    assert boundary_bytes_per_token(spec).sent == algebra
    assert algebra < (above.bytes_down + below.bytes_up) / spec.training.tokens_per_round < 1.05 * algebra


async def test_a_boundary_costs_what_the_algebra_says(tmp_path: Path) -> None:
    """At a shape whose microbatches are over the limit of a frame and go in several parts."""
    bench = PipelineBench(d_model=160, n_layers=2, boundary_dim=128, microbatch_sequences=8, microbatches=2)
    spec = bench.spec(*pack_text(tmp_path / "data"), "float32", 2)
    assert spec.training.tokens_per_microbatch * spec.architecture.boundary_dim * 4 >= PIPE_PART_BYTES
    check_bytes(spec, await train_alike(spec, tmp_path, 1), 2 * 128 * 4 + 1)


async def test_half_precision_is_bit_equal_too_and_halves_what_a_boundary_costs(tmp_path: Path) -> None:
    bench = PipelineBench(d_model=64, n_layers=2, boundary_dim=16, microbatches=2)
    spec = bench.spec(*pack_text(tmp_path / "data"), "bfloat16", 2)
    check_bytes(spec, await train_alike(spec, tmp_path, 6), 2 * 16 * 2 + 1)


async def test_workers_go_back_to_a_checkpoint_and_repeat_it_and_fresh_ones_go_on_from_it(tmp_path: Path) -> None:
    spec = packed_spec(tmp_path)
    expected_losses, expected_roots = train_in_process(spec, tmp_path / "data", 5)
    async with Pipeline(spec, tmp_path / "data", tmp_path / "state") as pipeline:
        first = [await pipeline.train(round_) for round_ in range(4)]
        await pipeline.form(3)  # it is at 4; a holder was lost before round 3 was sealed
        assert await pipeline.train(3) == first[3]
        await pipeline.form(4)  # nothing to restore
    assert [part.report.state_after for part in first[3]] == expected_roots[3]
    async with Pipeline(spec, tmp_path / "data", tmp_path / "state") as pipeline:
        await pipeline.form(4)
        parts = await pipeline.train(4)
        await pipeline.form(0)  # from the spec
        assert await pipeline.train(0) == first[0]
    assert [part.report.state_before for part in parts] == expected_roots[3]
    assert [part.report.state_after for part in parts] == expected_roots[4]
    assert losses_of(parts) == expected_losses[4]
