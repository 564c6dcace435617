"""Slices of a gradient travel in the size that is due, and lose no more than rounding."""

import math
import struct
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from commonweight.errors import MalformedMessage, NonFiniteTensor
from commonweight.rules.averaging import BLOCK, LEVELS, slice_bytes, slice_coding
from commonweight.rules.spec import Averaging
from commonweight.wire.slices import decode_slice, encode_slice
from node.averaging import Adder
from node.share import Share

NODES = tuple(f"node {n}" for n in range(4))
codings = st.sampled_from(("float32", "int8"))


@st.composite
def gradients(draw: st.DrawFn, numbers: st.SearchStrategy[int]) -> Tensor:
    """Of magnitudes that differ by much."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    size, scale = draw(numbers), draw(st.sampled_from((0.0, 1e-42, 1e-30, 1e-4, 1.0, 1e30)))
    return torch.randn(size, generator=generator) * torch.rand(size, generator=generator) ** 8 * scale


@given(gradients(st.integers(1, 3 * BLOCK + 1)), codings)
def test_a_slice_comes_as_it_went_but_for_rounding_to_its_block_s_scale(numbers: Tensor, coding: Averaging) -> None:
    data = encode_slice(numbers, coding)
    assert len(data) == slice_bytes(len(numbers), coding)
    found = decode_slice(data, len(numbers), coding)
    if coding == "float32":
        assert found.equal(numbers)
    for part, original in zip(found.split(BLOCK), numbers.split(BLOCK), strict=True):
        scale = original.abs().max().item() / LEVELS
        assert (part - original).abs().max().item() <= scale * 0.5001 + 2e-43  # the least scales aren't exact


def test_int8_s_bytes_are_a_scale_for_each_block_and_then_the_numbers() -> None:
    numbers = torch.zeros(BLOCK + 2)
    numbers[0], numbers[1], numbers[BLOCK] = -254.0, 3.0, 0.5
    data = bytes(encode_slice(numbers, "int8"))
    assert struct.unpack("<2f", data[:8]) == (2.0, pytest.approx(0.5 / 127))
    assert struct.unpack("<3b", data[8:11]) == (-127, 2, 0), "1.5 is rounded to even"
    assert struct.unpack("<2b", data[-2:]) == (127, 0)


@given(st.integers(1, 600), codings, st.integers(-8, 8).filter(bool))
def test_another_size_than_is_due_is_refused(numbers: int, coding: Averaging, more: int) -> None:
    data = bytes(max(0, slice_bytes(numbers, coding) + more))
    with pytest.raises(MalformedMessage, match=f"{numbers} numbers as {coding}"):
        decode_slice(data, numbers, coding)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("coding", ["float32", "int8"])
def test_what_isn_t_finite_is_refused(coding: Averaging, bad: float) -> None:
    numbers = torch.ones(300)
    numbers[299] = bad
    with pytest.raises(NonFiniteTensor):
        decode_slice(encode_slice(numbers, coding), 300, coding)


def test_who_has_all_of_a_round_sends_what_it_has() -> None:
    assert [slice_coding("int8", count) for count in (1, 2, 3)] == ["float32", "int8", "int8"]


def share_of(node: str) -> Share:
    """Four members of a stage; all but the last have a load."""
    return Share(1, 0, 0, 0, 0, node, (), {}, {}, NODES, NODES[:-1])


def add_up(adders: dict[str, Adder], gradients: dict[str, Tensor], coding: Averaging) -> dict[str, Tensor]:
    """What each member comes to."""
    sent: dict[tuple[str, str, bool], SimpleQueue[bytes]] = defaultdict(SimpleQueue)

    def total(node: str) -> Tensor:
        def receive(sender: str, summed: bool, numbers: int) -> Tensor:
            return decode_slice(sent[sender, node, summed].get(timeout=60), numbers, coding)

        def send(_: Share, to: str, summed: bool, data: bytes | memoryview) -> None:
            sent[node, to, summed].put(bytes(data))

        return adders[node].add_up(share_of(node), gradients.get(node), send, receive)

    with ThreadPoolExecutor(len(NODES)) as pool:
        return dict(zip(NODES, pool.map(total, NODES), strict=True))


@given(st.lists(st.tuples(*[gradients(st.just(700))] * 3), min_size=1, max_size=5), codings)
def test_all_members_come_to_the_same_bits_and_nothing_is_lost_for_good(
    rounds: list[tuple[Tensor, ...]], coding: Averaging
) -> None:
    """What is delivered over some rounds is what was computed, but for what the last of them left out."""
    adders = {node: Adder(coding, 700) for node in NODES}
    delivered, computed, largest = torch.zeros(700, dtype=torch.float64), torch.zeros(700, dtype=torch.float64), 0.0
    for of_round in rounds:
        totals = add_up(adders, dict(zip(NODES, of_round, strict=False)), coding)
        assert totals.keys() == set(NODES)
        assert all(each.equal(totals[NODES[0]]) for each in totals.values())
        delivered += totals[NODES[0]].double()
        computed += sum(each.double() for each in of_round)
        largest = max(largest, *(each.abs().max().item() for each in of_round))
    limit = 1e-6 * len(rounds) if coding == "float32" else 3 * 3 / LEVELS + 1e-6 * len(rounds)
    assert (delivered - computed).abs().max().item() <= limit * 3 * largest + 1e-40
