"""Whether what was claimed agrees with what was replayed on a machine of another numerics class.

Within one class hashes are compared, and nothing here is needed. Across classes each tensor is measured by the relative
L2 distance from the replayed one; what follows elementwise from what is committed is measured in units of rounding.
A round's sketches and its gradient, as signed, are measured by the length of all that was summed in them.

AdamW amplifies differences of tiny gradients up to the learning rate, so single weights of two honest machines
aren't comparable. Hence a step is checked in three parts, all from the committed states before and after it:

1. The clipped gradient, g = (m1' - beta1 m1) / (1 - beta1), against the replayed one.
2. Second moments and parameters: they follow elementwise from m1, m1', m2, m2' by AdamW's formula, whoever computed.
   Where training is asynchronous that holds for the master weights, and the parameters follow from the state before.
3. How what was stepped moved against the replayed movement: this bounds what part 1 lets through in tiny gradients.

Where replicas step alone their anchor and its velocity are held to what follows elementwise, when they average all is.

Every tensor is finite and of the expected shape, or its error is infinite.

The tolerance is the spec's: 1e-5 is right for float32, 2e-2 for bfloat16. In 30 rounds of the devnet's model another
thread count or attention kernel changed no tensor's gradient by more than 1.1e-6 in float32 and 1e-2 in bfloat16;
computing in bfloat16 what should be float32 changed the whole gradient by at least 4e-3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from commonweight.model.schedule import learning_rate
from commonweight.model.sketch import read_sketch
from commonweight.rules.spec import ModelSpec, Training

ROUNDINGS = 8.0
"""AdamW's elementwise formulas take up to eight float32 operations that round in the size of their largest term; the
most seen in 7e7 numbers was 4.2.
"""

_UNIT = 2.0**-24
"""A float32 operation's relative rounding error is at most this."""
_TINY = 2.0**-126
"""Below, float32 is denser than its relative rounding says, or is flushed to zero."""

_BOUNDARY_UNIT = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclass(frozen=True, slots=True)
class Deviation:
    """One comparison: what was measured, and how large it was."""

    what: str
    error: float
    """Infinite where the two can't be compared."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the two agree."""
        return self.error <= self.tolerance


def worst(deviations: Sequence[Deviation]) -> Deviation:
    """The one that is largest for its tolerance, the first of these: a verdict's reason."""
    return max(deviations, key=lambda deviation: deviation.error / deviation.tolerance)


def relative_error(claimed: Tensor, replayed: Tensor) -> float:
    """‖claimed - replayed‖ / ‖replayed‖ in float64: 0 where both are zero, infinite where only `replayed` is, where
    shapes or dtypes differ, or where either isn't finite.
    """
    if claimed.shape != replayed.shape or claimed.dtype != replayed.dtype:
        return math.inf
    exact = replayed.double()
    return _ratio(_norm(claimed.double() - exact), _norm(exact))


def compare_travelled(what: str, claimed: Tensor, replayed: Tensor, spec: ModelSpec) -> Deviation:
    """An activation or input gradient, in the boundary dtype."""
    return Deviation(what, relative_error(claimed, replayed), travelled_tolerance(spec))


def travelled_tolerance(spec: ModelSpec) -> float:
    """For what travels, in relative L2.

    Where the boundary dtype is half precision, a difference e moves a number across a rounding boundary in a share e/2u
    of all cases, and then by 2u, u being the unit of rounding: sqrt(2ue) in relative L2, more than e itself.
    """
    compute = float(spec.verification.tolerance)
    return compute + math.sqrt(2 * _BOUNDARY_UNIT[spec.training.boundary_dtype] * compute)


def compare_loss(what: str, claimed: float, replayed: float, spec: ModelSpec) -> Deviation:
    """A microbatch's mean loss in nats: relative, below one nat absolute."""
    error = _ratio(abs(claimed - replayed), max(abs(replayed), 1.0))
    return Deviation(what, error, float(spec.verification.tolerance))


def compare_sketch(what: str, claimed: bytes, replayed: Tensor, size: float, spec: ModelSpec) -> Deviation:
    """The sketch of a gradient, relative to the `size` of what was summed in it: parts that cancel leave their errors.

    Eight sums of signed differences are rarely over twice the length of these.
    """
    error = _error_of_sum(_norm(read_sketch(claimed) - replayed), size)
    return Deviation(what, error, 4 * float(spec.verification.tolerance))


def compare_gradient(
    what: str, claimed: Mapping[str, Tensor], replayed: Mapping[str, Tensor], size: float, spec: ModelSpec
) -> Deviation:
    """A round's gradient, by parameter, relative to the `size` of what was summed in it."""
    distances = [_norm(claimed[name].cpu().double() - replayed[name].cpu().double()) for name in replayed]
    return Deviation(what, _error_of_sum(math.hypot(*distances), size), float(spec.verification.tolerance))


def movement_tolerance(spec: ModelSpec, count: int) -> float:
    """For how a round moves `count` parameters, in relative L2.

    AdamW divides each gradient by its own size. Where gradients err by e of their root mean square, those within e of
    zero, a share of about e, change sign and move the other way: sqrt(3e) of a first step, less later. Beside that two
    signs may differ by chance, which is much where parameters are few.
    """
    return math.sqrt(3 * float(spec.verification.tolerance)) + 4 / math.sqrt(count)


def compare_round(
    spec: ModelSpec,
    round_: int,
    before: Mapping[str, Tensor],
    claimed: Mapping[str, Tensor],
    replayed: Mapping[str, Tensor],
) -> list[Deviation]:
    """The states (`Stage.state`) `before` the round, `claimed` after it and `replayed`, in the three parts above.

    `claimed` has the committed root, so that it is what the provider stands for; `before` too, and `replayed` was
    computed from it. One deviation for each part and tensor, and one for the whole gradient and the whole movement.
    """
    training = spec.training
    faults = [f"state {name}" for name in sorted(replayed.keys() ^ claimed.keys())]
    faults += [f"state {name}" for name in sorted(replayed.keys() & claimed.keys()) if _unlike(claimed, replayed, name)]
    if faults:
        return [Deviation(what, math.inf, ROUNDINGS) for what in faults]
    names = sorted(name.removeprefix("parameter.") for name in before if name.startswith("parameter."))
    found = [each for name in names for each in _anchor_deviations(training, round_, name, before, claimed, replayed)]
    if training.moves_anchor(round_):
        return found
    gradients, movements = _Whole("gradient"), _Whole("movement")
    tolerance, count = float(spec.verification.tolerance), 0
    stepped = "master" if training.is_asynchronous else "parameter"
    for name in names:
        old, new, own = (_Version.of(state, name) for state in (before, claimed, replayed))
        found.append(gradients.add(name, *_gradient_distance(training, old, new, own), tolerance))
        found.append(Deviation(f"moment2 {name}", _moment2_error(training, old, new), ROUNDINGS))
        found.append(Deviation(f"{stepped} {name}", _step_error(training, round_, name, old, new), ROUNDINGS))
        if training.is_asynchronous:
            found.append(Deviation(f"parameter {name}", _ahead_error(training, round_, name, old, new), ROUNDINGS))
        numbers = old.weights.numel()
        found.append(movements.add(name, *_movement_distance(old, new, own), movement_tolerance(spec, numbers)))
        count += numbers
    return [gradients.deviation(tolerance), movements.deviation(movement_tolerance(spec, count)), *found]


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    """One parameter with its moments, in float64."""

    parameter: Tensor
    weights: Tensor
    """What is stepped: the master weights, or else the parameter."""
    moment1: Tensor
    moment2: Tensor

    @staticmethod
    def of(state: Mapping[str, Tensor], name: str) -> "_Version":
        parts = ("parameter", "moment1", "moment2", "master")
        found = {part: state[f"{part}.{name}"].cpu().double() for part in parts if f"{part}.{name}" in state}
        return _Version(found["parameter"], found.get("master", found["parameter"]), found["moment1"], found["moment2"])


class _Whole:
    """Distances and norms of parts, added up to those of the whole."""

    def __init__(self, what: str) -> None:
        self.what, self.distance, self.norm = what, 0.0, 0.0

    def add(self, name: str, distance: float, norm: float, tolerance: float) -> Deviation:
        self.distance, self.norm = math.hypot(self.distance, distance), math.hypot(self.norm, norm)
        return Deviation(f"{self.what} {name}", _ratio(distance, norm), tolerance)

    def deviation(self, tolerance: float) -> Deviation:
        return Deviation(self.what, _ratio(self.distance, self.norm), tolerance)


def _gradient_distance(training: Training, old: _Version, new: _Version, own: _Version) -> tuple[float, float]:
    """(distance beyond what rounding of the first moments explains, norm) of the clipped gradient."""
    weight = 1 - float(training.beta1)
    norm = _norm((own.moment1 - (1 - weight) * old.moment1) / weight)
    distance = _norm(new.moment1 - own.moment1) / weight
    rounding = 2 * _UNIT * (_norm(old.moment1) + _norm(own.moment1)) / weight
    return max(0.0, distance - rounding), norm


def _movement_distance(old: _Version, new: _Version, own: _Version) -> tuple[float, float]:
    """(distance beyond what rounding of the weights explains, norm) of the step."""
    distance, rounding = _norm(new.weights - own.weights), 2 * _UNIT * _norm(own.weights)
    return max(0.0, distance - rounding), _norm(own.weights - old.weights)


def _moment2_error(training: Training, old: _Version, new: _Version) -> float:
    """How many roundings the second moment is off what follows from the first moments."""
    weight1, weight2 = 1 - float(training.beta1), 1 - float(training.beta2)
    gradient = (new.moment1 - (1 - weight1) * old.moment1) / weight1
    kept = (1 - weight2) * old.moment2
    expected = kept + weight2 * gradient.square()
    blur = _UNIT * (old.moment1.abs() + new.moment1.abs() + weight1 * gradient.abs()) / weight1
    # The blur is squared once for all roundings, since it is what a tiny gradient disappears in.
    bound = _UNIT * (expected + new.moment2) + weight2 * blur * (2 * gradient.abs() + ROUNDINGS * blur)
    return _largest(new.moment2 - expected, bound)


def _step_error(training: Training, round_: int, name: str, old: _Version, new: _Version) -> float:
    """How many roundings the weights are off AdamW's step with the committed moments."""
    expected, unit = _adamw_step(training, round_, name, old.weights, new, steps=training.adam_steps(round_))
    return _largest(new.weights - expected, unit)


def _anchor_deviations(
    training: Training,
    round_: int,
    name: str,
    before: Mapping[str, Tensor],
    claimed: Mapping[str, Tensor],
    replayed: Mapping[str, Tensor],
) -> list[Deviation]:
    """What the round's gradient decides elementwise where replicas step alone; see commonweight/model/adamw.py."""
    if not training.steps_alone:
        return []
    computed: tuple[str, ...] = ()
    copied: tuple[str, ...] = ("anchor", "velocity")
    if training.moves_anchor(round_):
        computed, copied = ("parameter", "anchor", "velocity"), ("moment1", "moment2")
    found = []
    for part in (*computed, *copied):
        what = f"{part}.{name}"
        old = before[f"anchor.{name}" if part == "parameter" else what].cpu().double()
        new, own = claimed[what].cpu().double(), replayed[what].cpu().double()
        unit = _UNIT * (old.abs() + own.abs() + (own - old).abs()) if part in computed else torch.zeros(())
        found.append(Deviation(what, _largest(new - own, unit), ROUNDINGS))
    return found


def _ahead_error(training: Training, round_: int, name: str, old: _Version, new: _Version) -> float:
    """How many roundings the parameter is off what follows from the state before; see commonweight/model/adamw.py."""
    expected, unit = old.weights, _UNIT * old.weights.abs()
    if training.asynchrony == "look_ahead" and round_ > 0:
        expected, unit = _adamw_step(training, round_, name, old.weights, old, steps=round_)
    return _largest(new.parameter - expected, unit)


def _adamw_step(
    training: Training, round_: int, name: str, weights: Tensor, moments: _Version, *, steps: int
) -> tuple[Tensor, Tensor]:
    """(what the weights become at the round's learning rate, with moments of so many steps; the size of a rounding)"""
    rate = learning_rate(training, round_)
    decay = 0.0 if weights.ndim == 1 or name == "embedding.E" else float(training.weight_decay)
    correction1 = 1 - float(training.beta1) ** steps
    correction2 = 1 - float(training.beta2) ** steps
    divisor = (moments.moment2 / correction2).sqrt() + float(training.adam_eps)
    step = rate * moments.moment1 / correction1 / divisor
    return weights * (1 - rate * decay) - step, _UNIT * (weights.abs() + step.abs())


def _largest(difference: Tensor, bound: Tensor) -> float:
    error = (difference.abs() / (bound + _TINY)).max().item()
    return error if math.isfinite(error) else math.inf


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


def _error_of_sum(distance: float, size: float) -> float:
    """Where the size overflows, which takes a neighbour, nothing can be told, and so nothing counts."""
    return 0.0 if size == math.inf else _ratio(distance, size)


def _ratio(distance: float, norm: float) -> float:
    if not (math.isfinite(distance) and math.isfinite(norm)):
        return math.inf
    if norm == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / norm


def _unlike(claimed: Mapping[str, Tensor], replayed: Mapping[str, Tensor], name: str) -> bool:
    one, other = claimed[name], replayed[name]
    return one.shape != other.shape or one.dtype != other.dtype or not bool(one.isfinite().all())
