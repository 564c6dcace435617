"""Replicas of a stage divide a round among themselves, and end it with the same bits."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from commonweight.errors import UnplannedMessage
from commonweight.model.corpus import build_dataset
from commonweight.model.replay import replay_microbatch
from commonweight.model.stage import Stage
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.report import NO_TENSOR, Report, find_mismatch
from commonweight.rules.spec import ModelSpec, build_spec
from node.checkpoint import Checkpoints
from node.stage_round import Activation
from node.traces import read_index, trace_path
from node.trainer import Forget
from tests.unit.crew import WAIT_S, Crew
from tests.unit.shares import Row, address, plan_of
from tests.unit.tiny import tiny_spec

torch.set_num_threads(1)

TEXT = "A stage is held by its replicas; they divide each round among themselves, and step alike. " * 40
STAGES, MICROBATCHES = 3, 5
NODES = {address(10 * (stage + 1) + replica): stage for stage in range(STAGES) for replica in range(3)}


def node(stage: int, replica: int) -> str:
    return address(10 * (stage + 1) + replica)


def make_spec(tmp_path: Path, **options: object) -> ModelSpec:
    """Of the text in this folder."""
    (tmp_path / "text").write_text(TEXT)
    manifest = build_dataset([tmp_path / "text"], tmp_path / "data", ByteTokenizer())
    options |= {"grad_clip": "1", "microbatches_per_round": MICROBATCHES}
    fields = tiny_spec(stages=STAGES, vocab_size=256, **options).model_dump()
    fields["data"] |= {"manifest": manifest.hash, "tokens": manifest.tokens}
    return build_spec(fields)


@pytest.fixture(params=[("none", "float32"), ("look_ahead", "float32"), ("none", "int8")], ids="-".join)
def spec(tmp_path: Path, request: pytest.FixtureRequest) -> ModelSpec:
    asynchrony, averaging = request.param
    return make_spec(tmp_path, asynchrony=asynchrony, averaging=averaging)


def rows(*replicas: Sequence[int]) -> list[Row]:
    """For each stage, for each microbatch, the number of the replica that computes it."""
    return [[node(stage, replica) for replica in of_stage] for stage, of_stage in enumerate(replicas)]


def by_stage(reports: dict[str, Report]) -> list[dict[str, Report]]:
    return [{n: r for n, r in reports.items() if r.stage == stage} for stage in range(STAGES)]


def parameters(crew: Crew, who: str, round_: int) -> torch.Tensor:
    """All of one stage, as one vector."""
    stage = Stage(crew.spec, crew.seats[who])
    Checkpoints(crew.folder / who, crew.spec, crew.seats[who]).load(stage, round_)
    return torch.cat([tensor.flatten() for _, tensor in sorted(stage.parameters().items())])


DIVIDED = rows([0, 1, 0, 2, 1], [2, 2, 1, 0, 2], [1, 0, 1, 0, 1])
"""Three replicas of the first two stages, two of the last."""


def test_however_a_round_is_divided_all_replicas_end_it_alike(spec: ModelSpec, tmp_path: Path) -> None:
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        for round_ in range(3):
            reports = crew.train(1, round_, DIVIDED, shadows=[node(2, 2)])
            assert find_mismatch(by_stage(reports)) is None
            for stage, of_stage in enumerate(by_stage(reports)):
                assert {report.state_after for report in of_stage.values()} == {of_stage[node(stage, 0)].state_after}
                for who, report in of_stage.items():
                    assert report.load == tuple(j for j, holder in enumerate(DIVIDED[stage]) if holder == who)
            shadow = reports[node(2, 2)]
            assert (shadow.hops, shadow.gradient_hash) == ((), NO_TENSOR)
            assert shadow.round_gradient_hash == reports[node(2, 0)].round_gradient_hash != NO_TENSOR


@pytest.mark.parametrize("averaging", ["float32", "int8"])
def test_replicas_that_step_alone_are_in_one_state_when_they_have_averaged(tmp_path: Path, averaging: str) -> None:
    spec = make_spec(tmp_path, averaging=averaging, averaging_rounds=2)
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        for round_ in range(4):
            averages = round_ % 2 == 1
            divided = [*DIVIDED[:2], [node(2, 0)] * MICROBATCHES] if averages else DIVIDED
            idle = [node(2, 1)] if averages else []
            reports = crew.train(1, round_, divided, shadows=idle)
            assert find_mismatch(by_stage(reports), alone=not averages) is None
            for of_stage in by_stage(reports):
                for name in ("state_after", "round_gradient_hash"):
                    assert (len({getattr(each, name) for each in of_stage.values()}) == 1) == averages
                for each in of_stage.values():
                    assert (each.gradient_hash == each.round_gradient_hash) != averages


def test_it_ends_as_if_one_had_done_it_but_for_the_order_of_additions(spec: ModelSpec, tmp_path: Path) -> None:
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        one = crew.train(1, 0, rows(*[[0] * MICROBATCHES] * STAGES))
        alone = [parameters(crew, node(stage, 0), 1) for stage in range(STAGES)]
        assert all(report.gradient_hash == report.round_gradient_hash for report in one.values())
        crew.form(2, 0)
        crew.train(2, 0, DIVIDED)
        for stage in range(STAGES):
            divided = parameters(crew, node(stage, 0), 1)
            relative = 1e-5 if spec.training.averaging == "float32" else 1e-2
            assert torch.linalg.vector_norm(divided - alone[stage]) < relative * torch.linalg.vector_norm(alone[stage])


def test_a_replicas_part_is_replayed_in_the_order_that_its_report_has(spec: ModelSpec, tmp_path: Path) -> None:
    """Microbatches come in whatever order others compute them in, and gradients are added as they come."""
    training = spec.training
    ids = training.microbatch_sequences, training.sequence_length + 1
    code = training.microbatch_sequences, training.sequence_length, spec.architecture.boundary_dim
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        reports = crew.train(1, 0, DIVIDED)
        for replica in range(3):
            report = reports[who := node(1, replica)]
            path = trace_path(tmp_path / "crew" / who / "traces", 0)
            content = path.read_bytes()
            kept = {name: content[begin : begin + size] for name, (begin, size) in read_index(path).items()}

            def read(
                name: bytes, dtype: torch.dtype, shape: tuple[int, ...], kept: dict[bytes, bytes] = kept
            ) -> Tensor:
                return torch.frombuffer(bytearray(kept[name]), dtype=dtype).view(shape)

            stage = Stage(spec, 1)
            for hop in report.hops:
                tokens = read(hop.tokens, torch.uint8, ids)
                inputs = [read(name, torch.float32, code) for name in (hop.activation_in, hop.gradient_in)]
                replay_microbatch(stage, tokens, *inputs)
                assert stage.sketch() == hop.sketch
            assert stage.gradient_hash() == report.gradient_hash


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("stage", range(STAGES))
def test_a_lost_replicas_load_is_replayed_from_what_its_neighbours_have_kept(
    spec: ModelSpec, tmp_path: Path, stage: int, after: int
) -> None:
    """It is lost when it has sent so many messages, two of its three microbatches may be done; the others hear of it
    while they compute, or add up.
    """
    divided = rows([0, 1, 0, 2, 0], [0, 1, 0, 2, 0], [0, 1, 0, 2, 0])
    lost, revised = node(stage, 0), [0] * STAGES
    replayed, revised[stage] = list(divided), 1
    replayed[stage] = [node(stage, replica) for replica in (1, 1, 2, 2, 1)]
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        whole = crew.train(1, 0, divided)
        crew.form(2, 0)
        crew.lost[lost] = after
        crew.begin(plan_of(2, 0, divided), crew.seats)
        assert crew.died.get(timeout=WAIT_S) == lost
        others = crew.seats.keys() - {lost}
        crew.begin(plan_of(2, 0, replayed, revised=revised), others)
        reports = crew.reports(others)
        assert find_mismatch(by_stage(reports)) is None
        for who, report in reports.items():
            assert report.load == tuple(j for j, each in enumerate(replayed[crew.seats[who]]) if each == who)

        def computed(found: dict[str, Report]) -> set[tuple[bytes, ...]]:
            return {(hop.activation_out, hop.gradient_out) for report in found.values() for hop in report.hops}

        assert computed(reports) == computed(whole)


def test_who_takes_much_longer_than_before_is_late(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commonweight.rules.placement.HEDGE_MARGIN_S", 0.2)
    divided, slow = rows([0] * 5, [0, 1, 0, 1, 0], [0] * 5), node(1, 1)
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        crew.train(1, 0, divided)
        crew.lost[slow] = 0
        nodes = {each for row in divided for each in row}
        crew.begin(plan_of(1, 1, divided), nodes)
        assert crew.late.get(timeout=WAIT_S) == (node(0, 0), slow)
        others = nodes - {slow}
        crew.begin(plan_of(1, 1, rows([0] * 5, [0] * 5, [0] * 5), revised=[0, 1, 0]), others)
        assert find_mismatch(by_stage(crew.reports(others))) is None


def test_nobody_is_late_with_a_round_before_the_last_one_is_sealed(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is waited for may be stepping still. One hasn't heard of the round that is planned ahead."""
    monkeypatch.setattr("commonweight.rules.placement.HEDGE_MARGIN_S", 0.2)
    divided, slow, waits = rows([0] * 5, [0, 1, 0, 1, 0], [0] * 5), node(1, 1), node(0, 0)
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        crew.train(1, 0, divided)
        others = {each for row in ALONE for each in row}
        crew.begin(plan_of(1, 1, ALONE), others)
        crew.begin(plan_of(1, 2, divided), others)
        assert crew.reports([waits], 1)
        assert crew.late.empty()
        crew.inboxes[waits].put(Forget(1, ()))
        assert crew.late.get(timeout=WAIT_S) == (waits, slow)


def test_several_are_lost_one_after_another_those_that_took_over_among_them(spec: ModelSpec, tmp_path: Path) -> None:
    divided = rows([0, 1, 0, 2, 0], [0, 1, 0, 2, 0], [0, 1, 0, 2, 0])
    plans = [
        ((1, 0), rows([0, 1, 0, 2, 0], [1, 1, 1, 2, 1], [0, 1, 0, 2, 0]), [0, 1, 0]),
        ((1, 1), rows([0, 1, 0, 2, 0], [2] * 5, [0, 1, 0, 2, 0]), [0, 2, 0]),
        ((0, 0), rows([1, 1, 2, 2, 1], [2] * 5, [0, 1, 0, 2, 0]), [3, 2, 0]),
        ((2, 0), rows([1, 1, 2, 2, 1], [2] * 5, [2, 1, 2, 2, 1]), [3, 2, 4]),
    ]
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        whole = crew.train(1, 0, divided)
        crew.form(2, 0)
        crew.lost[node(1, 0)] = 1
        crew.begin(plan_of(2, 0, divided), crew.seats)
        assert crew.died.get(timeout=WAIT_S) == node(1, 0)
        others = set(crew.seats)
        for place, plan, revised in plans:
            crew.lost[node(*place)] = 0
            others -= {node(*place)}
            crew.begin(plan_of(2, 0, plan, revised=revised), others)
        reports = crew.reports(others)
        assert find_mismatch(by_stage(reports)) is None

        def losses(found: dict[str, Report]) -> dict[int, float]:
            return {hop.microbatch: hop.loss for each in by_stage(found)[-1].values() for hop in each.hops}

        assert losses(reports) == losses(whole)


ALONE = rows(*[[0] * MICROBATCHES] * STAGES)


def test_rounds_that_are_planned_ahead_come_out_as_one_by_one(spec: ModelSpec, tmp_path: Path) -> None:
    nodes = {each for row in ALONE for each in row}
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        expected = [crew.train(1, round_, ALONE) for round_ in range(4)]
        crew.form(2, 0)
        crew.begin(plan_of(2, 0, ALONE), nodes)
        for round_, reports in enumerate(expected):
            if round_ + 1 < len(expected):
                crew.begin(plan_of(2, round_ + 1, ALONE), nodes)
            assert crew.reports(nodes, round_) == reports


def test_replicas_of_a_round_that_is_planned_ahead_end_it_alike(spec: ModelSpec, tmp_path: Path) -> None:
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        nodes = {each for row in DIVIDED for each in row}
        crew.begin(plan_of(1, 0, DIVIDED), nodes)
        for round_ in range(4):
            crew.begin(plan_of(1, round_ + 1, DIVIDED), nodes)
            assert find_mismatch(by_stage(crew.reports(nodes, round_))) is None


@pytest.mark.parametrize("after", [1, 4, 6])
def test_who_is_lost_takes_the_plan_of_the_next_round_with_it(spec: ModelSpec, tmp_path: Path, after: int) -> None:
    """It is lost when it has sent so many messages. With a flush six are those of its load: the stage before has done
    its part of the round then, and is at the next one. That one is planned anew when this one is done.
    """
    divided, lost = rows([0] * 5, [0, 1, 0, 2, 0], [0] * 5), node(1, 0)
    replayed = rows([0] * 5, [1, 1, 2, 2, 1], [0] * 5)
    nodes = {each for row in divided for each in row}
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        whole = [crew.train(1, round_, divided) for round_ in range(2)]
        crew.form(2, 0)
        crew.lost[lost] = after
        for round_ in range(2):
            crew.begin(plan_of(2, round_, divided), nodes)
        assert crew.died.get(timeout=WAIT_S) == lost
        others = nodes - {lost}
        done = {node(0, 0)} if after == 6 and not spec.training.is_asynchronous else set()
        crew.reports(done, 0)
        crew.begin(plan_of(2, 0, replayed, revised=[0, 1, 0]), others)
        first = crew.reports(others - done, 0)
        crew.begin(plan_of(2, 1, replayed, since=1), others)
        second = crew.reports(others, 1)
        assert find_mismatch(by_stage(second)) is None

        def losses(found: dict[str, Report]) -> dict[int, float]:
            return {hop.microbatch: hop.loss for each in by_stage(found)[-1].values() for hop in each.hops}

        assert losses(first) == losses(whole[0])
        relative = 1e-5 if spec.training.averaging == "float32" else 1e-3
        assert losses(second) == pytest.approx(losses(whole[1]), rel=relative)


def test_who_has_stepped_already_says_so_and_goes_back(spec: ModelSpec, tmp_path: Path) -> None:
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        crew.train(1, 0, DIVIDED)
        changed = rows([0, 1, 0, 0, 1], [2, 2, 1, 0, 2], [1, 0, 1, 0, 1])
        crew.begin(plan_of(1, 0, changed, revised=[1, 0, 0]), [node(0, 0)])
        with pytest.raises(UnplannedMessage, match="had stepped already"):
            crew.reports([node(0, 0)])
        crew.form(2, 0)
        assert find_mismatch(by_stage(crew.train(2, 0, DIVIDED))) is None


def test_who_has_sent_other_bits_than_its_successor_is_noticed(spec: ModelSpec, tmp_path: Path) -> None:
    divided = rows([0] * 5, [0] * 5, [0] * 5)
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        reports = crew.train(1, 0, divided)
        crew.begin(plan_of(1, 0, [[node(0, 1)] * 5, *divided[1:]], revised=[1, 0, 0]), [node(1, 0)])
        hop = reports[node(1, 0)].hops[0]
        other = Activation(1, node(0, 1), 0, hop.microbatch, torch.zeros(1), torch.zeros(1), (hop.tokens, bytes(32)))
        crew.inboxes[node(1, 0)].put(other)
        with pytest.raises(UnplannedMessage, match="otherwise than from"):
            crew.reports([node(1, 0)])


def test_who_has_shadowed_goes_on_with_a_load(spec: ModelSpec, tmp_path: Path) -> None:
    with Crew(spec, tmp_path / "data", tmp_path / "crew", NODES) as crew:
        crew.form(1, 0)
        first = rows([0] * 5, [0] * 5, [0] * 5)
        shadowed = crew.train(1, 0, first, shadows=[node(0, 1), node(1, 2), node(2, 1)])
        reports = crew.train(1, 1, rows([1] * 5, [0, 2, 0, 2, 0], [1, 0, 1, 0, 1]))
        assert reports[node(0, 1)].state_before == shadowed[node(0, 0)].state_after
        assert find_mismatch(by_stage(reports)) is None
