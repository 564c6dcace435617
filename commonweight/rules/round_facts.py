"""What can be told from a round's state: how it is divided, who can be spared or replaced, what a report gets wrong."""

import math
from collections.abc import Sequence

from commonweight.rules.assignment import Pace, assign
from commonweight.rules.placement import MOVE_PAYBACK, Replica, stage_throughputs
from commonweight.rules.report import Report
from commonweight.rules.round_state import Assignment, Phase, RoundState

PATIENCE_ROUNDS = 50
"""So many rounds are trained before a newcomer that was waited for in vain is waited for again."""
SETTLED_ROUNDS = 10
"""With the same members, before one of them is asked to move: what is measured until then is of these. Who is on its
way is given as long to come.
"""


def throughputs(state: RoundState) -> Sequence[float]:
    """Microbatches per second of each stage's replicas, as far as they are measured. Who moves counts where it goes."""
    there = state.online if state.move is None else state.online | {state.move.node}
    stages = [
        {node: Replica(state.microbatch_s(node)) for node in state.holders(stage, there)}
        for stage in range(state.stages)
    ]
    return stage_throughputs(stages, work_of_stages(state))


def work_of_stages(state: RoundState) -> Sequence[int]:
    """What a microbatch costs in each, in whatever unit."""
    return state.work or (1,) * state.stages


def trusted(state: RoundState, nodes: Sequence[str]) -> Sequence[str]:
    """Of these replicas of a stage, those that may be given work."""
    return [node for node in nodes if node not in state.convicted] or nodes


def is_settled(state: RoundState) -> bool:
    """Whether nobody has come or gone for a while, or is about to; the last move has paid for the time that it took;
    who steps alone has had averaged what it learnt.
    """
    coming = state.online - state.members - state.in_vain.keys()
    is_quiet = not state.leaving and not coming and state.crew == state.members
    is_on_its_way = state.move is not None and not state.is_moving
    rounds = max(SETTLED_ROUNDS, math.ceil(state.away / MOVE_PAYBACK))
    has_averaged = state.averages_in(state.round - 1)
    return is_quiet and has_averaged and not is_on_its_way and state.round >= state.arranged + rounds


def find_fault(state: RoundState, node: str, report: Report) -> str | None:
    """What is wrong with a report of the node's, taken by itself."""
    if node not in state.members or state.seats[node] != report.stage:
        return f"the report is of stage {report.stage}, which {node} doesn't train in this round"
    if report.round != state.round:
        return f"the report is of round {report.round}; round {state.round} is being trained"
    load = tuple(j for j, holder in enumerate(state.assignment[report.stage]) if holder == node)
    if report.load != load:
        return f"the report has the microbatches {list(report.load)!r:.200}; assigned were {list(load)!r:.200}"
    roots = set(state.roots[report.stage].values()) if state.roots else set()
    if roots and report.state_before not in roots:
        return (
            f"stage {report.stage} starts round {report.round} from state {report.state_before.hex()}; sealed is "
            f"{' or '.join(sorted(root.hex() for root in roots))}. Restore the checkpoint of that round"
        )
    is_alone = len(load) == state.microbatches if state.averaging_rounds == 1 else not state.averages_in(state.round)
    if is_alone and report.gradient_hash != report.round_gradient_hash:
        return "it was stepped with another gradient than its own, though there is no other one to be averaged with it"
    return None


def late_newcomers(state: RoundState) -> frozenset[str]:
    """Newcomers who had an earlier state, and are worth waiting for."""
    return frozenset(
        node
        for node, version in state.versions.items()
        if version < state.round
        and state.averages_in(state.round)
        and node not in state.crew
        and state.round >= state.in_vain.get(node, -PATIENCE_ROUNDS) + PATIENCE_ROUNDS
    )


def divide_round(state: RoundState) -> Assignment:
    """Who of those that are ready computes what. Newcomers shadow a round where others of their stage are there, and so
    do those who are convicted. Then who was measured before it went away has its share at once. Who was measured long
    ago is tried with one microbatch, as newcomers are.
    """

    def paces(stage: int) -> dict[str, float | None]:
        replicas = trusted(state, state.holders(stage, state.ready))
        settled = [node for node in replicas if node in state.stepped] or replicas
        stale = {node for node in settled if state.paces.get(node, Pace()).is_stale}
        return {node: None if node in stale else state.microbatch_s(node) for node in settled}

    return assign(state.microbatches, [paces(stage) for stage in range(state.stages)])


def idle(state: RoundState, assignment: Assignment, round_: int) -> frozenset[str]:
    """Who is ready and has no load in a round that each trains alone: it would end that in a state of nobody else's."""
    if state.averages_in(round_):
        return frozenset()
    return state.ready - {node for row in assignment for node in row}


def is_dispensable(state: RoundState, node: str) -> bool:
    """Whether the generation goes on without it."""
    if state.phase is Phase.FORMING:
        return bool(state.members) and node not in state.members  # a newcomer, between two rounds
    return state.phase is Phase.TRAINING and not state.works(node)


def is_done(state: RoundState, node: str) -> bool:
    """Whether the round is sealed without any more of it: nobody waits for its gradients, or its part of their sum."""
    if state.phase is not Phase.TRAINING or node not in state.reports:
        return False
    stage = state.seats[node]
    return all(each in state.reports for each in state.members if state.seats[each] in (stage - 1, stage))


def is_replaceable(state: RoundState, node: str) -> bool:
    """Whether others of its stage can compute its load, from the state that it had: none of them has stepped, as far as
    is known.
    """
    if state.phase is not Phase.TRAINING or not state.works(node) or state.averaging_rounds > 1:
        return False
    replicas = state.holders(state.seats[node], state.members)
    return node in replicas and len(replicas) > 1 and not any(each in state.reports for each in replicas)
