"""What nodes are told to do: which stage is theirs, whom of the crew to meet, and who trains what in a round."""

from collections.abc import Collection, Iterator, Mapping

from commonweight.rules.canonical import canonical_json
from commonweight.rules.round_state import RoundState
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb
from coordinator.members import Member, Place


def seat_assignment(spec: ModelSpec, place: Place, stage: int) -> pb.Assignment:
    """What a node is told when it has taken its seat."""
    return pb.Assignment(
        spec=canonical_json(spec.model_dump()),
        stage=stage,
        model_id=place.model_id,
        chain_id=place.domain.chain_id,
        settlement=place.domain.settlement,
    )


def formations(
    state: RoundState, members: Mapping[str, Member], changed: Collection[int]
) -> Iterator[tuple[Member, pb.Formation]]:
    """What those of the crew are told of the others who come to meet other ones than before. `members`: who is
    connected, by node; `changed`: the stages of who came or went.
    """
    crew = [[members[node] for node in state.holders(stage, state.crew)] for stage in range(state.stages)]
    for stage, replicas in enumerate(crew):
        if not any(near in changed for near in range(stage - 1, stage + 2)):
            continue
        previous = [_neighbour(each) for each in crew[stage - 1]] if stage else []
        following = [_neighbour(each) for each in crew[stage + 1]] if stage + 1 < state.stages else []
        for member in replicas:
            others = [_neighbour(each) for each in replicas if each is not member]
            formation = pb.Formation(
                generation=state.generation, round=state.round, previous=previous, next=following, replicas=others
            )
            yield member, formation


def round_plan(state: RoundState, round_: int, beacon_tip: bytes) -> pb.RoundPlan:
    """That of the round that is trained, or of the next one, planned ahead; for all its members alike."""
    assert round_ - state.round in (0, 1), "no other rounds are planned"
    plan = pb.RoundPlan(generation=state.generation, round=round_, beacon_tip=beacon_tip)
    rows, revised = state.ahead, (0,) * state.stages
    if round_ == state.round:
        rows, revised, plan.since, plan.revision = state.assignment, state.revised, state.since, state.revision
    for stage, assignment in enumerate(rows):
        members = state.holders(stage, state.members)
        numbers = {node: number for number, node in enumerate(members)}
        plan.stages.add(
            members=(bytes.fromhex(node[2:]) for node in members),
            assignment=(numbers[node] for node in assignment),
            revision=revised[stage],
        )
    return plan


def _neighbour(member: Member) -> pb.Neighbour:
    return pb.Neighbour(peer_id=member.peer_id, data_address=member.data_address, certificate=member.certificate)
