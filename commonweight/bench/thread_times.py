"""How long the threads of a process were on a processor, as the kernel counts it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ThreadTimes:
    """Seconds on a processor since the process began."""

    main_s: float
    """Of the thread that computes."""
    others_s: float
    """Of all others that still run: those that move bytes, hash what comes in, and talk to the control process."""

    @classmethod
    def of(cls, pid: int) -> "ThreadTimes":
        """Of a process that runs."""
        seconds = {
            int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9
            for task in Path(f"/proc/{pid}/task").iterdir()
        }
        return cls(seconds.pop(pid), sum(seconds.values()))
