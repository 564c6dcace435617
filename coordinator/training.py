"""Hosts the round state machine: takes events one after another, stores what must survive, then acts on it.

A coordinator that is killed between any two lines of this file comes back to the last stored state; the nodes
reconnect, and the round that was being trained is trained again.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from commonweight.errors import CommonweightError, Refused
from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules import rounds
from commonweight.rules.canonical import canonical_json
from commonweight.rules.receipt import Domain
from commonweight.rules.report import Report
from commonweight.rules.rounds import RoundState, advance
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import CreditedReport, credit_report
from commonweight.wire.generated import control_pb2 as pb
from coordinator.ledger import Ledger, Progress

FORM_S = 150.0
"""For every node to load its stage and open its pipes; longer than a node waits for its neighbour."""
REPORT_S = 60.0
"""From the first report of a round to the last."""
MAX_REFORM_DELAY_S = 5.0
"""Between generations that fail one after another."""


Send = Callable[[pb.CoordinatorMessage | CommonweightError], None]
"""Puts a message, or the reason to hang up, on a node's control stream."""


@dataclass(frozen=True)
class Place:
    """Where on which chain a model's work is settled."""

    model_id: bytes
    domain: Domain


@dataclass(frozen=True)
class Member:
    """A node that is connected."""

    node: str
    peer_id: str
    data_address: str
    certificate: bytes
    account: str
    """Who is paid for its work."""
    has_data: bool
    """Whether it can hold the first stage."""
    stages: frozenset[int] | None
    """Those that its owner's seats let it hold; None: any."""
    send: Send


@dataclass(frozen=True)
class Submission:
    """A report with what came beside it."""

    report: Report
    signature: bytes
    seconds: float
    bytes_down: int
    bytes_up: int


class Follower(Protocol):
    """Is told how training goes, in order, before any node is told what follows from it."""

    def joined(self, stage: int, member: Member) -> None:
        """A node has taken its seat."""

    def lost(self, stage: int) -> None:
        """Its connection is gone."""

    async def sealed(self, round_: int) -> None:
        """This round is sealed."""


class Training:
    """The one place where training advances."""

    def __init__(
        self,
        spec: ModelSpec,
        place: Place,
        ledger: Ledger,
        progress: Progress,
        end_round: int | None,
        follower: Follower | None = None,
    ) -> None:
        """Go on from `progress`. `end_round`: the first round that isn't trained any more; None: no end."""
        self._follower = follower
        self.spec = spec
        self.place = place
        self._ledger = ledger
        self._end_round = end_round
        self._state = RoundState(
            microbatches=spec.training.microbatches_per_round,
            seats=tuple(progress.seats.get(stage) for stage in range(spec.stages)),
            round=progress.round,
            generation=progress.generation,
            roots=progress.roots,
        )
        self._members: dict[str, Member] = {}
        self._accepted: dict[int, Submission] = {}
        """By stage: what came with the reports that the state holds."""
        self._events: asyncio.Queue[tuple[rounds.Event, Member, Submission | None]] = asyncio.Queue()
        self._started_s = 0.0
        self._deadline: float | None = None
        """In the loop's time: when those that all wait for are given up."""
        self._failed_generations = 0
        self._sealed = asyncio.Condition()

    @property
    def round(self) -> int:
        """Every round before this one is sealed."""
        return self._state.round

    async def wait_until_sealed(self, rounds_: int) -> None:
        """Return once this many rounds are sealed."""
        async with self._sealed:
            await self._sealed.wait_for(lambda: self.round >= rounds_)

    def join(self, member: Member) -> None:
        """A node has connected and said who it is."""
        self._events.put_nowait((rounds.Joined(member.node, member.has_data, member.stages), member, None))

    def leave(self, member: Member) -> None:
        """That connection is gone."""
        self._events.put_nowait((rounds.Lost(member.node), member, None))

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is connected."""
        return tuple(self._members.values())

    def hang_up(self, member: Member, error: CommonweightError) -> None:
        """End a node's connection, and tell it why."""
        emit("node.refused", node=member.node, why=error.args[0])
        member.send(error)
        self.leave(member)  # one that doesn't even read this counts no longer, either

    def open_pipes(self, member: Member, generation: int) -> None:
        """The node's pipes are open."""
        self._events.put_nowait((rounds.Ready(member.node, generation), member, None))

    def break_pipes(self, member: Member, generation: int, why: str) -> None:
        """The node's pipes don't open, or broke."""
        self._events.put_nowait((rounds.Broken(member.node, generation, why), member, None))

    def submit(self, member: Member, generation: int, submission: Submission) -> None:
        """A report whose signature is the node's."""
        self._events.put_nowait((rounds.Reported(member.node, generation, submission.report), member, submission))

    def say_finished(self) -> None:
        """Tell every node that it may go."""
        for member in self._members.values():
            member.send(pb.CoordinatorMessage(finished=pb.Finished()))

    async def run(self) -> None:
        """Advance until cancelled. Raises Refused when the rules say that a person must look."""
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    event, member, submission = await self._events.get()
            except TimeoutError:
                self._hang_up_on_the_late()
                continue
            current = self._members.get(member.node)
            if not isinstance(event, rounds.Joined) and current is not member:
                continue  # it comes from a connection that no longer counts
            state, effects = advance(self._state, event)
            accepted = dict(self._accepted)
            if submission is not None:
                accepted.setdefault(submission.report.stage, submission)  # the rules, too, keep the first
            await asyncio.to_thread(self._store, effects, accepted)
            self._state = state
            self._accepted = {stage: accepted[stage] for stage in state.reports}
            self._set_deadline(event, effects)
            match event:
                case rounds.Joined(node) if current is None and node in state.online:
                    self._members[node] = member
                    stage = state.seats.index(node)
                    member.send(pb.CoordinatorMessage(assignment=self._assign(stage)))
                    if self._follower is not None:
                        self._follower.joined(stage, member)
                    emit("node.joined", node=node, stage=stage, data_address=member.data_address)
                case rounds.Lost(node):
                    del self._members[node]
                    if self._follower is not None:
                        self._follower.lost(state.seats.index(node))
                    emit("node.lost", node=node, stage=state.seats.index(node))
            for effect in effects:
                await self._act(effect, member, accepted)

    def _set_deadline(self, event: rounds.Event, effects: tuple[rounds.Effect, ...]) -> None:
        """Once pipes are to be formed, all must be ready in time; once one has reported, so must the others."""
        if self._state.phase not in (rounds.Phase.FORMING, rounds.Phase.TRAINING):
            self._deadline = None
        elif any(isinstance(effect, rounds.Form) for effect in effects):
            self._deadline = asyncio.get_running_loop().time() + FORM_S
        elif any(isinstance(effect, rounds.Train) for effect in effects):
            self._deadline = None
        elif isinstance(event, rounds.Reported) and self._deadline is None and self._state.reports:
            self._deadline = asyncio.get_running_loop().time() + REPORT_S

    def _hang_up_on_the_late(self) -> None:
        self._deadline = None
        forming = self._state.phase is rounds.Phase.FORMING
        why = f"its pipes weren't open within {FORM_S:g} s" if forming else f"its report came {REPORT_S:g} s too late"
        for stage, node in enumerate(self._state.seats):
            late = node not in self._state.ready if forming else stage not in self._state.reports
            if late and node is not None and (member := self._members.get(node)) is not None:
                self.hang_up(member, Refused(f"This node holds up the others: {why}."))

    def _store(self, effects: tuple[rounds.Effect, ...], accepted: dict[int, Submission]) -> None:
        for effect in effects:
            match effect:
                case rounds.Seated(node, stage):
                    self._ledger.record_seat(stage, node)
                    failpoint("ledger.seated")
                case rounds.Form(generation, _):
                    self._ledger.record_generation(generation)
                    failpoint("ledger.formed")
                case rounds.Seal(round_, reports):
                    failpoint("ledger.sealing")
                    credits = [self._credit(accepted[report.stage]) for report in reports]
                    self._ledger.record_round(round_, credits)
                    failpoint("ledger.sealed")

    def _credit(self, submission: Submission) -> CreditedReport:
        node = self._state.seats[submission.report.stage]
        assert node is not None, "a report is only accepted from the holder of its seat"
        account = self._members[node].account
        return credit_report(
            self.spec,
            submission.report,
            node=node,
            account=account,
            generation=self._state.generation,
            signature=submission.signature,
        )

    async def _act(self, effect: rounds.Effect, member: Member, accepted: dict[int, Submission]) -> None:
        match effect:
            case rounds.Refused(node, why):
                emit("node.refused", node=node, why=why)
                member.send(Refused(why))
            case rounds.Form(generation, round_):
                delay_s = min(0.1 * 2 ** min(self._failed_generations, 10) - 0.1, MAX_REFORM_DELAY_S)
                self._failed_generations += 1
                asyncio.get_running_loop().call_later(delay_s, self._form, generation, round_)
            case rounds.Train(generation, round_):
                self._train(generation, round_)
            case rounds.Pause(generation, why):
                emit("generation.paused", generation=generation, why=why)
                self._broadcast(pb.CoordinatorMessage(pause=pb.Pause(generation=generation, why=why)))
            case rounds.Seal(round_, reports):
                await self._announce(round_, [accepted[report.stage] for report in reports])
            case rounds.Stop(why):
                emit("training.stopped", why=why)
                raise Refused(f"Training stopped in round {self._state.round}. {why}")

    def _assign(self, stage: int) -> pb.Assignment:
        return pb.Assignment(
            spec=canonical_json(self.spec.model_dump()),
            stage=stage,
            model_id=self.place.model_id,
            chain_id=self.place.domain.chain_id,
            settlement=self.place.domain.settlement,
        )

    def _form(self, generation: int, round_: int) -> None:
        if generation != self._state.generation or self._state.phase is not rounds.Phase.FORMING:
            return  # it was lost while it waited
        emit("generation.formed", generation=generation, round=round_)
        in_order = [self._members[node] for node in self._state.seats if node is not None]
        for stage, member in enumerate(in_order):
            formation = pb.Formation(generation=generation, round=round_)
            if stage > 0:
                formation.previous.CopyFrom(_neighbour(in_order[stage - 1]))
            if stage + 1 < len(in_order):
                formation.next.CopyFrom(_neighbour(in_order[stage + 1]))
            member.send(pb.CoordinatorMessage(formation=formation))

    def _train(self, generation: int, round_: int) -> None:
        if self._end_round is not None and round_ >= self._end_round:
            return
        self._started_s = time.monotonic()
        self._broadcast(pb.CoordinatorMessage(plan=pb.RoundPlan(generation=generation, round=round_)))

    async def _announce(self, round_: int, submissions: list[Submission]) -> None:
        self._failed_generations = 0
        seconds = time.monotonic() - self._started_s
        tokens = self.spec.training.tokens_per_round
        losses = [hop.loss for hop in submissions[-1].report.hops]
        emit(
            "round.sealed",
            round=round_,
            epoch=round_ // self.spec.economics.rounds_per_epoch,
            generation=self._state.generation,
            loss=sum(losses) / len(losses),
            seconds=round(seconds, 3),
            tokens=tokens,
            tokens_per_s=round(tokens / seconds, 1),
            bytes_per_token=[
                round((above.bytes_down + below.bytes_up) / tokens, 2)
                for above, below in zip(submissions, submissions[1:], strict=False)
            ],
            state_roots=[submission.report.state_after.hex() for submission in submissions],
        )
        self._broadcast(pb.CoordinatorMessage(sealed=pb.RoundSealed(round=round_)))
        if self._follower is not None:
            await self._follower.sealed(round_)
        async with self._sealed:
            self._sealed.notify_all()

    def _broadcast(self, message: pb.CoordinatorMessage) -> None:
        for member in self._members.values():
            member.send(message)


def _neighbour(member: Member) -> pb.Neighbour:
    return pb.Neighbour(peer_id=member.peer_id, data_address=member.data_address, certificate=member.certificate)
