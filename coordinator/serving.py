"""Generation, as the coordinator sees it: which version the nodes serve, and through whom.

The version after the last round of an epoch is published: every node keeps it. Where there are gateways each loads it,
too, and once one of each stage has, it is served: gateways get its route, and sessions on the version before run out.
Of a stage's replicas the first that is ready serves; when it goes another that is ready takes its place. An epoch that
ends while a version is still being loaded publishes none, so that a slow node is waited for instead of being overtaken.
The ledger knows what was published; all else nodes say anew when they connect.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from commonweight.errors import ConfigError, MalformedMessage, NotServed
from commonweight.events import emit
from commonweight.rules.answer import KEPT_VERSIONS
from commonweight.rules.spec import ModelSpec
from commonweight.wire.channel import split_address
from commonweight.wire.generated import control_pb2 as pb
from coordinator.ledger import Ledger
from coordinator.members import Member, Place

Route = list[tuple[Member, str]]
"""Who serves each stage, in order, with the address of its decode process."""


def check_reachable(whose: str, address: str) -> None:
    """Raises MalformedMessage where a node gives an address of its own that nobody can call."""
    try:
        _, port = split_address(address)
    except ConfigError as error:
        raise MalformedMessage(f"The {whose}'s address: {error.args[0]}") from error
    if port == 0:
        raise MalformedMessage(f"The {whose}'s address {address} has port 0, where nobody is reached.")


@dataclass
class Serving:
    """Which version is served through whom. All methods run on the event loop; only `sealed` waits."""

    spec: ModelSpec
    place: Place
    ledger: Ledger
    gateways: frozenset[str]
    """Addresses of the gateways that may ask for a route."""
    certificates: Callable[[], Iterable[bytes]]
    """Those that gateways have shown so far."""
    round: int
    """Every round before this one is sealed."""
    versions: tuple[int, ...]
    """Those that were published last, ascending, KEPT_VERSIONS at most."""
    _is_loading: bool = True
    """Whether some stage hasn't yet said that it can, or can't, generate with the published version."""
    _gave_up: set[str] = field(default_factory=set)
    """The nodes that can't."""
    _served: int = 0
    """The version that is served, or was last; 0: none was."""
    _members: dict[str, Member] = field(default_factory=dict)
    """Connected nodes."""
    _stages: dict[str, int] = field(default_factory=dict)
    """Theirs."""
    _ready: dict[int, dict[str, tuple[Member, str]]] = field(default_factory=dict)
    """Who can generate with a version, at which address: by version, then by node, the first to be ready first."""

    @property
    def published(self) -> int:
        """The version that was published last; 0: none was."""
        return max(self.versions, default=0)

    @property
    def kept(self) -> frozenset[int]:
        """As `Follower.kept`."""
        return frozenset(self.versions) | frozenset({self._served} - {0})

    def was_published(self, version: int) -> bool:
        """Whether there was a version of this number to generate with."""
        return 0 < version <= self.published and version % self.spec.economics.rounds_per_epoch == 0

    async def sealed(self, round_: int) -> None:
        """This round is sealed: to be awaited before the next is planned, or nodes don't have the version any more."""
        self.round = round_ + 1
        if self.round % self.spec.economics.rounds_per_epoch:
            return
        if not (self.gateways and self.published and self._is_loading):
            await self._publish_sealed()

    async def resume(self) -> None:
        """After a start: the round that was sealed last may have ended an epoch without anybody being told."""
        if self.round > self.published and self.round % self.spec.economics.rounds_per_epoch == 0:
            await self._publish_sealed()

    def joined(self, stage: int, member: Member) -> None:
        """A node has taken its seat."""
        self._members[member.node], self._stages[member.node] = member, stage
        for version in sorted({self._served, self.published} - {0}):
            self._publish(member, version)

    def lost(self, member: Member) -> None:
        """Its connection is gone. Its decode process may live on, but nobody knows."""
        del self._members[member.node]
        self._gave_up.discard(member.node)
        for version in list(self._ready):
            self._withdraw(member.node, version)
        del self._stages[member.node]

    def ready(self, member: Member, ready: pb.VersionReady) -> None:
        """A node can generate with a version. Raises MalformedMessage for an address that is none."""
        check_reachable("decode process", ready.decode_address)
        version = ready.round
        if not self._counts(member) or version == 0 or version not in (self._served, self.published):
            return  # a connection that no longer counts, or a version that has been overtaken
        before = self._route(version)
        self._ready.setdefault(version, {})[member.node] = member, ready.decode_address
        route = self._route(version)
        if route is not None and route != before:
            self._serve(version, route)
        elif route is not None:
            self._introduce(version, route, [member])

    def failed(self, member: Member, failed: pb.VersionFailed) -> None:
        """A node can't generate with a version."""
        if not self._counts(member):
            return
        node, stage = member.node, self._stages[member.node]
        emit(
            "version.failed",
            node=node,
            stage=stage,
            round=failed.round,
            code=failed.code[:80],
            message=failed.why[:500],
        )
        self._withdraw(node, failed.round)
        if failed.round == self.published and not failed.retrying:
            self._gave_up.add(node)
            if all(each in self._gave_up for each, its in self._stages.items() if its == stage):
                self._is_loading = False  # the next epoch's may do

    def gateways_changed(self) -> None:
        """A gateway has shown another certificate."""
        if (route := self._route(self._served)) is not None:
            self._introduce(self._served, route, self._members.values())

    def route(self) -> tuple[int, Route]:
        """The version that is served, and through whom. Raises NotServed."""
        if (route := self._route(self._served)) is not None:
            return self._served, route
        if self.published == 0:
            raise NotServed(
                f"No version of {self.spec.name} is published yet: {self.round} of the first epoch's "
                f"{self.spec.economics.rounds_per_epoch} rounds are sealed."
            )
        best = max(({self._stages[node] for node in ready} for ready in self._ready.values()), key=len, default=())
        missing = [str(stage) for stage in range(self.spec.stages) if stage not in best]
        raise NotServed(
            f"Stage {', '.join(missing)} of {self.spec.name} can't generate at the moment. Try again later."
        )

    async def _publish_sealed(self) -> None:
        await asyncio.to_thread(self.ledger.record_published, self.round)
        self.versions, self._is_loading = (*self.versions, self.round)[-KEPT_VERSIONS:], True
        self._gave_up.clear()
        for member in self._members.values():
            self._publish(member, self.published)

    def _publish(self, member: Member, version: int) -> None:
        member.send(pb.CoordinatorMessage(publish=pb.Publish(round=version, load=bool(self.gateways))))

    def _counts(self, member: Member) -> bool:
        return self._members.get(member.node) is member

    def _route(self, version: int) -> Route | None:
        """Through whom the version can be served; None where a stage has nobody who is ready."""
        first: dict[int, tuple[Member, str]] = {}
        for node, ready in self._ready.get(version, {}).items():
            first.setdefault(self._stages[node], ready)
        return [first[stage] for stage in range(self.spec.stages)] if len(first) == self.spec.stages else None

    def _withdraw(self, node: str, version: int) -> None:
        before = self._route(version)
        if self._ready.get(version, {}).pop(node, None) is None:
            return
        route = self._route(version)
        if version != self._served or route == before:
            return
        if route is None:
            emit("version.withdrawn", round=version, stage=self._stages[node])
        else:
            self._serve(version, route)

    def _serve(self, version: int, route: Route) -> None:
        """All stages have it: it is the one from now on, through these."""
        self._served = version
        if version == self.published:
            self._is_loading = False
        for old in [old for old in self._ready if old < version]:
            del self._ready[old]
        self._introduce(version, route, self._members.values())
        emit("version.served", round=version)

    def _introduce(self, version: int, route: Route, members: Iterable[Member]) -> None:
        """Tell these who their neighbours are, and who may ask; those, too, that are ready to take another's place."""
        last = self.spec.stages - 1
        for member in members:
            stage, peers = self._stages[member.node], pb.DecodePeers(round=version)
            for name, other in (("previous", stage - 1), ("next", stage + 1)):
                if 0 <= other <= last:
                    holder, address = route[other]
                    getattr(peers, name).CopyFrom(
                        pb.Neighbour(peer_id=holder.peer_id, data_address=address, certificate=holder.certificate)
                    )
            if stage in (0, last):
                peers.gateways.extend(self.certificates())
            member.send(pb.CoordinatorMessage(decode_peers=peers))
