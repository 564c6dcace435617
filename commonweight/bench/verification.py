"""`bench verification`: false alarms, what cheats are found, whether they pay, and what all of it costs.

Nothing here needs a network: rounds are trained and replayed with the code of trainers and auditors in processes of
their own, and cheats play against the rules. Whether real nodes fare likewise is for the tests in tests/adversaries.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commonweight.bench.bias import Bias
from commonweight.bench.calibration import TRAINED, write_spec
from commonweight.bench.lies import LIES
from commonweight.bench.measure import Result, Summary
from commonweight.bench.pipeline_workers import PipelineWorkers
from commonweight.bench.verification_honest import honest_rounds
from commonweight.bench.verification_model import WITHIN_EPOCHS
from commonweight.bench.verification_orders import STALE_AGE, round_file
from commonweight.bench.verification_simulated import simulated_auditors, simulated_cheats
from commonweight.bench.verification_workers import Worker
from commonweight.bench.verification_world import VerificationBench, World, small_spec
from commonweight.devnet.spec import devnet_spec
from commonweight.model.corpus import build_dataset, default_corpus
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.audits import Verdict
from commonweight.rules.stages import boundary_bytes_per_token

OVERHEAD, RECEIPTS, ADDED_BYTES, BIAS_COST = 0.03, 0.01, 1.01, 0.01


def run_verification_bench(bench: VerificationBench, note: Callable[[str], None]) -> dict[str, list[Result]]:
    """All results, by section; `note` is told what is measured next."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = build_dataset(default_corpus(), folder / "data", ByteTokenizer())
        small = small_spec(manifest.hash, manifest.tokens)
        spec = small if bench.is_small else devnet_spec(4, 0, manifest.hash, manifest.tokens)
        world = World(bench, folder, folder / "data", spec, small)
        results = {}
        for section, measure in SECTIONS.items():
            note(f"{section} …")
            results[section] = measure(world)
        return results


def _lies(world: World) -> list[Result]:
    """What share of the audits that look at a lie show it."""
    bench, spec = world.bench, world.spec
    spec_file, folder = write_spec(world.folder, spec), world.folder / "lies"
    rounds = [max(STALE_AGE, bench.lie_rounds // 2), bench.lie_rounds - 1]
    files = [round_file(folder, round_, stage) for round_ in rounds for stage in range(spec.stages)]
    names = [lie.name for lie in LIES]
    folder.mkdir()
    with Worker(TRAINED) as liar:
        everything = list(range(bench.lie_rounds))
        liar.ask("train", spec=spec_file, data=world.data, folder=folder, rounds=everything, keep=rounds, stale=True)
        for number, file in enumerate(files):
            seed = bench.seed + number
            liar.ask("lie", spec=spec_file, file=file, out=folder, names=names, seed=seed)
    found: dict[bool, dict[str, Counter[str]]] = {exact: {name: Counter() for name in names} for exact in (True, False)}
    for setting in (TRAINED, *bench.foreign):
        exact = setting is TRAINED
        with Worker(setting) as auditor:
            for name, verdicts in auditor.ask("find", spec=spec_file, files=files, exact=exact).items():
                found[exact][name].update(verdicts)
    results = []
    for lie in LIES:
        for where, exact in (("within a class", True), ("across classes", False)):
            verdicts = found[exact][lie.name]
            share = verdicts[Verdict.FAILED.value] / verdicts.total()
            note = " (else withheld)" if verdicts[Verdict.WITHHELD.value] else ""
            target = 1.0 if exact and not lie.is_hidden else None
            name = f"{lie.name}, {where}{note}"
            results.append(Result(name, f"of {verdicts.total()}", Summary.of([share]), target=target))
    return results


def _cost(world: World) -> list[Result]:
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
        "microbatch": (1 - whole) * float(rates.microbatch_rate),
        "data": float(rates.data_rate) * count / spec.stages,
    }
    trained = seconds["train"]
    shares = {
        f"audits of kind {kind}": [number * s / t for s, t in zip(seconds[kind], trained, strict=True)]
        for kind, number in expected.items()
    }
    names = ("receipt", "sketch", "trace", "hash what crosses", "hash gradient and state")
    shares |= {name: [s / t for s, t in zip(seconds[name], trained, strict=True)] for name in names}
    audits = [f"audits of kind {kind}" for kind in expected]
    sums = {"audits and receipt together": [*audits, "receipt"]}
    sums["audits, receipt, sketch and trace together"] = [*audits, "receipt", "sketch", "trace"]
    for name, parts in sums.items():
        shares[name] = [sum(values) for values in zip(*(shares[part] for part in parts), strict=True)]
    limits = {"receipt": RECEIPTS, "audits and receipt together": OVERHEAD}
    results = [
        Result(name, "of training", Summary.of(values), limit=limits.get(name)) for name, values in shares.items()
    ]
    if not bench.is_small:
        results.append(asyncio.run(_measure_bytes(world)))
    return results


async def _measure_bytes(world: World) -> Result:
    """What crosses between real stages, over codes, gradients and tokens alone."""
    async with PipelineWorkers(world.spec, world.data, world.folder / "pipes") as workers:
        parts = await workers.train(0)
    training = world.spec.training
    bare = boundary_bytes_per_token(world.spec).sent * training.tokens_per_round
    bare += training.microbatches_per_round * training.microbatch_sequences  # each sequence's last target
    ratios = [(above.bytes_down + below.bytes_up) / bare for above, below in zip(parts, parts[1:], strict=False)]
    return Result("bytes between stages over tensors alone", "ratio", Summary.of(ratios), limit=ADDED_BYTES)


def _bias(world: World) -> list[Result]:
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


SECTIONS: dict[str, Callable[[World], list[Result]]] = {
    "honest rounds, audited": honest_rounds,
    "lies: share of the audits that look at them which fail": _lies,
    f"simulated cheats: caught within {WITHIN_EPOCHS} epochs, and profit over honesty": simulated_cheats,
    f"simulated auditors: convicted within {WITHIN_EPOCHS} epochs, and profit over honesty": simulated_auditors,
    "processor time": _cost,
    "training with the largest bias that passes": _bias,
}
"""In the order in which they are measured."""
