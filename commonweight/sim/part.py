"""One stage's part of a round: how many microbatches each replica has, and when it is done with them."""

import math

from commonweight.rules.assignment import divide


class StagePart:
    """Replicas compute their microbatches one after the other, each at its own pace of this round.

    `planned_s` are the paces by which the coordinator divides, None for newcomers; `actual_s` are the true ones. Times
    are the simulation's.
    """

    def __init__(
        self, microbatches: int, begins_s: float, planned_s: dict[str, float | None], actual_s: dict[str, float]
    ) -> None:
        self.loads = divide(microbatches, planned_s)
        self._planned_s, self._actual_s = planned_s, actual_s
        self._first_s = begins_s
        self._begins_s = dict.fromkeys(self.loads, begins_s)
        """Later where somebody had to wait before it got more: then all of its work counts as done without a break."""
        self._not_before_s = begins_s
        self.losses_s: list[float] = []
        """When replicas were lost, with what they had."""
        self.is_over = False
        """Whether all replicas have the average: who is lost now has done its part."""

    @property
    def done_s(self) -> float:
        """When the last microbatch is computed, as far as is known."""
        return max(max(map(self._finish_s, self.loads), default=0.0), self._not_before_s)

    @property
    def expected_s(self) -> float:
        """When it would be by the planned paces, and of newcomers by their own."""
        paces = {node: self._planned_s[node] or self._actual_s[node] for node in self.loads}
        return max(self._begins_s[node] + load * paces[node] for node, load in self.loads.items())

    def busy_s(self, node: str) -> float:
        """Seconds that the replica's microbatches take it."""
        return self.loads[node] * self._actual_s[node]

    def computed(self, node: str, now_s: float) -> int:
        """How many of its microbatches the replica has computed by now."""
        return min(self.loads[node], max(0, int((now_s - self._begins_s[node]) / self._actual_s[node])))

    def join(self, node: str, actual_s: float, now_s: float) -> None:
        """One more replica, which gets its part when the round is divided once more."""
        self.loads[node] = 0
        self._begins_s[node] = now_s
        self._planned_s[node] = self._actual_s[node] = actual_s

    def lose(self, node: str, now_s: float, noticed_s: float) -> tuple[int, int]:
        """The replica is gone: how many microbatches are lost with it, and how many of them it had computed.

        Nothing is done before somebody has noticed.
        """
        computed = self.computed(node, now_s)
        lost = self.loads.pop(node)
        if lost:
            self._not_before_s = max(self._not_before_s, noticed_s)
            self.losses_s.append(now_s)
        return lost, computed

    def take_over(self, microbatches: int, now_s: float) -> int:
        """The others compute so many more; how many of them do."""
        return self._divide(microbatches, now_s)

    def redivide(self, now_s: float) -> int:
        """What isn't begun is divided once more, by the paces of this round, as is all from now on; for how many
        replicas that changes.
        """
        before = self.loads
        self.loads = {node: min(load, self.computed(node, now_s) + 1) for node, load in before.items()}
        self._planned_s = dict(self._actual_s)
        self._divide(sum(before.values()) - sum(self.loads.values()), now_s)
        return sum(self.loads[node] != load for node, load in before.items())

    def _divide(self, microbatches: int, now_s: float) -> int:
        # How many each would have computed when it is done with what it has, or by now, had it never had to wait.
        taken = {}
        for node, load in self.loads.items():
            pace = self._planned_s[node]
            if pace is not None:
                busy_until_s = max(self._begins_s[node] + load * pace, now_s)
                taken[node] = math.ceil((busy_until_s - self._first_s) / pace - 1e-9)
        paces = {node: self._planned_s[node] for node in self.loads}
        more = {node: count for node, count in divide(microbatches, paces, taken).items() if count}
        for node, count in more.items():
            self._begins_s[node] += max(0.0, now_s - self._finish_s(node))
            self.loads[node] += count
        return len(more)

    def _finish_s(self, node: str) -> float:
        return self._begins_s[node] + self.busy_s(node)
