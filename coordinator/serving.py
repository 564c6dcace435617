"""Generation, as the coordinator sees it: which version the nodes serve, who may ask, and what was served.

The version after the last round of an epoch is published: every node keeps it. Where there are gateways each loads it,
too, and once all have, it is served: gateways get its route, and sessions on the version before run out. An epoch that
ends while a version is still being loaded publishes none, so that a slow node is waited for instead of being overtaken.
The ledger knows what was published; all else nodes say anew when they connect.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

import grpc

from commonweight.errors import CommonweightError, ConfigError, LedgerError, MalformedMessage, NotServed, Refused
from commonweight.events import emit
from commonweight.identity import address_of, recover_address
from commonweight.rules.answer import KEPT_VERSIONS, SESSION_BYTES, served_receipt
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec
from commonweight.wire.channel import split_address
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import serving_pb2, serving_pb2_grpc
from commonweight.wire.serving import MAX_REQUEST_ID_BYTES, MIN_REQUEST_ID_BYTES, route_id
from commonweight.wire.status import refuse
from commonweight.wire.tls import peer_of
from coordinator.answer_ledger import Reported
from coordinator.ledger import Ledger
from coordinator.members import Member, Place

MAX_WRITES = 4
"""Of reports, at a time: each takes a thread while it waits for the ledger, and training needs one, too."""


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
    _served: int = 0
    """The version that is served, or was last; 0: none was."""
    _holders: dict[int, Member] = field(default_factory=dict)
    """Connected nodes, by stage."""
    _addresses: dict[int, dict[int, str]] = field(default_factory=dict)
    """Of the decode processes that have a version: by version, then by stage."""

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
        self._holders[stage] = member
        for version in sorted({self._served, self.published} - {0}):
            self._publish(member, version)

    def lost(self, stage: int) -> None:
        """Its connection is gone. Its decode process may live on, but nobody knows."""
        del self._holders[stage]
        for version in list(self._addresses):
            self._withdraw(stage, version)

    def ready(self, member: Member, ready: pb.VersionReady) -> None:
        """A node can generate with a version. Raises MalformedMessage for an address that is none."""
        check_reachable("decode process", ready.decode_address)
        stage = self._stage_of(member)
        if stage is None or ready.round == 0 or ready.round not in (self._served, self.published):
            return  # a connection that no longer counts, or a version that has been overtaken
        self._addresses.setdefault(ready.round, {})[stage] = ready.decode_address
        if self._is_complete(ready.round):
            self._serve(ready.round)

    def failed(self, member: Member, failed: pb.VersionFailed) -> None:
        """A node can't generate with a version."""
        stage = self._stage_of(member)
        if stage is None:
            return
        emit("version.failed", stage=stage, round=failed.round, code=failed.code[:80], message=failed.why[:500])
        self._withdraw(stage, failed.round)
        if failed.round == self.published and not failed.retrying:
            self._is_loading = False  # the next epoch's may do

    def gateways_changed(self) -> None:
        """A gateway has shown another certificate."""
        if self._is_complete(self._served):
            self._introduce(self._served)

    def route(self) -> tuple[int, list[tuple[Member, str]]]:
        """The version that is served and, stage by stage, its holder with the decode process's address.

        Raises NotServed.
        """
        if self._is_complete(self._served):
            addresses = self._addresses[self._served]
            return self._served, [(self._holders[stage], addresses[stage]) for stage in range(self.spec.stages)]
        if self.published == 0:
            raise NotServed(
                f"No version of {self.spec.name} is published yet: {self.round} of the first epoch's "
                f"{self.spec.economics.rounds_per_epoch} rounds are sealed."
            )
        best = max(self._addresses.values(), key=len, default={})
        missing = [str(stage) for stage in range(self.spec.stages) if stage not in best]
        raise NotServed(
            f"Stage {', '.join(missing)} of {self.spec.name} can't generate at the moment. Try again later."
        )

    async def _publish_sealed(self) -> None:
        await asyncio.to_thread(self.ledger.record_published, self.round)
        self.versions, self._is_loading = (*self.versions, self.round)[-KEPT_VERSIONS:], True
        for member in self._holders.values():
            self._publish(member, self.published)

    def _publish(self, member: Member, version: int) -> None:
        member.send(pb.CoordinatorMessage(publish=pb.Publish(round=version, load=bool(self.gateways))))

    def _stage_of(self, member: Member) -> int | None:
        return next((stage for stage, holder in self._holders.items() if holder is member), None)

    def _is_complete(self, version: int) -> bool:
        return len(self._addresses.get(version, ())) == self.spec.stages

    def _withdraw(self, stage: int, version: int) -> None:
        was_served = version == self._served and self._is_complete(version)
        self._addresses.get(version, {}).pop(stage, None)
        if was_served:
            emit("version.withdrawn", round=version, stage=stage)

    def _serve(self, version: int) -> None:
        """All stages have it: it is the one from now on."""
        self._served = version
        if version == self.published:
            self._is_loading = False
        for old in [old for old in self._addresses if old < version]:
            del self._addresses[old]
        self._introduce(version)
        emit("version.served", round=version)

    def _introduce(self, version: int) -> None:
        """Tell every stage who its neighbours are, and who may ask."""
        addresses, last = self._addresses[version], self.spec.stages - 1
        for stage, member in self._holders.items():
            peers = pb.DecodePeers(round=version)
            for name, other in (("previous", stage - 1), ("next", stage + 1)):
                if other in addresses:
                    holder = self._holders[other]
                    getattr(peers, name).CopyFrom(
                        pb.Neighbour(
                            peer_id=holder.peer_id, data_address=addresses[other], certificate=holder.certificate
                        )
                    )
            if stage in (0, last):
                peers.gateways.extend(self.certificates())
            member.send(pb.CoordinatorMessage(decode_peers=peers))


@dataclass
class ServingService(serving_pb2_grpc.ServingServicer):
    """Answers gateways."""

    serving: Serving
    _writes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_WRITES))

    async def Route(  # noqa: N802 - gRPC's name
        self, request: serving_pb2.RouteRequest, context: grpc.aio.ServicerContext
    ) -> serving_pb2.ServingRoute:
        """The route of the version that is served."""
        serving = self.serving
        try:
            self._check_gateway(context)
            version, holders = serving.route()
        except CommonweightError as error:
            await self._refuse(context, error)
        stages = [
            serving_pb2.ServingStage(
                peer_id=holder.peer_id, decode_address=address, certificate=holder.certificate, account=holder.account
            )
            for holder, address in holders
        ]
        route = serving_pb2.ServingRoute(
            spec=canonical_json(serving.spec.model_dump()),
            model_id=serving.place.model_id,
            round=version,
            stages=stages,
        )
        route.id = route_id(route)
        return route

    async def Report(  # noqa: N802 - gRPC's name
        self, request: serving_pb2.ServedReport, context: grpc.aio.ServicerContext
    ) -> serving_pb2.ServedReceipt:
        """Record what was served."""
        try:
            gateway = self._check_gateway(context)
            self._check_report(request, gateway)
            reported = Reported(
                request_id=request.request_id,
                session=request.session,
                version=request.round,
                prompt_tokens=request.prompt_tokens,
                completion_tokens=request.completion_tokens,
                gateway=gateway,
                signature=request.signature,
            )
            async with self._writes:
                is_new = await asyncio.to_thread(self.serving.ledger.record_served, reported)
        except LedgerError as error:
            await self._refuse(context, Refused(error.args[0]))
        except CommonweightError as error:
            await self._refuse(context, error)
        if is_new:
            emit(
                "request.served",
                gateway=gateway,
                request_id=request.request_id.hex(),
                session=request.session.hex(),
                round=request.round,
                prompt_tokens=request.prompt_tokens,
                completion_tokens=request.completion_tokens,
            )
        return serving_pb2.ServedReceipt(recorded=is_new)

    def _check_gateway(self, context: grpc.aio.ServicerContext) -> str:
        gateway = address_of(peer_of(context))
        if gateway not in self.serving.gateways:
            raise Refused(f"{gateway} is not on this coordinator's list of gateways. Ask its operator to add it.")
        peer_of(context, self.serving.certificates)
        return gateway

    def _check_report(self, report: serving_pb2.ServedReport, gateway: str) -> None:
        serving, longest = self.serving, self.serving.spec.training.sequence_length
        if not MIN_REQUEST_ID_BYTES <= len(report.request_id) <= MAX_REQUEST_ID_BYTES:
            raise MalformedMessage(
                f"A request's id has {MIN_REQUEST_ID_BYTES} to {MAX_REQUEST_ID_BYTES} bytes, "
                f"not {len(report.request_id)}."
            )
        if len(report.session) != SESSION_BYTES:
            raise MalformedMessage(f"A session's id has {SESSION_BYTES} bytes, not {len(report.session)}.")
        if not serving.was_published(report.round):
            raise MalformedMessage(f"The version of round {report.round} was never published.")
        # The last token isn't fed, and so may be one more than the context holds.
        prompt, answer = tokens = (report.prompt_tokens, report.completion_tokens)
        if min(tokens) == 0 or sum(tokens) > longest + 1:
            raise MalformedMessage(
                f"{prompt} + {answer} tokens: prompt and answer have one each at least, and all of them must fit in "
                f"the context of {longest}."
            )
        receipt = served_receipt(serving.place.model_id, report.round, report.session, *tokens)
        digest = receipt.digest(serving.place.domain)
        if (signer := recover_address(digest, report.signature)) != gateway:
            raise Refused(f"The report of session {report.session.hex()} is signed by {signer}, not by {gateway}.")

    @staticmethod
    async def _refuse(context: grpc.aio.ServicerContext, error: CommonweightError) -> NoReturn:
        if not isinstance(error, NotServed):
            emit("gateway.refused", peer=context.peer(), code=error.code, message=error.args[0])
        await refuse(context, error)
