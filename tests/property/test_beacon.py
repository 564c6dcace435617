"""Nobody can tell what will be audited before the work is done, nor change it afterwards unnoticed."""

from itertools import pairwise

from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.beacon import hash_chain, round_beacon, round_root
from commonweight.rules.merkle import hash_leaf, verify_proof
from tests.property.strategies import flipped, hashes

lengths, bits = st.integers(1, 20), st.integers(0, 255)
outputs = st.lists(hashes, min_size=1, max_size=8)


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


@given(hashes, outputs, bits, st.data())
def test_every_output_its_place_and_the_value_decide_the_beacon(
    value: bytes, outputs: list[bytes], bit: int, data: st.DataObject
) -> None:
    """So no provider can choose its output such that another's doesn't count."""
    stage = data.draw(st.integers(0, len(outputs) - 1))
    changed = [*outputs]
    changed[stage] = flipped(outputs[stage], bit)
    turned = data.draw(st.permutations(outputs))
    root = round_root(outputs)
    assert root not in (round_root(changed), round_root([*outputs, outputs[-1]]))
    assert (root == round_root(turned)) == (turned == outputs)
    beacon = round_beacon(value, root)
    assert len({beacon, round_beacon(flipped(value, bit), root), round_beacon(value, round_root(changed))}) == 3


@given(hashes)
def test_the_root_of_one_output_is_its_leaf(output: bytes) -> None:
    root = round_root([output])
    assert verify_proof(root, hash_leaf(0, output), ())
    assert root != output
