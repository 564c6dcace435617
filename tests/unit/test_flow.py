"""What may come over a pipe, and when."""

import pytest
import torch

from commonweight.errors import UnplannedMessage
from commonweight.wire.pipe import encode
from commonweight.wire.tensors import to_bytes
from node.flow import Flow, SliceFlow, slice_frames

PLAN = ((torch.float32, (2, 3)),)
NUMBERS = torch.arange(6.0)


def arrive(flow: Flow, *microbatches: int, round_: int = 0) -> None:
    for microbatch in microbatches:
        (frame,) = encode(round_, microbatch, [NUMBERS.view(2, 3)])
        assert flow.add(frame) is not None


def flow_of(window: int, due: range) -> Flow:
    flow = Flow(PLAN, window)
    flow.begin(0, due)
    return flow


def test_no_more_come_than_may_be_in_flight() -> None:
    flow = flow_of(2, range(4))
    arrive(flow, 0, 1)
    flow.answer(0)
    arrive(flow, 2)
    with pytest.raises(UnplannedMessage, match="microbatch 3 of round 0 came before its turn: 2 are in flight"):
        arrive(flow, 3)


def test_what_a_successor_takes_over_comes_beside_what_is_in_flight() -> None:
    flow = flow_of(2, range(2))
    arrive(flow, 0, 1)
    with pytest.raises(UnplannedMessage, match="microbatch 5 of round 0 isn't planned"):
        arrive(flow, 5)
    flow.extend(0, {5, 6})
    arrive(flow, 5, 6)
    with pytest.raises(UnplannedMessage, match="has come before"):
        arrive(flow, 5)


def test_two_rounds_come_at_a_time_and_each_microbatch_once() -> None:
    flow = flow_of(2, range(2))
    flow.begin(1, range(3))
    arrive(flow, 0)
    arrive(flow, 0, 1, round_=1)
    arrive(flow, 1)
    with pytest.raises(UnplannedMessage, match="microbatch 2 of round 1 came before its turn"):
        arrive(flow, 2, round_=1)
    flow.begin(2, range(3))
    for round_, microbatch in ((0, 0), (1, 1)):
        with pytest.raises(UnplannedMessage, match=f"microbatch {microbatch} of round {round_} isn't planned"):
            arrive(flow, microbatch, round_=round_)
    flow.forget(2)
    with pytest.raises(UnplannedMessage, match="of round 2 isn't planned"):
        arrive(flow, 0, round_=2)


def test_slices_of_the_next_round_come_while_those_of_this_one_may() -> None:
    flow = SliceFlow()
    for round_ in (0, 1):
        flow.begin(round_, {False: 6, True: 6})
    for round_, summed in ((0, False), (1, False), (0, True), (1, True)):
        (frame,) = slice_frames(round_, 0, summed, to_bytes(NUMBERS))
        arrived = flow.add(frame)
        assert arrived is not None
        assert (arrived.round, arrived.summed) == (round_, summed)
    flow.begin(2, {})
    with pytest.raises(UnplannedMessage, match="of round 0 isn't due"):
        flow.add(slice_frames(0, 0, False, to_bytes(NUMBERS))[0])


def test_slices_of_a_plan_that_was_changed_are_passed_over_half_sent_ones_too() -> None:
    flow = SliceFlow()
    large = torch.zeros(1 << 19)
    flow.begin(0, {False: large.numel()})
    first, second = slice_frames(0, 0, False, to_bytes(large))
    assert flow.add(first) is None
    flow.begin(0, {False: 6}, revision=2)
    for stale in (second, *slice_frames(0, 1, False, to_bytes(NUMBERS))):
        assert flow.add(stale) is None
    (frame,) = slice_frames(0, 2, False, to_bytes(NUMBERS))
    arrived = flow.add(frame)
    assert arrived is not None
    assert arrived.numbers.equal(NUMBERS)
    with pytest.raises(UnplannedMessage, match="isn't due"):
        flow.add(frame)
