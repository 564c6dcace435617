"""What gateways ask of the coordinator: the route of the version that is served, and to note what they have served."""

import asyncio
from dataclasses import dataclass, field
from typing import NoReturn

import grpc

from commonweight.errors import CommonweightError, LedgerError, MalformedMessage, NotServed, Refused
from commonweight.events import emit
from commonweight.identity import address_of, recover_address
from commonweight.rules.answer import SESSION_BYTES, served_receipt
from commonweight.rules.canonical import canonical_json
from commonweight.wire.generated import serving_pb2, serving_pb2_grpc
from commonweight.wire.serving import MAX_REQUEST_ID_BYTES, MIN_REQUEST_ID_BYTES, route_id
from commonweight.wire.status import refuse
from commonweight.wire.tls import peer_of
from coordinator.answer_ledger import Reported
from coordinator.serving import Serving

MAX_WRITES = 4
"""Of reports, at a time: each takes a thread while it waits for the ledger, and training needs one, too."""


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
