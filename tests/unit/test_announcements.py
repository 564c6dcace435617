"""What nodes are told of a sealed round: enough to draw its audits, and to find their own word in it; no more."""

from itertools import product

import pytest

from commonweight.rules.answer import answer_leaf
from commonweight.rules.audits import Audit, Kind, draw_audits
from commonweight.rules.beacon import answers_root, blinded, round_beacon, round_root, seal_salt
from commonweight.rules.panel import is_known_bad, known_bad_report
from commonweight.rules.report import Report, report_receipt
from commonweight.wire.generated import control_pb2 as pb
from coordinator.draws import draw
from tests.integration.scripted import honest_report
from tests.unit.auditing_world import ANSWERS, MICROBATCHES, PER_EPOCH, PLACE, STAGES, answer_parts, sealed_round
from tests.unit.tiny import tiny_spec
from tools.build_vectors import beacon_chain, mark

SPEC = tiny_spec(
    stages=3, round_rate="0.5", microbatch_rate="0.5", data_rate="0.5", answer_rate="0.5", known_bad_rate="1"
)
ROUNDS = range(2 * PER_EPOCH)


def told(number: int) -> list[pb.RoundSealed]:
    """Of this round, stage by stage."""
    drawn = draw(SPEC, sealed_round(number, SPEC), tip(number), seed(number))
    return [drawn.announcement(stage, [number]) for stage in range(STAGES)]


def tip(number: int) -> bytes:
    return beacon_chain(SPEC, number // PER_EPOCH)[0]


def seed(number: int) -> bytes:
    return mark("seed", number // PER_EPOCH)


def output(number: int, report: Report) -> bytes:
    """What who signs the report commits to; both are known to who is shown it."""
    return report_receipt(PLACE.model_id, 1, report, tip(number)).output


@pytest.mark.parametrize("number", [3, PER_EPOCH, 2 * PER_EPOCH - 1])
def test_each_node_is_told_its_own_salt_and_all_else_as_the_others(number: int) -> None:
    messages = told(number)
    assert [message.salt for message in messages] == [seal_salt(seed(number), number, s) for s in range(STAGES)]
    for message in messages:
        message.ClearField("salt")
    assert messages == messages[:1] * STAGES
    assert (messages[0].round, messages[0].retained) == (number, [number])
    assert messages[0].beacon == beacon_chain(SPEC, number // PER_EPOCH)[1 + number % PER_EPOCH]


def test_each_node_finds_its_own_commitments_in_it() -> None:
    for number in ROUNDS:
        for stage, message in enumerate(told(number)):
            own = output(number, honest_report(number, stage, STAGES, MICROBATCHES))
            assert message.commitments[stage] == blinded(own, message.salt)
            assert len(message.answers) == (ANSWERS if number >= PER_EPOCH else 0)
            for index, answer in enumerate(message.answers):
                part = answer_parts(number, index)[stage]
                numbers = (answer.session, answer.round, answer.prompt_tokens, answer.fed)
                assert numbers == (part.session, part.version, part.prompt_tokens, part.fed)
                assert answer.traces[stage] == part.trace


def test_what_it_is_told_draws_the_same() -> None:
    kinds: set[Kind] = set()
    for number in ROUNDS:
        drawn = draw(SPEC, sealed_round(number, SPEC), tip(number), seed(number))
        message = drawn.announcement(1, [])
        leaves = [
            answer_leaf(index, it.round, it.session, it.prompt_tokens, it.fed, it.traces)
            for index, it in enumerate(message.answers)
        ]
        beacon = round_beacon(message.beacon, round_root(message.commitments))
        assert beacon == drawn.beacon
        assert draw_audits(SPEC, number, beacon, len(leaves), answers_root(leaves)) == drawn.audits
        kinds |= {audit.kind for audit in drawn.audits}
    assert kinds == set(Kind)


def test_who_is_shown_a_report_can_t_tell_by_it_whether_that_was_signed() -> None:
    """Not even who has all that the other stages' nodes were told, in every round; with its salt it could."""
    messages = {number: told(number) for number in ROUNDS}
    tested = 0
    for number, stage in product(ROUNDS, range(STAGES)):
        audit = Audit(number, stage, Kind.ROUND)
        assert is_known_bad(SPEC, seed(number), audit)
        signed = honest_report(number, stage, STAGES, MICROBATCHES)
        shown = known_bad_report(audit, signed, seed(number), is_last=stage == STAGES - 1)
        others = [
            message
            for each, by_stage in messages.items()
            for other, message in enumerate(by_stage)
            if (each, other) != (number, stage)
        ]
        hashes = {commitment for message in others for commitment in message.commitments}
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
    drawn = draw(SPEC, sealed_round(PER_EPOCH, SPEC), tip(PER_EPOCH), seed(PER_EPOCH))
    assert all(seed(PER_EPOCH) not in message.SerializeToString() for message in told(PER_EPOCH))
    assert repr(seed(PER_EPOCH)) not in repr(drawn)
