"""Nobody can tell what will be audited before the work is done, nor change it afterwards unnoticed."""

from itertools import pairwise
from typing import Any

from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.answer import answer_leaf
from commonweight.rules.audits import NO_ANSWERS
from commonweight.rules.beacon import answers_root, blinded, hash_chain, round_beacon, round_root, seal_salt
from commonweight.rules.merkle import hash_leaf, verify_proof
from tests.property.strategies import flipped, hashes

lengths, bits = st.integers(1, 20), st.integers(0, 255)
outputs = st.lists(hashes, min_size=1, max_size=8)
by_stage = st.lists(st.lists(hashes, min_size=1, max_size=3), min_size=1, max_size=4)
"""Of replicas."""
numbers = st.integers(0, 2**40)
answer_fields = st.tuples(numbers, numbers, st.binary(min_size=16, max_size=16), numbers, numbers, outputs)


@given(hashes, lengths)
def test_each_value_follows_from_the_one_before_up_to_the_tip(seed: bytes, rounds: int) -> None:
    chain = hash_chain(seed, rounds)
    assert len(chain) == rounds + 1
    assert all(keccak(value) == before for before, value in pairwise(chain))
    assert chain[-1] == keccak(seed)
    assert seed not in chain
    assert hash_chain(seed, rounds + 1)[1:] == chain


@given(hashes, lengths, bits, st.data())
def test_another_value_doesn_t_follow(seed: bytes, rounds: int, bit: int, data: st.DataObject) -> None:
    chain = hash_chain(seed, rounds)
    position = data.draw(st.integers(1, rounds))
    assert keccak(flipped(chain[position], bit)) != chain[position - 1]
    assert keccak(chain[position]) != flipped(chain[position - 1], bit)
    others = [index for index in range(rounds + 1) if index != position]
    assert not any(keccak(chain[index]) == chain[position - 1] for index in others)


@given(hashes, lengths, bits)
def test_another_seed_has_another_chain(seed: bytes, rounds: int, bit: int) -> None:
    assert not set(hash_chain(seed, rounds)) & set(hash_chain(flipped(seed, bit), rounds))


@given(hashes, by_stage, bits, st.data())
def test_every_output_its_place_and_the_value_decide_the_beacon(
    value: bytes, outputs: list[list[bytes]], bit: int, data: st.DataObject
) -> None:
    """So no provider can choose its output such that another's doesn't count."""
    stage = data.draw(st.integers(0, len(outputs) - 1))
    own = outputs[stage]
    replica = data.draw(st.integers(0, len(own) - 1))

    def told(of_stage: list[bytes]) -> list[list[bytes]]:
        return [*outputs[:stage], of_stage, *outputs[stage + 1 :]]

    changed = told([*own[:replica], flipped(own[replica], bit), *own[replica + 1 :]])
    root = round_root(outputs)
    assert root not in {*map(round_root, (changed, [*outputs, outputs[-1]], told([*own, own[-1]])))}
    for turned in (data.draw(st.permutations(outputs)), told(data.draw(st.permutations(own)))):
        assert (root == round_root(turned)) == (turned == outputs)
    if stage and len(own) > 1:  # one that is counted to the stage before
        moved = [*outputs[: stage - 1], [*outputs[stage - 1], own[0]], own[1:], *outputs[stage + 1 :]]
        assert round_root(moved) != root
    beacon = round_beacon(value, root)
    assert len({beacon, round_beacon(flipped(value, bit), root), round_beacon(value, round_root(changed))}) == 3


@given(hashes)
def test_the_root_of_one_output_is_its_leaf(output: bytes) -> None:
    root = round_root([[output]])
    assert verify_proof(root, hash_leaf(0, 0, output), ())
    assert root != output


@given(outputs, bits, st.data())
def test_every_answer_and_its_place_decide_their_root(traces: list[bytes], bit: int, data: st.DataObject) -> None:
    def root(traces: list[bytes]) -> bytes:
        return answers_root([answer_leaf(index, 8, bytes(16), 3, 5, [trace]) for index, trace in enumerate(traces)])

    index = data.draw(st.integers(0, len(traces) - 1))
    others = [
        [*traces[:index], flipped(traces[index], bit), *traces[index + 1 :]],
        traces[:index] + traces[index + 1 :],
        [*traces, traces[index]],
    ]
    assert root(traces) not in {NO_ANSWERS, *map(root, others)}
    turned = data.draw(st.permutations(traces))
    assert (root(traces) == root(turned)) == (turned == traces)
    assert root([]) == NO_ANSWERS


@given(answer_fields, bits, st.data())
def test_an_answer_s_leaf_says_all_that_was_committed_to(
    fields: tuple[Any, ...], bit: int, data: st.DataObject
) -> None:
    index, version, session, prompt, fed, traces = fields
    leaf = answer_leaf(index, version, session, prompt, fed, traces)
    stage = data.draw(st.integers(0, len(traces) - 1))
    other_session = flipped(session.rjust(32, b"\0"), bit % 128)[16:]
    other_traces = [*traces[:stage], flipped(traces[stage], bit), *traces[stage + 1 :]]
    others = {
        answer_leaf(index + 1, version, session, prompt, fed, traces),
        answer_leaf(index, version + 1, session, prompt, fed, traces),
        answer_leaf(index, version, other_session, prompt, fed, traces),
        answer_leaf(index, version, session, prompt + 1, fed, traces),
        answer_leaf(index, version, session, prompt, fed + 1, traces),
        answer_leaf(index, version, session, prompt, fed, other_traces),
        answer_leaf(index, version, session, prompt, fed, [*traces, traces[stage]]),
    }
    assert len(others | {leaf}) == 8


@given(hashes, by_stage, bits, st.integers(0, 2**32), st.data())
def test_who_isn_t_told_the_salt_can_t_tell_an_output_by_its_commitment(
    seed: bytes, outputs: list[list[bytes]], bit: int, number: int, data: st.DataObject
) -> None:
    """Each replica's is another one in each round, and none is any other's; the seed gives them all."""
    places = [(stage, replica) for stage, own in enumerate(outputs) for replica in range(len(own))]
    signed = [outputs[stage][replica] for stage, replica in places]
    salts = [seal_salt(seed, each, *place) for each in (number, number + 1) for place in places]
    assert len({*salts, *hash_chain(seed, 3), seed}) == len(salts) + 5
    commitments = [blinded(output, salt) for output, salt in zip(signed, salts, strict=False)]
    unrelated = (bytes(32), *salts[len(places) :])
    assert not set(commitments) & {blinded(output, salt) for output in signed for salt in unrelated}
    index = data.draw(st.integers(0, len(places) - 1))
    assert blinded(flipped(signed[index], bit), salts[index]) != commitments[index]
    other = flipped(seed, bit)
    again = [blinded(output, seal_salt(other, number, *place)) for output, place in zip(signed, places, strict=True)]
    assert not set(again) & set(commitments)
