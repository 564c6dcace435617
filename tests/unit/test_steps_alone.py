"""Replicas that step alone, and average every few rounds: DiLoCo, against torch's own optimizers."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from commonweight.errors import NonFiniteTensor, SpecError
from commonweight.model.compare import compare_round
from commonweight.model.replay import step_from
from commonweight.model.schedule import learning_rate
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec
from tests.unit.tiny import random_batches, tiny_spec

torch.set_num_threads(1)

EVERY = 3
LOADS = (0, 1, 2), (3,)
"""Of two replicas, in a round of four microbatches."""


@pytest.fixture
def spec() -> ModelSpec:
    return tiny_spec(
        stages=1, microbatches_per_round=4, averaging_rounds=EVERY, rounds_per_epoch=2 * EVERY, grad_clip="0.5"
    )


def compute(stage: Stage, round_: int, load: Sequence[int]) -> dict[str, Tensor]:
    """The gradient of these microbatches."""
    batches = random_batches(stage.spec, round_)
    for number in load:
        stage.backward(stage.forward(batches[number], None), None)
    return {name: gradient.clone() for name, gradient in stage.gradients().items()}


def average(replicas: Sequence[Stage]) -> dict[str, Tensor]:
    """Their mean movement, which each has then instead of its gradient."""
    for stage, load in zip(replicas, LOADS, strict=True):
        stage.weigh_movement(len(load) / stage.spec.training.microbatches_per_round)
    total = replicas[0].flat_gradient() + replicas[1].flat_gradient()
    for stage in replicas:
        stage.replace_gradient(total)
    return {name: gradient.clone() for name, gradient in replicas[0].gradients().items()}


def train(replicas: Sequence[Stage], round_: int) -> None:
    for stage, load in zip(replicas, LOADS, strict=True):
        compute(stage, round_, load)
    if replicas[0].spec.training.averages_in(round_):
        average(replicas)
    for stage in replicas:
        stage.step()


def reference(spec: ModelSpec, rounds: int) -> list[dict[str, Tensor]]:
    """The parameters after each average, by torch.optim alone."""
    training = spec.training
    models = [dict(Stage(spec, 0).module.named_parameters()) for _ in LOADS]
    workers = [Stage(spec, 0) for _ in LOADS]
    outer = {name: torch.nn.Parameter(p.detach().clone()) for name, p in models[0].items()}
    nesterov = torch.optim.SGD(
        outer.values(), float(training.outer_learning_rate), float(training.outer_momentum), nesterov=True
    )
    found = []
    for period in range(rounds // EVERY):
        moved = []
        for stage, load in zip(workers, LOADS, strict=True):
            parameters = dict(stage.module.named_parameters())
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(outer[name])
            decayed = [p for name, p in parameters.items() if p.ndim > 1 and name != "embedding.E"]
            kept = [p for name, p in parameters.items() if p.ndim == 1 or name == "embedding.E"]
            adamw = torch.optim.AdamW(
                [
                    {"params": decayed, "weight_decay": float(training.weight_decay)},
                    {"params": kept, "weight_decay": 0},
                ],
                betas=(float(training.beta1), float(training.beta2)),
                eps=float(training.adam_eps),
                fused=True,
            )
            for round_ in range(period * EVERY, (period + 1) * EVERY):
                adamw.zero_grad()
                compute(stage, round_, load)
                norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])
                if norm > (limit := float(training.grad_clip)):
                    torch._foreach_mul_([p.grad for p in parameters.values()], limit / norm.item())
                for group in adamw.param_groups:
                    group["lr"] = learning_rate(training, round_)
                adamw.step()
            part = len(load) / training.microbatches_per_round
            moved.append({name: (outer[name].detach() - p.detach()) * part for name, p in parameters.items()})
        for name, parameter in outer.items():
            parameter.grad = moved[0][name] + moved[1][name]
        nesterov.step()
        found.append({name: p.detach().clone() for name, p in outer.items()})
    return found


def test_it_is_adamw_inside_and_sgd_with_nesterov_s_momentum_outside(spec: ModelSpec) -> None:
    replicas, averaged = [Stage(spec, 0) for _ in LOADS], []
    for round_ in range(3 * EVERY):
        train(replicas, round_)
        is_one = len({stage.state_root() for stage in replicas}) == 1
        assert is_one == spec.training.averages_in(round_), (
            "they are in one state when they have averaged, and only then"
        )
        if is_one:
            averaged.append({name: p.clone() for name, p in replicas[0].parameters().items()})
    due = reference(spec, 3 * EVERY)
    assert [sorted(each) for each in averaged] == [[f"parameter.{name}" for name in sorted(each)] for each in due]
    for ours, theirs in zip(averaged, due, strict=True):
        assert all(torch.equal(ours[f"parameter.{name}"], tensor) for name, tensor in theirs.items())


def test_an_average_is_stepped_from_what_is_committed_alone(spec: ModelSpec) -> None:
    """An auditor needs the state before and the mean movement."""
    replicas = [Stage(spec, 0) for _ in LOADS]
    for round_ in range(2 * EVERY - 1):
        train(replicas, round_)
    before = [{name: tensor.clone() for name, tensor in stage.state().items()} for stage in replicas]
    round_ = 2 * EVERY - 1
    for stage, load in zip(replicas, LOADS, strict=True):
        compute(stage, round_, load)
    mean = average(replicas)
    for stage, state in zip(replicas, before, strict=True):
        stage.step()
        auditor = Stage(spec, 0, blank=True)
        auditor.load(state, round_)
        root, found = step_from(auditor, mean)
        assert root == stage.state_root()
        assert all(each.passed for each in compare_round(spec, round_, state, stage.state(), found))


@pytest.mark.parametrize("round_", [EVERY, 2 * EVERY - 1])
def test_across_classes_every_part_of_the_state_is_compared(spec: ModelSpec, round_: int) -> None:
    replicas = [Stage(spec, 0) for _ in LOADS]
    for earlier in range(round_):
        train(replicas, earlier)
    before = {name: tensor.clone() for name, tensor in replicas[0].state().items()}
    train(replicas, round_)
    after = {name: tensor.clone() for name, tensor in replicas[0].state().items()}
    assert all(each.passed for each in compare_round(spec, round_, before, after, after))
    for part in ("parameter", "anchor", "velocity", "moment1", "moment2"):
        name = f"{part}.head.weight"
        lied = after | {name: after[name] + 1e-3 * (1 + after[name].abs())}
        found = compare_round(spec, round_, before, lied, after)
        assert not all(each.passed for each in found), part
    assert not all(each.passed for each in compare_round(spec, round_, before, before, after)), "it didn't step"


def test_numbers_that_aren_t_finite_change_nothing(spec: ModelSpec) -> None:
    stage = Stage(spec, 0)
    for round_ in range(EVERY - 1):
        compute(stage, round_, range(4))
        stage.step()
    root = stage.state_root()
    gradient = compute(stage, EVERY - 1, range(4))
    gradient["head.weight"][0, 0] = torch.inf
    for name, parameter in stage.module.named_parameters():
        parameter.grad = gradient[name].clone()
    for act in (lambda: stage.weigh_movement(1.0), stage.step):
        with pytest.raises(NonFiniteTensor, match=f"round {EVERY - 1}"):
            act()
    assert stage.state_root() == root


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"asynchrony": "delayed", "averaging_rounds": 2}, "goes with asynchrony none only"),
        ({"averaging_rounds": 3}, "must be a multiple of averaging_rounds 3"),
        ({"averaging_rounds": 0}, r"averaging_rounds.*greater than 0"),
        ({"outer_momentum": "1"}, r"outer_momentum.*below 1"),
    ],
)
def test_a_spec_says_what_can_t_be(changes: dict[str, object], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        tiny_spec(**changes)
