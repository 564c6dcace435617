"""A replica adds up a round's gradient with the others of its stage: see commonweight/rules/averaging.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from commonweight.rules.averaging import slice_bounds, slice_coding
from commonweight.rules.spec import Averaging
from commonweight.wire.slices import decode_slice, encode_slice
from node.share import Share

SendSlice = Callable[[Share, str, bool, bytes | memoryview], None]
"""(as planned, to whom, whether it is summed, its bytes); returns at once."""
ReceiveSlice = Callable[[str, bool, int], Tensor]
"""(from whom, whether it is summed, of how many numbers): float32, when it has come."""


class Adder:
    """Of one replica, from round to round."""

    def __init__(self, averaging: Averaging, numbers: int) -> None:
        """`numbers`: of the stage's gradient."""
        self._averaging = averaging
        self._numbers = numbers
        self._left_out: Tensor | None = None
        """By rounding, and to be added to the next gradient: [numbers]."""

    def add_up(self, share: Share, gradient: Tensor | None, send: SendSlice, receive: ReceiveSlice) -> Tensor:
        """The sum of all contributors' gradients, [numbers]. `gradient` is this node's, of its load; it is left as it
        is. What rounding leaves out of an attempt that comes to nothing is kept, too: it is no more than that of one
        round.
        """
        adders = share.contributors
        bounds = {node: slice(*slice_bounds(self._numbers, len(adders), n)) for n, node in enumerate(adders)}
        others = [node for node in share.members if node != share.node]
        coding = slice_coding(self._averaging, len(adders))
        total = torch.empty(self._numbers)
        if gradient is not None:
            own, left_out = gradient, None
            if coding != "float32":
                own = gradient if self._left_out is None else gradient + self._left_out
                left_out = torch.zeros(self._numbers)

            def sent(numbers: Tensor, part: slice) -> bytes | memoryview:
                data = encode_slice(numbers, coding)
                if left_out is not None:
                    left_out[part] = numbers - decode_slice(data, len(numbers), coding)
                return data

            for node in others:
                if node in adders:
                    send(share, node, False, sent(own[bounds[node]], bounds[node]))
            part = bounds[share.node]
            size = part.stop - part.start
            parts = [own[part] if node == share.node else receive(node, False, size) for node in adders]
            summed = parts[0].clone()
            for each in parts[1:]:
                summed += each
            data = sent(summed, part)
            for node in others:
                send(share, node, True, data)
            total[part] = summed if left_out is None else decode_slice(data, size, coding)
            self._left_out = left_out
        for node in adders:
            if node != share.node:
                part = bounds[node]
                total[part] = receive(node, True, part.stop - part.start)
        return total
