"""Hosts the round state machine: takes events one after another, stores what must survive, then acts on it.

A coordinator that is killed between any two lines of this file comes back to the last stored state; the nodes
reconnect, and the round that was being trained is trained again.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Collection
from dataclasses import replace

from commonweight.errors import CommonweightError, Refused
from commonweight.events import emit
from commonweight.rules import round_events
from commonweight.rules.following import NEWCOMERS_S
from commonweight.rules.placement import Move
from commonweight.rules.round_state import Phase, RoundState
from commonweight.rules.rounds import advance
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import stage_units
from commonweight.wire.generated import control_pb2 as pb
from coordinator.draws import Draw
from coordinator.handover import Handover
from coordinator.keepers import Keepers
from coordinator.ledger import Ledger, Progress
from coordinator.members import Audits, Follower, Member, Place, Submission, Tips
from coordinator.plans import formations, round_plan, seat_assignment
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
        *,
        durable: bool = False,
    ) -> None:
        """Go on from `progress`. `end_round`: the first round that isn't trained any more; None: no end. `durable`:
        nodes report a round only when there are pieces of the state that it led to.
        """
        self._tips = tips
        self._audits = audits
        self._follower = follower
        self.spec = spec
        self.place = place
        self._recorder = Recorder(spec, place, ledger, tips)
        self._end_round = end_round
        self._handover = Handover(Keepers(before_report=durable))
        self._state = RoundState(
            stages=spec.stages,
            microbatches=spec.training.microbatches_per_round,
            averaging_rounds=spec.training.averaging_rounds,
            work=tuple(stage_units(spec, stage) for stage in range(spec.stages)),
            seats=progress.seats,
            round=progress.round,
            generation=progress.generation,
            roots=progress.roots,
        )
        self._members: dict[str, Member] = {}
        self._accepted: dict[str, Submission] = {}
        """By node: what came with the reports that the state holds."""
        self._events: asyncio.Queue[tuple[round_events.Event, Member | None, Submission | None]] = asyncio.Queue()
        self._due: deque[round_events.Train] = deque()
        """To be planned, in order, as soon as nothing stands in their way."""
        self._planned = (-1, -1, -1)
        """Generation, round and first revision of the plan that was sent last."""
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
        return self._state.seats.get(node)

    def join(self, member: Member) -> None:
        """A node has connected and said who it is."""
        self._events.put_nowait(
            (round_events.Joined(member.node, member.has_data, member.stages, member.stays), member, None)
        )

    def leave(self, member: Member) -> None:
        """That connection is gone."""
        self._events.put_nowait((round_events.Lost(member.node), member, None))

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is connected."""
        return tuple(self._members.values())

    def hang_up(self, member: Member, error: CommonweightError) -> None:
        """End a node's connection, and tell it why."""
        emit("node.refused", node=member.node, why=error.args[0])
        member.send(error)
        self.leave(member)  # one that doesn't even read this counts no longer, either

    def let_go(self, member: Member) -> None:
        """The node wants to leave."""
        self._events.put_nowait((round_events.Leaving(member.node), member, None))

    def convict(self, node: str, stage: int) -> None:
        """Its work in this stage was fraud."""
        self._events.put_nowait((round_events.Convicted(node, stage), None, None))

    def note_version(self, member: Member, round_: int) -> None:
        """The node has the state that is ready to train this round."""
        self._events.put_nowait((round_events.HasVersion(member.node, round_), member, None))

    def note_pieces(self, member: Member, held: pb.PiecesHeld) -> None:
        """The node keeps these pieces of other stages' versions. Raises MalformedMessage."""
        if self._members.get(member.node) is member:
            self._handover.note_pieces(member.node, held, self._state, self._members)

    def open_pipes(self, member: Member, generation: int) -> None:
        """The node's pipes are open."""
        self._events.put_nowait((round_events.Ready(member.node, generation), member, None))

    def break_pipes(self, member: Member, generation: int, why: str, peer: str | None = None) -> None:
        """The node's pipes don't open, or broke. `peer`: with which node; None where it is no pipe's fault."""
        self._events.put_nowait((round_events.Broken(member.node, generation, why, peer), member, None))

    def note_late(self, member: Member, generation: int, why: str, peer: str) -> None:
        """The node waits for another one much longer than it did before."""
        self._events.put_nowait((round_events.Late(member.node, generation, why, peer), member, None))

    def submit(self, member: Member, submission: Submission) -> None:
        """A report whose signature is the node's, with seconds of work where it has microbatches."""
        busy_s = submission.message.busy_seconds
        revision = submission.message.revision
        event = round_events.Reported(member.node, submission.generation, submission.report, busy_s, revision)
        self._events.put_nowait((event, member, submission))

    async def taken(self) -> None:
        """Return once no event waits: a node that says nothing more before that can't fill the memory."""
        await self._events.join()

    def say_finished(self) -> None:
        """Tell every node that it may go."""
        for member in self._members.values():
            member.send(pb.CoordinatorMessage(finished=pb.Finished()))

    async def run(self) -> None:
        """Advance until cancelled. Raises Refused when the rules say that a person must look."""
        while True:
            event: round_events.Event
            member: Member | None
            try:
                async with asyncio.timeout_at(self._deadline):
                    event, member, submission = await self._events.get()
                    self._events.task_done()
            except TimeoutError:
                self._deadline = None
                if not self._waits_for_newcomers and not self._waits_for_shadows:
                    self._hang_up_on_the_late()
                    continue
                event, member, submission = round_events.Waited(self._state.generation), None, None
            current = None if member is None else self._members.get(member.node)
            if not isinstance(event, round_events.Joined) and current is not member:
                continue  # it comes from a connection that no longer counts
            if isinstance(event, round_events.Leaving):
                event = replace(event, has_begun=self._has_begun)
            state, effects = advance(self._state, event)
            accepted = dict(self._accepted)
            if submission is not None:
                accepted.setdefault(submission.node, submission)  # the rules, too, keep the first
            versions = frozenset() if self._follower is None else self._follower.kept
            drawn = None
            if effects:
                drawn = await asyncio.to_thread(self._recorder.store, effects, accepted, versions)
            if submission is not None and any(isinstance(effect, round_events.Refused) for effect in effects):
                await self._look_for_equivocation(submission)
            self._state = state
            self._accepted = {node: accepted[node] for node in state.reports}
            self._set_deadline(effects)
            match event:
                case round_events.Joined(node) if current is None and member is not None and node in state.online:
                    self._members[node] = member
                    stage = state.seats[node]
                    member.send(pb.CoordinatorMessage(assignment=seat_assignment(self.spec, self.place, stage)))
                    self._audits.joined(stage, member)
                    if self._follower is not None:
                        self._follower.joined(stage, member)
                    emit("node.joined", node=node, stage=stage, data_address=member.data_address)
                case round_events.Lost(node):
                    self._forget(node)
                    emit("node.lost", node=node, stage=state.seats[node])
            for effect in effects:
                await self._act(effect, member, accepted, drawn)
            self._handover.tell(state, self._members)
            self.reconsider()

    @property
    def _has_begun(self) -> bool:
        """Whether the members were told to train the round that is trained."""
        return self._planned >= (self._state.generation, self._state.round, self._state.since)

    def _forget(self, node: str) -> Member:
        """It isn't connected any more, or counts no longer."""
        member = self._members.pop(node)
        self._audits.lost(member)
        if self._follower is not None:
            self._follower.lost(member)
        return member

    def _set_deadline(self, effects: tuple[round_events.Effect, ...]) -> None:
        """Once a generation is to be formed, all must be ready in time; once one has reported its work, so must the
        others.
        """
        state, now = self._state, asyncio.get_running_loop().time()
        if state.phase is Phase.FORMING:
            if any(isinstance(effect, round_events.Form) for effect in effects):
                self._deadline = now + (NEWCOMERS_S if self._waits_for_newcomers else FORM_S)
        elif self._waits_for_shadows:
            self._deadline = min(self._deadline or math.inf, now + NEWCOMERS_S)
        elif state.phase is Phase.TRAINING and any(report.hops for report in state.reports.values()):
            is_replayed = any(isinstance(effect, round_events.Replay) for effect in effects)
            self._deadline = now + REPORT_S if is_replayed else self._deadline or now + REPORT_S
        else:
            self._deadline = None

    @property
    def _waits_for_newcomers(self) -> bool:
        """Between two rounds of a generation."""
        return self._state.phase is Phase.FORMING and bool(self._state.members)

    @property
    def _waits_for_shadows(self) -> bool:
        """Of all members only some without a load haven't reported."""
        missing = self._state.members - self._state.reports.keys()
        return self._state.phase is Phase.TRAINING and bool(missing) and not any(map(self._state.works, missing))

    def _hang_up_on_the_late(self) -> None:
        state = self._state
        if state.phase is Phase.FORMING:
            late, why = state.crew - state.ready, f"its pipes weren't open within {FORM_S:g} s"
        else:
            late, why = state.members - state.reports.keys(), f"its report came {REPORT_S:g} s too late"
        for node in sorted(late & self._members.keys()):
            self.hang_up(self._members[node], Refused(f"This node holds up the others: {why}."))

    async def _look_for_equivocation(self, refused: Submission) -> None:
        report = refused.report
        if self.tip_of(report.round) is None:
            return
        accepted = self._accepted.get(refused.node)
        if await asyncio.to_thread(self._recorder.store_equivocation, refused, accepted):
            self._audits.equivocated()
            self.convict(refused.node, report.stage)

    async def _act(
        self, effect: round_events.Effect, member: Member | None, accepted: dict[str, Submission], drawn: Draw | None
    ) -> None:
        match effect:
            case round_events.Refused(node, why):
                assert member is not None, "it has said something"
                emit("node.refused", node=node, why=why)
                member.send(Refused(why))
            case round_events.Form(generation, round_, crew) if self._waits_for_newcomers or self._state.assignment:
                if newcomers := sorted(crew - self._state.ready):
                    emit("generation.extended", generation=generation, round=round_, nodes=newcomers)
                self._introduce({self._state.seats[node] for node in newcomers})
            case round_events.Form(generation, round_):
                delay_s = min(0.1 * 2 ** min(self._failed_generations, 10) - 0.1, MAX_REFORM_DELAY_S)
                self._failed_generations += 1
                asyncio.get_running_loop().call_later(delay_s, self._form, generation, round_)
            case round_events.Train():
                self._due.append(effect)
            case round_events.Replay(generation, round_, lost, load):
                self._introduce({self._state.seats[lost]})
                if self._has_begun:
                    count = {node: sum(each == node for each in load.values()) for node in sorted(set(load.values()))}
                    emit("round.replayed", generation=generation, round=round_, lost=lost, microbatches=count)
                    self._plan(round_)
            case round_events.Excluded(node, generation, why):
                emit("node.excluded", node=node, generation=generation, why=why)
                self._members[node].send(pb.CoordinatorMessage(pause=pb.Pause(generation=generation, why=why)))
            case round_events.Released(node):
                emit("node.released", node=node, stage=self._state.seats[node])
                self._forget(node).send(pb.CoordinatorMessage(finished=pb.Finished()))
            case Move(node, source, target, before, after):
                emit(
                    "member.moves",
                    node=node,
                    source=source,
                    target=target,
                    before=round(before, 3),
                    after=round(after, 3),
                )
                move = pb.Move(stage=target, before=before, after=after)
                self._forget(node).send(pb.CoordinatorMessage(move=move))
            case round_events.Pause(generation, why):
                emit("generation.paused", generation=generation, why=why)
                for each in self.members:
                    each.send(pb.CoordinatorMessage(pause=pb.Pause(generation=generation, why=why)))
            case round_events.Seal(_, reports, next_taken_back):
                assert drawn is not None, "storing the seal drew them"
                self._handover.note_sealed(self._state, reports)
                await self._announce(drawn, [accepted[node] for node in reports], next_taken_back=next_taken_back)
            case round_events.Stop(why):
                emit("training.stopped", why=why)
                raise Refused(f"Training stopped in round {self._state.round}. {why}")

    def _form(self, generation: int, round_: int) -> None:
        if generation != self._state.generation or self._state.phase is not Phase.FORMING:
            return  # it was lost while it waited
        emit("generation.formed", generation=generation, round=round_)
        self._introduce(range(self.spec.stages))

    def _introduce(self, changed: Collection[int]) -> None:
        for member, formation in formations(self._state, self._members, changed):
            member.send(pb.CoordinatorMessage(formation=formation))

    def reconsider(self) -> None:
        """Plan what waited for a tip or for audits and needn't any longer."""
        while self._due:
            if self._is_to_be_planned(self._due[0]) and not self._begin(self._due[0]):
                return
            self._due.popleft()

    def _is_to_be_planned(self, due: round_events.Train) -> bool:
        state = self._state
        if state.phase is not Phase.TRAINING or due.generation != state.generation:
            return False
        is_next = due.round == state.round + 1 and due.assignment == state.ahead
        return (due.round == state.round or is_next) and self._plan_of(due) > self._planned

    def _plan_of(self, due: round_events.Train) -> tuple[int, int, int]:
        """As in `_planned`."""
        return due.generation, due.round, self._state.since if due.round == self._state.round else 0

    def _begin(self, due: round_events.Train) -> bool:
        """Whether nothing stands in the way of this round any longer: then it is planned."""
        if self._end_round is not None and due.round >= self._end_round:
            return False
        epoch, current = (each // self.spec.economics.rounds_per_epoch for each in (due.round, self.round))
        if epoch > current:
            return False  # who was told of an epoch's tip signs for none before
        tip = self._tips.tip(due.round)
        why = f"the beacon tip of epoch {epoch} isn't on chain yet" if tip is None else self._audits.obstacle(due.round)
        if due.round == self._state.round:
            if why is not None and why != self._waits_for:
                emit("training.waiting", round=due.round, why=why)
            self._waits_for, self._started_s = why, time.monotonic()
        if why is not None:
            return False
        self._planned = self._plan_of(due)
        self._plan(due.round)
        return True

    def _plan(self, round_: int) -> None:
        """Tell the members who computes what in the round."""
        tip = self._tips.tip(round_)
        assert tip is not None, "no round is planned without"
        plan = round_plan(self._state, round_, tip)
        for node, member in self._members.items():
            if node in self._state.members:
                member.send(pb.CoordinatorMessage(plan=plan))

    async def _announce(self, drawn: Draw, submissions: list[Submission], *, next_taken_back: bool) -> None:
        self._audits.sealed(drawn)
        round_ = drawn.round
        self._failed_generations = 0
        now_s = time.monotonic()
        seconds, self._started_s = now_s - self._started_s, now_s
        tokens, last = self.spec.training.tokens_per_round, self.spec.stages - 1
        losses = [hop.loss for each in submissions if each.report.stage == last for hop in each.report.hops]
        states = {each.report.stage: each.report.state_after.hex() for each in submissions}

        def crossed(boundary: int) -> int:
            down = sum(each.message.bytes_down for each in submissions if each.report.stage == boundary)
            return down + sum(each.message.bytes_up for each in submissions if each.report.stage == boundary + 1)

        emit(
            "round.sealed",
            round=round_,
            epoch=round_ // self.spec.economics.rounds_per_epoch,
            generation=self._state.generation,
            loss=sum(losses) / len(losses),
            seconds=round(seconds, 3),
            tokens=tokens,
            tokens_per_s=round(tokens / seconds, 1),
            bytes_per_token=[round(crossed(boundary) / tokens, 2) for boundary in range(last)],
            replicas=[len(drawn.sealed.replicas(stage)) for stage in range(self.spec.stages)],
            state_roots=[state for _, state in sorted(states.items())],
        )
        for node, member in self._members.items():
            sealed = self._audits.announcement(drawn, node)
            sealed.next_taken_back = next_taken_back
            member.send(pb.CoordinatorMessage(sealed=sealed))
        if self._follower is not None:
            await self._follower.sealed(round_)
        async with self._sealed:
            self._sealed.notify_all()
