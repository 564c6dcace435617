"""False alarms: honest rounds that processes trained, audited by others of the same numerics class and of another."""

import shutil
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from commonweight.bench.calibration import TRAINED, with_dtype, write_spec
from commonweight.bench.measure import Result, Summary
from commonweight.bench.verification_workers import Worker
from commonweight.bench.verification_world import World
from commonweight.rules.audits import Audit, Kind, Verdict, draw_audits
from commonweight.rules.beacon import blinded, hash_chain, round_beacon, round_root, seal_salt
from commonweight.rules.load import undivided
from commonweight.rules.spec import ModelSpec

FALSE_ALARMS = 1e-4


def honest_rounds(world: World) -> list[Result]:
    """Honest rounds that other processes trained, audited within a class and across."""
    bench = world.bench
    tenth = max(1, bench.audits // 10)
    parts = (
        ("devnet's model", world.spec, tenth, 12),
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
            for what, key in (("an outlier, too,", "outliers"), ("the whole round", "doubts")):
                line = f"{name}: audits of one microbatch that replayed {what} {where}"
                results.append(Result(line, "of them", Summary.of([found[key] / max(1, found["single"])])))
        shares = across["other_bits"] / across["audits"]
        results += [
            Result(f"{name}: other bits across classes", "per audit", Summary.of([shares])),
            Result(f"{name}: largest error across classes", "tolerances", Summary.of([across["largest"]]), limit=1),
        ]
    return results


def _often(spec: ModelSpec, rounds: int) -> ModelSpec:
    """With epochs of so many rounds and rates at which each stage's round is audited, a quarter of them whole."""
    rates = {"round_rate": "0.25", "microbatch_rate": "1", "data_rate": "0.25"}
    return spec.model_copy(
        update={
            "verification": spec.verification.model_copy(update=rates),
            "economics": spec.economics.model_copy(update={"rounds_per_epoch": rounds}),
        }
    )


def _audit_honest(world: World, spec: ModelSpec, count: int, random: Random) -> tuple[Counter[str], Counter[str]]:
    """Train epochs and audit what their beacons draw, `count` units in all: by a process of the same class, and by one
    of another. Each epoch has auditors of its own, which begin anew.
    """
    spec_file, folder = write_spec(world.folder, spec), world.folder / "honest"
    exact: Counter[str] = Counter()
    across: Counter[str] = Counter()
    foreign = world.bench.foreign
    loads = undivided(spec.stages, spec.training.microbatches_per_round)
    common: dict[str, Any] = {"spec": spec_file, "data": world.data, "folder": folder}
    with Worker(TRAINED) as provider:
        for number, rounds in enumerate(_epochs(spec)):
            folder.mkdir()
            seed = random.randbytes(32)
            tip, *values = hash_chain(seed, len(rounds))
            outputs = provider.ask("train", **common, rounds=rounds, keep=rounds, tip=tip.hex())
            audits: list[Audit] = []
            for position, (round_, value) in enumerate(zip(rounds, values, strict=True)):
                signed = outputs[position * spec.stages : (position + 1) * spec.stages]
                told = [[blinded(bytes.fromhex(each), seal_salt(seed, round_, n, 0))] for n, each in enumerate(signed)]
                audits += draw_audits(spec, round_, round_beacon(value, round_root(told)), loads)
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
    sums["single"] += sum(found["kinds"].get(kind.value, 0) for kind in (Kind.MICROBATCH, Kind.LOSS))
    for key in ("other_bits", "outliers", "doubts"):
        sums[key] += found[key]
    sums["largest"] = max(sums["largest"], found["largest"])
