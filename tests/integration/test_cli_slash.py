"""`slash` on a real local chain: what an owner sees of a proposal, and contests; what anybody may end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from eth_hash.auto import keccak

from commonweight.chain.keys import Key
from commonweight.chain.records import SlashStatus
from commonweight.cli.output import format_time
from commonweight.errors import ConfigError, InsufficientFunds, NotAllowed
from commonweight.model.numerics import numerics_class
from commonweight.model.operators import tensor_hash, write_arguments
from commonweight.rules.answer import Answer
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.panel import known_bad_report, opinion_receipt, recording_receipt
from commonweight.rules.recording import OperatorRecord, join_hashes
from commonweight.rules.statement import to_hex
from commonweight.watch.disputes import dispute_evidence
from commonweight.watch.known_bad import known_bad_evidence
from commonweight.watch.store import StatementStore
from referee.fraud import AnswerDifference, Difference, false_answer_evidence, fraud_evidence
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    ARBITRATION_S,
    BOB,
    CAROL,
    DELAY_S,
    NODE,
    REPORTER_BOND,
    SEAT_STAKE,
    STRANGER,
    USD,
    WINDOW_S,
    World,
    signing,
)
from tests.integration.epochs import Server
from tools.build_vectors import honest_reports, mark

world = cli_world.world  # pytest finds fixtures by their names here
NOWHERE = "http://127.0.0.1:1/evidence.json"


def fraud_of(world: World, stage: int = 0) -> bytes:
    """Evidence as the referee writes it: an output that isn't the replay's."""
    report = honest_reports(world.spec.stages, 4, 3)[stage]
    difference = Difference(
        "activation_out", 2, to_hex(report.hops[2].activation_out), "0x" + 64 * "f", 0.125, 1e-05, "Half of it is 0."
    )
    unit = Audit(3, stage, Kind.MICROBATCH, 2)
    return fraud_evidence(world.spec, unit, report, difference, provider="torch A", auditor="torch B")


def false_answer_of(world: World) -> bytes:
    """Evidence as the referee writes it: a code that isn't the replay's."""
    hashes = {name: mark(name) for name in ("ids", "taken", "passed")}
    numbers = {"prompt_tokens": 12, "fed": 40, "temperature": 0.7, "seed": 2**64 - 1}
    answer = Answer(version=3, session=bytes(16), nonce=bytes(16), **numbers, **hashes)
    difference = AnswerDifference("passed", 17, "The replay differs in the code that went out.", 0.125, 4e-05)
    return false_answer_evidence(world.spec, Audit(3, 0, Kind.ANSWER, 2), answer, mark("root"), difference)


def known_bad_of(world: World, auditor: Key) -> bytes:
    """Evidence that its key has passed a report in which two outputs of stage 1 have changed places."""
    unit, signed = Audit(3, 1, Kind.ROUND), honest_reports(world.spec.stages, 4, 3)[1]
    shown = known_bad_report(unit, signed, bytes(32), is_last=False)
    claim = shown.commitments(world.spec.training.microbatches_per_round).claim
    said = opinion_receipt(world.model.model_id, unit, claim, Verdict.PASSED, NO_EVIDENCE)
    return known_bad_evidence(
        spec=world.spec,
        audit=unit,
        signed=signed,
        shown=shown,
        auditor=auditor.address,
        signature=to_hex(signing(world, auditor)(said)),
    )


GIVEN = torch.arange(6.0)


def product(factor: float) -> OperatorRecord:
    """Of GIVEN and 2, if this is the factor."""
    return OperatorRecord(
        microbatch=0,
        phase="forward",
        layer="layers.3.ffn",
        operator="aten.mul.Tensor",
        arguments=write_arguments([GIVEN, 2.0], {}),
        inputs=(tensor_hash(GIVEN),),
        strides=((1,),),
        outputs=(tensor_hash(GIVEN * factor),),
    )


def dispute_of(
    world: World,
    auditor: Key,
    records: tuple[OperatorRecord, OperatorRecord] | None = None,
    numerics: str = "torch 2",
    tensors: bytes = b"",
) -> bytes:
    """Evidence that its key has recorded another second operator than the referee, whose one is the first of these."""
    one, two, other = (
        OperatorRecord(
            microbatch=0,
            phase="forward",
            layer="layers.3.ffn",
            operator="aten.mul.Tensor",
            arguments={"args": [{"tensor": 0}, 2], "kwargs": {}},
            inputs=(to_hex(mark("in", number)),),
            strides=((1,),),
            outputs=(to_hex(mark("out", number)),),
        )
        for number in range(3)
    )
    two, other = records or (two, other)
    unit, claim = Audit(3, 1, Kind.ROUND), mark("claim")
    theirs = join_hashes(numerics, [one, other])
    receipt = recording_receipt(world.model.model_id, unit, claim, theirs)
    return dispute_evidence(
        spec_hash=world.spec.spec_hash,
        audit=unit,
        claim=claim,
        numerics=numerics,
        auditor=auditor.address,
        theirs=theirs,
        signature=signing(world, auditor)(receipt),
        ours=join_hashes(numerics, [one, two]),
        record=canonical_json(two.model_dump(mode="json")),
        tensors=tensors,
    )


def report(world: World, text: bytes = b"", uri: str = NOWHERE, owner: Any = ALICE, stage: int = 0) -> None:
    """A stranger proposes to slash a seat for this evidence."""
    world.give(STRANGER, REPORTER_BOND, world.model.terms.providers)
    world.providers(STRANGER).propose_slash(world.model.model_id, owner.address, stage, keccak(text), uri)


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Any]:
    """Puts a text where a coordinator serves evidence; returns its address."""
    store = StatementStore(tmp_path / "evidence", "evidence")
    server = Server(store.app())
    yield lambda text: f"http://{server.address}/evidence/{to_hex(store.put(text))}.json"
    server.stop()


class TestList:
    def test_of_the_model_of_an_owner_and_of_a_node_s_owner(self, world: World) -> None:
        assert "Nobody has proposed to slash a seat in this model" in world.run("slash", "list").stdout
        report(world, b"a")
        report(world, b"b", owner=BOB, stage=1)
        _, first, second = world.run("slash", "list").stdout.splitlines()
        assert first.split()[:5] == ["1", "0", ALICE.address, "proposed,", "can"]
        assert f"until {format_time(world.providers().slash(1).deadline)}, in " in first
        assert second.split()[:3] == ["2", "1", BOB.address]
        assert to_hex(keccak(b"b")) in second
        key = ["--key", str(world.dir / "node.json")]  # bound to Bob
        for options, owners in (
            ((), [ALICE.address, BOB.address]),
            (("--owner", ALICE.address), [ALICE.address]),
            (("--mine", *key), [BOB.address]),
            (key, [ALICE.address, BOB.address]),
        ):
            found = world.json("slash", "list", *options)["slashes"]
            assert [each["owner"] for each in found] == owners
        assert found[0]["evidence_hash"] == to_hex(keccak(b"a"))
        assert (found[0]["status"], found[0]["contester"]) == ("proposed", None)
        assert found[0]["deadline"] == world.providers().slash(1).deadline
        with pytest.raises(ConfigError, match="--mine wants --key FILE"):
            world.run("slash", "list", "--mine")

    def test_how_each_stands(self, world: World) -> None:
        for text in (b"a", b"b"):
            report(world, text)
        _contest(world, 2)
        world.later(ARBITRATION_S + 1)
        _, first, second = world.run("slash", "list").stdout.splitlines()
        assert "proposed, could be contested until" in first
        assert "contested, the arbiter could decide until" in second


class TestShow:
    def test_what_the_audit_found(self, world: World, published: Any) -> None:
        text = fraud_of(world)
        report(world, text, published(text))
        shown = world.run("slash", "show", "1").stdout
        lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in shown.splitlines() if line}
        assert lines["audit"] == "the microbatch audit of round 3, stage 0, replica 0, microbatch 2"
        assert lines["differs"] == "'activation_out' of microbatch 2"
        assert lines["signed"] == repr(json.loads(text)["difference"]["signed"])
        assert lines["found"] == repr("0x" + 64 * "f")
        assert lines["error"] == "0.125; allowed is 1e-05"
        assert (lines["provider's numerics"], lines["auditor's numerics"]) == ("'torch A'", "'torch B'")
        assert lines["its stake"] == "1,000 tUSD"
        assert "problem" not in lines
        assert "committed to this, not that it is true" in lines["this means"]
        found = world.json("slash", "show", "1")
        assert canonical_json(found["evidence"]["document"]) == text
        assert (found["evidence"]["problem"], found["stake"]) == (None, str(SEAT_STAKE))

    def test_what_the_audit_of_an_answer_found(self, world: World, published: Any) -> None:
        text = false_answer_of(world)
        report(world, text, published(text))
        shown = world.run("slash", "show", "1").stdout
        lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in shown.splitlines() if line}
        assert lines["audit"] == "the answer audit of round 3, stage 0, replica 0, answer 2"
        assert lines["session"] == "0x" + 32 * "0"
        assert lines["version"] == f"3, state root {to_hex(mark('root'))}"
        assert lines["differs"] == "passed at position 17"
        assert lines["error"] == "0.125; allowed is 4e-05"
        assert "problem" not in lines
        assert "has this trace in the stage's part of the answer" in lines["this means"]
        found = world.json("slash", "show", "1")["evidence"]
        assert (canonical_json(found["document"]), found["problem"]) == (text, None)

    def test_evidence_that_can_t_be_had_is_had_from_somebody_else(
        self, world: World, published: Any, tmp_path: Path
    ) -> None:
        text = fraud_of(world)
        report(world, text)
        shown = world.run("slash", "show", "1").stdout
        assert f"It can't be had from '{NOWHERE}': it can't be reached." in shown
        assert "uncontested, the slash is executed all the same" in shown
        (tmp_path / "copy").write_bytes(text)
        for elsewhere in (str(tmp_path / "copy"), published(text)):
            found = world.json("slash", "show", "1", "--evidence", elsewhere)
            assert (found["evidence"]["problem"], found["evidence"]["document"]["unit"]["round"]) == (None, 3)

    def test_no_file_of_this_machine_is_read_for_a_stranger(self, world: World, tmp_path: Path) -> None:
        text = fraud_of(world)
        (tmp_path / "secret").write_bytes(text)
        report(world, text, (tmp_path / "secret").as_uri())
        assert "is no http or https" in world.run("slash", "show", "1").stdout

    @pytest.mark.parametrize(
        ("committed", "served", "problem", "meaning"),
        [
            (b"{}", b"[]", "its hash isn't the one on chain", "It proves nothing"),
            (b"\x1b[2J", b"\x1b[2J", r"It begins b'\x1b[2J'", "Any reporter may name any text"),
            (bytes(2**24 + 1), bytes(2**24 + 1), "it sends more than 16777216 bytes", "Nobody can check a claim"),
        ],
        ids=["another", "no form", "too long"],
    )
    def test_what_is_no_evidence(
        self, world: World, published: Any, committed: bytes, served: bytes, problem: str, meaning: str
    ) -> None:
        report(world, committed, published(served))
        shown = world.run("slash", "show", "1").stdout
        assert problem in shown
        assert meaning in shown
        assert "\x1b" not in shown

    def test_evidence_about_another_stage(self, world: World, published: Any) -> None:
        text = fraud_of(world, stage=1)
        report(world, text, published(text))
        found = world.json("slash", "show", "1")["evidence"]
        assert found["document"]["unit"]["stage"] == 1
        assert "it is about stage 1, the proposal about stage 0" in found["problem"]
        assert "can't be evidence against the seat" in found["meaning"]

    def test_what_an_auditor_passed_that_is_known_to_be_bad(self, world: World, published: Any) -> None:
        text = known_bad_of(world, NODE)
        report(world, text, published(text), BOB, 1)
        lines = world.run("slash", "show", "1").stdout
        assert f"auditor       {NODE.address}" in lines
        assert "the round audit of round 3, stage 1, replica 0" in lines
        assert "hasn't replayed the unit, then" in lines
        found = world.json("slash", "show", "1")["evidence"]
        assert (found["problem"], canonical_json(found["document"]) == text) == (None, True)

    @pytest.mark.parametrize(
        ("key", "changed", "problem"),
        [
            (
                ALICE,
                {},
                f"{ALICE.address} answers for the auditor {ALICE.address}; the proposal is about {BOB.address}",
            ),
            (NODE, {"auditor": BOB.address}, f"{BOB.address} hasn't passed what was shown"),
            (NODE, {"shown": None}, "what was shown is what was signed"),
        ],
        ids=["whose", "signature", "same"],
    )
    def test_what_proves_nothing_against_the_auditor(
        self, world: World, published: Any, key: Key, changed: dict[str, Any], problem: str
    ) -> None:
        fields = json.loads(known_bad_of(world, key))
        changed = {name: value or fields["signed"] for name, value in changed.items()}
        text = canonical_json(fields | changed)
        report(world, text, published(text), BOB, 1)
        found = world.json("slash", "show", "1")["evidence"]
        assert problem in found["problem"]
        assert "can't be evidence against the seat" in found["meaning"]

    def test_what_an_auditor_computed_otherwise(self, world: World, published: Any) -> None:
        text = dispute_of(world, NODE)
        report(world, text, published(text), BOB, 1)
        lines = [" ".join(line.split()) for line in world.run("slash", "show", "1").stdout.splitlines()]
        assert "operator 1, the first whose record isn't the referee's" in lines
        assert "computes aten.mul.Tensor of layers.3.ffn, in the forward pass of microbatch 0" in lines
        assert "tensors not shown: they are too large" in lines
        found = world.json("slash", "show", "1")["evidence"]
        assert (found["problem"], canonical_json(found["document"]) == text) == (None, True)

    @pytest.mark.parametrize(
        ("factors", "said"),
        [
            ((2, 3), "the referee's record is right"),
            ((3, 2), "the auditor's record is right"),
            ((3, 4), "neither record is right"),
        ],
    )
    def test_the_operator_is_run_again_in_the_same_class(
        self, world: World, published: Any, factors: tuple[float, float], said: str
    ) -> None:
        torch.set_num_threads(1)
        records, tensors = (product(factors[0]), product(factors[1])), safetensors.torch.save({"input.0": GIVEN})
        text = dispute_of(world, NODE, records, numerics_class("cpu", world.spec), tensors)
        report(world, text, published(text), BOB, 1)
        lines = [" ".join(line.split()) for line in world.run("slash", "show", "1").stdout.splitlines()]
        assert f"run again here {said}" in lines

    @pytest.mark.parametrize(
        ("numerics", "said"), [("torch 2", "no: this machine computes in another class, 'torch"), (None, "no: Input 0")]
    )
    def test_the_operator_can_t_be_run_again(
        self, world: World, published: Any, numerics: str | None, said: str
    ) -> None:
        torch.set_num_threads(1)
        records, tensors = (product(2), product(3)), safetensors.torch.save({"input.0": GIVEN + 1})
        text = dispute_of(world, NODE, records, numerics or numerics_class("cpu", world.spec), tensors)
        report(world, text, published(text), BOB, 1)
        assert f"run again here {said}" in " ".join(world.run("slash", "show", "1").stdout.split())

    def test_a_dispute_about_another_stage(self, world: World, published: Any) -> None:
        text = dispute_of(world, NODE)
        report(world, text, published(text), BOB, 3)
        problem = world.json("slash", "show", "1")["evidence"]["problem"]
        assert "it is about stage 1, the proposal about stage 3" in problem

    def test_what_doesn_t_exist(self, world: World) -> None:
        with pytest.raises(NotAllowed, match="Slash 1 doesn't exist: `commonweight slash list`"):
            world.run("slash", "show", "1")


class TestContest:
    def test_to_the_arbiter_s_decision_for_the_owner(self, world: World) -> None:
        report(world)
        world.give(ALICE, REPORTER_BOND)
        options = ["slash", "contest", "1", "--uri", "https://alice.example/answer"]
        text = world.run(*options, *world.key_options("alice")).stdout
        for line in (
            f"slash 1, of the seat of stage 0 of {ALICE.address}, proposed, can be contested until",
            "1,000 tUSD",
            "40 tUSD, until it is decided",
            "the arbiter has 1 h to decide",
            "the bond of 40 tUSD is lost, and the stake",
            "with 20 tUSD of the reporter's",
            "Slash 1 is contested. The arbiter can decide until",
        ):
            assert line in text
        found = world.json("slash", "show", "1")
        assert (found["status"], found["contester"]) == ("contested", ALICE.address)
        assert found["contest_uri"] == "https://alice.example/answer"
        free = world.providers().free_stake_of(ALICE.address)
        decide = ["arbiter", "resolve-slash", "1", "--reject"]
        for judge in ("judge-0", "judge-1"):
            world.run(*decide, *world.key_options(judge))
        world.later(DELAY_S)
        world.run(*decide, *world.key_options())
        assert world.json("slash", "list")["slashes"][0]["status"] == "dropped"
        assert world.providers().is_seated(world.model.model_id, ALICE.address, 0)
        assert world.providers().free_stake_of(ALICE.address) == free + REPORTER_BOND * 3 // 2

    def test_upheld_it_costs_bond_and_stake(self, world: World) -> None:
        report(world)
        _contest(world, 1)
        free, stranger = (world.providers().free_stake_of(key.address) for key in (CAROL, STRANGER))
        decide = ["arbiter", "resolve-slash", "1", "--accept"]
        for judge in ("judge-0", "judge-1"):
            world.run(*decide, *world.key_options(judge))
        world.later(DELAY_S)
        world.run(*decide, *world.key_options())
        assert world.json("slash", "show", "1")["stake"] == "0"
        assert "nothing any more: the seat is slashed or released" in world.run("slash", "show", "1").stdout
        assert world.providers().free_stake_of(CAROL.address) == free
        assert world.providers().free_stake_of(STRANGER.address) == stranger + (3 * REPORTER_BOND + SEAT_STAKE) // 2

    def test_a_dry_run_sends_nothing_and_estimates_well(self, world: World) -> None:
        report(world)
        world.give(CAROL, REPORTER_BOND)
        height = world.chain.block_number()
        options = ["slash", "contest", "1", "--uri", "https://carol.example/why"]
        planned = world.json(*options, "--key", str(world.dir / "carol.json"), "--dry-run")["steps"]
        assert world.chain.block_number() == height
        sent = world.json(*options, *world.key_options("carol"))
        assert [step["what"].split()[0] for step in sent["steps"]] == ["allow", "contest"]
        assert (sent["status"], sent["bond"]) == ("contested", str(REPORTER_BOND))
        for plan, step in zip(planned, sent["steps"], strict=True):
            assert step["gas"] <= plan["gas"] <= 1.5 * step["gas"], step

    def test_it_asks(self, world: World) -> None:
        report(world)
        world.give(ALICE, REPORTER_BOND)
        result = world.run("slash", "contest", "1", *world.key_options("alice")[:-1], input="n\n")
        assert (result.exit_code, "Send these 2 transactions?" in result.stderr) == (1, True)
        assert world.providers().slash(1).status is SlashStatus.PROPOSED

    def test_without_the_bond(self, world: World) -> None:
        report(world)
        world.give(CAROL, 15 * USD)
        with pytest.raises(InsufficientFunds, match=r"has 15 tUSD, 40 tUSD are needed: send it 25 tUSD"):
            world.run("slash", "contest", "1", *world.key_options("carol"))

    def test_what_can_t_be_contested(self, world: World) -> None:
        report(world)
        _contest(world, 1)
        with pytest.raises(NotAllowed, match="Slash 1 is contested: only what is proposed can be contested"):
            world.run("slash", "contest", "1", *world.key_options("alice"))
        report(world)
        world.later(WINDOW_S + 1)
        with pytest.raises(NotAllowed, match=r"could be contested until .* ago: now anybody can have it executed"):
            world.run("slash", "contest", "2", *world.key_options("alice"))


class TestEnds:
    def test_anybody_executes_what_nobody_contested(self, world: World) -> None:
        report(world)
        with pytest.raises(NotAllowed, match="too early to execute slash 1: proposed, can be contested until"):
            world.run("slash", "execute", "1", *world.key_options("bob"))
        with pytest.raises(NotAllowed, match="Slash 1 is proposed: only what is contested can be dropped"):
            world.run("slash", "drop", "1", *world.key_options("bob"))
        world.later(WINDOW_S)
        assert "Nothing was sent" in world.run("slash", "execute", "1", "--dry-run").stdout  # whoever would
        assert "Slash 1 is executed." in world.run("slash", "execute", "1", *world.key_options("bob")).stdout
        assert not world.providers().is_seated(world.model.model_id, ALICE.address, 0)
        again = world.run("slash", "execute", "1", *world.key_options("bob"))
        assert "Nothing to execute: slash 1 is executed" in again.stdout

    def test_what_was_slashed_meanwhile_is_dropped(self, world: World) -> None:
        for text in (b"a", b"b"):
            report(world, text)
        world.later(WINDOW_S)
        world.run("slash", "execute", "1", *world.key_options("bob"))
        assert world.json("slash", "execute", "2", *world.key_options("bob"))["status"] == "dropped"

    def test_anybody_drops_what_the_arbiter_left(self, world: World) -> None:
        report(world)
        _contest(world, 1)
        with pytest.raises(NotAllowed, match="too early to drop slash 1: contested, the arbiter can decide until"):
            world.run("slash", "drop", "1", *world.key_options("bob"))
        world.later(ARBITRATION_S)
        assert world.json("slash", "drop", "1", *world.key_options("bob"))["status"] == "dropped"
        assert world.providers().is_seated(world.model.model_id, ALICE.address, 0)
        assert world.providers().free_stake_of(CAROL.address) == REPORTER_BOND


def _contest(world: World, slash_id: int) -> None:
    """By Carol, who has no seat."""
    world.give(CAROL, REPORTER_BOND, world.model.terms.providers)
    world.providers(CAROL).contest_slash(slash_id, "https://carol.example")
