"""What a run comes to, in the form of the benchmarks."""

import numpy as np
from rich.table import Table

from commonweight.bench.measure import Result, Summary
from commonweight.sim.ownership import settle
from commonweight.sim.records import History
from commonweight.sim.swarm import Swarm

TARGET = 0.95
"""Of the optimum, at 10,000 providers of whom a fifth leave every hour."""
RECOVERY_LIMIT_S = 5.0
HEARTBEATS_PER_S = 2
"""Of each node's connection, one each way."""


def results_of(swarm: Swarm, history: History) -> list[Result]:
    """At least one round was sealed.

    The **optimum** is what all who are present could compute, from their arrival until they leave, if the work could be
    divided among stages and providers at will and nothing were ever lost or waited for.
    """
    rounds, work = history.rounds, sum(swarm.costs.units)
    round_units = history.microbatches * work
    offered = sum(record.offered for record in rounds)
    held = sum(record.held for record in rounds)
    lost = sum(sum(record.lost.values()) for record in rounds)
    sealed = len(rounds) * round_units
    tokens = history.microbatches * swarm.spec.training.tokens_per_microbatch
    lengths_s = [record.ended_s - record.began_s for record in rounds]
    run_s = rounds[-1].ended_s
    messages = sum(record.messages for record in rounds) / run_s
    heartbeats = HEARTBEATS_PER_S * sum(
        record.present * length_s for record, length_s in zip(rounds, lengths_s, strict=True)
    )
    results = [
        Result("sealed work", "of the optimum", Summary.of([sealed / offered]), target=TARGET),
        Result("the same, round by round", "of the optimum", Summary.of([round_units / r.offered for r in rounds])),
        Result("lost: without a part in a round", "of the optimum", Summary.of([max(0.0, 1 - held / offered)])),
        Result("lost: computed by who left before the seal", "of the optimum", Summary.of([lost / offered])),
        Result("lost: waiting in a round", "of the optimum", Summary.of([(held - sealed - lost) / offered])),
        Result("round", "s", Summary.of(lengths_s)),
        Result("of it filling and draining the pipeline", "s", Summary.of([r.ends_s for r in rounds])),
        Result("of it averaging gradients", "s", Summary.of([r.average_s for r in rounds])),
        Result("tokens", "per round", Summary.of([tokens])),
        Result("tokens", "per s", Summary.of([tokens * len(rounds) / run_s])),
        Result("rounds sealed", "", Summary.of([len(rounds)])),
        Result("rounds given up: a stage had nobody left", "", Summary.of([history.abandoned])),
        Result("moves to another stage", "", Summary.of([history.moves])),
        Result("losses in a round", "", Summary.of([len(history.recoveries_s)])),
    ]
    if history.recoveries_s:
        recovery = Summary.of(history.recoveries_s)
        results += [
            Result("from a loss until others have its work", "s", recovery, limit=RECOVERY_LIMIT_S),
            Result("by which a loss makes its stage later", "s", Summary.of(history.delays_s)),
        ]
    results += [
        Result("coordinator: messages but heartbeats", "per s", Summary.of([messages])),
        Result("coordinator: heartbeats", "per s", Summary.of([heartbeats / run_s])),
    ]
    if (ownership := settle(swarm.spec.economics, rounds, history.providers)) is not None:
        low, median, high = np.quantile(ownership.pay(), [0.05, 0.5, 0.95])
        results += [
            Result("shares against credited work, worst deviation", "", Summary.of([ownership.worst_deviation])),
            Result("shares per unit computed, Gini", "", Summary.of([ownership.gini])),
            Result(
                "shares per FLOP offered, over the mean; 5 to 95 %", "", Summary(float(median), float(low), float(high))
            ),
        ]
    return results


def show(results: list[Result]) -> Table:
    """As a table."""
    table = Table()
    for column in ("what", "unit", "median", "min – max", "wanted"):
        table.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for result in results:
        of = result.candidate
        goal = f"≥ {result.target:g}" if result.target is not None else ""
        goal = f"≤ {result.limit:g}" if result.limit is not None else goal
        spread = "" if of.min == of.max else f"{of.min:,.4g} – {of.max:,.4g}"
        table.add_row(result.name, result.unit, f"{of.median:,.4g}", spread, goal)
    return table
