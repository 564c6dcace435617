"""Hosts the round state machine: takes events one after another, stores what must survive, then acts on it.

A coordinator that is killed between any two lines of this file comes back to the last stored state; the nodes
reconnect, and the round that was being trained is trained again.
"""

import asyncio
import time

from commonweight.errors import CommonweightError, Refused
from commonweight.events import emit
from commonweight.rules import rounds
from commonweight.rules.canonical import canonical_json
from commonweight.rules.rounds import RoundState, advance
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb
from coordinator.draws import Draw
from coordinator.ledger import Ledger, Progress
from coordinator.members import Audits, Follower, Member, Place, Submission, Tips
from coordinator.recording import Recorder

FORM_S = 150.0
"""For every node to load its stage and open its pipes; longer than a node waits for its neighbour."""
REPORT_S = 60.0
"""From the first report of a round to the last."""
MAX_REFORM_DELAY_S = 5.0
"""Between generations that fail one after another."""


class Training:
    """The one place where training advances."""

    def __init__(
        self,
        spec: ModelSpec,
        place: Place,
        ledger: Ledger,
        progress: Progress,
        end_round: int | None,
        tips: Tips,
        audits: Audits,
        follower: Follower | None = None,
    ) -> None:
        """Go on from `progress`. `end_round`: the first round that isn't trained any more; None: no end."""
        self._tips = tips
        self._audits = audits
        self._follower = follower
        self.spec = spec
        self.place = place
        self._recorder = Recorder(spec, place, ledger, tips)
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
        self._due: rounds.Train | None = None
        """To be planned as soon as nothing stands in its way."""
        self._waits_for: str | None = None
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

    def tip_of(self, round_: int) -> bytes | None:
        """What a report of this round signs; None where it is of a later epoch than the one that is trained, or of one
        long past.
        """
        per_epoch = self.spec.economics.rounds_per_epoch
        return self._tips.tip(round_) if round_ // per_epoch <= self.round // per_epoch else None

    def stage_of(self, node: str) -> int | None:
        """The stage that it holds, connected or not."""
        return self._state.seats.index(node) if node in self._state.seats else None

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

    def submit(self, member: Member, submission: Submission) -> None:
        """A report whose signature is the node's."""
        event = rounds.Reported(member.node, submission.generation, submission.report)
        self._events.put_nowait((event, member, submission))

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
            versions = frozenset() if self._follower is None else self._follower.kept
            drawn = await asyncio.to_thread(self._recorder.store, effects, accepted, versions)
            if submission is not None and any(isinstance(effect, rounds.Refused) for effect in effects):
                await self._look_for_equivocation(submission)
            self._state = state
            self._accepted = {stage: accepted[stage] for stage in state.reports}
            self._set_deadline(event, effects)
            match event:
                case rounds.Joined(node) if current is None and node in state.online:
                    self._members[node] = member
                    stage = state.seats.index(node)
                    member.send(pb.CoordinatorMessage(assignment=self._assign(stage)))
                    self._audits.joined(stage, member)
                    if self._follower is not None:
                        self._follower.joined(stage, member)
                    emit("node.joined", node=node, stage=stage, data_address=member.data_address)
                case rounds.Lost(node):
                    del self._members[node]
                    self._audits.lost(state.seats.index(node))
                    if self._follower is not None:
                        self._follower.lost(state.seats.index(node))
                    emit("node.lost", node=node, stage=state.seats.index(node))
            for effect in effects:
                await self._act(effect, member, accepted, drawn)

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

    async def _look_for_equivocation(self, refused: Submission) -> None:
        report = refused.report
        if self.stage_of(refused.node) != report.stage or self.tip_of(report.round) is None:
            return
        accepted = self._accepted.get(report.stage)
        if await asyncio.to_thread(self._recorder.store_equivocation, refused, accepted):
            self._audits.equivocated()

    async def _act(
        self, effect: rounds.Effect, member: Member, accepted: dict[int, Submission], drawn: Draw | None
    ) -> None:
        match effect:
            case rounds.Refused(node, why):
                emit("node.refused", node=node, why=why)
                member.send(Refused(why))
            case rounds.Form(generation, round_):
                delay_s = min(0.1 * 2 ** min(self._failed_generations, 10) - 0.1, MAX_REFORM_DELAY_S)
                self._failed_generations += 1
                asyncio.get_running_loop().call_later(delay_s, self._form, generation, round_)
            case rounds.Train():
                self._due = effect
                self.reconsider()
            case rounds.Pause(generation, why):
                emit("generation.paused", generation=generation, why=why)
                self._broadcast(pb.CoordinatorMessage(pause=pb.Pause(generation=generation, why=why)))
            case rounds.Seal(_, reports):
                assert drawn is not None, "storing the seal drew them"
                await self._announce(drawn, [accepted[report.stage] for report in reports])
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

    def reconsider(self) -> None:
        """Plan the next round if it waited for a tip or for audits and needn't any longer."""
        due = self._due
        if due is None or self._state.phase is not rounds.Phase.TRAINING or due.generation != self._state.generation:
            return
        if self._end_round is not None and due.round >= self._end_round:
            return
        tip = self._tips.tip(due.round)
        epoch = due.round // self.spec.economics.rounds_per_epoch
        why = f"the beacon tip of epoch {epoch} isn't on chain yet" if tip is None else self._audits.obstacle(due.round)
        if why is not None and why != self._waits_for:
            emit("training.waiting", round=due.round, why=why)
        self._waits_for = why
        if why is None:
            self._due = None
            self._started_s = time.monotonic()
            plan = pb.RoundPlan(generation=due.generation, round=due.round, beacon_tip=tip)
            self._broadcast(pb.CoordinatorMessage(plan=plan))

    async def _announce(self, drawn: Draw, submissions: list[Submission]) -> None:
        self._audits.sealed(drawn)
        round_ = drawn.round
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
                round((above.message.bytes_down + below.message.bytes_up) / tokens, 2)
                for above, below in zip(submissions, submissions[1:], strict=False)
            ],
            state_roots=[submission.report.state_after.hex() for submission in submissions],
        )
        for stage, node in enumerate(self._state.seats):
            if node in self._members:
                self._members[node].send(pb.CoordinatorMessage(sealed=self._audits.announcement(drawn, stage)))
        if self._follower is not None:
            await self._follower.sealed(round_)
        async with self._sealed:
            self._sealed.notify_all()

    def _broadcast(self, message: pb.CoordinatorMessage) -> None:
        for member in self._members.values():
            member.send(message)


def _neighbour(member: Member) -> pb.Neighbour:
    return pb.Neighbour(peer_id=member.peer_id, data_address=member.data_address, certificate=member.certificate)
