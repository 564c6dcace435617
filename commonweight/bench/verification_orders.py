"""What a bench process does: a method of `Orders` for each order; arguments and results are JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from commonweight.bench.auditor_model import simulate_auditors
from commonweight.bench.bias import Bias, train_biased
from commonweight.bench.calibration_answers import (
    ASKED,
    generate_answer,
    hold,
    lying_stages,
    prompt_of,
    read_answers,
    write_answers,
)
from commonweight.bench.lies import INNER, LIES, listen
from commonweight.bench.replays import (
    Made,
    Replays,
    Taken,
    Tensors,
    apart,
    bits,
    finish,
    judge,
    put_together,
    take_apart,
    work,
)
from commonweight.bench.round_files import read_made, read_round, write_made, write_round
from commonweight.bench.verification_cost import measure_cost
from commonweight.bench.verification_model import simulate, suite
from commonweight.bench.verification_workers import Setting
from commonweight.model.compare import worst
from commonweight.model.data import Dataset
from commonweight.model.hashing import tensors_hash
from commonweight.model.inference import InferenceStage
from commonweight.model.numerics import numerics_class
from commonweight.model.sketch import pack_sketch
from commonweight.model.stage import Stage, state_parts
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.report import NO_TENSOR, Hop, Report
from commonweight.rules.spec import ModelSpec, parse_spec
from commonweight.wire.tensors import digest

STALE_AGE = 2
"""Rounds between stale weights and those due."""


class Orders:
    """One process. `spec` and `data` are paths, others paths of files that `round_file` names."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._trained: list[Stage] = []
        self._states: dict[int, list[Tensors]] = {}

    def numerics(self, spec: str) -> str:
        """The class of this process."""
        return numerics_class(self._setting.device, _spec(spec))

    def train(
        self,
        spec: str,
        data: str,
        folder: str,
        rounds: Sequence[int],
        keep: Sequence[int],
        tip: str = "",
        stale: bool = False,
    ) -> list[str]:
        """Train these rounds, which follow those of the order before; of those to `keep` write what each stage took
        and made. Returns the outputs of their reports' receipts in hex, round by round and stage by
        stage; `tip` is the beacon's, in hex.
        """
        model, outputs = _spec(spec), []
        dataset = Dataset.open(data, model)
        self._trained = self._trained or [Stage(model, index) for index in range(model.stages)]
        for round_ in rounds:
            batches = [dataset.microbatch(round_, n) for n in range(model.training.microbatches_per_round)]
            kept = round_ in keep
            before = [_copy(stage) for stage in self._trained]
            everything = _train_round(self._trained, batches)
            self._states[round_] = before
            for index, (taken, made) in enumerate(everything):
                if kept:
                    old = self._states[round_ - STALE_AGE][index] if stale else {}
                    taken = replace(taken, round=round_, state=before[index], stale=old)
                    write_round(round_file(Path(folder), round_, index), taken, made)
                    outputs.append(
                        _commitment(
                            round_, index, taken, made, self._trained[index], bytes.fromhex(tip).rjust(32, b"\0")
                        )
                    )
            self._states.pop(round_ - STALE_AGE, None)
        return outputs

    def replay(self, spec: str, files: Sequence[str], out: str) -> list[str]:
        """Do whole rounds of stages again, and write what came of each to a file of the same name in `out`. Returns
        their bits, hashed.
        """
        model = _spec(spec)
        found = []
        for file in map(Path, files):
            taken, _ = read_round(file)
            made = self._replay(model, _stage_of(file), taken)
            write_made(Path(out) / file.name, made)
            found.append(bits(made).hex())
        return found

    def _replay(self, model: ModelSpec, index: int, taken: Taken) -> Made:
        if not self._setting.apart:
            return work(Stage(model, index, device=self._setting.device, blank=True), taken)
        stage = Stage(apart(model), index, device=self._setting.device, blank=True)
        return put_together(work(stage, take_apart(taken)), model.training.microbatch_sequences)

    def lie(self, spec: str, file: str, out: str, names: Sequence[str], seed: int) -> None:
        """Write what each of these liars that is possible there says about a stage's round to a file in `out`, see
        `lie_file`.
        """
        model, path = _spec(spec), Path(file)
        index = _stage_of(path)
        taken, _ = read_round(path)
        liar = listen(Stage(model, index, blank=True), taken, seed)
        for number, lie in enumerate(LIES):
            if lie.name in names and lie.stage % model.stages == index:
                write_made(lie_file(Path(out), path, number), lie.tell(liar))

    def find(self, spec: str, files: Sequence[str], exact: bool) -> dict[str, dict[str, int]]:
        """Audit what liars have written about these rounds, beside them. Counts of the audits that look at a lie, by
        its name and by verdict.
        """
        model = _spec(spec)
        verdicts: dict[str, Counter[str]] = {lie.name: Counter() for lie in LIES}
        for file in map(Path, files):
            taken, _ = read_round(file)
            index, numbers = _stage_of(file), range(len(taken.tokens))
            replays = Replays(Stage(model, index, device=self._setting.device, blank=True), taken)
            for number, lie in enumerate(LIES):
                if lie.stage % model.stages != index:
                    continue
                claimed = read_made(lie_file(file.parent, file, number))
                for kind in lie.shown_by:
                    for microbatch in (None,) if kind is Kind.ROUND else numbers[lie.true_first :]:
                        unit = Audit(taken.round, index, kind, microbatch)
                        verdict, _ = judge(model, unit, claimed, replays, exact=exact)
                        verdicts[lie.name][verdict.value] += 1
        return {name: dict(counts) for name, counts in verdicts.items()}

    def answer(self, spec: str, data: str, files: Sequence[str], out: str) -> None:
        """Generate answers with the version that stages began a round with, of which `files` are, stage by stage."""
        model = _spec(spec)
        dataset = Dataset.open(data, model)
        stages = [InferenceStage(model, *version, self._setting.device) for version in enumerate(map(_version, files))]
        prompts = [prompt_of(model, number, dataset.microbatch(number, 0)[0]) for number in range(len(ASKED))]
        write_answers(Path(out), [generate_answer(stages, prompt, number) for number, prompt in enumerate(prompts)])

    def hold_answers(
        self, spec: str, files: Sequence[str], stale: Sequence[str], answers: Sequence[str]
    ) -> Mapping[str, Sequence[Sequence[Any]]]:
        """The parts of answers held against replays with the version in `files`: by file of `answers`. For the first
        of these also what lies come to, by their names; `stale` are the files of another version.
        """
        model = _spec(spec)
        versions = [_version(file) for file in files]
        stages = [InferenceStage(model, *version) for version in enumerate(versions)]
        held = {file: hold(stages, read_answers(Path(file))) for file in answers}
        liars = lying_stages(model, versions)
        liars["another version"] = [InferenceStage(model, *version) for version in enumerate(map(_version, stale))]
        told = read_answers(Path(answers[0]))
        return held | {lie: hold(stages, told, lying) for lie, lying in liars.items()}

    def audit(self, spec: str, data: str, folder: str, audits: Sequence[Sequence[Any]], exact: bool) -> dict[str, Any]:
        """Audit units of trained rounds. Each is [round, stage, kind, microbatch]. Counts by verdict and kind, how many
        came to other bits, how many of one microbatch replayed an outlier or the whole round, and the largest error
        over its tolerance.
        """
        model = _spec(spec)
        dataset = Dataset.open(data, model)
        verdicts: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        counts = Counter(other_bits=0, outliers=0, doubts=0)
        largest, what = 0.0, ""
        loaded: tuple[int, int] | None = None
        for round_, index, kind, microbatch in audits:
            unit = Audit(round_, index, Kind(kind), microbatch)
            if loaded != (round_, index):
                loaded = round_, index
                taken, claimed = read_round(round_file(Path(folder), round_, index))
                taken = replace(taken, tokens=[dataset.microbatch(round_, n) for n in range(len(taken.tokens))])
            replays = Replays(Stage(model, index, device=self._setting.device, blank=True), taken)
            verdict, found = judge(model, unit, claimed, replays, exact=exact)
            verdicts[verdict.value] += 1
            kinds[unit.kind.value] += 1
            counts["outliers"] += len(replays.numbers) > 1
            counts["doubts"] += microbatch is not None and replays.is_whole
            if not exact and unit.kind is not Kind.DATA:
                counts["other_bits"] += any(each.error > 0 for each in found)
                most = worst(found)
                if most.error / most.tolerance > largest:
                    largest, what = most.error / most.tolerance, most.what
        return {"verdicts": verdicts, "kinds": kinds, "largest": largest, "what": what, **counts}

    def cost(self, spec: str, data: str, folder: str, round: int, turns: int) -> dict[str, list[float]]:
        """Processor seconds of an inner stage's round and of its audits, by part."""
        model = _spec(spec)
        return measure_cost(model, Dataset.open(data, model), round_file(Path(folder), round, INNER), turns)

    def bias(self, spec: str, data: str, rounds: int, bias: dict[str, Any]) -> list[float]:
        """The mean loss of each round of a training run with a bias."""
        model = _spec(spec)
        return train_biased(model, Dataset.open(data, model), rounds, Bias(**bias))

    def simulate(self, spec: str, epochs: int, seed: int, stake: float, cost: float) -> list[dict[str, Any]]:
        """Play every adversary of the suite."""
        model = _spec(spec)
        adversaries = suite(model, stake=stake, cost=cost)
        outcomes = simulate(model, adversaries, epochs=epochs, seed=seed, stake=stake, cost=cost)
        return [asdict(outcome) for outcome in outcomes]

    def simulate_auditors(self, spec: str, epochs: int, seed: int, stake: float, cost: float) -> list[dict[str, Any]]:
        """Play every auditor."""
        outcomes = simulate_auditors(_spec(spec), epochs=epochs, seed=seed, stake=stake, cost=cost)
        return [asdict(outcome) for outcome in outcomes]


def round_file(folder: Path, round_: int, stage: int) -> Path:
    """Where a trained round of a stage lies."""
    return folder / f"{round_}-{stage}"


def lie_file(folder: Path, round_: Path, number: int) -> Path:
    """Where the lie of this number about the round in a file lies."""
    return folder / f"{round_.name}.{number}"


def _stage_of(file: Path) -> int:
    return int(file.name.partition("-")[2].partition(".")[0])


def _spec(path: str) -> ModelSpec:
    return parse_spec(Path(path).read_bytes())


def _version(file: str) -> Tensors:
    """The parameters that a stage began a round with."""
    taken, _ = read_round(Path(file))
    parameters, _ = state_parts(taken.state)
    return {name.removeprefix("parameter."): tensor for name, tensor in parameters.items()}


def _copy(stage: Stage) -> Tensors:
    return {name: tensor.clone() for name, tensor in stage.state().items()}


def _train_round(stages: Sequence[Stage], batches: Sequence[Tensor]) -> list[tuple[Taken, Made]]:
    """Train a round; what each stage took, without states, and made."""
    parts = [(Taken(0, {}, list(batches), [], []), Made()) for _ in stages]
    for n, tokens in enumerate(batches):
        pending, code = [], None
        for stage, (taken, made) in zip(stages, parts, strict=True):
            forward = stage.forward(tokens, code)
            pending.append(forward)
            taken.codes.append(code)
            code = forward.output if isinstance(forward.output, Tensor) else None
            made.outputs[n], made.tokens[n] = code, tokens
            made.losses[n] = 0.0 if isinstance(forward.output, Tensor) else forward.output
        gradient: Tensor | None = None
        for stage, (taken, made) in zip(reversed(stages), reversed(parts), strict=True):
            taken.gradients.append(gradient)
            gradient = made.input_gradients[n] = stage.backward(pending.pop(), gradient)
            made.sketches[n] = stage.sketched()
    return [(taken, finish(made, stage)) for stage, (taken, made) in zip(stages, parts, strict=True)]


def _commitment(round_: int, index: int, taken: Taken, made: Made, stage: Stage, tip: bytes) -> str:
    def named(tensor: Tensor | None) -> bytes:
        return NO_TENSOR if tensor is None else digest(tensor)

    hops = tuple(
        Hop(
            n,
            digest(tokens),
            named(taken.codes[n]),
            named(made.outputs[n]),
            named(taken.gradients[n]),
            named(made.input_gradients[n]),
            pack_sketch(made.sketches[n].sums),
            made.losses[n],
        )
        for n, tokens in enumerate(taken.tokens)
    )
    before = stage.root_of(round_, *map(tensors_hash, state_parts(taken.state)))
    report = Report(round_, index, hops, made.gradient_hash, made.gradient_hash, before, made.next_root)
    return report.commitments(stage.spec.training.microbatches_per_round).output(tip).hex()
