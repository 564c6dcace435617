"""`bench swarm`: what kills, a second replica and slow links come to, on devnets of real processes.

Each node sleeps before each microbatch, as if it computed for that long: so nodes are the bottleneck, and not the few
cores that they share here.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from commonweight.bench.measure import Result, Summary, compare
from commonweight.devnet.accounts import node_stages
from commonweight.devnet.churn import parse_interval, parse_link
from commonweight.errors import ConfigError, StateError
from commonweight.events import parse_event
from commonweight.links.link import parse_time

PARTS = ("churn", "replicas", "links")
WARM_UP_ROUNDS = 2
"""Left out: in the first nobody's pace is known, and the second is the first that is divided by it."""
RUN_S = 3600.0
"""One devnet, at most."""
ONE, TWO, KILLED, LOOPBACK = "one replica", "two replicas", "two replicas, kills", "loopback"
FLUSHED = "with a flush"
UNDISTURBED = f"{TWO}, {FLUSHED}"
MODES = {FLUSHED: (), "asynchronous": ("--asynchrony", "look_ahead")}
"""How replicas and links are measured: options of a devnet."""


@dataclass(frozen=True)
class SwarmBench:
    """What is measured. Raises ConfigError."""

    parts: tuple[str, ...] = PARTS
    stages: int = 2
    rounds: int = 8
    """Of a run without kills, WARM_UP_ROUNDS included."""
    churn_rounds: int = 24
    """Of a run with kills, and of the one that it is compared with."""
    kill_every: str = "30s"
    slow: str = "200ms"
    """What each node sleeps before each microbatch."""
    links: tuple[str, ...] = ("80mbit:50ms", "8mbit:50ms")
    turns: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise ConfigError(f"--part {', '.join(sorted(unknown))} isn't known: take {', '.join(PARTS)}.")
        for name in ("rounds", "churn_rounds"):
            if (value := getattr(self, name)) < WARM_UP_ROUNDS + 1:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} {value} must be over {WARM_UP_ROUNDS}, which aren't counted.")
        parse_interval(self.kill_every, "--kill-every")
        parse_time(self.slow)
        for link in self.links:
            parse_link(link, "--link")

    @property
    def contenders(self) -> dict[str, tuple[int, int, tuple[str, ...]]]:
        """By name: rounds, replicas of each stage, and further options of its devnet."""
        found: dict[str, tuple[int, int, tuple[str, ...]]] = {}
        if "replicas" in self.parts:
            for mode, options in MODES.items():
                found |= {f"{ONE}, {mode}": (self.rounds, 1, options), f"{TWO}, {mode}": (self.rounds, 2, options)}
        if "churn" in self.parts:
            found[UNDISTURBED] = (self.churn_rounds, 2, ())
            found[KILLED] = (self.churn_rounds, 2, ("--kill-every", self.kill_every))
        if "links" in self.parts:
            for mode, options in MODES.items():
                for name, link in ((LOOPBACK, "unlimited:0ms"), *zip(self.links, self.links, strict=True)):
                    found[f"{name}, {mode}"] = (self.rounds, 1, ("--link", link, *options))
        return found


@dataclass(frozen=True)
class Run:
    """What came of one devnet."""

    tokens_per_s: float
    """By the clock, from the seal of the last warm-up round to that of the last one: what was repeated counts once."""
    loss: float
    """Of the last round, nats per token."""
    kills: int
    recovery_s: tuple[float, ...]
    """For each kill, until a round began that was then sealed."""
    rounds_repeated: int
    replays: int
    units_lost: int
    """FLOPs that were in sealed rounds and weren't paid."""
    all_there: float
    """Of the counted rounds, the part in which every node had a part."""


def run_swarm_bench(bench: SwarmBench, tell: Callable[[str], None]) -> tuple[list[Result], dict[str, list[Any]]]:
    """All results, and the fields of each contender's runs."""
    runs: dict[str, list[Run]] = {name: [] for name in bench.contenders}
    for turn in range(bench.turns):
        for name, (rounds, replicas, options) in bench.contenders.items():
            run = run_devnet(bench, rounds, replicas, options)
            runs[name].append(run)
            tell(f"turn {turn}, {name}: {run.tokens_per_s:,.0f} tokens/s, {run.kills} kills")
    return to_results(bench, runs), {name: [asdict(run) for run in each] for name, each in runs.items()}


def run_devnet(bench: SwarmBench, rounds: int, replicas: int, options: Sequence[str]) -> Run:
    """One devnet, from its start to its end. Raises StateError where it fails."""
    with tempfile.TemporaryDirectory(prefix="commonweight-swarm-") as place:
        folder, report = Path(place) / "run", Path(place) / "report.json"
        slow = (word for node in node_stages(bench.stages, replicas) for word in ("--slow", f"{node}:{bench.slow}"))
        command = [
            *(sys.executable, "-m", "commonweight", "devnet", "up", "--headless", "--buyers", "0"),
            *("--until-epoch", "1", "--rounds-per-epoch", str(rounds), "--seed", str(bench.seed)),
            *("--stages", str(bench.stages), "--replicas", str(replicas)),
            *("--dir", str(folder), "--report", str(report), *slow, *options),
        ]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise StateError(f"A devnet wasn't done after {RUN_S:g} s: {' '.join(command)}") from error
        if done.returncode:
            raise StateError(f"A devnet failed: {' '.join(command)}\nIt said: {done.stdout[-2000:]}")
        log = (folder / "logs" / "coordinator.jsonl").read_bytes()
        return read_run(json.loads(report.read_text()), log, bench.stages * replicas)


def read_run(report: Mapping[str, Any], coordinator_log: bytes, nodes: int) -> Run:
    """What the report of a devnet of so many nodes, and the times in its coordinator's log, say."""
    events = (parse_event(line) for line in coordinator_log.splitlines())
    sealed = [event for event in events if event is not None and event.name == "round.sealed"]
    counted = sealed[WARM_UP_ROUNDS:]
    took_s = sealed[-1].time - sealed[WARM_UP_ROUNDS - 1].time
    return Run(
        tokens_per_s=sum(event.fields["tokens"] for event in counted) / took_s,
        loss=report["losses"][-1],
        kills=report["kills"],
        recovery_s=tuple(report["recovery_s"]),
        rounds_repeated=report["rounds_repeated"],
        replays=report["replays"],
        units_lost=int(report["units_lost"]),
        all_there=sum(sum(event.fields["replicas"]) == nodes for event in counted) / len(counted),
    )


def to_results(bench: SwarmBench, runs: Mapping[str, Sequence[Run]]) -> list[Result]:
    """What the runs come to, part by part. Raises StateError where nobody was killed, though somebody was to be."""
    speeds = {name: [run.tokens_per_s for run in each] for name, each in runs.items()}
    results: list[Result] = []
    if "churn" in bench.parts:
        killed, undisturbed = runs[KILLED], runs[UNDISTURBED]
        if not all(run.kills for run in killed):
            raise StateError(f"No node was killed: give --churn-rounds so that they take over {bench.kill_every}.")
        name = f"two replicas, a kill in {bench.kill_every}"
        results += [
            compare(f"{name}, over undisturbed", "tokens/s", speeds[KILLED], speeds[UNDISTURBED], 0.8),
            Result(
                f"{name}: last loss above undisturbed",
                "nats",
                Summary.of([one.loss - other.loss for one, other in zip(killed, undisturbed, strict=True)]),
            ),
            Result(f"{name}: units lost", "FLOPs", Summary.of([run.units_lost for run in killed]), limit=0),
            *(
                Result(f"{name}: {what}", "", Summary.of([getattr(run, field) for run in killed]))
                for what, field in (
                    ("kills", "kills"),
                    ("rounds repeated", "rounds_repeated"),
                    ("replays", "replays"),
                    ("rounds in which all nodes had a part, of all", "all_there"),
                )
            ),
        ]
        if recovery_s := [each for run in killed for each in run.recovery_s]:  # none: all fell behind the last round
            results.append(Result(f"{name}: recovery, median", "s", Summary.of(recovery_s)))
            results.append(Result(f"{name}: recovery, longest", "s", Summary.of([max(recovery_s)])))
    if "replicas" in bench.parts:
        results += [
            compare(
                f"two replicas of each stage, over one, {mode}",
                "tokens/s",
                speeds[f"{TWO}, {mode}"],
                speeds[f"{ONE}, {mode}"],
                1.8,
            )
            for mode in MODES
        ]
    if "links" in bench.parts:
        results += [
            compare(
                f"links {link}, over loopback, {mode}",
                "tokens/s",
                speeds[f"{link}, {mode}"],
                speeds[f"{LOOPBACK}, {mode}"],
                None,
            )
            for mode in MODES
            for link in bench.links
        ]
    return results
