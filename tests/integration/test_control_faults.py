"""A real coordinator against nodes that aren't what they should be, and one that is started with what can't work.

The nodes are scripted (no torch), so what they say is exactly what the test wants. The coordinator is the same process
throughout: what one test does to it must not harm the next.
"""

import asyncio
import math
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from commonweight.chain.child import Ready
from commonweight.chain.keys import Key, import_key
from commonweight.chain.sender import Action, Sender
from commonweight.chain.token import TestUSD
from commonweight.devnet.accounts import Account
from commonweight.devnet.deployment import EPOCH_BOND, Contracts, register_model
from commonweight.events import Event
from commonweight.identity import NodeIdentity
from commonweight.links.client import LinkShaper
from commonweight.rules.answer import SESSION_BYTES, Answer
from commonweight.rules.canonical import canonical_json
from commonweight.rules.report import NO_TENSOR, Report
from commonweight.wire import PROTOCOL_VERSION
from commonweight.wire.channel import CONTROL_MESSAGE_BYTES
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_to_proto, report_to_proto
from commonweight.wire.tls import make_certificate
from tests.integration.network import Network, Process, seconds_since, tiny_spec
from tests.integration.scripted import DEADLINE_S, ScriptedNode, a_round, honest_report
from tools.build_vectors import honest_answer, honest_reports, mark

pytestmark = pytest.mark.slow
on_one_loop = pytest.mark.asyncio(loop_scope="module")

STAGES, MICROBATCHES = 2, 4
STRANGER = NodeIdentity(b"\x0b" * 32)
HEAD, TAIL, SPARE = range(3)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network(tmp_path_factory.mktemp("network"), stages=STAGES) as network:
        yield network


class Site:
    """The coordinator under test, and the nodes that it allows."""

    def __init__(self, network: Network) -> None:
        self.identities = [NodeIdentity(network.accounts[f"node-{n}"].key.secret) for n in range(3)]
        allow = [word for identity in self.identities for word in ("--allow", identity.address)]
        self.process = Process([*network.coordinator_command(1000), *allow])
        network.processes.append(self.process)
        self.peer = self.process.wait_for("coordinator.listening").fields["peer"]
        self.rounds_per_epoch = network.spec.economics.rounds_per_epoch

    def node(self, index: int) -> ScriptedNode:
        return ScriptedNode(self.identities[index], self.peer)

    async def told(self, name: str, where: Callable[[Event], bool]) -> Event:
        """The coordinator's event."""
        return await asyncio.to_thread(self.process.wait_for, name, where, DEADLINE_S)

    async def goes_on(self) -> int:
        """Two honest nodes get a round sealed: the number of that round."""
        head, tail = self.node(HEAD), self.node(TAIL)
        async with a_round(head, tail) as plan:
            for stage, node in enumerate((head, tail)):
                node.send(report=node.signed(plan.generation, honest(plan.round, stage)))
            assert (await head.hear("sealed")).round == plan.round
            assert (await tail.hear("sealed")).round == plan.round
        return plan.round


def honest(round_: int, stage: int) -> Report:
    return honest_report(round_, stage, STAGES, MICROBATCHES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(network: Network) -> AsyncIterator[Site]:
    site = Site(network)
    assert await site.goes_on() == 0  # now stage 0 is HEAD's, stage 1 is TAIL's, and the states are known
    yield site
    assert b"Traceback" not in site.process.stderr, site.process.stderr


async def refused(node: ScriptedNode, status: grpc.StatusCode, match: str) -> None:
    code, details = await node.refusal()
    assert code is status, details
    assert match in details


# Enrolment


@on_one_loop
@pytest.mark.parametrize(
    ("fields", "code", "status", "match"),
    [
        ({"certificate": make_certificate(STRANGER).der}, "WIRE_REFUSED", "FAILED_PRECONDITION", STRANGER.address),
        ({"certificate": b"no DER"}, "WIRE_IDENTITY", "PERMISSION_DENIED", "no X.509 certificate"),
        ({"certificate": b""}, "WIRE_IDENTITY", "PERMISSION_DENIED", "no X.509 certificate"),
        ({"certificate": bytes(5000)}, "WIRE_IDENTITY", "PERMISSION_DENIED", "at most 4096 bytes"),
        (
            {"protocol_version": PROTOCOL_VERSION + 1},
            "WIRE_REFUSED",
            "FAILED_PRECONDITION",
            f"speaks protocol {PROTOCOL_VERSION}, the node {PROTOCOL_VERSION + 1}",
        ),
        ({"certificate": bytes(CONTROL_MESSAGE_BYTES)}, "", "RESOURCE_EXHAUSTED", "larger than max"),
    ],
    ids=["not allowed", "no certificate", "empty", "long certificate", "other protocol", "over the limit"],
)
async def test_an_enrolment_is_refused_with_its_reason(
    site: Site, fields: dict, code: str, status: str, match: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await site.node(HEAD).enrol(**fields)
    assert raised.value.code() is grpc.StatusCode[status]
    assert match in raised.value.details()
    if code:
        assert raised.value.details().startswith(f"[{code}]")
        await site.told("enrolment.refused", lambda e: e.fields["code"] == code and match in e.fields["message"])


@on_one_loop
async def test_a_certificate_that_was_never_enrolled_gets_no_connection(site: Site) -> None:
    port = await site.node(HEAD).enrol()
    other = site.node(HEAD)  # the same key, but another process's certificate
    async with other.attached(port):
        other.send(join=other.join())
        await refused(other, grpc.StatusCode.UNAVAILABLE, "")
    await site.goes_on()


# Joining


@on_one_loop
@pytest.mark.parametrize(
    ("fields", "status", "match"),
    [
        ({"certificate": make_certificate(STRANGER).der}, "FAILED_PRECONDITION", f"is of {STRANGER.peer_id}"),
        ({"certificate": b"no DER"}, "PERMISSION_DENIED", "no X.509 certificate"),
        ({"payout_account": "0x12"}, "INVALID_ARGUMENT", "'0x12' is not an address"),
        ({"payout_account": ""}, "INVALID_ARGUMENT", "is not an address"),
        ({"data_address": "nowhere"}, "INVALID_ARGUMENT", "'nowhere' is not host:port"),
        ({"data_address": "127.0.0.1:0"}, "INVALID_ARGUMENT", "port 0"),
        ({"data_address": "127.0.0.1:99999"}, "INVALID_ARGUMENT", "is not host:port"),
        ({"evidence_address": ""}, "INVALID_ARGUMENT", "The evidence service's address"),
    ],
    ids=[
        *("foreign certificate", "no certificate", "short account", "no account"),
        *("no address", "no port", "no such port", "no evidence service"),
    ],
)
async def test_a_join_is_refused_with_its_reason(site: Site, fields: dict, status: str, match: str) -> None:
    node = site.node(HEAD)
    async with node.attached():
        node.send(join=node.join(**fields))
        await refused(node, grpc.StatusCode[status], match)
    await site.told("node.failed", lambda e: match in e.fields["message"])
    await site.goes_on()


@on_one_loop
@pytest.mark.parametrize("first", ["heartbeat", "pipes_open", "nothing"])
async def test_a_node_begins_with_a_join(site: Site, first: str) -> None:
    node = site.node(HEAD)
    async with node.attached():
        if first == "heartbeat":
            node.send(heartbeat=pb.Heartbeat())
        elif first == "pipes_open":
            node.send(pipes_open=pb.PipesOpen(generation=1))
        else:
            node.send()
        await refused(node, grpc.StatusCode.INVALID_ARGUMENT, "A node begins with a join, not with ")
    await site.goes_on()


@on_one_loop
async def test_a_node_doesnt_join_twice_on_one_stream(site: Site) -> None:
    node = site.node(HEAD)
    async with node.seated():
        node.send(join=node.join())
        await refused(node, grpc.StatusCode.INVALID_ARGUMENT, "A node doesn't send join here")
    await site.goes_on()


@on_one_loop
async def test_a_second_node_with_the_same_key_is_refused_and_the_first_is_unharmed(site: Site) -> None:
    head, tail, second = site.node(HEAD), site.node(TAIL), site.node(HEAD)
    async with a_round(head, tail) as plan:
        async with second.attached():
            second.send(join=second.join())
            await refused(second, grpc.StatusCode.FAILED_PRECONDITION, "a node with this key is already connected")
        for stage, node in enumerate((head, tail)):
            node.send(report=node.signed(plan.generation, honest(plan.round, stage)))
        assert (await head.hear("sealed")).round == plan.round
        assert (await head.hear("plan")).generation == plan.generation  # it went on without a break


@on_one_loop
async def test_a_newcomer_shadows_a_round_and_then_shares_the_work(site: Site) -> None:
    head, tail, spare = site.node(HEAD), site.node(TAIL), site.node(SPARE)
    async with a_round(head, tail) as plan, spare.seated(has_data=False):
        assert (spare.assignment.stage, spare.version.round) == (1, plan.round)
        assert [source.peer_id for source in spare.version.sources] == [tail.identity.peer_id]
        assert list((await tail.hear("replicas")).certificates) == [spare.certificate.der]
        met = await spare.hear("formation")
        assert [neighbour.peer_id for neighbour in met.replicas] == [tail.identity.peer_id]
        assert [neighbour.peer_id for neighbour in met.previous] == [head.identity.peer_id]
        assert (await head.hear("formation")).generation == plan.generation == met.generation
        spare.send(pipes_open=pb.PipesOpen(generation=met.generation))
        address, loads = bytes.fromhex(spare.identity.address[2:]), []
        while len(loads) < 2:  # until it shares a round, after one that it shadows
            stage = plan.stages[1]
            own = [j for j, each in enumerate(stage.assignment) if stage.members[each] == address]
            rest = tuple(j for j in range(MICROBATCHES) if j not in own)
            reports = honest_reports(
                STAGES, MICROBATCHES, plan.round, [[tuple(range(MICROBATCHES))], [rest, tuple(own)]]
            )
            senders = [head, tail]
            if address in stage.members:
                assert await spare.hear("plan") == plan
                loads.append(own)
                senders.append(spare)
            for node, report in zip((head, tail, spare), reports, strict=True):
                if node in senders:
                    node.send(report=node.signed(plan.generation, report))
            sealed = await head.hear("sealed")
            plan = await head.hear("plan")
            await tail.hear("plan")  # it signs with the tip in it, of the next epoch maybe
        assert loads == [[], [MICROBATCHES - 1]]
        assert (len(sealed.stages[0].commitments), len(sealed.stages[1].commitments)) == (1, 2)
        told = await site.told("round.sealed", lambda event: event.fields["round"] == sealed.round)
        assert (told.fields["replicas"], told.fields["generation"]) == ([1, 2], met.generation)
    await site.goes_on()


# Reports


def with_numerics(report: Report, numerics: str) -> dict[str, object]:
    message = report_to_proto(report, busy_s=0.5)
    message.numerics = numerics
    return {"report": message}


def with_loss(report: Report, loss: float) -> dict[str, object]:
    message = report_to_proto(report)
    message.hops[1].loss = loss
    return {"report": message}


def with_microbatch(report: Report, microbatch: int) -> dict[str, object]:
    message = report_to_proto(report, busy_s=0.5)
    message.hops[-1].microbatch = microbatch
    return {"report": message}


# From the tail's honest report to what is wrong with it: the report that is signed, and fields of the message.
REPORT_FAULTS: dict[str, tuple[Callable[[Report], tuple[Report, dict]], str, str]] = {
    "signature of another": (lambda r: (r, {"signature": b"\1" * 64 + b"\x1b"}), "FAILED_PRECONDITION", "is signed by"),
    "signature that is none": (
        lambda r: (r, {"signature": b"\1" * 64}),
        "INVALID_ARGUMENT",
        "A signature has 65 bytes",
    ),
    "changed after it was signed": (
        lambda r: (r, {"report": report_to_proto(replace(r, gradient_hash=mark("another")), busy_s=0.5)}),
        "FAILED_PRECONDITION",
        "is signed by",
    ),
    "signed for another generation": (lambda r: (r, {"generation": 99}), "FAILED_PRECONDITION", "is signed by"),
    "foreign stage": (lambda r: (replace(r, stage=0), {}), "FAILED_PRECONDITION", "the report is of stage 0, which"),
    "stage that isn't there": (lambda r: (replace(r, stage=9), {}), "FAILED_PRECONDITION", "the report is of stage 9"),
    "later round": (lambda r: (replace(r, round=r.round + 1), {}), "FAILED_PRECONDITION", "is being trained"),
    "earlier round": (lambda r: (replace(r, round=r.round - 1), {}), "FAILED_PRECONDITION", "is being trained"),
    "round of a later epoch": (
        lambda r: (replace(r, round=2**62), {}),
        "FAILED_PRECONDITION",
        "has no beacon tip now",
    ),
    "numerics without end": (lambda r: (r, with_numerics(r, 201 * "x")), "INVALID_ARGUMENT", "at most 200 characters"),
    "fewer hops": (
        lambda r: (replace(r, hops=r.hops[1:]), {}),
        "FAILED_PRECONDITION",
        "has the microbatches [1, 2, 3]",
    ),
    "more hops": (lambda r: (replace(r, hops=r.hops * 2), {}), "INVALID_ARGUMENT", "two are of one microbatch"),
    "no hops": (lambda r: (replace(r, hops=()), {}), "FAILED_PRECONDITION", "has the microbatches []"),
    "a microbatch beyond the round": (
        lambda r: (r, with_microbatch(r, MICROBATCHES)),
        "INVALID_ARGUMENT",
        "microbatch 4 of a round of 4",
    ),
    "no time": (lambda r: (r, {"report": report_to_proto(r)}), "INVALID_ARGUMENT", "4 microbatches in 0.0 s"),
    "another gradient than was stepped with": (
        lambda r: (replace(r, gradient_hash=mark("another")), {}),
        "FAILED_PRECONDITION",
        "with another gradient than its own",
    ),
    "another state before": (
        lambda r: (replace(r, state_before=mark("another")), {}),
        "FAILED_PRECONDITION",
        "Restore the checkpoint of that round",
    ),
    "NaN loss": (lambda r: (r, with_loss(r, math.nan)), "INVALID_ARGUMENT", "hops[1].loss: nan"),
    "infinite loss": (lambda r: (r, with_loss(r, math.inf)), "INVALID_ARGUMENT", "hops[1].loss: inf"),
    "short hash": (
        lambda r: (r, {"report": pb.StageReport(hops=[pb.Hop(tokens=b"\1")])}),
        "INVALID_ARGUMENT",
        "hops[0].tokens: a hash has 32 bytes",
    ),
}


@on_one_loop
@pytest.mark.parametrize(("fault", "status", "match"), REPORT_FAULTS.values(), ids=REPORT_FAULTS.keys())
async def test_a_report_is_refused_with_its_reason_and_the_round_is_trained_again(
    site: Site, fault: Callable[[Report], tuple[Report, dict]], status: str, match: str
) -> None:
    head, tail = site.node(HEAD), site.node(TAIL)
    if (await site.goes_on() + 1) % site.rounds_per_epoch == 0:
        await site.goes_on()  # so that the round before is of the same epoch, whose tip is signed
    async with a_round(head, tail) as plan:
        head.send(report=head.signed(plan.generation, honest(plan.round, HEAD)))
        report, fields = fault(honest(plan.round, TAIL))
        tail.send(report=tail.signed(plan.generation, report, **fields))
        await refused(tail, grpc.StatusCode[status], match)
        pause = await head.hear("pause")
        assert (pause.generation, pause.why) == (plan.generation, f"{tail.identity.address} of stage 1 is lost")
    assert await site.goes_on() == plan.round


@on_one_loop
async def test_a_report_signed_over_another_tip_is_refused(site: Site) -> None:
    """Whose provider was shown another chain than the one that will choose the audits."""
    head, tail = site.node(HEAD), site.node(TAIL)
    async with a_round(head, tail) as plan:
        assert len(plan.beacon_tip) == 32
        tail.tips[plan.round] = mark("another")
        tail.send(report=tail.signed(plan.generation, honest(plan.round, TAIL)))
        await refused(tail, grpc.StatusCode.FAILED_PRECONDITION, "is signed by")
    assert await site.goes_on() == plan.round


@on_one_loop
async def test_a_round_that_was_sealed_takes_no_other_report_and_the_second_word_is_proof(site: Site) -> None:
    head, tail = site.node(HEAD), site.node(TAIL)
    async with a_round(head, tail) as plan:
        for stage, node in enumerate((head, tail)):
            node.send(report=node.signed(plan.generation, honest(plan.round, stage)))
        sealed = await tail.hear("sealed")
        assert (sealed.round, len(sealed.beacon), len(sealed.stages)) == (plan.round, 32, STAGES)
        assert [(await tail.hear("plan")).round - plan.round for _ in range(2)] == [1, 2]
        other = replace(honest(plan.round, TAIL), state_after=mark("another"))
        tail.send(report=tail.signed(plan.generation, other))
        await refused(tail, grpc.StatusCode.FAILED_PRECONDITION, "is being trained")
    told = await site.told("provider.equivocated", lambda e: e.fields["round"] == plan.round)
    assert (told.fields["node"], told.fields["stage"]) == (site.identities[TAIL].address, TAIL)
    assert await site.goes_on() == plan.round + 1


@on_one_loop
async def test_a_part_of_an_answer_is_recorded_however_often_it_is_said(site: Site) -> None:
    while (round_ := await site.goes_on()) < 3:
        pass
    parts = honest_answer(STAGES, 3 * ((round_ + 1) // 3), mark("session")[:SESSION_BYTES], 3, 5)
    for _ in range(2):
        async with a_round(site.node(HEAD), tail := site.node(TAIL)):
            for _ in range(2):
                tail.send(answer=tail.signed_answer(parts[TAIL]))
                assert (await tail.hear("answer")).session == parts[TAIL].session
    await site.goes_on()


ANSWER_FAULTS: dict[str, tuple[Callable[[Answer], dict], str]] = {
    "signature of another": (lambda _: {"signature": b"\1" * 64 + b"\x1b"}, "it is signed by"),
    "changed": (lambda a: {"part": answer_to_proto(replace(a, fed=6))}, "it is signed by"),
    "foreign stage's": (lambda a: {"part": answer_to_proto(replace(a, taken=NO_TENSOR))}, "as stage 1's"),
    "unknown version": (lambda a: {"part": answer_to_proto(replace(a, version=3000))}, "never published"),
}


@on_one_loop
@pytest.mark.parametrize("fault", ANSWER_FAULTS)
async def test_a_part_of_an_answer_that_can_t_count_is_told_and_costs_nobody_the_connection(
    site: Site, fault: str
) -> None:
    while (round_ := await site.goes_on()) < 3:
        pass
    change, why = ANSWER_FAULTS[fault]
    answer = honest_answer(STAGES, 3 * ((round_ + 1) // 3), mark("session", fault)[:SESSION_BYTES], 3, 5)[TAIL]
    async with a_round(site.node(HEAD), tail := site.node(TAIL)):
        for changes in (change(answer), {}):  # the right one, too, on the same stream
            tail.send(answer=tail.signed_answer(answer, **changes))
            assert (await tail.hear("answer")).session == answer.session
    told = await site.told("answer.refused", lambda event: event.fields["session"] == answer.session.hex())
    assert (told.fields["node"], told.fields["stage"]) == (site.identities[TAIL].address, TAIL)
    assert why in told.fields["why"]
    await site.goes_on()


@on_one_loop
async def test_what_is_no_part_of_an_answer_ends_the_stream_and_training_goes_on(site: Site) -> None:
    while await site.goes_on() < 3:
        pass
    answer = honest_answer(STAGES, 3, mark("session")[:SESSION_BYTES], 3, 5)[TAIL]
    async with a_round(site.node(HEAD), tail := site.node(TAIL)):
        tail.send(answer=tail.signed_answer(answer, part=pb.AnswerPart()))
        await refused(tail, grpc.StatusCode.INVALID_ARGUMENT, "session: an id has 16 bytes")
    await site.goes_on()


@on_one_loop
async def test_a_report_of_a_generation_that_is_over_is_passed_over(site: Site) -> None:
    head, tail = site.node(HEAD), site.node(TAIL)
    async with a_round(head, tail) as plan:
        tail.send(report=tail.signed(plan.generation - 1, honest(plan.round, TAIL)))
        for stage, node in enumerate((head, tail)):
            node.send(report=node.signed(plan.generation, honest(plan.round, stage)))
        assert (await tail.hear("sealed")).round == plan.round


@on_one_loop
async def test_reports_that_contradict_each_other_seal_nothing_and_the_round_is_trained_again(site: Site) -> None:
    head, tail = site.node(HEAD), site.node(TAIL)
    async with a_round(head, tail) as plan:
        head.send(report=head.signed(plan.generation, honest(plan.round, HEAD)))
        right = honest(plan.round, TAIL)
        wrong = replace(right, hops=(*right.hops[:2], replace(right.hops[2], activation_in=mark("lie")), right.hops[3]))
        tail.send(report=tail.signed(plan.generation, wrong))
        pause = await head.hear("pause")
        assert f"the reports of round {plan.round} disagree about the activation of microbatch 2" in pause.why
        assert (await head.hear("formation")).round == plan.round
    assert await site.goes_on() == plan.round


# Messages and silence


@on_one_loop
async def test_a_message_over_the_limit_costs_only_its_sender(site: Site) -> None:
    head, tail = site.node(HEAD), site.node(TAIL)
    async with a_round(head, tail) as plan:
        tail.send(report=pb.SignedReport(signature=bytes(CONTROL_MESSAGE_BYTES)))
        await refused(tail, grpc.StatusCode.RESOURCE_EXHAUSTED, "")
        assert (await head.hear("pause")).generation == plan.generation
    assert await site.goes_on() == plan.round


@on_one_loop
async def test_a_silent_node_is_lost_within_five_seconds(site: Site) -> None:
    node = site.node(HEAD)
    async with node.attached(beats=False):
        spoken_at = time.monotonic()
        node.send(join=node.join())
        await node.hear("assignment")
        await refused(node, grpc.StatusCode.FAILED_PRECONDITION, "The node was silent for 4 s")
        assert 4 <= seconds_since(spoken_at) < 5
    await site.goes_on()


@on_one_loop
async def test_a_node_that_ends_its_side_is_let_go(site: Site) -> None:
    head, tail = site.node(HEAD), site.node(TAIL)
    async with a_round(head, tail) as plan:
        tail.end()
        assert (await head.hear("pause")).generation == plan.generation
        code, _ = await tail.refusal()
        assert code is grpc.StatusCode.OK
    await site.goes_on()


CUTS = {
    "its host is gone": (("node", "coordinator"), ("coordinator", "node")),
    "it isn't heard": (("node", "coordinator"),),
    "it hears nothing": (("coordinator", "node"),),
}


@on_one_loop
@pytest.mark.parametrize("cut", CUTS)
async def test_a_link_that_is_cut_without_a_word_either_way_is_noticed_by_both_and_mended(site: Site, cut: str) -> None:
    """The connection stays open: nobody says goodbye. Each side finds out by itself, also where only one direction is
    cut and heartbeats of the other go on coming.
    """
    head, tail = site.node(HEAD), site.node(TAIL)
    async with LinkShaper() as shaper, tail.seated():
        front = await shaper.open("coordinator")
        await shaper.point(front, ("127.0.0.1", await head.enrol()))
        await shaper.know("node", os.getpid())
        async with head.attached(int(front.rpartition(":")[2])):
            head.send(join=head.join())
            await head.hear("assignment")
            for way in CUTS[cut]:
                await shaper.cut(*way)
            cut_s = time.time()

            def is_lost(event: Event) -> bool:
                return event.fields["node"] == head.identity.address and event.time > cut_s

            lost = await site.told("node.lost", is_lost)
            assert lost.time - cut_s < 7
            code, details = await head.refusal()
            assert time.time() - cut_s < 8
            assert code is grpc.StatusCode.UNAVAILABLE or "was silent for 4 s" in details
            queued = {path: found.queued_bytes for path, found in (await shaper.statistics()).paths.items()}
            assert all(queued[way] > 0 for way in CUTS[cut]), queued
    await site.goes_on()


# What a coordinator is started with


def replaced(command: list[str], **options: str) -> list[str]:
    """The command with other values of these options."""
    command = list(command)
    for option, value in options.items():
        command[command.index("--" + option.replace("_", "-")) + 1] = value
    return command


def fails(command: list[str], exit_code: int, *matches: str) -> None:
    """The command ends with this code and one message that says what to do, and without a traceback."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == exit_code, ended.stderr
    errors = ended.stderr.strip().splitlines()
    assert len(errors) == 1, ended.stderr
    assert errors[0].startswith("Error: [")
    for match in matches:
        assert match in errors[0]


def test_the_wrong_chain_is_named(network: Network) -> None:
    command = replaced(network.coordinator_command(1), chain_id="1")
    fails(command, 4, "[CHAIN_WRONG_ID]", "serves chain 31337, expected was 1")


def test_an_endpoint_that_doesnt_answer_is_named(network: Network) -> None:
    fails(replaced(network.coordinator_command(1), rpc="http://127.0.0.1:9"), 4, "[CHAIN_UNREACHABLE]", "127.0.0.1:9")


def test_a_spec_that_wasnt_registered_is_refused(network: Network, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(canonical_json(network.spec.model_copy(update={"seed": 8}).model_dump()))
    command = replaced(network.coordinator_command(1), spec=str(other))
    fails(command, 2, "[CONFIG_INVALID]", network.spec.spec_hash.hex(), "Give the spec that was registered")


def test_a_model_that_isnt_registered_is_named(network: Network) -> None:
    command = replaced(network.coordinator_command(1), model_id="0x" + "ab" * 32)
    fails(command, 4, "[CHAIN_REVERTED]", "ModelRegistryUnknownModel")


def test_a_ledger_that_cant_be_opened_is_named(network: Network) -> None:
    command = replaced(network.coordinator_command(1), ledger="sqlite:////nowhere/ledger.sqlite")
    fails(command, 5, "[STATE_LEDGER]", "unable to open database file")


def test_text_that_isn_t_there_is_named(network: Network) -> None:
    fails(
        [*network.coordinator_command(1), "--data", "/nowhere"], 2, "[CONFIG_INVALID]", "--data /nowhere is no folder"
    )


def test_a_port_that_is_taken_is_named(network: Network) -> None:
    command = replaced(network.coordinator_command(1), listen=f"127.0.0.1:{network.local.port}")
    fails(command, 2, "[CONFIG_INVALID]", f"Can't listen on 127.0.0.1:{network.local.port}")


@pytest.fixture(scope="module")
def poor(network: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """A model of one stage whose coordinator has never owned a coin: its address and its command."""
    folder = tmp_path_factory.mktemp("poor")
    spec = tiny_spec(network.spec.data.manifest, network.spec.data.tokens, stages=1)
    spec_file = folder / "spec.json"
    spec_file.write_bytes(canonical_json(spec.model_dump()))
    key = Key(b"\x0c" * 32)
    import_key(folder / "key.json", "devnet", key.secret, scrypt_n=2**12)
    ready = Ready("embedded", network.local.rpc_url, network.local.port, network.local.chain_id, network.local.pid)
    shared = network.deployment
    contracts = Contracts(shared.registry, shared.providers, shared.arbiter, shared.revenue_token)
    accounts = network.accounts | {"coordinator": Account("coordinator", key)}
    deployment = register_model(ready, contracts, spec, spec_file, accounts, seat_stake=0, window_s=1)
    deployer = Sender(network.chain, network.accounts["deployer"].key)
    TestUSD(network.chain, shared.revenue_token, deployer).mint(key.address, EPOCH_BOND)
    command = replaced(
        network.coordinator_command(1),
        spec=str(spec_file),
        model_id=deployment.model_id,
        key=str(folder / "key.json"),
        ledger=f"sqlite:///{folder}/ledger.sqlite",
        statements=str(folder / "statements"),
    )
    return key.address, command


def test_a_coordinator_without_gas_money_doesnt_begin(poor: tuple[str, list[str]]) -> None:
    address, command = poor
    fails(command, 4, "[CHAIN_NO_FUNDS]", address)


@pytest.mark.asyncio
async def test_a_coordinator_that_runs_out_of_gas_money_says_so_and_goes_on_once_it_has_some(
    network: Network, poor: tuple[str, list[str]]
) -> None:
    """Without it no beacon tip is on chain, and so nothing is trained that could be audited."""
    address, command = poor
    rich = Sender(network.chain, network.accounts["deployer"].key)
    await asyncio.to_thread(rich.send, Action("too little", address, value_wei=1))
    process = Process(command)
    network.processes.append(process)
    listening = await asyncio.to_thread(process.wait_for, "coordinator.listening")
    node = ScriptedNode(STRANGER, listening.fields["peer"])
    async with node.seated():
        formation = await node.hear("formation")
        node.send(pipes_open=pb.PipesOpen(generation=formation.generation))
        failed = await asyncio.to_thread(process.wait_for, "chain.failed")
        assert (failed.fields["epoch"], failed.fields["code"]) == (0, "CHAIN_NO_FUNDS")
        assert address in failed.fields["message"]
        waiting = await asyncio.to_thread(process.wait_for, "training.waiting")
        assert waiting.fields["why"] == "the beacon tip of epoch 0 isn't on chain yet"
        await asyncio.to_thread(rich.send, Action("enough", address, value_wei=10**18))
        for round_ in range(network.spec.economics.rounds_per_epoch):
            assert (await node.hear("plan")).round == round_
            node.send(report=node.signed(formation.generation, honest_report(round_, 0, 1, MICROBATCHES)))
            assert (await node.hear("sealed")).round == round_
        await node.hear("finished")
    assert await asyncio.to_thread(process.wait) == 0, process.describe()
    assert process.wait_for("epoch.finalised").fields["epoch"] == 0
    assert process.stderr == b""
