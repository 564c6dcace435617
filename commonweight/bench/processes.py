"""Baselines run in processes of their own, which do a turn when told."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer
from typing import Any

import commonweight
from commonweight.errors import WorkerDied
from commonweight.wire.link import worker_environment

ANSWER_S = 600.0
"""For a process to be ready, and for a turn."""
END_S = 20.0


class Baseline:
    """Processes that take one order each, and then train a round, or generate an answer, when told, together."""

    def __init__(
        self,
        orders: list[dict[str, Any]],
        threads: int,
        *,
        python: str = sys.executable,
        module: str = "commonweight.bench.baseline",
        log: Path | None = None,
    ) -> None:
        """Runs `python -m module` with these sources for each order. `log`: a file for stderr."""
        sources = str(Path(commonweight.__file__).parents[1])
        environment = {**os.environ, **worker_environment(threads), "PYTHONPATH": sources}
        self._log = None if log is None else log.open("wb")
        self._processes = [
            subprocess.Popen(
                [python, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                text=True,
                start_new_session=True,
            )
            for _ in orders
        ]
        for process, order in zip(self._processes, orders, strict=True):
            self._tell(process, order)
        for process in self._processes:
            self._hear(process)

    def train(self, round_: int, **how: Any) -> float:
        """Train a round, `how` it is told; seconds of the slowest process."""
        for process in self._processes:
            self._tell(process, {"round": round_} | how)
        return max(float(self._hear(process)["seconds"]) for process in self._processes)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()

    @staticmethod
    def _tell(process: "subprocess.Popen[str]", order: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()

    def _hear(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        assert process.stdout is not None
        deadline = Timer(ANSWER_S, os.killpg, (process.pid, signal.SIGKILL))  # with what it has started
        deadline.start()
        try:
            while line := process.stdout.readline():
                if line.startswith("{"):
                    answer: dict[str, Any] = json.loads(line)
                    return answer
        finally:
            deadline.cancel()
        why = "" if self._log is None else f" It said: {Path(self._log.name).read_text()[-500:]}"
        raise WorkerDied(
            f"A baseline process ended with exit code {process.wait()}, or said nothing for {ANSWER_S:g} s.{why}"
        )
