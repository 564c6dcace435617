"""Places where a test can make this process die as if its power were cut, or be as slow as a weaker machine.

`COMMONWEIGHT_FAILPOINT=ledger.sealed` kills the process with SIGKILL when it gets there for the first time,
`…=ledger.sealed:3` for the third. `COMMONWEIGHT_SLOW_FILE` names a file with a number of seconds, which may change
while the process runs. Unset, as anywhere but in tests and on devnets, either costs a comparison.
"""

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

VARIABLE = "COMMONWEIGHT_FAILPOINT"
SLOW_VARIABLE = "COMMONWEIGHT_SLOW_FILE"

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here if this is the point, and the pass, that was asked for."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    _passed[name] += 1
    point, _, count = wanted.partition(":")
    if point == name and _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def slow_down() -> None:
    """Sleep here for as long as the file says; not at all while there is none."""
    file = os.environ.get(SLOW_VARIABLE)
    if file is None:
        return
    with suppress(FileNotFoundError):
        time.sleep(float(Path(file).read_text()))
