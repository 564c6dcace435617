"""What a worker's compute thread sends, and over which pipe it goes."""

from collections.abc import Callable

import pytest
import torch

from commonweight.identity import NodeIdentity
from commonweight.wire.pipe import encode
from commonweight.wire.tls import make_certificate
from node.flow import Flow, Pipe, SliceFlow
from node.pipes import DataPlane
from node.share import Share
from tests.unit.shares import address, undivided_share
from tests.unit.tiny import tiny_spec

SPEC = tiny_spec(stages=3)
FRAMES = encode(0, 0, [torch.zeros(2, 3)])
Send = Callable[[DataPlane, Share, str], None]

SENDS: dict[str, tuple[Send, Flow | SliceFlow]] = {
    "activation": (lambda plane, share, node: plane.send_down(share, node, 0, FRAMES), Flow(())),
    "gradient": (lambda plane, share, node: plane.send_up(share, node, 0, FRAMES), Flow(())),
    "slice": (lambda plane, share, node: plane.send_slice(share, node, False, b"12345678"), SliceFlow()),
}


@pytest.mark.parametrize(("send", "flow"), SENDS.values(), ids=SENDS.keys())
def test_what_was_computed_of_a_generation_that_is_over_goes_nowhere(send: Send, flow: Flow | SliceFlow) -> None:
    """The thread may be at a microbatch of the last generation when the pipes of the next one are open."""
    ignore = lambda *_: None  # noqa: E731 - four times the same
    plane = DataPlane(make_certificate(NodeIdentity(b"\1" * 32)), ignore, ignore, ignore, ignore)
    peer = address(2)
    plane.pipes[peer] = pipe = Pipe(2, peer, flow)
    send(plane, undivided_share(SPEC, 1, generation=1, round_=0), peer)
    assert pipe.outbox.empty()
    send(plane, undivided_share(SPEC, 1, generation=2, round_=0), peer)
    assert not pipe.outbox.empty()
