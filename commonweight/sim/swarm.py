"""The swarm in simulated time: providers come and go, the coordinator plans, mends and seals rounds."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import simpy

from commonweight.rules.assignment import Pace, update
from commonweight.rules.placement import Move, Replica, rebalance, stage_throughputs, weakest_stage
from commonweight.sim.costs import Costs, pipeline_ends_s
from commonweight.sim.options import SimOptions, simulated_spec
from commonweight.sim.part import StagePart
from commonweight.sim.population import SILENT, Population, Provider
from commonweight.sim.records import History, RoundRecord

SILENCE_S = (3.0, 4.0)
"""After its last heartbeat, one a second, a node counts as lost after 4 s (docs/protocol.md)."""
REDIVIDE_S = 60.0
"""After so long what isn't begun of a round is divided once more, among all who are ready by then…"""
REDIVIDE_LAST = 0.9
"""…and for the last time when so much of its expected time is over."""
Process = Generator[simpy.Event, object, None]


@dataclass
class _Round:
    """The round that is being trained."""

    parts: list[StagePart]
    members: list[dict[str, tuple[Provider, float]]]
    """Of each stage, lost ones too, and since when they are."""
    nobody_left: simpy.Event


class Swarm:
    """A run; `run` may be called once."""

    def __init__(self, options: SimOptions) -> None:
        self.spec = simulated_spec(options.stages)
        self.options = options
        self.costs = Costs(self.spec, options.gradient_bytes)
        self._env = simpy.Environment()
        self._population = Population(options.seed, options.churn_per_hour)
        self._stages: list[dict[str, Provider]] = [{} for _ in range(options.stages)]
        """Who holds each stage, or is fetching it."""
        self._throughputs = [0.0] * options.stages
        self._round: _Round | None = None
        self._somebody_ready = self._env.event()
        self._present_flops = 0.0
        self._offered, self._offered_until_s = 0.0, 0.0
        # Since the last seal.
        self._held, self._messages = 0.0, 0
        self._lost: dict[str, int] = {}
        for provider in self._population.initial(options.providers):
            self._admit(provider)
            if provider.address in self._stages[provider.stage]:
                provider.pace = Pace(self.costs.microbatch_s(provider, provider.stage))
                provider.is_ready = True
        flops = sum(provider.speed for provider in self._present())
        microbatches = max(1, round(options.round_s * flops / sum(self.costs.units)))
        self.history = History(microbatches, list(self._present()))

    def run(self) -> History:
        """Everything until the hours are over."""
        self._env.process(self._arrivals())
        self._env.process(self._rounds())
        self._env.run(until=3600 * self.options.hours)
        return self.history

    def _present(self) -> list[Provider]:
        return [provider for stage in self._stages for provider in stage.values()]

    # Providers.

    def _arrivals(self) -> Process:
        while (wait_s := self._population.until_next_s(self.options.providers)) is not None:
            yield self._env.timeout(wait_s)
            provider = self._population.newcomer(self._env.now)
            self.history.providers.append(provider)
            self._messages += 4  # enrolment, its answer, join, assignment
            self._admit(provider)
            if provider.left_s is None:
                self._env.process(self._fetch(provider, provider.stage))

    def _admit(self, provider: Provider) -> None:
        """Gives it the weakest stage that it may hold."""
        stage = weakest_stage(self._throughputs, None, has_data=provider.has_data)
        if stage is None:
            provider.left_s = self._env.now
            return
        provider.stage = stage
        self._stages[stage][provider.address] = provider
        self._throughputs[stage] += provider.speed / self.costs.units[stage]
        self._count_offered(provider.speed)
        self._env.process(self._stay(provider))

    def _fetch(self, provider: Provider, stage: int) -> Process:
        yield self._env.timeout(self.costs.fetch_s(provider, stage))
        if provider.pace.microbatch_s is None and self.options.shadow:
            taken_s = self.costs.microbatch_s(provider, stage) * self._population.jitter(1)[0]
            yield self._env.timeout(taken_s + 2 * provider.latency_s)
            provider.pace = update(provider.pace, 1, taken_s)
        provider.is_ready = True
        if not self._somebody_ready.triggered:
            self._somebody_ready.succeed()

    def _stay(self, provider: Provider) -> Process:
        if math.isinf(provider.stays_s):
            return
        yield self._env.timeout(provider.stays_s)
        provider.left_s = self._env.now
        self._count_offered(-provider.speed)
        del self._stages[provider.stage][provider.address]
        self._throughputs[provider.stage] -= provider.speed / self.costs.units[provider.stage]
        if self._round is None:
            return
        part = self._round.parts[provider.stage]
        if provider.address in part.loads and not part.is_over:
            yield from self._recover(provider, self._round, part)

    def _recover(self, provider: Provider, round_: _Round, part: StagePart) -> Process:
        lost_s = self._env.now
        is_silent = self._population.chance(SILENT)
        noticed_s = lost_s + (self._population.between(*SILENCE_S) if is_silent else provider.latency_s)
        lost, computed = part.lose(provider.address, lost_s, noticed_s)
        wasted = computed * self.costs.units[provider.stage]
        self._lost[provider.address] = self._lost.get(provider.address, 0) + wasted
        if not lost:
            return
        yield self._env.timeout(noticed_s - lost_s)
        if not part.loads:
            if not round_.nobody_left.triggered:
                round_.nobody_left.succeed()
            return
        done_s = part.done_s
        told = part.take_over(lost, self._env.now)
        self.history.delays_s.append(part.done_s - done_s)
        # They are told, and so is who has the microbatches on either side.
        self._messages += told + 2 * min(lost, len(part.loads))
        self.history.recoveries_s.append(self._env.now + 2 * provider.latency_s - lost_s)

    # Rounds.

    def _rounds(self) -> Process:
        while True:
            while (move := rebalance(*self._measured())) is not None and self.options.rebalance and self._may_go(move):
                self._move(move)
            yield from self._until_complete()
            yield from self._train()

    def _until_complete(self) -> Process:
        """Waits until each stage has a replica that is ready."""
        while not all(any(provider.is_ready for provider in stage.values()) for stage in self._stages):
            self._somebody_ready = self._env.event()
            yield self._somebody_ready

    def _measured(self) -> tuple[list[dict[str, Replica]], list[int]]:
        """What the coordinator knows of its stages."""
        stages = [
            {
                node: Replica(each.pace.microbatch_s, each.has_data, None if each.is_ready else frozenset())
                for node, each in replicas.items()
            }
            for replicas in self._stages
        ]
        self._throughputs = list(stage_throughputs(stages, self.costs.units))
        return stages, self.costs.units

    def _may_go(self, move: Move) -> bool:
        """Whether somebody else is ready in the stage that it leaves."""
        return sum(each.is_ready for each in self._stages[move.source].values()) > 1

    def _move(self, move: Move) -> None:
        provider = self._stages[move.source].pop(move.node)
        self._stages[move.target][move.node] = provider
        pace = provider.pace.microbatch_s
        assert pace is not None, "newcomers aren't moved"
        provider.pace = Pace(pace * self.costs.units[move.target] / self.costs.units[move.source])
        provider.stage, provider.is_ready = move.target, False
        self._env.process(self._fetch(provider, move.target))
        self.history.moves += 1
        self._messages += 2

    def _train(self) -> Process:
        began_s = self._env.now
        present = sum(map(len, self._stages))
        replicas = [[each for each in stage.values() if each.is_ready] for stage in self._stages]
        paces = [self._actual_paces(each, stage) for stage, each in enumerate(replicas)]
        means = [sum(each.values()) / len(each) for each in paces]
        fills, ends = pipeline_ends_s(means, [self.costs.hop_s(each) for each in replicas])
        parts = [
            StagePart(
                self.history.microbatches,
                began_s + fills[stage],
                {each.address: each.pace.microbatch_s for each in ready},
                paces[stage],
            )
            for stage, ready in enumerate(replicas)
        ]
        averages = [self.costs.average_s(each, stage) for stage, each in enumerate(replicas)]
        members = [{each.address: (each, began_s) for each in ready} for ready in replicas]
        throughputs = tuple(sum(1 / pace for pace in each.values()) for each in paces)
        self._round = round_ = _Round(parts, members, self._env.event())
        self._messages += 3 * sum(map(len, replicas))  # plan, report, seal
        computing = [
            self._env.process(self._compute(round_, *each)) for each in enumerate(zip(ends, averages, strict=True))
        ]
        yield self._env.all_of(computing) | round_.nobody_left
        slowest_s = max(each.latency_s for ready in replicas for each in ready)
        yield self._env.timeout(self.costs.step_s() + 2 * slowest_s)
        self._round = None
        self._held += self._held_in(round_)
        if round_.nobody_left.triggered:
            self.history.abandoned += 1
            units = self.costs.units
            for part, unit in zip(parts, units, strict=True):
                part.is_over = True
                for node in part.loads:
                    self._lost[node] = self._lost.get(node, 0) + unit * part.computed(node, self._env.now)
            return
        self.history.rounds.append(
            RoundRecord(
                began_s=began_s,
                ended_s=self._env.now,
                ends_s=ends[0],
                average_s=max(averages),
                offered=self._offered_now(),
                held=self._held,
                present=present,
                throughputs=throughputs,
                messages=self._messages,
                units=self._credit(round_),
                lost=self._lost,
            )
        )
        self._offered, self._offered_until_s = 0.0, self._env.now
        self._held, self._messages, self._lost = 0.0, 0, {}

    def _credit(self, round_: _Round) -> dict[str, int]:
        """To each provider the units that it computed of a sealed round; and its pace is measured by them."""
        units = {}
        for stage, (part, members) in enumerate(zip(round_.parts, round_.members, strict=True)):
            assert sum(part.loads.values()) == self.history.microbatches, "every microbatch is computed once"
            for node, load in part.loads.items():
                if load:
                    provider, _ = members[node]
                    units[node] = load * self.costs.units[stage]
                    provider.pace = update(provider.pace, load, part.busy_s(node))
        return units

    def _held_in(self, round_: _Round) -> float:
        """FLOPs that the round's members could have computed in it."""
        now_s = self._env.now
        return sum(
            each.speed * ((now_s if each.left_s is None else min(now_s, each.left_s)) - since_s)
            for members in round_.members
            for each, since_s in members.values()
        )

    def _actual_paces(self, replicas: Sequence[Provider], stage: int) -> dict[str, float]:
        factors = self._population.jitter(len(replicas))
        return {
            each.address: factor * self.costs.microbatch_s(each, stage)
            for each, factor in zip(replicas, factors, strict=True)
        }

    def _compute(self, round_: _Round, stage: int, times_s: tuple[float, float]) -> Process:
        part, (ends_s, average_s) = round_.parts[stage], times_s
        if self.options.redivide:
            yield from self._redivide(round_, stage)
        yield from self._until_done(part)
        # What is lost from now on is replayed from its neighbours' copies.
        yield self._env.timeout(ends_s)
        yield from self._until_done(part)
        # Gradients are averaged piece by piece. Of who is lost the pieces that are left are missing; they wait
        # until others have computed them.
        since_s, left_s = self._env.now, average_s
        while True:
            averaged_s = since_s + left_s
            yield self._env.timeout(max(0.0, averaged_s - self._env.now))
            yield from self._until_done(part)
            lost_s = next((lost_s for lost_s in part.losses_s if since_s <= lost_s < averaged_s), None)
            if lost_s is None:
                break
            since_s, left_s = part.done_s, averaged_s - lost_s
        part.is_over = True

    def _redivide(self, round_: _Round, stage: int) -> Process:
        """Every minute, among all who are ready and measured by then, also those who came after the round's start."""
        began_s, part, members = self._env.now, round_.parts[stage], round_.members[stage]
        is_last = False
        while part.loads and not (is_last or part.is_over):
            last_s = REDIVIDE_LAST * (part.expected_s - began_s) - (self._env.now - began_s)
            is_last = last_s <= REDIVIDE_S
            yield self._env.timeout(max(0.0, min(REDIVIDE_S, last_s)))
            for node, each in self._stages[stage].items():
                if node not in members and each.is_ready and each.pace.microbatch_s is not None:
                    members[node] = each, self._env.now
                    part.join(node, self._actual_paces([each], stage)[node], self._env.now)
            if part.loads:
                self._messages += len(part.loads) + part.redivide(self._env.now)  # how far each is; who has other work

    def _until_done(self, part: StagePart) -> Process:
        while (left_s := part.done_s - self._env.now) > 0:
            yield self._env.timeout(left_s)

    # What could have been computed.

    def _count_offered(self, more_flops: float) -> None:
        self._offered, self._offered_until_s = self._offered_now(), self._env.now
        self._present_flops += more_flops

    def _offered_now(self) -> float:
        return self._offered + self._present_flops * (self._env.now - self._offered_until_s)
