"""Asynchronous training: the recurrence, rounds that overlap, and what saves, restores and audits a version."""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adversary.cheat import Cheat
from adversary.versions import NoStep, Stale
from commonweight.devnet.byzantine import Cheating
from commonweight.errors import CheckpointError, NonFiniteTensor
from commonweight.model.compare import compare_round
from commonweight.model.hashing import tensors_hash
from commonweight.model.schedule import learning_rate
from commonweight.model.stage import Forward, Stage, train_round
from commonweight.rules.audits import Audit, Verdict
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import state_bytes
from node.checkpoint import Checkpoints
from referee.auditor import Auditor, Outcome
from tests.unit import referee_world
from tests.unit.referee_world import single, whole
from tests.unit.replay_world import ROUND, Trace, again, trained
from tests.unit.tiny import all_stages, random_batches, tiny_spec

torch.set_num_threads(1)

MODES = ["delayed", "look_ahead"]
ROUNDS = 5


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def one_by_one(stages: list[Stage]) -> list[list[bytes]]:
    """The state roots of all stages, after each round."""
    roots = []
    for round_ in range(ROUNDS):
        train_round(stages, random_batches(stages[0].spec, round_))
        roots.append([stage.state_root() for stage in stages])
    return roots


class Twin:
    """The recurrence, written out with torch's own optimizer, which steps the master weights."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.stage = Stage(spec, 0, dtype=torch.float64)
        self.computing = dict(self.stage.module.named_parameters())
        self.master = {name: p.detach().clone().requires_grad_() for name, p in self.computing.items()}
        self.decay = {name: 0.0 if name.endswith("scale") or name == "embedding.E" else 0.1 for name in self.computing}
        groups = [{"params": [self.master[name]], "weight_decay": decay} for name, decay in self.decay.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)

    def train(self, round_: int) -> None:
        for tokens in random_batches(self.spec, round_):
            self.stage.backward(self.stage.forward(tokens, None), None)
        norm = math.hypot(*(parameter.grad.norm().item() for parameter in self.computing.values()))
        for parameter in self.computing.values():
            parameter.grad.mul_(min(1.0, float(self.spec.training.grad_clip) / norm))
        following = {name: self.following(name, round_) for name in self.master}
        for name, parameter in self.computing.items():
            self.master[name].grad, parameter.grad = parameter.grad, None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec.training, round_)
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.computing.items():
                parameter.copy_(following[name])

    def following(self, name: str, round_: int) -> Tensor:
        weight, rate = self.master[name].detach().clone(), learning_rate(self.spec.training, round_)
        if self.spec.training.asynchrony == "delayed" or round_ == 0:
            return weight
        state = self.optimizer.state[self.master[name]]
        size, scale = state["exp_avg"] / (1 - 0.9**round_), (state["exp_avg_sq"] / (1 - 0.95**round_)).sqrt()
        return weight * (1 - rate * self.decay[name]) - rate * size / (scale + 1e-8)


def test_versions_follow_the_recurrence(mode: str) -> None:
    spec = tiny_spec(stages=1, asynchrony=mode, grad_clip="0.5")
    stage, twin = Stage(spec, 0, dtype=torch.float64), Twin(spec)
    for round_ in range(ROUNDS):
        train_round([stage], random_batches(spec, round_))
        twin.train(round_)
        state = stage.state()
        for name, parameter in twin.computing.items():
            near = partial(torch.testing.assert_close, rtol=1e-7, atol=1e-10)
            near(state[f"parameter.{name}"], parameter.detach(), msg=f"parameter {name}, round {round_}")
            near(state[f"master.{name}"], twin.master[name].detach(), msg=f"master {name}, round {round_}")


def test_a_delayed_round_computes_with_the_weights_before_the_last_step() -> None:
    spec = tiny_spec(asynchrony="delayed")
    stages = all_stages(spec)
    for round_ in range(3):
        before = [copied(stage.moments()) for stage in stages]
        train_round(stages, random_batches(spec, round_))
        for stage, moments in zip(stages, before, strict=True):
            for name, parameter in stage.parameters().items():
                master = name.replace("parameter.", "master.")
                assert torch.equal(parameter, moments[master])
                assert not torch.equal(parameter, stage.moments()[master])


def test_modes_differ_and_without_asynchrony_there_are_no_master_weights() -> None:
    ends = {mode: one_by_one(all_stages(tiny_spec(asynchrony=mode)))[-1] for mode in ("none", *MODES)}
    assert len({tuple(roots) for roots in ends.values()}) == 3
    plain = Stage(tiny_spec(), 0)
    assert {name.split(".")[0] for name in plain.state()} == {"parameter", "moment1", "moment2"}
    with pytest.raises(AssertionError, match="takes this round's gradient"):
        Stage(tiny_spec(), 0, blank=True).ahead_of(plain)


def test_looking_ahead_comes_nearer_to_the_weights_that_are_stepped() -> None:
    gaps = {}
    for mode in MODES:
        spec = tiny_spec(asynchrony=mode, stages=1)
        stage, batches = Stage(spec, 0), random_batches(spec)
        for _ in range(10):
            train_round([stage], batches)
        state = stage.state()
        parameters = stage.parameters()
        gaps[mode] = math.hypot(
            *((parameters[name] - state[name.replace("parameter.", "master.")]).norm().item() for name in parameters)
        )
    assert gaps["look_ahead"] < 0.7 * gaps["delayed"]


@pytest.mark.parametrize("mode", ["none", *MODES])
def test_a_version_has_as_many_bytes_as_is_said(mode: str) -> None:
    for stage in all_stages(tiny_spec(asynchrony=mode)):
        parts = {name.split(".")[0] for name in stage.moments()}
        assert parts == set(stage.spec.training.optimizer_parts)
        assert sum(tensor.nbytes for tensor in stage.state().values()) == state_bytes(stage.spec, stage.index)


class Turns:
    """A model's stages in pairs that take turns, round by round."""

    def __init__(self, spec: ModelSpec, make: Callable[..., Stage] = Stage) -> None:
        self.pairs = [(make(spec, index), make(spec, index, blank=True)) for index in range(spec.stages)]

    def stages(self, round_: int) -> list[Stage]:
        return [pair[round_ % 2] for pair in self.pairs]

    def begin(self, round_: int) -> None:
        for stage, before in zip(self.stages(round_), self.stages(round_ - 1), strict=True):
            stage.ahead_of(before)
            assert stage.round == round_

    def forward(self, round_: int, tokens: Tensor) -> list[Forward]:
        pending: list[Forward] = []
        code: Any = None
        for stage in self.stages(round_):
            pending.append(stage.forward(tokens, code))
            code = pending[-1].output
        return pending

    def backward(self, round_: int, pending: list[Forward]) -> None:
        gradient = None
        for stage in reversed(self.stages(round_)):
            gradient = stage.backward(pending.pop(), gradient)

    def held(self, round_: int) -> list[bytes]:
        """What no other round may change."""
        stages = self.stages(round_)
        return [found for s in stages for found in (tensors_hash(s.parameters()), s.gradient_hash(), s.sketch())]


def overlapping(turns: Turns) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """As `one_by_one`, of those that are ahead and of those that have stepped. Of each round two microbatches have
    begun, and one is back, before the one before it ends.
    """
    spec, ahead, stepped = turns.pairs[0][0].spec, [], []
    under_way = [turns.forward(0, tokens) for tokens in random_batches(spec, 0)]
    for round_ in range(ROUNDS):
        following = random_batches(spec, round_ + 1)
        turns.begin(round_ + 1)
        turns.backward(round_ + 1, turns.forward(round_ + 1, following[0]))
        second = turns.forward(round_ + 1, following[1])
        for pending in under_way:
            turns.backward(round_, pending)
        held = turns.held(round_ + 1)
        for stage in turns.stages(round_):
            stage.step()
        assert turns.held(round_ + 1) == held
        ahead.append([stage.state_root() for stage in turns.stages(round_ + 1)])
        stepped.append([stage.state_root() for stage in turns.stages(round_)])
        under_way = [second, turns.forward(round_ + 1, following[2])]
    return ahead, stepped


@pytest.mark.parametrize("grad_clip", ["0", "0.01"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_rounds_that_overlap_have_the_bits_of_rounds_that_don_t(mode: str, grad_clip: str, compute: str) -> None:
    spec = tiny_spec(
        stages=3, asynchrony=mode, grad_clip=grad_clip, compute_dtype=compute, boundary_dtype=compute, warmup_rounds=3
    )
    due = one_by_one(all_stages(spec))
    assert overlapping(Turns(spec)) == (due, due)


def test_only_who_has_the_whole_version_gives_it_away(mode: str) -> None:
    spec = tiny_spec(asynchrony=mode, stages=1)
    stage, ahead = Stage(spec, 0), Stage(spec, 0, blank=True)
    ahead.ahead_of(stage)
    for stale in (ahead.moments, ahead.state_root, ahead.step, lambda: Stage(spec, 0).ahead_of(ahead)):
        ahead.backward(ahead.forward(random_batches(spec)[0], None), None)
        with pytest.raises(AssertionError, match="another stage shares the moments"):
            stale()
    train_round([stage], random_batches(spec))
    ahead.discard_gradients()
    train_round([ahead], random_batches(spec, 1))
    with pytest.raises(AssertionError, match="another stage shares the moments"):
        stage.state_root()
    stage.ahead_of(ahead)
    assert stage.round == 3
    with pytest.raises(AssertionError, match="it takes two"):
        stage.ahead_of(stage)


def test_a_failed_step_leaves_who_is_ahead_as_it_is(mode: str) -> None:
    spec = tiny_spec(asynchrony=mode)
    stage, ahead = Stage(spec, 0), Stage(spec, 0, blank=True)
    batches = random_batches(spec)
    ahead.ahead_of(stage)
    root, parameters = stage.state_root(), tensors_hash(ahead.parameters())
    stage.backward(stage.forward(batches[0], None), torch.full((2, 12, 6), math.inf))
    with pytest.raises(NonFiniteTensor, match="round 0"):
        stage.step()
    assert (stage.state_root(), tensors_hash(ahead.parameters())) == (root, parameters)


def test_training_goes_on_from_a_checkpoint_bit_for_bit(mode: str, tmp_path: Path) -> None:
    spec = tiny_spec(asynchrony=mode, stages=1, grad_clip="1")
    straight, ahead = Stage(spec, 0), Stage(spec, 0, blank=True)
    for round_ in range(2):
        train_round([straight], random_batches(spec, round_))
    checkpoints = Checkpoints(tmp_path, spec, 0)
    ahead.ahead_of(straight)
    train_round([straight], random_batches(spec, 2))
    assert checkpoints.save(ahead) == straight.state_root()
    for resumed in (Stage(spec, 0), Stage(spec, 0, blank=True), straight):
        Checkpoints(tmp_path, spec, 0).load(resumed, 3)
        ahead = Stage(spec, 0, blank=True)
        ahead.ahead_of(resumed)
        train_round([resumed], random_batches(spec, 3))
        train_round([ahead], random_batches(spec, 4))
        assert (ahead.round, ahead.state_root()) == (5, one_by_one([Stage(spec, 0)])[-1][0])
    plain = tiny_spec(stages=1, grad_clip="1")
    with pytest.raises(CheckpointError, match=r"master\..* is not of this stage"):
        Stage(plain, 0).load(ahead.state(), 5)
    with pytest.raises(CheckpointError, match=r"master\..* is missing"):
        ahead.load(Stage(plain, 0).state(), 5)


def test_a_replay_is_what_was_trained_bit_for_bit(mode: str) -> None:
    spec = tiny_spec(stages=3, asynchrony=mode, grad_clip="0.5")
    batches, traces = trained(spec)
    for index, trace in enumerate(traces):
        found = again(spec, index, batches, trace).round
        assert found is not None
        assert (found.gradient_hash, found.next_root) == (trace.gradient_hash, trace.next_root)


def judge(world: referee_world.World, spec: ModelSpec, unit: Audit, numerics: str = "") -> Outcome:
    auditor = Auditor(spec, dataset=referee_world.Text())  # type: ignore[arg-type]
    return asyncio.run(auditor.audit(unit, world.report(unit), numerics or auditor.numerics, world.sources(unit.stage)))


def test_audits_pass_what_is_honest_and_nothing_else(mode: str) -> None:
    spec = tiny_spec(stages=3, grad_clip="1", asynchrony=mode)
    honest = referee_world.train(spec=spec, rounds=3)
    for stage in range(3):
        for unit in (whole(stage, 2), single(stage, 1, 2), whole(stage, 0)):
            assert judge(honest, spec, unit).verdict is Verdict.PASSED
        assert judge(honest, spec, whole(stage, 2), "another class").verdict is Verdict.PASSED
    blurred = referee_world.train(referee_world.OtherRounding, 1, spec, 3)
    found = judge(blurred, spec, whole(1, 2), "another class")
    assert found.verdict is Verdict.PASSED, found.why
    for lie in (referee_world.NoStep, referee_world.FalseGradient, referee_world.StaleWeights):
        world = referee_world.train(lie, 1, spec, 3)
        for numerics in ("", "another class"):
            assert judge(world, spec, whole(1, 2), numerics).verdict is Verdict.FAILED, (lie, numerics)


@pytest.fixture
def compared(mode: str) -> tuple[ModelSpec, Trace, dict[str, Tensor]]:
    spec = tiny_spec(asynchrony=mode, grad_clip="0.5")
    batches, traces = trained(spec)
    replayed = again(spec, 1, batches, traces[1]).round
    assert replayed is not None
    return spec, traces[1], replayed.next_state


@pytest.mark.parametrize("part", ["parameter", "master", "moment2"])
def test_another_class_can_bias_no_part_of_a_version(
    compared: tuple[ModelSpec, Trace, dict[str, Tensor]], part: str
) -> None:
    spec, trace, state = compared
    assert all(deviation.passed for deviation in compare_round(spec, ROUND, trace.state, state, state))
    name = f"{part}.layers.2.attention.wqkv"
    biased = state | {name: state[name] * (1 + 1e-5)}
    found = compare_round(spec, ROUND, trace.state, biased, state)
    assert name.replace(".", " ", 1) in {d.what for d in found if not d.passed}


def test_another_class_that_skips_the_step_or_the_prediction_is_seen(
    compared: tuple[ModelSpec, Trace, dict[str, Tensor]],
) -> None:
    spec, trace, state = compared
    other = {"delayed": "look_ahead", "look_ahead": "delayed"}[spec.training.asynchrony]
    training = spec.training.model_copy(update={"asynchrony": other})
    found = compare_round(spec.model_copy(update={"training": training}), ROUND, trace.state, state, state)
    assert {d.what.split()[0] for d in found if not d.passed} == {"parameter"}
    skipped = compare_round(spec, ROUND, trace.state, trace.state, state)
    assert {"gradient", "movement"} <= {d.what.split()[0] for d in skipped if not d.passed}


@pytest.mark.parametrize("kind", ["stale", "no-step"])
def test_dishonest_stages_take_turns_too(mode: str, kind: str) -> None:
    spec = tiny_spec(stages=2, asynchrony=mode)
    cheats = {"stale": Stale, "no-step": NoStep}

    def make(fraction: float, *args: Any, **options: Any) -> Stage:
        return cheats[kind](Cheat(Cheating(kind, fraction), "0x" + "11" * 20), *args, **options)

    honest = one_by_one(all_stages(spec))
    assert overlapping(Turns(spec, partial(make, 0.0))) == (honest, honest)
    cheated, _ = overlapping(Turns(spec, partial(make, 1.0)))
    assert cheated[-1] != honest[-1]
    if kind == "stale":
        assert cheated == one_by_one([make(1.0, spec, index) for index in range(2)])
