"""Places where a test can make this process die as if its power were cut.

`COMMONWEIGHT_FAILPOINT=ledger.sealed` kills the process with SIGKILL when it gets there for the first time,
`…=ledger.sealed:3` for the third. Unset, as anywhere but in crash tests, a failpoint costs a comparison.
"""

import os
import signal
from collections import Counter

VARIABLE = "COMMONWEIGHT_FAILPOINT"

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
