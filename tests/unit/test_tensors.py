"""The tensor codec and the framing of microbatches: exact bytes out, exact tensors in, everything else "
"refused."""

import hashlib
import math
import struct
import warnings

import pytest
import torch

from commonweight.errors import MalformedMessage, MessageTooLarge, NonFiniteTensor, UnplannedMessage
from commonweight.wire import pipe
from commonweight.wire.channel import PIPE_FRAME_BYTES, PIPE_PART_BYTES
from commonweight.wire.generated import pipe_pb2, tensor_pb2
from commonweight.wire.pipe import Assembler, encode
from commonweight.wire.tensors import (
    CODES,
    check_finite,
    check_header,
    digest,
    from_buffer,
    header_of,
    size_of,
    to_bytes,
)

TOKENS = torch.arange(2 * 5, dtype=torch.int32).reshape(2, 5)
CODE = torch.linspace(-1, 1, 2 * 4 * 3, dtype=torch.float32).reshape(2, 4, 3)
PLAN = ((torch.int32, (2, 5)), (torch.float32, (2, 4, 3)))
LARGE = torch.arange(700_000, dtype=torch.float32).reshape(7, 100_000)
LARGE_PLAN = ((torch.float32, (7, 100_000)),)


def example(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.arange(math.prod(shape)) % 251).reshape(shape).to(dtype)


@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 1, 7, 3), (1,) * 8])
def test_every_dtype_survives_the_way_there_and_back(dtype, shape):
    tensor = example(dtype, shape)
    data = bytes(to_bytes(tensor))
    assert len(data) == size_of((dtype, shape))
    back = from_buffer(header_of(tensor), data)
    assert back.dtype == dtype
    assert back.shape == shape
    assert torch.equal(back, tensor)
    assert digest(tensor) == hashlib.sha256(data).digest()


def test_bytes_are_little_endian_and_row_major():
    assert bytes(to_bytes(torch.tensor([[1.0, 2.0], [3.0, -0.0]]))) == struct.pack("<4f", 1, 2, 3, -0.0)
    assert bytes(to_bytes(torch.tensor([1, 258], dtype=torch.uint16))) == b"\x01\x00\x02\x01"
    assert bytes(to_bytes(torch.tensor([1.0], dtype=torch.bfloat16))) == b"\x80\x3f"
    turned = torch.arange(6, dtype=torch.int32).reshape(2, 3).T
    assert bytes(to_bytes(turned)) == struct.pack("<6i", 0, 3, 1, 4, 2, 5)


def test_a_contiguous_tensor_is_not_copied_on_the_way_out_or_in():
    tensor = torch.zeros(4, requires_grad=True)
    view = to_bytes(tensor)
    with torch.no_grad():
        tensor[0] = 1.0
    assert bytes(view[:4]) == struct.pack("<f", 1.0)
    buffer = bytearray(16)
    received = from_buffer(header_of(tensor), buffer)
    buffer[0:4] = struct.pack("<f", 5.0)
    assert received[0] == 5.0


def test_a_tensor_at_an_odd_offset_is_aligned_by_a_copy():
    data = b"xyz" + bytes(to_bytes(CODE))
    tensor = from_buffer(header_of(CODE), data, 3)
    assert torch.equal(tensor, CODE)
    assert tensor.data_ptr() % 4 == 0


def test_received_memory_gives_no_warning():
    data = bytes(to_bytes(CODE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_buffer(header_of(CODE), data)


def test_a_header_other_than_planned_names_both():
    header = header_of(CODE)
    check_header(header, torch.float32, (2, 4, 3))
    for dtype, shape in ((torch.float16, (2, 4, 3)), (torch.float32, (2, 4)), (torch.float32, (2, 4, 4))):
        with pytest.raises(UnplannedMessage) as caught:
            check_header(header, dtype, shape)
        assert "float32[2, 4, 3]" in str(caught.value)
        assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        tensor_pb2.TensorHeader(),
        tensor_pb2.TensorHeader(dtype=0, shape=[1]),
        tensor_pb2.TensorHeader(dtype=99, shape=[1]),
        tensor_pb2.TensorHeader(dtype=1),
        tensor_pb2.TensorHeader(dtype=1, shape=[0]),
        tensor_pb2.TensorHeader(dtype=1, shape=[1] * 9),
        tensor_pb2.TensorHeader(dtype=1, shape=[2**32 - 1] * 8),  # 4 * 2^256 bytes
    ],
)
def test_a_header_that_describes_no_tensor_is_refused(header):
    with pytest.raises(MalformedMessage):
        from_buffer(header, b"1234")


def test_what_has_no_header_does_not_travel():
    for tensor in (torch.zeros(2, dtype=torch.float64), torch.zeros(()), torch.zeros(0), torch.zeros([1] * 9)):
        with pytest.raises(MalformedMessage):
            header_of(tensor)


@pytest.mark.parametrize("offset", [-1, 1, 96, 10_000])
def test_a_buffer_that_ends_before_its_tensor_is_refused(offset):
    with pytest.raises(MalformedMessage, match="96 bytes"):
        from_buffer(header_of(CODE), bytes(96), offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", [(math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf)])
def test_nan_and_infinity_are_found_wherever_they_stand(dtype, values):
    for place in (0, 499, 998):
        tensor = torch.ones(1000, dtype=dtype)
        tensor[place : place + len(values)] = torch.tensor(values)
        with pytest.raises(NonFiniteTensor, match=f"{len(values)} of 1000"):
            check_finite(tensor)


def test_large_finite_values_whose_sum_overflows_are_fine():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_finite(torch.full((1000,), torch.finfo(dtype).max, dtype=dtype))
    check_finite(torch.tensor([2**31 - 1] * 10, dtype=torch.int32))


# Framing


def plan_for(*microbatches: int, round_: int = 1, plan=PLAN):
    return lambda r, m: plan if r == round_ and m in microbatches else None


def test_a_small_microbatch_is_one_frame_and_comes_back_with_its_digests():
    (frame,) = encode(1, 7, [TOKENS, CODE])
    wire = frame.SerializeToString()
    assert len(wire) < TOKENS.nbytes + CODE.nbytes + 64
    result = Assembler(plan_for(7)).add(pipe_pb2.PipeFrame.FromString(wire))
    assert (result.round, result.microbatch) == (1, 7)
    assert torch.equal(result.tensors[0], TOKENS)
    assert torch.equal(result.tensors[1], CODE)
    assert result.digests == (digest(TOKENS), digest(CODE))


def test_a_large_microbatch_is_split_and_put_together_again():
    frames = encode(1, 0, [LARGE])
    assert [len(frame.tensor.data) for frame in frames] == [PIPE_PART_BYTES, PIPE_PART_BYTES, 702_848]
    assert [frame.tensor.offset for frame in frames] == [0, PIPE_PART_BYTES, 2 * PIPE_PART_BYTES]
    assert [len(frame.tensor.headers) for frame in frames] == [1, 0, 0]
    assert max(frame.ByteSize() for frame in frames) <= PIPE_FRAME_BYTES
    assembler = Assembler(plan_for(0, plan=LARGE_PLAN))
    assert assembler.add(frames[0]) is None
    assert assembler.add(frames[1]) is None
    result = assembler.add(frames[2])
    assert torch.equal(result.tensors[0], LARGE)
    assert result.digests == (digest(LARGE),)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_parts_break_exactly_at_the_limit(extra):
    first, second = example(torch.uint8, (1000,)), example(torch.uint8, (PIPE_PART_BYTES - 1000 + extra,))
    frames = encode(1, 0, [first, second])
    assert len(frames) == (2 if extra > 0 else 1)
    assembler = Assembler(lambda r, m: ((torch.uint8, first.shape), (torch.uint8, second.shape)))
    result = [assembler.add(frame) for frame in frames][-1]
    assert torch.equal(result.tensors[1], second)


def test_microbatches_follow_each_other_and_rounds_go_on():
    assembler = Assembler(lambda r, m: PLAN)
    for round_ in (3, 4, 9):
        for microbatch in (2, 0, 1):
            (frame,) = encode(round_, microbatch, [TOKENS, CODE])
            assert assembler.add(frame).microbatch == microbatch


def test_what_was_not_planned_is_refused():
    (frame,) = encode(1, 7, [TOKENS, CODE])
    with pytest.raises(UnplannedMessage, match="microbatch 7 of round 1 isn't planned"):
        Assembler(plan_for(6)).add(frame)
    with pytest.raises(UnplannedMessage, match="1 tensors by plan; 2"):
        Assembler(plan_for(7, plan=PLAN[:1])).add(frame)
    with pytest.raises(UnplannedMessage, match=r"int32\[5, 2\].*int32\[2, 5\]"):
        Assembler(plan_for(7, plan=((torch.int32, (5, 2)), PLAN[1]))).add(frame)


def test_what_is_unfinished_of_a_round_that_is_void_is_forgotten():
    frames, assembler = large_frames()
    assert assembler.add(frames[0]) is None
    assembler.forget(0)
    with pytest.raises(MalformedMessage, match="the next part is of microbatch 1"):
        assembler.add(encode(1, 1, [TOKENS, CODE])[0])
    assembler.forget(1)
    assert assembler.add(encode(1, 1, [TOKENS, CODE])[0]) is not None


def large_frames():
    return encode(1, 0, [LARGE]), Assembler(lambda r, m: LARGE_PLAN if m == 0 else PLAN)


def test_gaps_repeats_and_other_microbatches_between_parts_are_refused():
    for order, why in (
        ((0, 2), "due is byte"),
        ((0, 0), "begins again"),
        ((0, 1, 1), "due is byte"),
        ((1,), "no headers"),
    ):
        frames, assembler = large_frames()
        for index in order[:-1]:
            assembler.add(frames[index])
        with pytest.raises(MalformedMessage, match=why):
            assembler.add(frames[order[-1]])
    frames, assembler = large_frames()
    assembler.add(frames[0])
    with pytest.raises(MalformedMessage, match="cut short at byte 1048576 of 2800000"):
        assembler.add(encode(1, 1, [TOKENS, CODE])[0])


def test_parts_that_are_empty_too_long_or_too_large_are_refused():
    frames, assembler = large_frames()
    frames[0].tensor.data = b""
    with pytest.raises(MalformedMessage, match="empty part"):
        assembler.add(frames[0])
    (frame,) = encode(1, 7, [TOKENS, CODE])
    frame.tensor.data += b"x"
    with pytest.raises(MalformedMessage, match="goes on to byte 137"):
        Assembler(plan_for(7)).add(frame)
    frame.tensor.data = bytes(PIPE_PART_BYTES + 1)
    with pytest.raises(MessageTooLarge, match="1048577"):
        Assembler(plan_for(7)).add(frame)
    (frame,) = encode(1, 7, [TOKENS, CODE])
    frame.tensor.offset = 1
    with pytest.raises(MalformedMessage, match="due is byte 0"):
        Assembler(plan_for(7)).add(frame)


def test_frames_without_a_tensor_are_refused():
    for frame in (pipe_pb2.PipeFrame(), pipe_pb2.PipeFrame(hello=pipe_pb2.PipeHello())):
        with pytest.raises(MalformedMessage, match="is due"):
            Assembler(plan_for(7)).add(frame)


def test_nan_is_refused_on_both_sides():
    bad = CODE.clone()
    bad[0, 0, 0] = math.nan
    with pytest.raises(NonFiniteTensor):
        encode(1, 7, [TOKENS, bad])
    (frame,) = encode(1, 7, [TOKENS, CODE])
    frame.tensor.data = bytes(to_bytes(TOKENS)) + bytes(to_bytes(bad))
    with pytest.raises(NonFiniteTensor):
        Assembler(plan_for(7)).add(frame)


def test_a_microbatch_that_could_not_arrive_is_not_encoded(monkeypatch):
    with pytest.raises(MessageTooLarge):
        encode(1, 0, [])
    with pytest.raises(MessageTooLarge):
        encode(1, 0, [TOKENS] * 17)
    monkeypatch.setattr(pipe, "MAX_MICROBATCH_BYTES", 100)
    with pytest.raises(MessageTooLarge, match="Make the spec's microbatch smaller"):
        encode(1, 0, [TOKENS, CODE])
