"""Whether cheating pays: simulated providers and auditors, at the devnet's rates."""

from typing import Any

from commonweight.bench.calibration import TRAINED, write_spec
from commonweight.bench.measure import Result, Summary
from commonweight.bench.verification_model import WITHIN_EPOCHS
from commonweight.bench.verification_workers import Worker
from commonweight.bench.verification_world import World
from commonweight.devnet.spec import ROUNDS_PER_EPOCH, devnet_spec


def simulated_cheats(world: World) -> list[Result]:
    """The suite of cheats: with the devnet's rounds per epoch, and with many."""
    bench = world.bench
    plans = ((ROUNDS_PER_EPOCH, bench.epochs), (bench.long_epoch, max(WITHIN_EPOCHS, bench.epochs // 100)))
    with Worker(TRAINED) as one, Worker(TRAINED) as other:
        for worker, (rounds, epochs) in zip((one, other), plans, strict=True):
            worker.tell("simulate", **_order(world, stages=1, rounds=rounds, epochs=epochs))
        results = []
        for worker, (rounds, _) in zip((one, other), plans, strict=True):
            for outcome in worker.hear():
                results += _results_of(outcome, f"{rounds:,} rounds, {outcome['name']}", outcome["most"])
    return results


def simulated_auditors(world: World) -> list[Result]:
    """Seat holders that don't audit as they should."""
    with Worker(TRAINED) as worker:
        order = _order(world, stages=2, rounds=ROUNDS_PER_EPOCH, epochs=world.bench.epochs)
        outcomes = worker.ask("simulate_auditors", **order)
    return [result for outcome in outcomes for result in _results_of(outcome, outcome["name"], 0.0)]


def _order(world: World, *, stages: int, rounds: int, epochs: int) -> dict[str, Any]:
    """What a worker is told; epochs are played in blocks of WITHIN_EPOCHS."""
    bench, data = world.bench, world.spec.data
    return {
        "spec": write_spec(world.folder, devnet_spec(stages, 0, data.manifest, data.tokens, rounds_per_epoch=rounds)),
        "stake": bench.stake,
        "cost": bench.cost,
        "epochs": epochs - epochs % WITHIN_EPOCHS,
        "seed": bench.seed,
    }


def _results_of(outcome: dict[str, Any], name: str, most: float) -> list[Result]:
    """How often one was caught, and its profit; `most` is the limit of a dishonest one's."""
    error = 2 * outcome["profit_error"]
    profit = Summary(outcome["profit"], outcome["profit"] - error, outcome["profit"] + error)
    return [
        Result(f"{name}: caught", f"of {outcome['epochs']} epochs", Summary.of([outcome["caught"]])),
        Result(f"{name}: profit", "rewards/epoch", profit, limit=None if "honest" in name else most),
    ]
