"""The state of a node's stage on its disk: which version is there, and how a missing one comes from other replicas, or
from the pieces that keepers have where there is no other.

The version that is wanted becomes another one with each seal. What is being fetched meanwhile is fetched to its end,
for a slow line would never come to one otherwise; from there the node follows, by the gradients of the rounds since.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from eth_utils.address import to_checksum_address

from commonweight.errors import CheckpointError, MalformedMessage, WireError
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.rules.following import is_to_be_waited_for
from commonweight.rules.receipt import Domain
from commonweight.rules.spec import parse_spec
from commonweight.wire.evidence import Source
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import worker_pb2
from commonweight.wire.tls import Certificate
from node.fetching import Version, fetch_version
from node.following import GRADIENT_OF_STATE, Follower
from node.keeping import Keeping
from node.making import Making
from node.meta import stored_root
from node.offering import Offering
from node.restoring import restore_version
from node.share import ADDRESS_BYTES

RETRY_S = 5.0
"""Between attempts to fetch a version."""


class StageState:
    """Of one node. All methods run on the event loop."""

    def __init__(self, directory: Path, certificate: Certificate, identity: NodeIdentity) -> None:
        """`directory` is the node's, with its checkpoints."""
        self.offering = Offering(directory)
        """What other replicas of the stage may fetch."""
        self.keeping = Keeping(directory)
        """Pieces of other stages' versions."""
        self.making = Making(certificate, identity)
        """Pieces of this stage's."""
        self._directory = directory
        self._certificate = certificate
        self._assignment: pb.Assignment | None = None
        self._send: Callable[[pb.NodeMessage], None] = lambda _: None
        self._frozen_hash = b""
        self._follower: Follower | None = None
        self._fetch_s = math.inf
        """What fetching a version took."""
        self._wanted = pb.Version()
        """As it was said last."""
        self._coming: pb.Version | None = None
        """As it was said when what is coming was begun."""
        self._getting: asyncio.Task[None] | None = None
        self._sealed = pb.Version()
        """That the coordinator has spoken of last."""
        self._changed = asyncio.Condition()

    async def begin(
        self,
        assignment: pb.Assignment,
        send: Callable[[pb.NodeMessage], None],
        order: Callable[[worker_pb2.WorkerCommand], Awaitable[None]],
    ) -> None:
        """The node knows its stage; `send` reaches its coordinator, `order` its worker."""
        self._assignment, self._send = assignment, send
        spec = parse_spec(assignment.spec)
        self._follower = Follower(self._certificate, spec, assignment.stage, self._folder, order)
        self.offering.begin(assignment.stage)
        await self.making.order((), before_report=False)
        self.making.begin(spec, assignment.stage, self._domain, self._folder)
        await self.keeping.begin(assignment, send)

    async def derived(self, frozen_hash: bytes) -> None:
        """The worker has derived the stage's frozen tensors."""
        async with self._changed:
            self._frozen_hash = frozen_hash
            self._changed.notify_all()

    def followed(self, answer: worker_pb2.Followed) -> None:
        """The worker has stepped, or couldn't."""
        if self._follower is not None:
            self._follower.stepped(answer)

    def grant(self, grant: pb.ReplicaGrant) -> None:
        """These replicas may fetch, and no others. Raises IdentityMismatch for a certificate that is none."""
        granted, wanted = self.offering.admitted(), frozenset(grant.certificates)
        for certificate in granted - wanted:
            self.offering.revoke(certificate)
        for certificate in wanted - granted:
            self.offering.grant(certificate)

    def note(self, sealed: pb.Version) -> None:
        """The coordinator has said which state root this version has: what this node may have stepped to in a round
        that others trained again doesn't count.
        """
        self._sealed = sealed

    async def make(self, order: pb.MakePieces) -> None:
        """The coordinator wants this node to make pieces of its stage's versions, or none any more."""
        await self.making.order(_sources(order.keepers), before_report=order.before_report)

    async def trained(self, report: pb.StageReport) -> None:
        """The state that a round led to is on the disk. Return when the round's report may be sent."""
        await self.making.has(report.round + 1, report.state_after)
        await self.making.kept(report.round + 1, report.state_after)

    def has(self, round_: int) -> bool:
        """Whether the version that is ready to train `round_` is there; version 0 follows from the spec."""
        return self._is_there(self._sealed if self._sealed.round == round_ else pb.Version(round=round_))

    async def wait_for(self, round_: int) -> None:
        """Return once it is there."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.has(round_))

    async def want(self, wanted: pb.Version) -> None:
        """The coordinator wants the node to have this version: fetch it, if it isn't there, and say when it is."""
        self._wanted = wanted
        if self._coming is not None and _is_on_the_way(wanted, self._coming):
            return
        await self.end()
        self._getting = asyncio.create_task(self._get())

    async def end(self) -> None:
        """Fetch nothing any more; what has come is kept."""
        task, self._getting = self._getting, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def vacate(self) -> None:
        """The node holds this stage no longer, and doesn't know yet which one it will."""
        await self.end()
        self._frozen_hash, self._wanted, self._sealed = b"", pb.Version(), pb.Version()
        self._follower, self._fetch_s = None, math.inf

    async def close(self) -> None:
        """Let go of all files and connections."""
        await self.end()
        await self.making.close()
        self.offering.close()

    async def _get(self) -> None:
        """Come to the version that is wanted, however often that becomes another one, and say so."""
        said: pb.Version | None = None
        behind = math.inf
        while said is not self._wanted:
            wanted = self._wanted
            if self._is_there(wanted):
                if wanted.round:
                    await self.making.has(wanted.round, stored_root(self._folder, wanted.round) or b"")
                await self._say(wanted.round)
                said = wanted
            elif not wanted.sources and not wanted.keepers:
                emit("state.waiting", round=wanted.round)
                return  # the coordinator says it again when there are some
            else:
                try:
                    reached = await self._come_nearer(wanted)
                except (CheckpointError, WireError) as error:
                    emit("state.failed", round=wanted.round, code=error.code, message=error.args[0], retry_s=RETRY_S)
                    await asyncio.sleep(RETRY_S)  # a disk with more room, or a source that is back, tells nobody
                    continue
                before, behind = behind, self._wanted.round - reached
                if is_to_be_waited_for(behind, before, self._fetch_s, self._follow_s):
                    await self._say(reached)

    async def _say(self, round_: int) -> None:
        """This version is there."""
        self._send(pb.NodeMessage(version=pb.HasVersion(round=round_)))
        async with self._changed:
            self._changed.notify_all()

    async def _come_nearer(self, wanted: pb.Version) -> int:
        """Follow by one step, or fetch the version; which one is there now."""
        self._coming = wanted
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._frozen_hash))
            assert self._follower is not None, "a version comes after the assignment"
            step = self._follower.next_step(wanted)
            if step is not None and await self._follower.follow(wanted, step, _sources(wanted.sources)):
                return step.round + 1
            began_s = time.monotonic()
            await self._fetch(wanted)
            self._fetch_s = time.monotonic() - began_s
            return wanted.round
        finally:
            self._coming = None

    @property
    def _follow_s(self) -> float:
        """What a step takes, with its gradient; as far as is known."""
        if self._follower is not None and self._follower.step_s is not None:
            return self._follower.step_s
        return self._fetch_s * GRADIENT_OF_STATE

    def _is_there(self, wanted: pb.Version) -> bool:
        """A checkpoint with another root than the sealed one has drifted from those of other replicas."""
        if not wanted.round:
            return True
        found = stored_root(self._folder, wanted.round)
        return found is not None and wanted.state_root in (b"", found)

    async def _fetch(self, wanted: pb.Version) -> None:
        assert self._assignment is not None, "a version comes after the assignment"
        version = Version(
            spec=parse_spec(self._assignment.spec),
            stage=self._assignment.stage,
            round=wanted.round,
            state_root=wanted.state_root,
            frozen_hash=self._frozen_hash,
        )
        if wanted.sources:
            await fetch_version(self._certificate, version, self._folder, _sources(wanted.sources))
        else:
            if any(len(maker) != ADDRESS_BYTES for maker in wanted.makers):
                raise MalformedMessage("The coordinator names makers by what are no addresses.")
            makers = {to_checksum_address(maker) for maker in wanted.makers}
            keepers = _sources(wanted.keepers)
            await restore_version(self._certificate, version, self._folder, keepers, makers, self._domain)

    @property
    def _domain(self) -> Domain:
        assert self._assignment is not None, "a version comes after the assignment"
        return Domain(self._assignment.chain_id, self._assignment.settlement)

    @property
    def _folder(self) -> Path:
        assert self._assignment is not None, "a version comes after the assignment"
        return self._directory / f"stage-{self._assignment.stage}"


def _is_on_the_way(wanted: pb.Version, coming: pb.Version) -> bool:
    """Whether what is coming leads to it: an earlier version that it can be followed from, or the same one, whose
    sources are only fewer by now.
    """
    if wanted.sources and coming.sources and wanted.round > coming.round:
        return True
    same = (wanted.round, wanted.state_root) == (coming.round, coming.state_root)
    those = wanted.sources or wanted.keepers
    return same and bool(those) and all(each in (coming.sources or coming.keepers) for each in those)


def _sources(named: Iterable[pb.EvidenceSource]) -> Sequence[Source]:
    return [Source(each.peer_id, each.address, each.certificate) for each in named]
