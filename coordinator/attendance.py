"""Who attends on a control stream, a provider's node or an auditor: how each introduces itself, and what it may say."""

import asyncio
from dataclasses import dataclass

from eth_utils.address import is_address, to_checksum_address

from commonweight.errors import MalformedMessage, Refused
from commonweight.identity import address_of, recover_address
from commonweight.rules.report import report_receipt
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import report_from_proto
from commonweight.wire.tls import peer_id_of
from coordinator.answers import Answers
from coordinator.auditors import Auditors
from coordinator.members import AuditorMember, Member, Send, Submission
from coordinator.seats import Seats
from coordinator.serving import Serving, check_reachable
from coordinator.training import Training

MAX_NUMERICS = 200
"""Characters of the name of a numerics class."""


@dataclass(frozen=True)
class AttendingNode:
    """A provider's node, from its Join on. Methods raise WireError for what it may not say."""

    training: Training
    serving: Serving
    answers: Answers
    member: Member

    @property
    def node(self) -> str:
        """Its address."""
        return self.member.node

    def leave(self) -> None:
        """Its stream has ended."""
        self.training.leave(self.member)

    async def take(self, message: pb.NodeMessage) -> None:
        """What it says goes to the training, or to what serves."""
        match message.WhichOneof("body"):
            case "heartbeat":
                return
            case "pipes_open":
                self.training.open_pipes(self.member, message.pipes_open.generation)
            case "pipes_failed":
                failed = message.pipes_failed
                peer = address_of(failed.peer_id) if failed.peer_id else None
                self.training.break_pipes(self.member, failed.generation, f"{failed.code}: {failed.why}"[:500], peer)
            case "version":
                self.training.note_version(self.member, message.version.round)
            case "late":
                late = message.late
                self.training.note_late(self.member, late.generation, late.why[:500], address_of(late.peer_id))
            case "leave":
                self.training.let_go(self.member)
            case "pieces":
                self.training.note_pieces(self.member, message.pieces)
            case "report":
                self._take_report(message.report)
            case "version_ready":
                self.serving.ready(self.member, message.version_ready)
            case "version_failed":
                self.serving.failed(self.member, message.version_failed)
            case "answer":
                await self.answers.take(self.member, self.training.stage_of(self.node), message.answer)
            case other:
                raise MalformedMessage(f"A node doesn't send {other} here.")
        await self.training.taken()  # one at a time: gRPC holds back what a node says faster than it is taken

    def _take_report(self, signed: pb.SignedReport) -> None:
        report, member = report_from_proto(signed.report), self.member
        microbatches = self.training.spec.training.microbatches_per_round
        if len(signed.report.numerics) > MAX_NUMERICS:
            raise MalformedMessage(f"numerics: at most {MAX_NUMERICS} characters.")
        if report.hops and (last := max(report.load)) >= microbatches:
            raise MalformedMessage(f"hops: microbatch {last} of a round of {microbatches}; they count from 0.")
        if report.hops and not (busy_s := signed.report.busy_seconds) / len(report.hops) > 0:
            raise MalformedMessage(f"busy_seconds: nobody computes {len(report.hops)} microbatches in {busy_s} s.")
        place, tip = self.training.place, self.training.tip_of(report.round)
        if tip is None:
            raise Refused(
                f"The report is of round {report.round}, which has no beacon tip now; round {self.training.round} is "
                "being trained."
            )
        commitments = report.commitments(microbatches)
        receipt = report_receipt(place.model_id, signed.generation, report.round, report.stage, commitments, tip)
        signer = recover_address(receipt.digest(place.domain), signed.signature)
        if signer != member.node:
            raise Refused(f"The report of round {report.round} is signed by {signer}, not by {member.node}.")
        self.training.submit(
            member,
            Submission(
                member.node,
                member.owner,
                member.account,
                signed.generation,
                report,
                signed.signature,
                signed.report,
            ),
        )


@dataclass(frozen=True)
class AttendingAuditor:
    """An auditor, from its AuditorJoin on. Methods raise WireError for what it may not say."""

    auditors: Auditors
    member: AuditorMember

    @property
    def node(self) -> str:
        """Its address."""
        return self.member.node

    def leave(self) -> None:
        """Its stream has ended."""
        self.auditors.leave(self.member)

    async def take(self, message: pb.NodeMessage) -> None:
        """Its answers go to who asked."""
        match message.WhichOneof("body"):
            case "heartbeat":
                pass
            case "opinion":
                self.auditors.answer(self.member, message.opinion)
            case "recording":
                self.auditors.answer(self.member, message.recording)
            case other:
                raise MalformedMessage(f"An auditor doesn't send {other} here.")


@dataclass(frozen=True)
class Reception:
    """Takes in who comes."""

    training: Training
    serving: Serving
    answers: Answers
    auditors: Auditors
    seats: Seats

    async def introduce(self, message: pb.NodeMessage, peer_id: str, send: Send) -> AttendingNode | AttendingAuditor:
        """Who begins with this message. Raises MalformedMessage, Refused or PeerUnreachable."""
        match message.WhichOneof("body"):
            case "join":
                return await self._introduce_node(message.join, peer_id, send)
            case "auditor":
                return await self._introduce_auditor(message.auditor, peer_id, send)
            case other:
                raise MalformedMessage(f"A node begins with a join, not with {other}.")

    async def _introduce_node(self, join: pb.Join, peer_id: str, send: Send) -> AttendingNode:
        check_certificate("data plane", join.certificate, peer_id)
        check_reachable("data plane", join.data_address)
        check_reachable("evidence service", join.evidence_address)
        node, wished = address_of(peer_id), read_account(join.payout_account)
        if self.auditors.is_connected(node):
            raise Refused("This node's key is connected as an auditor's; who audits trains nothing. Use another key.")
        standing = await asyncio.to_thread(self.seats.standing, node, wished, self.training.stage_of(node))
        member = Member(
            node=node,
            peer_id=peer_id,
            data_address=join.data_address,
            evidence_address=join.evidence_address,
            certificate=join.certificate,
            owner=standing.owner,
            account=standing.account,
            has_data=join.has_data,
            stages=standing.stages,
            stays=join.stays,
            send=send,
        )
        self.training.join(member)
        return AttendingNode(self.training, self.serving, self.answers, member)

    async def _introduce_auditor(self, join: pb.AuditorJoin, peer_id: str, send: Send) -> AttendingAuditor:
        check_certificate("auditor", join.certificate, peer_id)
        node = address_of(peer_id)
        if (stage := self.training.stage_of(node)) is not None:
            raise Refused(f"This auditor's key trains stage {stage}; who audits trains nothing. Use another key.")
        standing = await asyncio.to_thread(self.seats.standing, node, node)
        if standing.stages is None:
            raise Refused("This model has no seats: only its coordinator's referee audits it.")
        member = AuditorMember(
            node=node,
            certificate=join.certificate,
            owner=standing.owner,
            stages=standing.stages,
            account=standing.account,
            send=send,
        )
        self.auditors.join(member)
        return AttendingAuditor(self.auditors, member)


def check_certificate(whose: str, certificate: bytes, peer_id: str) -> None:
    """Raises Refused where it isn't of the connection's key, IdentityMismatch where it is of none."""
    if (owner := peer_id_of(certificate)) != peer_id:
        raise Refused(f"The {whose}'s certificate is of {owner}, the connection of {peer_id}.")


def read_account(text: str) -> str:
    """Who is to be paid, with its checksum. Raises MalformedMessage."""
    if not is_address(text):
        raise MalformedMessage(f"The payout account {text!r:.60} is not an address.")
    return to_checksum_address(text)
