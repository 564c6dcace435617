"""Between a slice of a round's gradient and its bytes: see commonweight/rules/averaging.py.

As float32: the numbers, little-endian. As int8: a float32 scale for each block, then for each number an int8.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from commonweight.errors import MalformedMessage
from commonweight.rules.averaging import BLOCK, LEVELS, slice_bytes
from commonweight.rules.spec import Averaging
from commonweight.wire.tensors import check_finite, to_bytes


def encode_slice(numbers: Tensor, coding: Averaging) -> bytes | memoryview:
    """The bytes of a slice: float32 [n] on the CPU, whose memory they may share."""
    if coding == "float32":
        return to_bytes(numbers)
    blocks = pad(numbers, (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True) / LEVELS
    multiples = (blocks / torch.where(scales > 0, scales, 1)).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return bytes(to_bytes(scales)) + bytes(to_bytes(multiples.flatten()[: len(numbers)]))


def decode_slice(data: bytes | bytearray | memoryview, numbers: int, coding: Averaging) -> Tensor:
    """float32 [numbers]; may share `data`'s memory: never change it in place.

    Raises MalformedMessage for another size, and NonFiniteTensor for NaN or infinity.
    """
    if len(data) != slice_bytes(numbers, coding):
        raise MalformedMessage(
            f"A slice of {numbers} numbers as {coding} has {slice_bytes(numbers, coding)} bytes; this one {len(data)}."
        )
    if not numbers:
        return torch.empty(0)
    if coding == "float32":
        found = torch.frombuffer(data, dtype=torch.float32)
    else:
        scales = torch.frombuffer(data, dtype=torch.float32, count=-(-numbers // BLOCK))
        multiples = torch.frombuffer(data, dtype=torch.int8, offset=scales.nbytes)
        found = multiples * scales.repeat_interleave(BLOCK)[:numbers]
    check_finite(found)
    return found
