"""What befalls a devnet while it runs: by plan, by its options, or because somebody asked for it."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from commonweight.devnet.child import Child
from commonweight.devnet.churn import (
    DOWN_S,
    Partition,
    Slow,
    parse_link,
    parse_node,
    parse_partition,
    parse_slow,
    plan_kills,
)
from commonweight.devnet.folder import RunFolder, write_whole
from commonweight.devnet.observer import Observer
from commonweight.devnet.wiring import Wiring
from commonweight.errors import ConfigError, StateError
from commonweight.links.churn import PlannedFault, run_churn
from commonweight.links.link import LinkShape

INJECTABLE = ("kill", "slow", "link", "partition", "heal")


class Faults:
    """Inflicts them, and notes each that has really begun."""

    def __init__(
        self, folder: RunFolder, observer: Observer, children: Mapping[str, Child], nodes: Sequence[str]
    ) -> None:
        """`children`: the processes that run, by name."""
        self._folder = folder
        self._observer = observer
        self._children = children
        self._nodes = nodes
        self.wiring: Wiring | None = None
        """Without it, links can't be changed."""
        self._down: dict[str, asyncio.Event] = {}
        """Nodes that were killed here; set when they may be started again."""

    def down(self, name: str) -> asyncio.Event | None:
        """What to wait for before a node that has ended is started again; None: it wasn't killed here."""
        return self._down.get(name)

    async def inject(self, fault: str, what: str) -> str:
        """Does one of INJECTABLE, to `what`, written as for `devnet inject`; says in words what was done.

        Raises ConfigError for what can't be, StateError for what can't be now.
        """
        option = f"inject {fault}"
        match fault:
            case "kill":
                name = parse_node(what, self._nodes, option)
                if not self.kill(name):
                    raise StateError(
                        f"{name} doesn't run at the moment; `commonweight devnet status` says when it does."
                    )
                asyncio.get_running_loop().call_later(DOWN_S, self.revive, name)
                return f"{name} is killed, and started again in {DOWN_S:g} s"
            case "slow":
                slow = parse_slow(what, self._nodes, option)
                self.slow(slow)
                return f"{slow.node} takes {slow.delay_s:g} s longer for each microbatch"
            case "link":
                await self.shape(parse_link(what, option), what)
                return f"links between nodes are {what} now"
            case "partition":
                await self.partition(parse_partition(what, self._nodes, option))
                return f"{what} is cut off until `devnet inject heal`"
            case "heal":
                await self._links().heal()
                self._observer.note("fault.ended", fault="partition", name=",".join(self._nodes))
                return "all nodes reach each other again"
        raise ConfigError(f"{fault!r} can't be injected: take one of {', '.join(INJECTABLE)}.")

    def kill(self, name: str) -> bool:
        """SIGKILL; whether it ran. It isn't started again before `revive`."""
        if name in self._down or (child := self._children.get(name)) is None or child.ended:
            return False
        self._down[name] = asyncio.Event()
        self._note("kill", name, "")
        child.kill()
        return True

    def revive(self, name: str) -> None:
        """A node that was killed may be started again."""
        with suppress(KeyError):
            self._down.pop(name).set()

    def slow(self, slow: Slow) -> None:
        """From its next microbatch on."""
        write_whole(self._folder.slow(slow.node), str(slow.delay_s))
        self._note("slow", slow.node, f"{slow.delay_s:g} s")

    async def shape(self, shape: LinkShape, text: str) -> None:
        """All links between nodes; `text` is how that is written."""
        await self._links().shape(shape)
        self._note("link", ",".join(self._nodes), text)

    async def partition(self, partition: Partition) -> None:
        """Beside those that there are."""
        for source, target in partition.paths(self._nodes):
            await self._links().cut(source, target)
        self._note("partition", ",".join(partition.nodes), partition.way)

    async def kill_by_plan(self, seed: int, every_s: float) -> None:
        """Kills nodes as planned, for as long as it runs."""

        async def kill(fault: PlannedFault) -> None:
            self.kill(fault.target)

        async def revive(fault: PlannedFault) -> None:
            self.revive(fault.target)

        await run_churn(plan_kills(seed, list(self._nodes), every_s), kill, revive)

    def _note(self, fault: str, name: str, how: str) -> None:
        self._observer.note("fault.begun", fault=fault, name=name, how=how)

    def _links(self) -> Wiring:
        if self.wiring is None:
            raise StateError(
                "This devnet's nodes talk to each other directly. Start it with --link, such as --link unlimited:0ms, "
                "for links that can be shaped and cut."
            )
        return self.wiring
