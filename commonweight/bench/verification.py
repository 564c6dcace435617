"""`bench verification`: false alarms, what cheats are found, whether they pay, and what all of it costs.

Nothing here needs a network: rounds are trained and replayed with the code of trainers and auditors in processes of
their own, and cheats play against the rules. Whether real nodes fare likewise is for the tests in tests/adversaries.
"""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from commonweight.bench.bias import Bias
from commonweight.bench.calibration import TRAINED, with_dtype, write_spec
from commonweight.bench.lies import LIES, Lie
from commonweight.bench.measure import Result, Summary
from commonweight.bench.pipeline_workers import PipelineWorkers
from commonweight.bench.replays import judge
from commonweight.bench.round_files import read_made, read_round
from commonweight.bench.verification_model import WITHIN_EPOCHS
from commonweight.bench.verification_orders import STALE_AGE, lie_file, round_file
from commonweight.bench.verification_workers import Setting, Worker
from commonweight.devnet.spec import devnet_spec
from commonweight.model.corpus import build_dataset, default_corpus
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.audits import Audit, Kind, Verdict, draw_audits
from commonweight.rules.beacon import hash_chain, round_beacon, round_root
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import boundary_bytes_per_token

FOREIGN = (
    Setting("2 threads, math attention", threads=2, attention="math"),
    Setting("AVX2 kernels", environment={"ATEN_CPU_CAPABILITY": "avx2"}),
    Setting("MKL for all processors", environment={"MKL_CBWR": "COMPATIBLE"}),
)
FALSE_ALARMS = 1e-4
OVERHEAD, RECEIPTS, ADDED_BYTES, BIAS_COST = 0.03, 0.01, 1.01, 0.01


@dataclass(frozen=True)
class VerificationBench:
    """What is measured."""

    audits: int = 10_000
    """Honest ones within a class, and as many across: a tenth with the devnet's model, the others with a small one."""
    epochs: int = 10_000
    """Simulated at the devnet's rates, and a hundredth of that with `long_epoch` rounds an epoch."""
    bias_rounds: int = 60
    seed: int = 0
    lie_rounds: int = 12
    """Rounds that are trained before and while cheats are tried: in the last, and in one in the middle."""
    turns: int = 7
    stake: float = 1.0
    """In rewards of an epoch."""
    cost: float = 0.8
    """What computing an epoch costs, likewise."""
    long_epoch: int = 1_000
    """Rounds."""
    foreign: tuple[Setting, ...] = FOREIGN
    """Auditors of other numerics classes than that of the trainers; they take turns."""
    is_small: bool = False
    """The small model in place of the devnet's, and no pipes: for tests."""


def small_spec(manifest: str, tokens: int) -> ModelSpec:
    """A model of which an audit takes milliseconds."""
    spec = devnet_spec(3, 0, manifest, tokens)
    architecture = {"d_model": 32, "boundary_dim": 8, "n_layers": 3, "d_ff": 64}
    training = {"sequence_length": 32, "microbatches_per_round": 4}
    return spec.model_copy(
        update={
            "architecture": spec.architecture.model_copy(update=architecture),
            "training": spec.training.model_copy(update=training),
        }
    )


@dataclass(frozen=True)
class _World:
    bench: VerificationBench
    folder: Path
    data: Path
    spec: ModelSpec
    small: ModelSpec


def run_verification_bench(bench: VerificationBench, note: Callable[[str], None]) -> dict[str, list[Result]]:
    """All results, by section; `note` is told what is measured next."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = build_dataset(default_corpus(), folder / "data", ByteTokenizer())
        small = small_spec(manifest.hash, manifest.tokens)
        spec = small if bench.is_small else devnet_spec(4, 0, manifest.hash, manifest.tokens)
        world = _World(bench, folder, folder / "data", spec, small)
        results = {}
        for section, measure in SECTIONS.items():
            note(f"{section} …")
            results[section] = measure(world)
        return results


def _honest(world: _World) -> list[Result]:
    """Honest rounds that other processes trained, audited within a class and across."""
    bench = world.bench
    tenth = max(1, bench.audits // 10)
    parts = (
        ("devnet's model", world.spec, tenth, 4),
        ("small model", world.small, bench.audits - tenth, 100),
        ("small model in bfloat16", with_dtype(world.small, "bfloat16"), tenth, 100),
    )
    results = []
    for name, spec, count, shard in parts[bench.is_small :]:
        exact, across = _audit_honest(world, _often(spec, shard), count, Random(f"{bench.seed}/{name}"))  # noqa: S311
        for where, found in (("within a class", exact), ("across classes", across)):
            drawn, failed = found["audits"], found["failed"]
            results.append(Result(f"{name}: audits {where}", "audits", Summary.of([drawn])))
            limit = 0 if where == "within a class" else FALSE_ALARMS
            results.append(
                Result(f"{name}: false alarms {where}", "per audit", Summary.of([failed / drawn]), limit=limit)
            )
        shares = across["other_bits"] / across["audits"]
        results += [
            Result(f"{name}: other bits across classes", "per audit", Summary.of([shares])),
            Result(f"{name}: largest error across classes", "tolerances", Summary.of([across["largest"]]), limit=1),
        ]
    return results


def _often(spec: ModelSpec, rounds: int) -> ModelSpec:
    """With epochs of so many rounds and rates at which most units are audited."""
    rates = {"round_rate": "0.25", "microbatch_rate": "0.5", "data_rate": "0.25"}
    return spec.model_copy(
        update={
            "verification": spec.verification.model_copy(update=rates),
            "economics": spec.economics.model_copy(update={"rounds_per_epoch": rounds}),
        }
    )


def _audit_honest(world: _World, spec: ModelSpec, count: int, random: Random) -> tuple[Counter[str], Counter[str]]:
    """Train epochs and audit what their beacons draw, `count` units in all: by a process of the same class, and by one
    of another. Each epoch has auditors of its own, which begin anew.
    """
    spec_file, folder = write_spec(world.folder, spec), world.folder / "honest"
    exact: Counter[str] = Counter()
    across: Counter[str] = Counter()
    foreign = world.bench.foreign
    common: dict[str, Any] = {"spec": spec_file, "data": world.data, "folder": folder}
    with Worker(TRAINED) as provider:
        for number, rounds in enumerate(_epochs(spec)):
            folder.mkdir()
            tip, *values = hash_chain(random.randbytes(32), len(rounds))
            outputs = provider.ask("train", **common, rounds=rounds, keep=rounds, tip=tip.hex())
            audits: list[Audit] = []
            for position, (round_, value) in enumerate(zip(rounds, values, strict=True)):
                signed = outputs[position * spec.stages : (position + 1) * spec.stages]
                audits += draw_audits(spec, round_, round_beacon(value, round_root(list(map(bytes.fromhex, signed)))))
            units = [(a.round, a.stage, a.kind.value, a.microbatch) for a in audits][: count - exact["audits"]]
            with Worker(TRAINED) as same, Worker(foreign[number % len(foreign)]) as other:
                for auditor, is_exact in ((same, True), (other, False)):
                    auditor.tell("audit", **common, audits=units, exact=is_exact)
                for auditor, sums in ((same, exact), (other, across)):
                    _add(sums, auditor.hear(), len(units))
            shutil.rmtree(folder)
            if exact["audits"] >= count:
                return exact, across
    raise AssertionError("epochs don't end")


def _epochs(spec: ModelSpec) -> Iterator[list[int]]:
    length, begin = spec.economics.rounds_per_epoch, 0
    while True:
        yield list(range(begin, begin + length))
        begin += length


def _add(sums: "Counter[str]", found: dict[str, Any], count: int) -> None:
    sums["audits"] += count
    sums["failed"] += count - found["verdicts"].get(Verdict.PASSED.value, 0)
    sums["other_bits"] += found["other_bits"]
    sums["largest"] = max(sums["largest"], found["largest"])


def _lies(world: _World) -> list[Result]:
    """What share of the audits that look at a lie show it."""
    bench, spec = world.bench, world.spec
    spec_file, folder = write_spec(world.folder, spec), world.folder / "lies"
    rounds = [max(STALE_AGE, bench.lie_rounds // 2), bench.lie_rounds - 1]
    files = [round_file(folder, round_, stage) for round_ in rounds for stage in range(spec.stages)]
    names = [lie.name for lie in LIES]
    folder.mkdir()
    told: dict[Path, list[str]] = {}
    with Worker(TRAINED) as liar:
        everything = list(range(bench.lie_rounds))
        liar.ask("train", spec=spec_file, data=world.data, folder=folder, rounds=everything, keep=rounds, stale=True)
        for number, file in enumerate(files):
            seed = bench.seed + number
            told[file] = liar.ask("lie", spec=spec_file, file=file, out=folder, names=names, seed=seed)
    auditors = {TRAINED.name: TRAINED} | {setting.name: setting for setting in bench.foreign}
    for name, setting in auditors.items():
        (folder / name).mkdir()
        with Worker(setting) as auditor:
            auditor.ask("replay", spec=spec_file, files=[str(file) for file in files], out=folder / name)
    results = []
    for number, lie in enumerate(LIES):
        about = [file for file in files if lie.name in told[file]]
        for where, names in (
            ("within a class", [TRAINED.name]),
            ("across classes", [setting.name for setting in bench.foreign]),
        ):
            verdicts = Counter(
                verdict
                for file in about
                for verdict in _verdicts(spec, lie, number, file, [folder / name for name in names])
            )
            share = verdicts[Verdict.FAILED] / verdicts.total()
            withheld = verdicts[Verdict.WITHHELD] / verdicts.total()
            note = " (else withheld)" if withheld else ""
            name = f"{lie.name}, {where}{note}"
            target = 1.0 if where == "within a class" else None
            results.append(Result(name, f"of {verdicts.total()}", Summary.of([share]), target=target))
    return results


def _verdicts(spec: ModelSpec, lie: Lie, number: int, file: Path, replays: Sequence[Path]) -> Iterator[Verdict]:
    """What the audits that look at a lie come to, by whoever has left replays in these folders."""
    taken, _ = read_round(file)
    claimed = read_made(lie_file(file.parent, file, number))
    stage = lie.stage % spec.stages
    units = [Audit(taken.round, stage, Kind.ROUND)] if Kind.ROUND in lie.shown_by else []
    for kind in lie.shown_by - {Kind.ROUND}:
        units += [Audit(taken.round, stage, kind, n) for n in range(lie.true_first, len(taken.tokens))]
    for folder in replays:
        replayed = read_made(folder / file.name)
        for unit in units:
            yield judge(spec, unit, taken.state, claimed, replayed, exact=folder.name == TRAINED.name)[0]


def _simulated(world: _World) -> list[Result]:
    """The suite of cheats, at the devnet's rates: with its rounds per epoch, and with many."""
    bench = world.bench
    plans = ((30, bench.epochs), (bench.long_epoch, max(WITHIN_EPOCHS, bench.epochs // 100)))
    with Worker(TRAINED) as one, Worker(TRAINED) as other:
        for worker, (rounds, epochs) in zip((one, other), plans, strict=True):
            spec = devnet_spec(1, 0, world.spec.data.manifest, world.spec.data.tokens, rounds_per_epoch=rounds)
            order = {"epochs": epochs - epochs % WITHIN_EPOCHS, "seed": bench.seed}
            worker.tell("simulate", spec=write_spec(world.folder, spec), stake=bench.stake, cost=bench.cost, **order)
        results = []
        for worker, (rounds, _) in zip((one, other), plans, strict=True):
            for outcome in worker.hear():
                name, of = f"{rounds:,} rounds, {outcome['name']}", f"of {outcome['epochs']} epochs"
                error = 2 * outcome["profit_error"]
                profit = Summary(outcome["profit"], outcome["profit"] - error, outcome["profit"] + error)
                limit = None if "honest" in name else outcome["most"]
                results += [
                    Result(f"{name}: caught", of, Summary.of([outcome["caught"]])),
                    Result(f"{name}: profit", "rewards/epoch", profit, limit=limit),
                ]
    return results


def _simulated_auditors(world: _World) -> list[Result]:
    """Seat holders that don't audit as they should, at the devnet's rates."""
    bench = world.bench
    spec = devnet_spec(2, 0, world.spec.data.manifest, world.spec.data.tokens, rounds_per_epoch=30)
    order: dict[str, Any] = {"spec": write_spec(world.folder, spec), "stake": bench.stake, "cost": bench.cost}
    with Worker(TRAINED) as worker:
        outcomes = worker.ask(
            "simulate_auditors", **order, epochs=bench.epochs - bench.epochs % WITHIN_EPOCHS, seed=bench.seed
        )
    results = []
    for outcome in outcomes:
        name, of = outcome["name"], f"of {outcome['epochs']} epochs"
        error = 2 * outcome["profit_error"]
        profit = Summary(outcome["profit"], outcome["profit"] - error, outcome["profit"] + error)
        results += [
            Result(f"{name}: caught", of, Summary.of([outcome["caught"]])),
            Result(f"{name}: profit", "rewards/epoch", profit, limit=None if "honest" in name else 0.0),
        ]
    return results


def _cost(world: _World) -> list[Result]:
    """Shares of the processor time of training."""
    bench, spec = world.bench, world.spec
    spec_file, folder = write_spec(world.folder, spec), world.folder / "cost"
    folder.mkdir()
    common: dict[str, Any] = {"spec": spec_file, "data": world.data, "folder": folder}
    with Worker(TRAINED) as worker:
        worker.ask("train", **common, rounds=[0, 1], keep=[1])
        seconds = worker.ask("cost", **common, round=1, turns=bench.turns)
    rates, count = spec.verification, spec.training.microbatches_per_round
    whole = float(rates.round_rate)
    expected = {
        "round": whole,
        "microbatch": (1 - whole) * float(rates.microbatch_rate) * count,
        "data": float(rates.data_rate) * count / spec.stages,
    }
    trained = seconds["train"]
    shares = {
        f"audits of kind {kind}": [number * s / t for s, t in zip(seconds[kind], trained, strict=True)]
        for kind, number in expected.items()
    }
    names = ("receipt", "trace", "hash what crosses", "hash gradient and state")
    shares |= {name: [s / t for s, t in zip(seconds[name], trained, strict=True)] for name in names}
    audits = [f"audits of kind {kind}" for kind in expected]
    sums = {"audits and receipt together": [*audits, "receipt"]}
    sums["audits, receipt and trace together"] = [*audits, "receipt", "trace"]
    for name, parts in sums.items():
        shares[name] = [sum(values) for values in zip(*(shares[part] for part in parts), strict=True)]
    limits = {"receipt": RECEIPTS, "audits and receipt together": OVERHEAD}
    results = [
        Result(name, "of training", Summary.of(values), limit=limits.get(name)) for name, values in shares.items()
    ]
    if not bench.is_small:
        results.append(asyncio.run(_measure_bytes(world)))
    return results


async def _measure_bytes(world: _World) -> Result:
    """What crosses between real stages, over codes, gradients and tokens alone."""
    async with PipelineWorkers(world.spec, world.data, world.folder / "pipes") as workers:
        parts = await workers.train(0)
    training = world.spec.training
    bare = boundary_bytes_per_token(world.spec).sent * training.tokens_per_round
    bare += training.microbatches_per_round * training.microbatch_sequences  # each sequence's last target
    ratios = [(above.bytes_down + below.bytes_up) / bare for above, below in zip(parts, parts[1:], strict=False)]
    return Result("bytes between stages over tensors alone", "ratio", Summary.of(ratios), limit=ADDED_BYTES)


def _bias(world: _World) -> list[Result]:
    """What training with the largest bias that passes across classes costs, of what training improves."""
    bench, spec = world.bench, world.spec
    everywhere = tuple(range(spec.stages))
    contenders = {
        "honest": Bias(),
        "uphill, every stage": Bias(everywhere, sent=True),
        "uphill, one stage, steps at their own bound": Bias((1,), sent=True, step=True),
        "random, one stage, steps at their own bound": Bias((1,), sent=True, step=True, random=True),
    }
    spec_file = write_spec(world.folder, spec)
    losses: dict[str, list[float]] = {}
    names = list(contenders)
    for pair in zip(names[::2], names[1::2], strict=True):
        with Worker(TRAINED) as one, Worker(TRAINED) as other:
            for name, worker in zip(pair, (one, other), strict=True):
                order = {"rounds": bench.bias_rounds, "bias": asdict(contenders[name])}
                worker.tell("bias", spec=spec_file, data=world.data, **order)
            losses |= {name: worker.hear() for name, worker in zip(pair, (one, other), strict=True)}
    last = max(1, bench.bias_rounds // 10)
    ends = {name: sum(run[-last:]) / last for name, run in losses.items()}
    improvement = losses["honest"][0] - ends["honest"]
    costs = {name: (end - ends["honest"]) / improvement for name, end in ends.items() if name != "honest"}
    return [
        Result("improvement of the honest run", "nats", Summary.of([improvement])),
        *(
            Result(f"cost of {name}", "of it", Summary.of([cost]), limit=None if "random" in name else BIAS_COST)
            for name, cost in costs.items()
        ),
    ]


SECTIONS: dict[str, Callable[[_World], list[Result]]] = {
    "honest rounds, audited": _honest,
    "lies: share of the audits that look at them which fail": _lies,
    f"simulated cheats: caught within {WITHIN_EPOCHS} epochs, and profit over honesty": _simulated,
    f"simulated auditors: convicted within {WITHIN_EPOCHS} epochs, and profit over honesty": _simulated_auditors,
    "processor time": _cost,
    "training with the largest bias that passes": _bias,
}
"""In the order in which they are measured."""
