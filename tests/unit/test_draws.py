"""A node believes a coordinator nothing that it can recompute: not the beacon, and not that a unit was drawn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commonweight.errors import CommitmentBroken, IdentityMismatch, MalformedMessage, UnplannedMessage
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.epoch import answers_per_round
from commonweight.wire.evidence import MAX_RETAINED_ROUNDS
from commonweight.wire.generated import control_pb2 as pb
from node.answers import answers_folder, write_trace
from node.draws import Draws
from tests.unit.sealing import (
    ASSIGNMENT,
    AUDITOR,
    CHAINS,
    MODEL_ID,
    PER_EPOCH,
    REPLICA,
    SPEC,
    STAGE,
    STAGES,
    STRANGER,
    a_trace,
    answers,
    commitments,
    drawn,
    draws_at,
    find,
    find_answer,
    grant,
    salt_of,
    sealed,
    signed,
    stages,
    tip_of,
    undrawn,
)


def test_an_epoch_has_one_tip_and_none_comes_back(tmp_path: Path) -> None:
    draws = draws_at(tmp_path)
    with pytest.raises(UnplannedMessage):
        draws.tip(0)
    for round_ in (0, 1, PER_EPOCH - 1, PER_EPOCH):
        draws.plan(round_, tip_of(round_))
        assert draws.tip(round_) == tip_of(round_)
    with pytest.raises(UnplannedMessage):
        draws.tip(PER_EPOCH - 1)
    with pytest.raises(CommitmentBroken, match="other work would be audited"):
        draws.plan(PER_EPOCH + 1, CHAINS[2][0])
    with pytest.raises(CommitmentBroken):
        Draws.open(tmp_path, ASSIGNMENT).plan(PER_EPOCH + 1, CHAINS[2][0])  # after a restart, too
    with pytest.raises(CommitmentBroken):
        draws.plan(0, tip_of(0))


@pytest.mark.parametrize("tip", [b"", b"\1" * 31, b"\1" * 33])
def test_a_tip_has_32_bytes(tmp_path: Path, tip: bytes) -> None:
    with pytest.raises(MalformedMessage, match="beacon_tip"):
        draws_at(tmp_path).plan(0, tip)


def grants(draws: Draws, round_: int) -> bool:
    """Whether something that was drawn in the round is granted."""

    def is_near(audit: Audit) -> bool:
        return (audit.stage, audit.replica) == (STAGE, REPLICA) or abs(audit.stage - STAGE) == 1

    near = next(filter(is_near, drawn(round_)))
    try:
        return draws.grant(grant(near)) == near
    except UnplannedMessage:
        return False


def with_stage(stage: int, told: list[bytes]) -> list[pb.SealedStage]:
    """Round 1 with other commitments of one stage."""
    found = stages(1)
    del found[stage].commitments[:]
    found[stage].commitments.extend(told)
    return found


def with_loads(*loads: bytes) -> list[pb.SealedStage]:
    """Round 1 with other loads of the tested stage."""
    found = stages(1)
    del found[STAGE].loads[:]
    found[STAGE].loads.extend(loads)
    return found


FALSE_SEALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no value": ({"beacon": b""}, MalformedMessage, "32 bytes"),
    "no salt": ({"salt": b""}, CommitmentBroken, "isn't replica 1 of these"),
    "a short salt": ({"salt": b"\1"}, MalformedMessage, "32 bytes"),
    "a short commitment": ({"stages": with_stage(0, [b"\1"])}, MalformedMessage, "32 bytes"),
    "a commitment too few": ({"stages": with_stage(STAGE, commitments(1)[STAGE][:1])}, MalformedMessage, "1 receipts"),
    "a stage too few": ({"stages": stages(1)[1:]}, MalformedMessage, "4 stages"),
    "a load that is none": ({"stages": with_loads(b"\xff", b"\0")}, MalformedMessage, "load that is none"),
    "a load twice": ({"stages": with_loads(b"\7", b"\1")}, MalformedMessage, "don't divide"),
    "nothing for us to do": ({"stages": with_loads(b"\7", b"\0")}, MalformedMessage, "don't divide"),
    "a value of its own": ({"beacon": b"\1" * 32}, CommitmentBroken, "doesn't follow from the tip"),
    "the value before": ({"beacon": CHAINS[0][1]}, CommitmentBroken, "doesn't follow from the tip"),
    "the value after": ({"beacon": CHAINS[0][3]}, CommitmentBroken, "doesn't follow from the tip"),
    "another epoch's value": ({"beacon": CHAINS[1][2]}, CommitmentBroken, "doesn't follow from the tip"),
    "another stage's salt": ({"salt": salt_of(1, STAGE + 1)}, CommitmentBroken, "isn't replica 1 of these"),
    "another round's salt": ({"salt": salt_of(2)}, CommitmentBroken, "isn't replica 1 of these"),
    "another commitment as ours": ({"stages": stages(2)}, CommitmentBroken, "isn't replica 1 of these"),
    "the other replica's as ours": ({"replica": 0}, CommitmentBroken, "isn't replica 0 of these"),
    "a replica that there isn't": ({"replica": 2}, CommitmentBroken, "isn't replica 2 of these"),
    "an output that isn't blinded": (
        {"stages": with_stage(STAGE, [bytes.fromhex(signed(1).output[2:])] * 2)},
        CommitmentBroken,
        "isn't replica 1 of these",
    ),
    "a round that isn't signed": ({"round": 2}, CommitmentBroken, "has signed no report"),
}


@pytest.mark.parametrize("heard", [(0,), ()], ids=["with the value before", "from the tip"])
@pytest.mark.parametrize(("lie", "error", "match"), FALSE_SEALS.values(), ids=FALSE_SEALS.keys())
def test_a_false_seal_is_refused(
    tmp_path: Path, lie: dict[str, Any], error: type[Exception], match: str, heard: tuple[int, ...]
) -> None:
    draws = draws_at(tmp_path, *heard)
    draws.plan(1, tip_of(1))
    with pytest.raises(error, match=match):
        draws.seal(sealed(1, **lie), signed(1))
    assert not grants(draws, 1)
    draws.seal(sealed(1), signed(1))
    assert grants(draws, 1)


def test_a_round_that_was_sealed_isnt_sealed_otherwise(tmp_path: Path) -> None:
    draws = draws_at(tmp_path, 0, 1)
    draws.seal(sealed(0, (0, 1)), signed(1))
    for lie in ({"beacon": CHAINS[0][2]}, {"stages": stages(1)}):
        with pytest.raises(CommitmentBroken):
            draws.seal(sealed(0, (0, 1), **lie), signed(1))


def draws_of(stage: int, directory: Path, round_: int) -> Draws:
    """Of the one replica of another stage."""
    draws = draws_at(directory, round_)
    if stage == STAGE:
        return draws
    assert draws._known is not None
    others = tuple(each.model_copy(update={"stage": stage, "replica": 0}) for each in draws._known.rounds)
    return replace(draws, stage=stage, _known=draws._known.model_copy(update={"rounds": others}))


@pytest.mark.parametrize(
    ("stage", "kind"), [(STAGE, Kind.ROUND), (STAGE, Kind.MICROBATCH), (STAGES - 1, Kind.LOSS)], ids=str
)
def test_what_is_granted_is_what_it_takes(tmp_path: Path, stage: int, kind: Kind) -> None:
    audit = find(stage, kind)
    draws = draws_of(stage, tmp_path, audit.round)
    assert draws.admitted() == set()
    assert draws.grant(grant(audit)) == audit
    assert draws.admitted() == {AUDITOR.der}
    assert draws.allows_tensors(AUDITOR.der, audit.round)
    assert draws.allows_state(AUDITOR.der, audit.round)
    for auditor, round_ in ((AUDITOR, audit.round + 1), (STRANGER, audit.round)):
        assert not draws.allows_tensors(auditor.der, round_)
        assert not draws.allows_state(auditor.der, round_)


@pytest.mark.parametrize("kind", [Kind.ROUND, Kind.MICROBATCH], ids=str)
@pytest.mark.parametrize("stage", [STAGE - 1, STAGE + 1])
def test_a_neighbours_auditor_gets_tensors_and_no_state(tmp_path: Path, stage: int, kind: Kind) -> None:
    audit = find(stage, kind)
    draws = draws_at(tmp_path, audit.round)
    draws.grant(grant(audit))
    assert draws.allows_tensors(AUDITOR.der, audit.round)
    assert not draws.allows_state(AUDITOR.der, audit.round)


def test_an_auditor_of_tokens_gets_no_state(tmp_path: Path) -> None:
    audit = find(0, Kind.DATA)
    draws = draws_of(0, tmp_path, audit.round)
    draws.grant(grant(audit))
    assert draws.allows_tensors(AUDITOR.der, audit.round)
    assert not draws.allows_state(AUDITOR.der, audit.round)


def test_what_isnt_drawn_is_granted_to_nobody(tmp_path: Path) -> None:
    audit = find(STAGE)
    draws = draws_at(tmp_path, audit.round)
    draws.plan(audit.round + 1, tip_of(audit.round + 1))
    faults: list[tuple[Audit, type[Exception]]] = [
        (undrawn(audit.round), UnplannedMessage),
        (replace(audit, microbatch=99), UnplannedMessage),
        (replace(audit, round=audit.round + 1), UnplannedMessage),  # not sealed
        (find(STAGE + 2), UnplannedMessage),  # no neighbour's
        (find(STAGE, replica=0), UnplannedMessage),  # the other replica's
    ]
    for unit, error in faults:
        with pytest.raises(error):
            draws.grant(grant(unit))
    nonsense = grant(audit)
    nonsense.unit.kind = "weights"
    with pytest.raises(MalformedMessage, match="no audits of kind 'weights'"):
        draws.grant(nonsense)
    with pytest.raises(IdentityMismatch):
        draws.grant(grant(audit, auditor=b"no DER"))
    assert draws.admitted() == set()


def test_who_audits_is_replaced_and_goes_with_the_round(tmp_path: Path) -> None:
    audit = find(STAGE)
    draws = draws_at(tmp_path, audit.round)
    draws.grant(grant(audit, STRANGER.der))
    draws.grant(grant(audit))
    assert draws.admitted() == {AUDITOR.der}
    draws.seal(sealed(audit.round, ()), signed(audit.round))
    assert draws.admitted() == set()
    with pytest.raises(UnplannedMessage):
        draws.grant(grant(audit))


def test_a_node_that_was_restarted_still_knows_what_was_drawn(tmp_path: Path) -> None:
    audit = find(STAGE)
    draws_at(tmp_path, audit.round)
    draws = Draws.open(tmp_path, ASSIGNMENT)
    draws.grant(grant(audit))
    assert draws.allows_tensors(AUDITOR.der, audit.round)


def test_a_node_that_died_before_it_heard_of_the_seal_checks_it_afterwards(tmp_path: Path) -> None:
    audit = find(STAGE)
    draws_at(tmp_path).plan(audit.round, tip_of(audit.round))
    draws = Draws.open(tmp_path, ASSIGNMENT)
    with pytest.raises(CommitmentBroken):
        draws.seal(sealed(audit.round, beacon=b"\1" * 32), signed(audit.round))
    draws.seal(sealed(audit.round), signed(audit.round))
    draws.grant(grant(audit))


def moved(stage: int = STAGE + 2) -> pb.Assignment:
    """The node's assignment in another stage."""
    assignment = pb.Assignment()
    assignment.CopyFrom(ASSIGNMENT)
    assignment.stage = stage
    return assignment


def folders_of(directory: Path, stage: int) -> list[Path]:
    """Where a node keeps what is of a stage."""
    return [directory / kind / f"stage-{stage}" for kind in ("", "published", "answers")]


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_node_that_has_moved_answers_for_its_rounds_in_the_stage_before(tmp_path: Path, is_restarted: bool) -> None:
    audit = find(STAGE, Kind.ROUND)
    draws = draws_at(tmp_path, audit.round)
    if is_restarted:
        draws = Draws.open(tmp_path, moved())
    draws.stage = STAGE + 2
    draws.grant(grant(audit))
    assert draws.stage_in(audit.round) == STAGE
    assert draws.allows_state(AUDITOR.der, audit.round)
    with pytest.raises(UnplannedMessage, match="neither this node's"):
        draws.grant(grant(find(STAGE + 2)))


def test_a_node_that_moved_before_it_heard_of_the_seal_checks_it_by_the_stage_that_it_has_signed_for(
    tmp_path: Path,
) -> None:
    audit = find(STAGE, Kind.ROUND)
    Draws.open(tmp_path, ASSIGNMENT).plan(audit.round, tip_of(audit.round))
    draws = Draws.open(tmp_path, moved())
    draws.seal(sealed(audit.round), signed(audit.round))
    assert draws.grant(grant(audit)) == audit
    assert draws.stage_in(audit.round) == STAGE


def test_what_a_node_has_of_the_stage_before_goes_when_no_audit_can_ask_for_it(tmp_path: Path) -> None:
    draws = draws_at(tmp_path, 0, 1)
    mine, other = folders_of(tmp_path, STAGE), folders_of(tmp_path, STAGE + 2)
    pieces = tmp_path / "pieces" / f"stage-{STAGE}"
    for folder in (*mine, *other, pieces):
        folder.mkdir(parents=True, exist_ok=True)
    draws.stage = STAGE + 2
    there = signed(2).model_copy(update={"stage": STAGE + 2})
    draws.seal(sealed(1, [0]), signed(1))
    draws.seal(sealed(0, []), signed(1))
    assert all(folder.exists() for folder in (*mine, *other)), "it may not have heard of its last round there yet"
    draws.seal(sealed(1, [1]), signed(1))
    draws.seal(sealed(1, [1]), there)
    assert all(folder.exists() for folder in (*mine, *other)), "round 1 isn't decided"
    draws.seal(sealed(1, []), there)
    assert not any(folder.exists() for folder in mine)
    assert all(folder.exists() for folder in (*other, pieces))


def test_a_node_that_has_lost_what_it_knew_lets_nobody_fetch(tmp_path: Path) -> None:
    audit = find(STAGE)
    draws_at(tmp_path, audit.round)
    (tmp_path / "receipts" / MODEL_ID.hex() / "sealed.json").write_text("{")
    draws = Draws.open(tmp_path, ASSIGNMENT)
    draws.seal(sealed(audit.round), signed(audit.round))
    with pytest.raises(UnplannedMessage):
        draws.grant(grant(audit))


def test_what_is_known_is_bounded(tmp_path: Path) -> None:
    rounds = tuple(range(2 * PER_EPOCH))
    assert len(rounds) > MAX_RETAINED_ROUNDS
    draws = draws_at(tmp_path, *rounds)
    assert [grants(draws, round_) for round_ in rounds] == [
        round_ in rounds[-MAX_RETAINED_ROUNDS:] for round_ in rounds
    ]


# Answers

DRAWN, UNDRAWN, NEIGHBOURS = find_answer(STAGE), find_answer(STAGE, is_drawn=False), find_answer(STAGE + 1)


def named(audit: Audit) -> pb.SealedAnswer:
    assert audit.microbatch is not None
    return answers(audit.round)[audit.microbatch]


def traces_in(directory: Path) -> set[bytes]:
    """The sessions whose traces are kept; nothing else is kept of another."""
    folder = answers_folder(directory, STAGE)
    sessions = {bytes.fromhex(path.stem) for path in folder.rglob("*") if path.is_file()}
    assert sessions == {bytes.fromhex(path.stem) for path in folder.rglob("*.answer")}
    return sessions


def test_an_answer_that_is_drawn_is_for_its_auditor_and_for_nothing_else(tmp_path: Path) -> None:
    draws = draws_at(tmp_path, 0, 1, answered=(0, 1))
    assert draws.grant(grant(DRAWN)) == DRAWN
    assert draws.admitted() == {AUDITOR.der}
    assert draws.granted_answers(AUDITOR.der, 0) == {named(DRAWN).session: 0}
    assert draws.granted_answers(STRANGER.der, 0) == draws.granted_answers(AUDITOR.der, 1) == {}
    assert not draws.allows_tensors(AUDITOR.der, 0)
    assert not draws.allows_state(AUDITOR.der, 0)


def test_an_audit_of_training_opens_no_answers(tmp_path: Path) -> None:
    draws = draws_at(tmp_path, 0, answered=(0,))
    for audit in drawn(0, answers(0)):
        if audit.kind is not Kind.ANSWER and abs(audit.stage - STAGE) <= 1:
            draws.grant(grant(audit))
    assert draws.allows_tensors(AUDITOR.der, 0)
    assert draws.granted_answers(AUDITOR.der, 0) == {}


@pytest.mark.parametrize("audit", [UNDRAWN, NEIGHBOURS, replace(DRAWN, microbatch=len(answers(0)))], ids=str)
def test_no_other_answer_is_granted(tmp_path: Path, audit: Audit) -> None:
    draws = draws_at(tmp_path, 0, answered=(0,))
    with pytest.raises(UnplannedMessage):
        draws.grant(grant(audit))
    assert draws.admitted() == set()


def changed(**fields: Any) -> list[pb.SealedAnswer]:
    """The answers of round 0, this node's drawn one told otherwise."""
    told = answers(0)
    for name, value in fields.items():
        setattr(told[DRAWN.microbatch or 0], name, value)
    return told


def with_traces(traces: Sequence[bytes]) -> list[pb.SealedAnswer]:
    told = changed()
    told[DRAWN.microbatch or 0].traces[:] = traces
    return told


TRACES = list(named(DRAWN).traces)
FALSE_ANSWERS: dict[str, tuple[list[pb.SealedAnswer], type[Exception], str]] = {
    "another trace": (with_traces([bytes(32)] * STAGES), CommitmentBroken, "this node has signed"),
    "a neighbour's trace": (with_traces(TRACES[1:] + TRACES[:1]), CommitmentBroken, "this node has signed"),
    "another count": (changed(fed=99), CommitmentBroken, "sealed with 99 tokens"),
    "a trace too few": (with_traces(TRACES[1:]), MalformedMessage, "with 4 traces"),
    "a short trace": (with_traces([b"\1", *TRACES[1:]]), MalformedMessage, "32 bytes"),
    "a short id": (changed(session=b"short"), MalformedMessage, "5 bytes"),
    "a version to come": (changed(round=1), MalformedMessage, "later version 1"),
    "one twice": ([*answers(0), answers(0)[0]], MalformedMessage, "one answer twice"),
    "too many": (answers(0) * answers_per_round(SPEC), MalformedMessage, "at most"),
}


@pytest.mark.parametrize(("told", "error", "match"), FALSE_ANSWERS.values(), ids=FALSE_ANSWERS.keys())
def test_a_seal_with_false_answers_is_refused(
    tmp_path: Path, told: list[pb.SealedAnswer], error: type[Exception], match: str
) -> None:
    draws_at(tmp_path, 0, answered=(0,))
    (tmp_path / "receipts" / MODEL_ID.hex() / "sealed.json").unlink()
    kept = traces_in(tmp_path)
    draws = Draws.open(tmp_path, ASSIGNMENT)  # restarted: its traces say what it has signed
    draws.plan(0, tip_of(0))
    with pytest.raises(error, match=match):
        draws.seal(sealed(0, answers=told), signed(0))
    assert traces_in(tmp_path) == kept
    assert not grants(draws, 0)
    draws.seal(sealed(0, answers=answers(0)), signed(0))
    assert draws.grant(grant(DRAWN)) == DRAWN


def test_what_was_sealed_isnt_sealed_with_other_answers(tmp_path: Path) -> None:
    draws = draws_at(tmp_path, 0, answered=(0,))
    draws.seal(sealed(0, answers=answers(0)), signed(0))
    for told in (answers(0)[1:], changed(fed=99), []):
        with pytest.raises(CommitmentBroken, match="was sealed before"):
            draws.seal(sealed(0, answers=told), signed(0))


def test_traces_stay_until_nobody_can_audit_them(tmp_path: Path) -> None:
    draws = draws_at(tmp_path, 0, 1, answered=(0,))
    expected = {
        named(audit).session for audit in drawn(0, answers(0)) if (audit.kind, audit.stage) == (Kind.ANSWER, STAGE)
    }
    assert named(DRAWN).session in expected
    assert traces_in(tmp_path) == expected
    assert draws.needed_versions() == Draws.open(tmp_path, ASSIGNMENT).needed_versions() == {0}
    draws.grant(grant(DRAWN))
    draws.seal(sealed(1, [1]), signed(1))
    assert traces_in(tmp_path) == set()
    assert draws.needed_versions() == Draws.open(tmp_path, ASSIGNMENT).needed_versions() == set()
    assert draws.granted_answers(AUDITOR.der, 0) == {}


def test_traces_of_a_round_that_isnt_retained_at_all_go_at_once(tmp_path: Path) -> None:
    write_trace(answers_folder(tmp_path, STAGE), a_trace(1, 0))  # its answer isn't sealed yet
    draws = draws_at(tmp_path, answered=(0,))
    for number in range(len(answers(0))):
        write_trace(answers_folder(tmp_path, STAGE), a_trace(0, number))
    draws.plan(0, tip_of(0))
    draws.seal(sealed(0, (), answers=answers(0)), signed(0))
    assert traces_in(tmp_path) == {a_trace(1, 0).session}


def test_a_restarted_node_still_grants_an_answer_and_one_whose_trace_is_lost_doesnt(tmp_path: Path) -> None:
    draws_at(tmp_path, 0, answered=(0,))
    draws = Draws.open(tmp_path, ASSIGNMENT)
    assert draws.grant(grant(DRAWN)) == DRAWN
    assert draws.granted_answers(AUDITOR.der, 0) == {named(DRAWN).session: 0}
    lost = Draws.open(tmp_path / "lost", ASSIGNMENT)
    lost.plan(0, tip_of(0))
    lost.seal(sealed(0, answers=answers(0)), signed(0))
    with pytest.raises(UnplannedMessage, match="none that it knows of"):
        lost.grant(grant(DRAWN))
    assert lost.needed_versions() == set()
