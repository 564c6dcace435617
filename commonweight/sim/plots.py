"""Pictures of a run, as PNG files."""

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commonweight.sim.ownership import Ownership
from commonweight.sim.records import History
from commonweight.sim.results import TARGET

matplotlib.use("Agg")


def plot(history: History, work: int, ownership: Ownership | None, folder: Path) -> list[Path]:
    """The files: throughput, stages, recovery, coordinator, and ownership where an epoch is over.

    `work` is what a microbatch costs in all stages together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [_throughput(history, work, folder), _stages(history, folder), _coordinator(history, folder)]
    if history.recoveries_s:
        files.append(_recovery(history, folder))
    if ownership is not None:
        files.append(_ownership(ownership, folder))
    return files


def _new(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, folder: Path, name: str) -> Path:
    path = folder / f"{name}.png"
    # Without a date or a version in it: the same run gives the same file.
    figure.savefig(path, metadata={"Software": None})
    return path


def _hours(history: History) -> list[float]:
    return [record.ended_s / 3600 for record in history.rounds]


def _throughput(history: History, work: int, folder: Path) -> Path:
    figure, axes = _new("Where the compute of all present goes, round by round", "hours", "of the optimum")
    offered = np.array([record.offered for record in history.rounds])
    sealed = history.microbatches * work / offered
    lost = np.array([sum(record.lost.values()) for record in history.rounds]) / offered
    held = np.array([record.held for record in history.rounds]) / offered
    parts = (sealed, lost, np.maximum(0, held - sealed - lost), 1 - held)
    labels = ("sealed", "computed by who left before the seal", "waiting in a round", "without a part in a round")
    axes.stackplot(_hours(history), *parts, labels=labels, colors=("#2a6f97", "#c1121f", "#f4a259", "#adb5bd"))
    axes.axhline(TARGET, color="black", linestyle="--", linewidth=1, label=f"wanted: {TARGET}")
    axes.set_ylim(min(0.9, float(sealed.min()) - 0.02), 1)
    axes.margins(x=0)
    axes.legend(loc="lower left", fontsize="small")
    return _save(figure, folder, "throughput")


def _stages(history: History, folder: Path) -> Path:
    figure, axes = _new("Throughput of each stage when rounds are planned", "hours", "microbatches/s")
    hours = [record.began_s / 3600 for record in history.rounds]
    for stage, throughputs in enumerate(zip(*(record.throughputs for record in history.rounds), strict=True)):
        axes.plot(hours, throughputs, label=f"stage {stage}", linewidth=1.2)
    axes.legend(fontsize="small", ncols=4)
    return _save(figure, folder, "stages")


def _coordinator(history: History, folder: Path) -> Path:
    figure, axes = _new("Messages to and from the coordinator, heartbeats left out", "hours", "per second")
    edges_s = [0.0, *(record.ended_s for record in history.rounds)]
    rates = [
        record.messages / (end - start) for record, (start, end) in zip(history.rounds, pairwise(edges_s), strict=True)
    ]
    axes.stairs(rates, [edge_s / 3600 for edge_s in edges_s])
    axes.set_ylim(bottom=0)
    return _save(figure, folder, "coordinator")


def _recovery(history: History, folder: Path) -> Path:
    figure, axes = _new("From a loss in a round until others have its work", "seconds", "losses")
    axes.hist(history.recoveries_s, bins=50)
    return _save(figure, folder, "recovery")


def _ownership(ownership: Ownership, folder: Path) -> Path:
    figure, axes = _new("Shares against compute offered, one dot a provider", "of all FLOPs offered", "of all shares")
    offered, shares = sum(ownership.offered.values()), sum(ownership.shares.values())
    x = np.array(list(ownership.offered.values())) / offered
    y = np.array([ownership.shares.get(node, 0) / shares for node in ownership.offered])
    axes.scatter(x, y, s=4, alpha=0.4)
    axes.axline((0, 0), slope=1, color="black", linestyle="--", linewidth=1, label="paid for all that was offered")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.legend(loc="upper left", fontsize="small")
    return _save(figure, folder, "ownership")
