"""A neighbour that doesn't keep to the protocol: refused with a code, reported, and without a trace in what follows.

Every test ends with an honest round whose outcome is compared to the bit with the same stage in this process.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
import pytest_asyncio
import torch

from commonweight.errors import CommonweightError
from commonweight.identity import NodeIdentity, address_of
from commonweight.links.client import LinkShaper
from commonweight.wire.channel import PIPE_FRAME_BYTES, PIPE_PART_BYTES
from commonweight.wire.generated import control_pb2, pipe_pb2_grpc, tensor_pb2, worker_pb2
from commonweight.wire.generated import pipe_pb2 as pb
from commonweight.wire.tls import make_certificate
from node.trainer import Item, Outlet, Quit, Restore, Trainer
from tests.integration.rogue import (
    DEADLINE_S,
    NEXT,
    PREVIOUS,
    STRANGER,
    WORKER,
    Bench,
    Frames,
    Previous,
    a_worker,
    record,
    three_stages,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

PREVIOUS_NODE = address_of(PREVIOUS.peer_id)
OPEN_S, STALL_S = 4, 2
"""What the impatient worker waits for."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with a_worker(record(three_stages()), tmp_path_factory.mktemp("state")) as bench:
        yield bench


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    program = (
        f"import node.pipes, node.trainer; node.pipes.OPEN_S = node.pipes.PLAN_S = {OPEN_S}; "
        f"node.trainer.STALL_S = {STALL_S}; node.pipes.PIPE_PING_TIMEOUT_MS = 1_000"
    )
    async with a_worker(record(three_stages()), tmp_path_factory.mktemp("state"), program) as bench:
        yield bench


async def failed(bench: Bench, code: str, match: str) -> None:
    """The worker reports that this generation can't go on, and why; it doesn't give up itself."""
    failure = await bench.event("failure")
    assert (failure.code, failure.generation, failure.fatal) == (code, bench.generation, False), failure
    assert match in failure.message


async def refused(previous: Previous, status: grpc.StatusCode, code: str, match: str) -> None:
    """The call has ended with this code."""
    ended, details = await previous.outcome()
    assert ended is status, details
    assert details.startswith(f"[{code}]")
    assert match in details


def altered(frames: Frames, **fields: object) -> Frames:
    """A copy of a microbatch's first frame, with other fields."""
    frame = pb.PipeFrame()
    frame.CopyFrom(frames[0])
    for name, value in fields.items():
        setattr(frame.tensor, name, value)
    return [frame]


def reshaped(frames: Frames, tensor: int, *shape: int) -> Frames:
    (frame,) = altered(frames)
    frame.tensor.headers[tensor].shape[:] = shape
    return [frame]


def retyped(frames: Frames, tensor: int, dtype: tensor_pb2.Dtype) -> Frames:
    (frame,) = altered(frames)
    frame.tensor.headers[tensor].dtype = dtype
    return [frame]


def poisoned(frames: Frames, value: float) -> Frames:
    """The last number of the last tensor is another one."""
    data = frames[0].tensor.data
    return altered(frames, data=data[:-4] + torch.tensor(value).numpy().tobytes())


def without_headers(frames: Frames) -> Frames:
    (frame,) = altered(frames)
    del frame.tensor.headers[:]
    return [frame]


@dataclass(frozen=True)
class Fault:
    """What a neighbour sends instead of its honest microbatches, and what it is called."""

    frames: Callable[[list[Frames]], Frames]
    code: str
    status: grpc.StatusCode
    match: str


UNPLANNED = partial(Fault, code="WIRE_UNPLANNED", status=grpc.StatusCode.FAILED_PRECONDITION)
MALFORMED = partial(Fault, code="WIRE_MALFORMED", status=grpc.StatusCode.INVALID_ARGUMENT)
NOT_FINITE = partial(Fault, code="WIRE_NOT_FINITE", status=grpc.StatusCode.INVALID_ARGUMENT)
TOO_LARGE = partial(Fault, code="WIRE_TOO_LARGE", status=grpc.StatusCode.RESOURCE_EXHAUSTED)

ACTIVATION_FAULTS = {
    "shape of the tokens": UNPLANNED(lambda f: reshaped(f[0], 0, 2, 16), match="Planned is a tensor uint8[2, 17]"),
    "shape of the code": UNPLANNED(lambda f: reshaped(f[0], 1, 2, 16, 5), match="what came is float32[2, 16, 5]"),
    "dtype": UNPLANNED(lambda f: retyped(f[0], 1, tensor_pb2.DTYPE_BFLOAT16), match="what came is bfloat16"),
    "dtype that is none": MALFORMED(lambda f: retyped(f[0], 1, 77), match="dtype 77"),
    "microbatch": UNPLANNED(lambda f: altered(f[0], microbatch=6), match="microbatch 6 of round 0 isn't planned"),
    "repeated microbatch": UNPLANNED(
        lambda f: f[0] + f[0], match="microbatch 0 of round 0 isn't planned, or has come before"
    ),
    "NaN": NOT_FINITE(lambda f: poisoned(f[0], math.nan), match="1 of 128 values"),
    "infinity": NOT_FINITE(lambda f: poisoned(f[0], -math.inf), match="1 of 128 values"),
    "truncated": MALFORMED(
        lambda f: altered(f[0], data=f[0][0].tensor.data[:-1]) + f[1], match="is cut short at byte 545 of 546"
    ),
    "too long": MALFORMED(lambda f: altered(f[0], data=f[0][0].tensor.data + b"\0"), match="goes on to byte 547"),
    "offset": MALFORMED(lambda f: altered(f[0], offset=9), match="goes on at byte 9"),
    "no headers": MALFORMED(lambda f: without_headers(f[0]), match="no headers"),
    "no data": MALFORMED(lambda f: altered(f[0], data=b""), match="empty part"),
    "no tensor": MALFORMED(lambda _: [pb.PipeFrame()], match="this one has none"),
    "second hello": MALFORMED(lambda _: [pb.PipeFrame(hello=pb.PipeHello())], match="this one has none"),
    "part over its limit": TOO_LARGE(
        lambda f: altered(f[0], data=bytes(PIPE_PART_BYTES + 1)), match=f"over the limit of {PIPE_PART_BYTES}"
    ),
}


@pytest.mark.parametrize("fault", ACTIVATION_FAULTS.values(), ids=ACTIVATION_FAULTS.keys())
async def test_an_activation_that_is_none_ends_its_pipe_and_nothing_else(bench: Bench, fault: Fault) -> None:
    previous, served = await bench.form()
    await bench.plan()
    await previous.write(*fault.frames(bench.recording.activations))
    await failed(bench, fault.code, fault.match)
    await refused(previous, fault.status, fault.code, fault.match)
    assert not served.ended.is_set()  # the other neighbour has done nothing wrong
    await bench.trains_on()


async def test_a_frame_over_the_limit_of_messages_is_refused_unread(bench: Bench) -> None:
    previous, _ = await bench.form()
    await previous.write(*altered(bench.recording.activations[0], data=bytes(PIPE_FRAME_BYTES + 1)))
    await failed(bench, "WIRE_UNREACHABLE", "ended the pipe")
    code, details = await previous.outcome()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, details
    await bench.trains_on()


async def test_a_token_outside_the_vocabulary_is_found_before_it_is_looked_up(bench: Bench) -> None:
    previous, _ = await bench.form()
    await bench.plan()
    data = bench.recording.activations[0][0].tensor.data
    await previous.write(*altered(bench.recording.activations[0], data=b"\xff" + data[1:]))
    await failed(bench, "WIRE_MALFORMED", "to 255 aren't all in the vocabulary of 100")
    pause = control_pb2.Pause(generation=bench.generation, why="its pipes failed")
    await bench.command(pause=pause)
    code, _ = await previous.outcome()
    assert code is grpc.StatusCode.OK  # the coordinator has ended the generation for all
    await bench.trains_on()


GRADIENT_FAULTS = {
    "shape": UNPLANNED(lambda f: reshaped(f[0], 0, 2, 16, 5), match="what came is float32[2, 16, 5]"),
    "dtype": UNPLANNED(lambda f: retyped(f[0], 0, tensor_pb2.DTYPE_FLOAT16), match="what came is float16"),
    "repeated": UNPLANNED(lambda f: f[0] + f[0], match="microbatch 0 of round 0 isn't planned, or has come before"),
    "of what wasn't sent": UNPLANNED(lambda f: f[0] + f[1], match="microbatch 1 of round 0 isn't planned"),
    "NaN": NOT_FINITE(lambda f: poisoned(f[0], math.nan), match="1 of 128 values"),
    "truncated": MALFORMED(
        lambda f: altered(f[0], data=f[0][0].tensor.data[:-1]) + f[1], match="is cut short at byte 511 of 512"
    ),
    "no tensor": MALFORMED(lambda _: [pb.PipeFrame()], match="this one has none"),
    "part over its limit": TOO_LARGE(
        lambda f: altered(f[0], data=bytes(PIPE_PART_BYTES + 1)), match=f"over the limit of {PIPE_PART_BYTES}"
    ),
    "frame over its limit": TOO_LARGE(
        lambda f: altered(f[0], data=bytes(PIPE_FRAME_BYTES + 1)), match="over the limit"
    ),
}


@pytest.mark.parametrize("fault", GRADIENT_FAULTS.values(), ids=GRADIENT_FAULTS.keys())
async def test_a_gradient_that_is_none_ends_its_pipe_and_nothing_else(bench: Bench, fault: Fault) -> None:
    previous, served = await bench.form()
    await bench.plan()
    await previous.write(*bench.recording.activations[0])
    assert (await anext(served.requests)).tensor.microbatch == 0
    served.write(*fault.frames(bench.recording.gradients))
    await failed(bench, fault.code, fault.match)
    async with asyncio.timeout(DEADLINE_S):
        await served.ended.wait()
    await bench.trains_on()


async def test_a_finite_gradient_that_overflows_here_doesnt_end_an_honest_worker(bench: Bench) -> None:
    previous, served = await bench.form()
    await bench.plan()
    huge = torch.full((128,), 3e36).numpy().tobytes()
    recording = bench.recording
    for number, (down, up) in enumerate(zip(recording.activations, recording.gradients, strict=True)):
        await previous.write(*down)
        assert (await anext(served.requests)).tensor.microbatch == number
        served.write(*(altered(up, data=huge) if number == 0 else up))
    await failed(bench, "WIRE_NOT_FINITE", "has norm inf. Nothing was changed")
    await bench.trains_on()


async def test_a_gradient_before_its_activation_was_sent_is_refused(bench: Bench) -> None:
    _, served = await bench.form()
    served.write(*bench.recording.gradients[0])
    await bench.plan()
    await failed(bench, "WIRE_UNPLANNED", "microbatch 0 of round 0 isn't planned")
    await bench.trains_on()


async def test_what_comes_before_its_plan_waits_for_it(bench: Bench) -> None:
    previous, served = await bench.form()
    recording = bench.recording
    await previous.write(*recording.activations[0])
    await bench.plan()
    assert (await anext(served.requests)).tensor.microbatch == 0
    served.write(*altered(recording.gradients[0], data=b""))  # it did take the first
    await failed(bench, "WIRE_MALFORMED", "empty part")
    await bench.trains_on()


async def test_what_nobody_plans_in_time_ends_its_pipe(impatient: Bench) -> None:
    previous, _ = await impatient.form()
    await previous.write(*altered(impatient.recording.activations[0], round=7))
    await failed(impatient, "WIRE_UNPLANNED", f"revision 0 of round 7 came; no plan of that within {OPEN_S} s")
    await impatient.trains_on()


HELLO_FAULTS = {
    "spec": ({"spec_hash": bytes(32)}, "spec_hash is " + "00" * 32),
    "stage": ({"stage": 5}, "stage is 5; here it is "),
    "frozen tensors": ({"frozen_hash": b"\1" * 32}, "frozen_hash is " + "01" * 32),
}


@pytest.mark.parametrize(("fields", "match"), HELLO_FAULTS.values(), ids=HELLO_FAULTS.keys())
async def test_a_previous_stage_that_means_something_else_is_refused(bench: Bench, fields: dict, match: str) -> None:
    await bench.announce()
    previous = await bench.dial()
    await previous.write(bench.hello(0, **fields))
    (await bench.take_call()).write(bench.hello(2))
    await refused(previous, grpc.StatusCode.FAILED_PRECONDITION, "WIRE_UNPLANNED", match)
    await failed(bench, "WIRE_UNPLANNED", match)
    await bench.trains_on()


@pytest.mark.parametrize(
    ("fields", "match"),
    [*HELLO_FAULTS.values(), ({"generation": 10**6}, "generation is 1000000")],
    ids=[*HELLO_FAULTS.keys(), "generation"],
)
async def test_a_next_stage_that_means_something_else_is_hung_up_on(bench: Bench, fields: dict, match: str) -> None:
    await bench.announce()
    previous = await bench.dial()
    await previous.write(bench.hello(0))
    served = await bench.take_call()
    served.write(bench.hello(2, **fields))
    await failed(bench, "WIRE_UNPLANNED", match)
    async with asyncio.timeout(DEADLINE_S):
        await served.ended.wait()
    await bench.trains_on()


async def test_a_pipe_begins_with_a_hello(bench: Bench) -> None:
    await bench.announce()
    previous = await bench.dial()
    await previous.write(*bench.recording.activations[0])
    (await bench.take_call()).write(bench.hello(2))
    await refused(previous, grpc.StatusCode.INVALID_ARGUMENT, "WIRE_MALFORMED", "begins with a hello")
    await failed(bench, "WIRE_MALFORMED", "begins with a hello")
    await bench.announce()
    await (await bench.dial()).write(bench.hello(0))
    (await bench.take_call()).write(*bench.recording.gradients[0])
    await failed(bench, "WIRE_MALFORMED", "begins with a hello")
    await bench.trains_on()


async def test_a_hello_of_a_generation_that_is_over_disturbs_nobody(bench: Bench) -> None:
    await bench.form()
    await bench.announce()
    late = await bench.dial()
    await late.write(bench.hello(0, generation=bench.generation - 1))
    await refused(late, grpc.StatusCode.FAILED_PRECONDITION, "WIRE_UNPLANNED", "generation is")
    (await bench.take_call()).write(bench.hello(2))
    right = await bench.dial()
    await right.write(bench.hello(0))
    assert (await right.read()).hello.generation == bench.generation
    await bench.event("pipes_open")
    await bench.trains_on()


async def test_a_hello_of_a_generation_to_come_waits_for_it(bench: Bench) -> None:
    await bench.form()
    early = await bench.dial()
    await early.write(bench.hello(0, generation=bench.generation + 1))
    await bench.announce()
    served = await bench.take_call()
    served.write(bench.hello(2))
    assert (await early.read()).hello.generation == bench.generation
    await bench.event("pipes_open")
    await bench.play(early, served)


async def test_a_second_pipe_of_a_generation_is_refused_and_the_first_goes_on(bench: Bench) -> None:
    previous, served = await bench.form()
    second = await bench.dial()
    await second.write(bench.hello(0))
    await refused(second, grpc.StatusCode.FAILED_PRECONDITION, "WIRE_UNPLANNED", "is open already")
    await bench.play(previous, served)


async def test_a_stranger_gets_no_connection_and_delays_nobody(bench: Bench) -> None:
    await bench.announce()
    wrong_key = await bench.dial(STRANGER, admitted=False)
    await wrong_key.write(bench.hello(0))
    credentials = grpc.ssl_channel_credentials(WORKER.pem)
    options = [("grpc.ssl_target_name_override", "node")]
    async with grpc.aio.secure_channel(f"127.0.0.1:{bench.port}", credentials, options) as channel:
        nameless = Previous(channel, pipe_pb2_grpc.StagePipeStub(channel).Open())
        for stranger in (wrong_key, nameless):
            code, details = await stranger.outcome()
            assert code is grpc.StatusCode.UNAVAILABLE, details
    (await bench.take_call()).write(bench.hello(2))
    previous = await bench.dial()
    await previous.write(bench.hello(0))
    await bench.event("pipes_open")
    await bench.trains_on()


async def test_a_connection_outlives_its_admission_but_opens_no_pipe(bench: Bench) -> None:
    former, _ = await bench.form()
    await bench.announce(previous=STRANGER)
    again = Previous(former.channel, pipe_pb2_grpc.StagePipeStub(former.channel).Open())
    await again.write(bench.hello(0))
    await refused(again, grpc.StatusCode.PERMISSION_DENIED, "WIRE_IDENTITY", "no longer admitted")
    (await bench.take_call()).write(bench.hello(2))
    successor = await bench.dial(STRANGER)
    await successor.write(bench.hello(0))
    await bench.event("pipes_open")
    await bench.trains_on()


async def test_a_next_stage_with_a_certificate_of_another_key_is_not_called(bench: Bench) -> None:
    await bench.announce(certificate=STRANGER.der)
    await failed(bench, "WIRE_IDENTITY", f"is of {STRANGER.peer_id}, not of {NEXT.peer_id}")
    assert bench.next.calls.empty()
    await bench.trains_on()


async def test_a_next_stage_that_refuses_is_quoted(bench: Bench) -> None:
    await bench.announce()
    served = await bench.take_call()
    served.write((grpc.StatusCode.FAILED_PRECONDITION, "[WIRE_UNPLANNED] another model is trained here"))
    await failed(bench, "WIRE_REFUSED", "another model is trained here")
    await bench.announce()
    (await bench.take_call()).write(None)
    await failed(bench, "WIRE_UNREACHABLE", "ended the pipe")
    await bench.trains_on()


@pytest.mark.parametrize("way", ["closes the connection", "cancels the call", "ends its side"])
async def test_a_previous_stage_that_goes_in_mid_microbatch_is_reported(bench: Bench, way: str) -> None:
    previous, served = await bench.form()
    await bench.plan()
    await previous.write(*bench.recording.activations[0])
    assert (await anext(served.requests)).tensor.microbatch == 0
    half = bench.recording.activations[1][0].tensor.data[:100]
    await previous.write(*altered(bench.recording.activations[1], data=half))
    if way == "closes the connection":
        await previous.channel.close()
    elif way == "cancels the call":
        previous.call.cancel()
    else:
        await previous.call.done_writing()
    await failed(bench, "WIRE_UNREACHABLE", f"{PREVIOUS_NODE} ended the pipe")
    await bench.trains_on()


@pytest.mark.parametrize("way", ["ends", "refuses"])
async def test_a_next_stage_that_goes_in_mid_microbatch_is_reported(bench: Bench, way: str) -> None:
    previous, served = await bench.form()
    await bench.plan()
    await previous.write(*bench.recording.activations[0])
    await anext(served.requests)
    served.write(*altered(bench.recording.gradients[0], data=bench.recording.gradients[0][0].tensor.data[:100]))
    if way == "ends":
        served.write(None)
        await failed(bench, "WIRE_UNREACHABLE", f"{NEXT.peer_id} ended the pipe")
    else:
        served.write((grpc.StatusCode.INVALID_ARGUMENT, "[WIRE_MALFORMED] so it says"))
        await failed(bench, "WIRE_REFUSED", "so it says")
    await bench.trains_on()


async def test_a_plan_that_comes_after_a_pipe_broke_waits_for_the_next_formation(bench: Bench) -> None:
    previous, served = await bench.form()
    served.write(None)
    await failed(bench, "WIRE_UNREACHABLE", f"{NEXT.peer_id} ended the pipe")
    await previous.write(*bench.recording.activations[0])
    await bench.plan()
    await bench.trains_on()


async def test_formations_that_overtake_each_other_leave_the_last(bench: Bench) -> None:
    for _ in range(20):
        await bench.announce()
    (await bench.take_call()).write(bench.hello(2))
    previous = await bench.dial()
    await previous.write(bench.hello(0))
    assert (await bench.event("pipes_open")).generation == bench.generation
    await bench.trains_on()


async def test_a_formation_that_was_given_up_before_its_turn_is_passed_over(bench: Bench, tmp_path: Path) -> None:
    """As when the trainer is at a checkpoint while a pause and the next formation come."""
    inbox: SimpleQueue[Item] = SimpleQueue()
    failures: list[CommonweightError] = []
    outlet = Outlet(
        send_down=lambda *_: None,
        send_up=lambda *_: None,
        send_slice=lambda *_: None,
        report=lambda _: None,
        fail=lambda _, error, *__: failures.append(error),
        late=lambda *_: None,
    )
    trainer = Trainer.open(
        bench.recording.spec, 1, state_dir=tmp_path, data_dir=None, device="cpu", inbox=inbox, outlet=outlet
    )
    given_up, wanted = Future[None](), Future[None]()
    assert given_up.cancel()
    for item in (Restore(1, 0, given_up), Restore(2, 0, wanted), Quit()):
        inbox.put(item)
    trainer.run()
    assert wanted.done()
    assert wanted.result() is None
    assert (trainer.generation, failures) == (2, [])


async def test_neighbours_that_never_open_are_named_after_the_deadline(impatient: Bench) -> None:
    await impatient.announce()
    served = await impatient.take_call()  # says nothing
    too_early = await impatient.dial()
    await too_early.write(impatient.hello(0, generation=impatient.generation + 1))
    for peer in sorted((PREVIOUS, NEXT), key=lambda peer: address_of(peer.peer_id)):
        await failed(impatient, "WIRE_UNREACHABLE", f"No pipe with {peer.peer_id}")
    await refused(too_early, grpc.StatusCode.FAILED_PRECONDITION, "WIRE_UNPLANNED", f"within {OPEN_S} s")
    async with asyncio.timeout(DEADLINE_S):
        await served.ended.wait()
    await impatient.announce()
    (await impatient.take_call()).write(impatient.hello(2))
    await failed(impatient, "WIRE_UNREACHABLE", f"No pipe with {PREVIOUS.peer_id}")
    await impatient.trains_on()


async def test_a_next_stage_with_another_key_than_announced_is_never_trusted(impatient: Bench) -> None:
    pinned = make_certificate(NodeIdentity(b"\x09" * 32))
    await impatient.announce(peer_id=pinned.peer_id, certificate=pinned.der)
    await (await impatient.dial()).write(impatient.hello(0))
    await failed(impatient, "WIRE_UNREACHABLE", f"No pipe with {pinned.peer_id}")
    assert impatient.next.calls.empty()
    await impatient.trains_on()


async def test_a_neighbour_that_falls_silent_in_a_round_is_given_up(impatient: Bench) -> None:
    previous, served = await impatient.form()
    await impatient.plan()
    await previous.write(*impatient.recording.activations[0])
    await anext(served.requests)
    await failed(impatient, "WIRE_UNREACHABLE", f"got nothing from a neighbour for {STALL_S} s")
    await impatient.trains_on()


@pytest.mark.parametrize("cut", [("*", "*"), ("worker", "next"), ("next", "worker")], ids=["both", "there", "back"])
async def test_a_link_that_is_cut_without_a_word_either_way_is_noticed_between_rounds_too(
    impatient: Bench, cut: tuple[str, str]
) -> None:
    """The neighbour's host is gone, or only one of the two hears the other; nothing closes the connection."""
    async with LinkShaper() as shaper:
        front = await shaper.open("next")
        await shaper.point(front, ("127.0.0.1", impatient.next_port))
        await shaper.know("worker", impatient.process.pid)
        await impatient.announce(data_address=front)
        previous = await impatient.dial()
        await previous.write(impatient.hello(0))
        (await impatient.take_call()).write(impatient.hello(2))
        await impatient.event("pipes_open")
        await shaper.cut(*cut)
        async with asyncio.timeout(8):
            failure = await impatient.event("failure")
        assert (failure.code, failure.peer_id) == ("WIRE_UNREACHABLE", NEXT.peer_id)
        assert any(path.cut for path in (await shaper.statistics()).paths.values())
    await impatient.trains_on()


async def test_a_checkpoint_that_is_gone_is_fatal_and_said_so(bench: Bench) -> None:
    await bench.announce(round_=7)
    failure = await bench.event("failure")
    assert (failure.code, failure.generation, failure.fatal) == ("STATE_CHECKPOINT", bench.generation, True)
    assert "no whole checkpoint of round 7" in failure.message
    await bench.trains_on()


async def test_a_bug_in_the_compute_thread_ends_the_worker_instead_of_leaving_half_of_it(tmp_path: Path) -> None:
    program = "import node.trainer; node.trainer.Trainer._train = lambda *_: 1 / 0"
    async with a_worker(record(three_stages()), tmp_path, program, exit_code=1) as bench:
        await bench.form()
        await bench.plan()
        async with asyncio.timeout(DEADLINE_S):
            assert await bench.link.receive(worker_pb2.WorkerEvent) is None
            assert await bench.process.wait() == 1
