"""How much each peer may ask of us: a burst, and then a rate. Trio side only."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import trio


@dataclass
class _Left:
    count: float
    at_s: float


class Budgets:
    """One budget for each connected peer."""

    def __init__(self, burst: float, per_s: float, connected: Callable[[], Collection[str]]) -> None:
        """`connected` gives the PeerIds whose budgets are remembered; others begin anew."""
        self._burst = burst
        self._per_s = per_s
        self._connected = connected
        self._left: dict[str, _Left] = {}

    def spend(self, peer_id: str) -> bool:
        """Whether one more is within the peer's budget, which is spent then."""
        now_s = trio.current_time()
        left = self._left.get(peer_id)
        if left is None:
            connected = self._connected()
            self._left = {peer: budget for peer, budget in self._left.items() if peer in connected}
            left = self._left[peer_id] = _Left(self._burst, now_s)
        left.count = min(self._burst, left.count + (now_s - left.at_s) * self._per_s)
        left.at_s = now_s
        if left.count < 1:
            return False
        left.count -= 1
        return True
