"""How much memory a devnet needs."""

import os

from commonweight.devnet.processes import resident_bytes
from commonweight.devnet.state import DevnetState
from commonweight.events import Event


class Memory:
    """The most that this process and its descendants were seen to hold."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    def look(self, state: DevnetState, source: str, event: Event) -> None:
        """Takes a look, in a few milliseconds, when all is ready, and with each round."""
        if event.name in ("devnet.ready", "round.sealed"):
            self.peak_bytes = max(self.peak_bytes, resident_bytes(os.getpid()))
