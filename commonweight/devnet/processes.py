"""What Linux says about processes: when one started, and how much memory a family of them holds."""

import os
import select
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE")


def start_time(pid: int) -> int | None:
    """When it started, in clock ticks since boot; None if there is no such process. Tells a pid from its next user."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in (b"Z", b"X") else int(fields[19])


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    members = [pid]
    for member in members:  # grows while it is read
        members += parents.get(member, [])
    return members


def resident_bytes(pid: int) -> int:
    """Memory that the process and its descendants hold now; pages that several share count for each."""
    return sum(_resident(member) for member in family(pid))


def wait_for_end(pid: int, timeout_s: float) -> bool:
    """Whether the process, which needn't be a child, ends within that time."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            return bool(select.select([descriptor], [], [], timeout_s)[0])
        finally:
            os.close(descriptor)
    return True


def _resident(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):  # it has ended
        return 0


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the third on: state, parent, …; the name before them may hold anything."""
    try:
        return (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
