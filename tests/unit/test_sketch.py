"""A sketch shows what one microbatch added to a round's gradient, and nothing honest looks false in it for long."""

import math
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from commonweight.model import sketch
from commonweight.model.sketch import (
    NUMBERS,
    OUTLIER,
    SignedSketches,
    Sketched,
    pack_sketch,
    read_sketch,
    sketch_factors,
    sketch_sums,
)
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec
from tests.unit.tiny import random_batches, tiny_spec

torch.set_num_threads(1)

SHAPES = {"a.scale": (13,), "b.w": (7, 40), "c.w": (96, 5)}
PRINT_SKETCHES = """
import torch
torch.set_num_threads(1)
from tests.unit.test_sketch import given, spec_of, summed
for compute in ("float32", "bfloat16"):
    print(*(packed.hex() for packed in summed(spec_of(compute), given(spec_of(compute))).signed))
"""


def drawn(seed: int) -> dict[str, Tensor]:
    """A gradient."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


FACTORS = sketch_factors(drawn(0), 7)


def spec_of(compute: str = "float32", microbatches: int = 24) -> ModelSpec:
    return tiny_spec(compute_dtype=compute, boundary_dtype=compute, microbatches_per_round=microbatches)


Given = list[tuple[Tensor, Tensor]]
"""Microbatches, and the gradients that the next stage returns for them."""


def given(spec: ModelSpec) -> Given:
    generator = torch.Generator().manual_seed(1)
    dtype = getattr(torch, spec.training.boundary_dtype)
    return [(tokens, torch.randn(2, 12, 6, generator=generator).to(dtype)) for tokens in random_batches(spec)]


@dataclass
class Summed:
    """An honest round of the first stage."""

    signed: list[bytes]
    own: list[Sketched]
    """Of each microbatch, replayed alone on another stage."""
    whole: Sketched

    def doubts(self, signed: Sequence[bytes] | None = None, tolerance: float = 0.0) -> list[int]:
        """The microbatches in which an audit finds something to doubt."""
        sketches = SignedSketches(self.signed if signed is None else signed)
        return [n for n, own in enumerate(self.own) if sketches.doubt_microbatch(n, own, tolerance)]


def summed(spec: ModelSpec, given: Given) -> Summed:
    stage, other = Stage(spec, 0), Stage(spec, 0)
    signed, own = [], []
    for tokens, gradient in given:
        stage.backward(stage.forward(tokens, None), gradient)
        signed.append(stage.sketch())
        other.discard_gradients()
        other.backward(other.forward(tokens, None), gradient)
        own.append(other.sketched())
    return Summed(signed, own, stage.sketched())


@pytest.fixture(scope="module")
def honest() -> Summed:
    return summed(spec_of(), given(spec_of()))


def changed(signed: Sequence[bytes], start: int, end: int, by: Tensor) -> list[bytes]:
    """With `by` added to lines `start` to `end`, without the last."""
    lines = range(start, end)
    return [pack_sketch(read_sketch(each) + by) if n in lines else each for n, each in enumerate(signed)]


def test_factors_are_a_function_of_seed_and_name() -> None:
    integers = {name: factors.mul(2**15 / 3**0.5).round().view(-1).tolist() for name, factors in FACTORS.items()}
    assert {name: numbers[:4] for name, numbers in integers.items()} == {
        "a.scale": [-18507, 17121, -15363, 6834],
        "b.w": [-2457, 16120, 6912, -18769],
        "c.w": [11961, -27772, -20790, -8697],
    }
    for name, factors in FACTORS.items():
        assert factors.shape == SHAPES[name]
        assert factors.abs().max() <= 3**0.5
        (alone,) = sketch_factors({name: torch.empty(SHAPES[name])}, 7).values()
        assert torch.equal(alone, factors)
        double = sketch_factors({name: torch.empty(SHAPES[name], dtype=torch.float64)}, 7)[name]
        assert double.dtype == torch.float64
        assert torch.equal(double, factors.double())
        assert not torch.equal(sketch_factors({name: factors}, 8)[name], factors)
    one, other = sketch_factors({"a": torch.empty(96, 5), "b": torch.empty(96, 5)}, 7).values()
    assert not torch.equal(one, other)


def test_each_row_is_in_one_sum_of_eight() -> None:
    rows = [(name, index) for name, (count, *_) in sorted(SHAPES.items()) for index in range(count)]
    for row, (name, index) in enumerate(rows):
        gradient = {each: torch.zeros(shape) for each, shape in SHAPES.items()}
        gradient[name][index] = 1.0
        sums = sketch_sums(gradient, FACTORS)
        assert sums.dtype == torch.float64
        assert sums[row % NUMBERS] == pytest.approx(FACTORS[name][index].sum().item(), abs=1e-5)
        assert sums.count_nonzero() <= 1


def test_the_order_of_the_names_is_no_matter() -> None:
    gradient = drawn(1)
    backwards = {name: gradient[name] for name in reversed(list(gradient))}
    assert torch.equal(sketch_sums(backwards, FACTORS), sketch_sums(gradient, FACTORS))


def test_a_sketch_is_linear() -> None:
    one, other = drawn(1), drawn(2)
    both = {name: 3 * one[name] - other[name] for name in one}
    due = 3 * sketch_sums(one, FACTORS) - sketch_sums(other, FACTORS)
    assert torch.allclose(sketch_sums(both, FACTORS), due, rtol=0, atol=1e-4)


@pytest.mark.parametrize("only", [list(SHAPES), ["b.w"], ["a.scale"]])
def test_its_length_is_on_average_the_gradient_s(only: list[str]) -> None:
    gradient = {name: tensor for name, tensor in drawn(3).items() if name in only}
    squares = [sketch_sums(gradient, sketch_factors(gradient, seed)).square().sum() for seed in range(800)]
    due = torch.cat([tensor.double().view(-1) for tensor in gradient.values()]).square().sum()
    assert torch.stack(squares).mean().item() == pytest.approx(due.item(), rel=0.05)


def test_a_sketch_is_eight_floats_of_any_bits() -> None:
    numbers = (1.5, -2.0, 0.0, math.inf, -math.inf, math.nan, 3e38, 1e-45)
    packed = struct.pack("<8f", *numbers)
    assert pack_sketch(read_sketch(packed)) == packed


def test_another_process_has_the_same_bits() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PRINT_SKETCHES], capture_output=True, text=True, timeout=120, check=True
    )
    for compute, line in zip(("float32", "bfloat16"), run.stdout.splitlines(), strict=True):
        spec = spec_of(compute)
        ours = summed(spec, given(spec)).signed
        assert len(set(ours)) == len(ours)
        assert line.split() == [packed.hex() for packed in ours]


def test_the_sketch_of_a_stage_is_of_what_it_has_accumulated() -> None:
    stage = Stage(spec_of(), 0)
    (tokens, gradient), *_ = given(spec_of())
    stage.backward(stage.forward(tokens, None), gradient)
    gradients = {name: tensor.clone() for name, tensor in stage.gradients().items()}
    found = stage.sketched()
    assert stage.sketch() == pack_sketch(found.sums)
    assert found.norm == pytest.approx(math.hypot(*(tensor.norm().item() for tensor in gradients.values())))
    stage.backward(stage.forward(tokens, None), gradient)
    assert stage.sketch() != pack_sketch(found.sums)
    again = stage.sketched(gradients)
    assert torch.equal(again.sums, found.sums)
    assert again.norm == found.norm
    blank = Stage(spec_of(), 0, blank=True)
    assert torch.equal(blank.sketched(gradients).sums, found.sums)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("microbatches", [1, 64])
def test_an_honest_round_is_not_doubted(compute: str, microbatches: int) -> None:
    spec = spec_of(compute, microbatches)
    round_ = summed(spec, given(spec))
    assert round_.doubts() == []
    assert not SignedSketches(round_.signed).doubt_whole(round_.whole)
    assert not any(SignedSketches(round_.signed).outliers(own) for own in round_.own)


def test_rounding_is_a_quarter_of_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "ROUNDING", sketch.ROUNDING / 4)
    for compute in ("float32", "bfloat16"):
        spec = spec_of(compute, 64)
        round_ = summed(spec, given(spec))
        assert round_.doubts() == []
        assert not SignedSketches(round_.signed).doubt_whole(round_.whole)


def test_parts_that_cancel_are_not_doubted() -> None:
    """A neighbour can arrange it: what is left of each pair is small beside what was rounded."""
    spec = spec_of()
    pairs = [(tokens, sign * gradient) for tokens, gradient in given(spec)[:12] for sign in (1e3, (1e-6 - 1) * 1e3)]
    round_ = summed(spec, pairs)
    assert round_.whole.norm < 1e-4 * round_.own[0].norm
    assert round_.doubts() == []
    assert not SignedSketches(round_.signed).doubt_whole(round_.whole)


def test_a_machine_of_another_class_is_not_doubted_within_its_tolerance(honest: Summed) -> None:
    noise = torch.ones(NUMBERS, dtype=torch.float64) / NUMBERS**0.5
    off = [Sketched(own.sums + 1e-4 * own.norm * noise, own.norm) for own in honest.own]
    round_ = Summed(honest.signed, off, honest.whole)
    assert round_.doubts(tolerance=1e-4) == []
    assert round_.doubts(tolerance=0.4e-4) == round_.doubts() == list(range(24))


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.5, 1.001, 2.0])
def test_another_gradient_than_a_microbatch_gave_is_doubted_in_each(factor: float, honest: Summed) -> None:
    scaled = [pack_sketch(factor * read_sketch(each)) for each in honest.signed]
    assert honest.doubts(scaled) == list(range(24))
    assert SignedSketches(scaled).doubt_whole(honest.whole)


def test_a_microbatch_that_is_missing_is_doubted(honest: Summed) -> None:
    """Its tokens were taken, and its gradient was forgotten."""
    spec = spec_of()
    items = given(spec)
    without = summed(spec, items[:5] + items[6:])
    signed = [*without.signed[:5], without.signed[4], *without.signed[5:]]
    sketches = SignedSketches(signed)
    doubts = [n for n, own in enumerate(honest.own) if sketches.doubt_microbatch(n, own, 0.0)]
    assert doubts == [5]
    assert not sketches.doubt_whole(without.whole)
    assert sketches.doubt_whole(honest.whole)


def test_noise_in_one_line_is_doubted_there(honest: Summed) -> None:
    noise = 1e-3 * honest.whole.norm * torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0)).double()
    assert honest.doubts(changed(honest.signed, 7, 24, noise)) == [7]
    assert honest.doubts(changed(honest.signed, 7, 8, noise)) == [7, 8]
    last = changed(honest.signed, 23, 24, noise)
    assert honest.doubts(last) == [23]
    assert SignedSketches(last).doubt_whole(honest.whole)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_doubted(number: float, honest: Summed) -> None:
    never = torch.full((NUMBERS,), number, dtype=torch.float64)
    once = torch.tensor([number] + [0.0] * (NUMBERS - 1), dtype=torch.float64)
    for by in (never, once):
        everywhere = SignedSketches(changed(honest.signed, 0, 24, by))
        assert honest.doubts(changed(honest.signed, 0, 24, by)) == list(range(24))
        assert everywhere.doubt_whole(honest.whole)
        assert everywhere.outliers(honest.own[3])
        assert honest.doubts(changed(honest.signed, 7, 8, by)) == [7, 8]
        assert SignedSketches(changed(honest.signed, 7, 8, by)).outliers(honest.own[3]) == [7, 8]


def test_a_gradient_that_is_no_number_is_doubted(honest: Summed) -> None:
    for number in (math.nan, math.inf):
        endless = Sketched(torch.full((NUMBERS,), number, dtype=torch.float64), number)
        sketches = SignedSketches(honest.signed)
        assert sketches.doubt_whole(endless)
        assert sketches.doubt_microbatch(3, endless, 0.02)


def test_lines_are_looked_at_that_stand_out(honest: Summed) -> None:
    own = honest.own[0]
    length = torch.ones(NUMBERS, dtype=torch.float64) / NUMBERS**0.5
    size = max(each.norm for each in honest.own)
    for number, by, due in ((5, 2 * OUTLIER * size, [5]), (9, 1e30, [9]), (9, 0.1 * own.norm, [])):
        found = SignedSketches(changed(honest.signed, number, 24, by * length)).outliers(own)
        assert found == due
    two = changed(changed(honest.signed, 5, 24, 10 * size * length), 9, 24, -20 * size * length)
    assert SignedSketches(two).outliers(own) == [5, 9]


def test_a_lie_can_t_hide_behind_large_sums(honest: Summed) -> None:
    """Rounding is allowed for the sums' size, so what is false could be small beside huge ones; those stand out."""
    length = torch.ones(NUMBERS, dtype=torch.float64) / NUMBERS**0.5
    huge = changed(honest.signed, 0, 23, 1e9 * honest.whole.norm * length)
    sketches = SignedSketches(huge)
    lying = Sketched(-honest.own[10].sums, honest.own[10].norm)
    assert not sketches.doubt_microbatch(10, lying, 0.0)
    assert sketches.outliers(lying) == [0, 23]
    assert all(sketches.doubt_microbatch(number, honest.own[number], 0.0) for number in (0, 23))
