"""What nodes are told of a sealed round: enough to draw its audits, and to find their own word in it; no more."""

from itertools import product

import pytest

from commonweight.rules.answer import answer_leaf
from commonweight.rules.audits import Audit, Kind, draw_audits
from commonweight.rules.beacon import answers_root, blinded, round_beacon, round_root, seal_salt
from commonweight.rules.load import unpack_load
from commonweight.rules.panel import is_known_bad, known_bad_report
from commonweight.rules.report import Report
from commonweight.wire.generated import control_pb2 as pb
from coordinator.draws import Draw, draw
from tests.unit.auditing_world import (
    ANSWERS,
    MICROBATCHES,
    NODES,
    PER_EPOCH,
    SECOND,
    STAGES,
    answer_parts,
    nodes_of,
    sealed_round,
    signed_report,
)
from tests.unit.tiny import tiny_spec
from tools.build_vectors import beacon_chain, mark

SPEC = tiny_spec(
    stages=3, round_rate="0.5", microbatch_rate="0.5", data_rate="0.5", answer_rate="0.5", known_bad_rate="1"
)
ROUNDS = range(2 * PER_EPOCH)


def drawn_of(number: int, replicas: int = 1) -> Draw:
    return draw(SPEC, sealed_round(number, SPEC, replicas), tip(number), seed(number))


def told(number: int, replicas: int = 1) -> list[pb.RoundSealed]:
    """Of this round, stage by stage, replica by replica."""
    drawn = drawn_of(number, replicas)
    return [drawn.announcement(node, [number]) for stage in range(STAGES) for node in nodes_of(stage, replicas)]


def tip(number: int) -> bytes:
    return beacon_chain(SPEC, number // PER_EPOCH)[0]


def seed(number: int) -> bytes:
    return mark("seed", number // PER_EPOCH)


def output(number: int, report: Report) -> bytes:
    """What who signs the report commits to; both are known to who is shown it."""
    return report.commitments(MICROBATCHES).output(tip(number))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("number", [3, PER_EPOCH, 2 * PER_EPOCH - 1])
def test_each_node_is_told_its_own_salt_and_all_else_as_the_others(number: int, replicas: int) -> None:
    messages, places = told(number, replicas), list(product(range(STAGES), range(replicas)))
    assert [message.salt for message in messages] == [seal_salt(seed(number), number, *place) for place in places]
    assert [message.replica for message in messages] == [replica for _, replica in places]
    for message in messages:
        message.ClearField("salt")
        message.ClearField("replica")
    assert messages == messages[:1] * len(places)
    assert (messages[0].round, messages[0].retained) == (number, [number])
    assert messages[0].beacon == beacon_chain(SPEC, number // PER_EPOCH)[1 + number % PER_EPOCH]


def test_who_has_no_receipt_in_the_round_is_told_no_salt() -> None:
    (alone, *_), message = told(3), drawn_of(3).announcement(SECOND[0], [3])
    alone.ClearField("salt")
    assert message == alone
    assert not message.salt


@pytest.mark.parametrize("replicas", [1, 2])
def test_each_node_finds_its_own_commitments_in_it(replicas: int) -> None:
    for number in ROUNDS:
        places = product(range(STAGES), range(replicas))
        for (stage, replica), message in zip(places, told(number, replicas), strict=True):
            signed = signed_report(number, stage, replica, replicas)
            assert message.stages[stage].commitments[replica] == blinded(output(number, signed), message.salt)
            assert unpack_load(message.stages[stage].loads[replica], MICROBATCHES) == signed.load
            assert len(message.answers) == (ANSWERS if number >= PER_EPOCH else 0)
            for index, answer in enumerate(message.answers):
                part = answer_parts(number, index)[stage]
                numbers = (answer.session, answer.round, answer.prompt_tokens, answer.fed)
                assert numbers == (part.session, part.version, part.prompt_tokens, part.fed)
                assert answer.traces[stage] == part.trace


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_it_is_told_draws_the_same(replicas: int) -> None:
    kinds: set[Kind] = set()
    for number in ROUNDS:
        drawn = drawn_of(number, replicas)
        message = drawn.announcement(NODES[1], [])
        leaves = [
            answer_leaf(index, it.round, it.session, it.prompt_tokens, it.fed, it.traces)
            for index, it in enumerate(message.answers)
        ]
        beacon = round_beacon(message.beacon, round_root([each.commitments for each in message.stages]))
        assert beacon == drawn.beacon
        loads = [[unpack_load(load, MICROBATCHES) for load in each.loads] for each in message.stages]
        signers = [each.replicas for each in message.answers]
        assert draw_audits(SPEC, number, beacon, loads, signers, answers_root(leaves)) == drawn.audits
        kinds |= {audit.kind for audit in drawn.audits}
    assert kinds == set(Kind)


def test_who_is_shown_a_report_can_t_tell_by_it_whether_that_was_signed() -> None:
    """Not even who has all that the other stages' nodes were told, in every round; with its salt it could."""
    messages = {number: told(number) for number in ROUNDS}
    tested = 0
    for number, stage in product(ROUNDS, range(STAGES)):
        audit = Audit(number, stage, Kind.ROUND)
        signed = signed_report(number, stage)
        assert is_known_bad(SPEC, seed(number), audit, signed.load)
        shown = known_bad_report(audit, signed, seed(number), is_last=stage == STAGES - 1)
        others = [
            message
            for each, by_stage in messages.items()
            for other, message in enumerate(by_stage)
            if (each, other) != (number, stage)
        ]
        hashes = {commitment for message in others for each in message.stages for commitment in each.commitments}
        salts = {message.salt for message in others}
        for report in (signed, shown):
            own = output(number, report)
            assert own not in hashes
            assert not hashes & {blinded(own, salt) for salt in salts}
        salt = messages[number][stage].salt
        assert salt not in salts
        assert blinded(output(number, signed), salt) in hashes
        assert blinded(output(number, shown), salt) not in hashes
        tested += shown != signed
    assert tested == len(ROUNDS) * STAGES


def test_the_seed_is_in_no_message_and_in_no_log() -> None:
    drawn = drawn_of(PER_EPOCH)
    assert all(seed(PER_EPOCH) not in message.SerializeToString() for message in told(PER_EPOCH))
    assert repr(seed(PER_EPOCH)) not in repr(drawn)
