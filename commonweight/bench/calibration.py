"""`bench calibrate`: how far honest machines differ, how far cheats do, and which tolerance tells them apart.

One process trains the devnet's model. Then each of several settings, in a process of its own, does some of its rounds
again; rounds of equal bits count once, the others are compared pair by pair as an auditor would across classes.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from commonweight.bench.calibration_answers import Spread, answer_results, judge_answers, show_answers
from commonweight.bench.lies import INNER, LIES
from commonweight.bench.measure import Result, Summary
from commonweight.bench.replays import Tensors, bits, compare_microbatch, judge_round
from commonweight.bench.round_files import read_made, read_round
from commonweight.bench.verification_orders import STALE_AGE, lie_file, round_file
from commonweight.bench.verification_workers import Setting, Worker
from commonweight.devnet.spec import devnet_spec
from commonweight.model.compare import ROUNDINGS, Deviation, movement_tolerance, travelled_tolerance
from commonweight.model.corpus import build_dataset, default_corpus
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec

TRAINED = Setting("1 thread")
SETTINGS = (
    TRAINED,
    Setting("2 threads", threads=2),
    Setting("4 threads", threads=4),
    Setting("math attention", attention="math"),
    Setting("flash attention", attention="flash"),
    Setting("without oneDNN", onednn=False),
    Setting("torch's AVX2 kernels", environment={"ATEN_CPU_CAPABILITY": "avx2"}),
    Setting("torch's kernels without vectors", environment={"ATEN_CPU_CAPABILITY": "default"}),
    Setting("oneDNN up to AVX2", environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    Setting("MKL for all processors", environment={"MKL_CBWR": "COMPATIBLE"}),
    Setting("sequences apart", apart=True),
)
TOLERANCES = {"float32": "0.00001", "bfloat16": "0.02"}
QUANTITIES = ("activation", "gradient back", "loss", "sketch", "gradient", "movement", "roundings")
DISHONEST = ("low precision", "gradient sent back × 1.001", "round's gradient × 1.001", "biased by 0.001")
ANSWERS = "answers"
"""The file of a setting's answers."""
SEPARATES = "low precision"
"""The lie that the recommended tolerance must find: the one that saves work and is nearest to the truth."""


@dataclass(frozen=True)
class Calibration:
    """What is measured."""

    rounds: int = 20
    """That are trained."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    device: str = ""
    """One more machine: what torch calls it."""
    settings: tuple[Setting, ...] = SETTINGS
    spec: Callable[[str, int], ModelSpec] = field(default=lambda manifest, tokens: devnet_spec(4, 0, manifest, tokens))
    """Of a corpus' manifest and number of tokens."""

    @property
    def replayed(self) -> list[int]:
        """Rounds that are compared: an early one, one in the middle, and the last."""
        return sorted({min(STALE_AGE, self.rounds - 1), self.rounds // 2, self.rounds - 1})


@dataclass(frozen=True)
class Distance:
    """How far two that computed the same rounds are apart: the largest error of each quantity."""

    of: str
    against: str
    errors: dict[str, float]
    tolerance: float
    """The least at which all audits pass; for a lie, at which one does."""


@dataclass(frozen=True)
class Calibrated:
    """What was measured with one dtype."""

    dtype: str
    tolerance: float
    """The spec's."""
    classes: dict[str, str]
    """The numerics class of each setting."""
    groups: list[list[str]]
    """Settings of equal bits. The first has what was trained."""
    honest: list[Distance]
    """Each pair of groups."""
    dishonest: list[Distance]
    failures: list[str]
    """Settings of one class with other bits: an audit would convict an honest provider."""
    answers: list[Spread]
    """Of honest ones, and of lies."""
    refused: list[str]
    """Settings whose honest answers a replay in chunks doesn't pass."""

    @property
    def spread(self) -> float:
        """The least tolerance at which no honest pair fails."""
        return max((distance.tolerance for distance in self.honest), default=0.0)

    @property
    def recommended(self) -> float | None:
        """Between the honest spread and the cheat that is nearest to it, in the geometric middle; None where that
        cheat isn't farther away.
        """
        nearest = min(distance.tolerance for distance in self.dishonest if distance.of == SEPARATES)
        return math.sqrt(self.spread * nearest) if 0 < self.spread < nearest else None


def run_calibration(calibration: Calibration) -> list[Calibrated]:
    """All of it, dtype by dtype."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "data")
        manifest = build_dataset(default_corpus(), data, ByteTokenizer())
        spec = calibration.spec(manifest.hash, manifest.tokens)
        return [_calibrate(calibration, with_dtype(spec, dtype), data, Path(scratch)) for dtype in calibration.dtypes]


def with_dtype(spec: ModelSpec, dtype: str) -> ModelSpec:
    """The same model, computed and sent in another precision, with the tolerance for it."""
    training = spec.training.model_copy(update={"compute_dtype": dtype, "boundary_dtype": dtype})
    verification = spec.verification.model_copy(update={"tolerance": TOLERANCES[dtype]})
    return spec.model_copy(update={"training": training, "verification": verification})


def write_spec(folder: Path, spec: ModelSpec) -> Path:
    """A new file with the spec."""
    path = folder / f"{spec.spec_hash.hex()}.json"
    path.write_bytes(canonical_json(spec.model_dump()))
    return path


def _calibrate(calibration: Calibration, spec: ModelSpec, data: Path, scratch: Path) -> Calibrated:
    spec_file, folder = write_spec(scratch, spec), scratch / f"{spec.training.compute_dtype}"
    lies, rounds = folder / "lies", calibration.replayed
    lies.mkdir(parents=True)
    settings = calibration.settings
    if calibration.device:
        settings = (*settings, Setting(calibration.device, device=calibration.device))
    files = [round_file(folder, round_, stage) for round_ in rounds for stage in range(spec.stages)]
    inner = [round_file(folder, round_, INNER) for round_ in rounds]
    with Worker(TRAINED) as worker:
        every = list(range(calibration.rounds))
        worker.ask("train", spec=spec_file, data=data, folder=folder, rounds=every, keep=rounds)
        for number, file in enumerate(inner):
            worker.ask("lie", spec=spec_file, file=file, out=lies, names=DISHONEST, seed=number)
    classes: dict[str, str] = {}
    by_bits = {_trained_bits(files): ["trained"]}
    for setting in settings:
        out = folder / setting.name
        out.mkdir()
        with Worker(setting) as worker:
            classes[setting.name] = worker.ask("numerics", spec=spec_file)
            found = worker.ask("replay", spec=spec_file, files=[str(file) for file in files], out=out)
            if not setting.apart:
                worker.ask(
                    "answer", spec=spec_file, data=data, files=_names(folder, spec, rounds[-1]), out=out / ANSWERS
                )
        by_bits.setdefault(tuple(found), []).append(setting.name)
    groups = list(by_bits.values())
    folders = {"trained": folder} | {setting.name: folder / setting.name for setting in settings}
    honest = [
        _distance(spec, one[0], other[0], files, folders[one[0]], folders[other[0]])
        for one, other in combinations(groups, 2)
    ]
    dishonest = [
        _lie_distance(spec, number, lie.name, inner, lies) for number, lie in enumerate(LIES) if lie.name in DISHONEST
    ]
    apart = {setting.name for setting in settings if setting.apart}
    failures = _false_convictions(classes | {"trained": classes[TRAINED.name]}, groups, apart)
    answered = {str(folder / setting.name / ANSWERS): setting.name for setting in settings if not setting.apart}
    with Worker(TRAINED) as worker:
        stale, version = (_names(folder, spec, round_) for round_ in rounds[-2:])
        held = worker.ask("hold_answers", spec=spec_file, files=version, stale=stale, answers=list(answered))
    answers, refused = judge_answers(spec, answered, held)
    dtype, tolerance = spec.training.compute_dtype, float(spec.verification.tolerance)
    return Calibrated(dtype, tolerance, classes, groups, honest, dishonest, failures, answers, refused)


def _names(folder: Path, spec: ModelSpec, round_: int) -> list[str]:
    return [str(round_file(folder, round_, stage)) for stage in range(spec.stages)]


def _trained_bits(files: Sequence[Path]) -> tuple[str, ...]:
    return tuple(bits(read_round(file)[1]).hex() for file in files)


def _false_convictions(classes: dict[str, str], groups: Sequence[Sequence[str]], apart: set[str]) -> list[str]:
    """The pairs of one numerics class that would convict each other."""
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    return [
        f"{one} and {other} are both “{classes[one]}”, and computed other bits"
        for one, other in combinations((name for name in group_of if name not in apart), 2)
        if classes[one] == classes[other] and group_of[one] != group_of[other]
    ]


def _distance(spec: ModelSpec, one: str, other: str, files: Sequence[Path], mine: Path, theirs: Path) -> Distance:
    deviations: list[tuple[Deviation, Tensors]] = []
    for file in files:
        taken, _ = read_round(file)
        pair = [read_made(folder / file.name) for folder in (mine, theirs)]
        deviations += [(each, taken.state) for each in judge_round(spec, taken, *pair, exact=False)[1]]
    return Distance(one, other, _largest(deviations), max(needed_tolerance(spec, *each) for each in deviations))


def _lie_distance(spec: ModelSpec, number: int, name: str, files: Sequence[Path], folder: Path) -> Distance:
    """How far a lie is from the truth; the tolerance is that at which the audit that finds it most hardly passes it."""
    everything: list[tuple[Deviation, Tensors]] = []
    needed: list[float] = []
    for file in files:
        taken, honest = read_round(file)
        claimed = read_made(lie_file(folder, file, number))
        looks = [judge_round(spec, taken, claimed, honest, exact=False)[1]]
        looks += [compare_microbatch(spec, n, claimed, honest, exact=False) for n in claimed.outputs]
        for found in looks:
            everything += [(each, taken.state) for each in found]
            needed.append(max(needed_tolerance(spec, each, taken.state) for each in found))
    # Where a microbatch is true by itself, its audit comes to what that of the whole round does.
    return Distance(name, "trained", _largest(everything), min(filter(None, needed), default=0.0))


def _largest(deviations: Iterable[tuple[Deviation, Tensors]]) -> dict[str, float]:
    errors = dict.fromkeys(QUANTITIES, 0.0)
    for deviation, _ in deviations:
        what = quantity(deviation)
        errors[what] = max(errors[what], deviation.error)
    return errors


def quantity(deviation: Deviation) -> str:
    """Which of QUANTITIES it is of."""
    if deviation.what in QUANTITIES:
        return deviation.what
    kind = deviation.what.split()[0]
    return kind if kind in QUANTITIES else "roundings"


def needed_tolerance(spec: ModelSpec, deviation: Deviation, before: Tensors) -> float:
    """The least tolerance in the spec, which it was compared with, at which this passes; `before` is the state before
    the round.
    """
    match quantity(deviation):
        case "roundings":
            return 0.0 if deviation.error <= ROUNDINGS else math.inf
        case "activation" | "gradient back":
            return _solve(travelled_tolerance, spec, deviation.error)
        case "movement":
            _, _, name = deviation.what.partition(" ")
            sizes = {key: tensor.numel() for key, tensor in before.items() if key.startswith("parameter.")}
            count = sizes[f"parameter.{name}"] if name else sum(sizes.values())
            return _solve(lambda changed: movement_tolerance(changed, count), spec, deviation.error)
        case _:
            return deviation.error * float(spec.verification.tolerance) / deviation.tolerance


def _solve(allowed: Callable[[ModelSpec], float], spec: ModelSpec, error: float) -> float:
    """The least tolerance at which `allowed` is at least `error`, by bisection; 0 below 1e-12."""

    def at(tolerance: float) -> float:
        verification = spec.verification.model_copy(update={"tolerance": repr(tolerance)})
        return allowed(spec.model_copy(update={"verification": verification}))

    low, high = -12.0, 3.0
    if error <= at(10**low) or not math.isfinite(error):
        return 0.0 if math.isfinite(error) else math.inf
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if at(10**middle) < error else (low, middle)
    return float(10**high)


def show(calibrated: Calibrated) -> list[RenderableType]:
    """Tables and lines for people."""
    settings = Table(title=f"{calibrated.dtype}: settings of equal bits")
    for column in ("bits", "setting", "numerics class"):
        settings.add_column(column)
    for number, group in enumerate(calibrated.groups):
        for name in group:
            settings.add_row(str(number + 1), name, calibrated.classes.get(name, ""))
    pairs = Table(
        title=f"{calibrated.dtype}: largest relative errors; the spec's tolerance is {calibrated.tolerance:g}"
    )
    for column in ("", "against", *QUANTITIES, "least tolerance"):
        pairs.add_column(column, justify="left" if column in ("", "against") else "right")
    for distances in (calibrated.honest, calibrated.dishonest):
        for each in distances:
            pairs.add_row(
                each.of,
                each.against,
                *(
                    f"{each.errors[what]:.1f}" if what == "roundings" else f"{each.errors[what]:.1e}"
                    for what in QUANTITIES
                ),
                f"{each.tolerance:.1e}",
            )
        pairs.add_section()
    best = calibrated.recommended
    said = (
        f"Honest settings need a tolerance of {calibrated.spread:.1e}. "
        + (
            "No tolerance lets them pass and finds the "
            if best is None
            else f"Recommended: {best:.1e}, {best / calibrated.spread:.0f} times that, and as far below the "
        )
        + f"least error of {SEPARATES}."
    )
    return [
        settings,
        pairs,
        said,
        show_answers(calibrated.dtype, calibrated.answers),
        *(f"FALSE CONVICTION: {failure}." for failure in calibrated.failures),
        *(f"HONEST ANSWER NOT PASSED: {refusal}." for refusal in calibrated.refused),
    ]


def to_results(calibrated: Calibrated) -> list[Result]:
    """One line for each quantity and pair."""
    results = []
    for distance in (*calibrated.honest, *calibrated.dishonest):
        name = f"{calibrated.dtype}: {distance.of} against {distance.against}"
        errors = distance.errors | {"least tolerance": distance.tolerance}
        results += [Result(f"{name}: {what}", "relative error", Summary.of([value])) for what, value in errors.items()]
    return results + answer_results(calibrated.dtype, calibrated.answers)
