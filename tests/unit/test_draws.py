"""A node believes a coordinator nothing that it can recompute: not the beacon, and not that a unit was drawn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commonweight.errors import CommitmentBroken, IdentityMismatch, MalformedMessage, UnplannedMessage
from commonweight.rules.audits import Audit, Kind
from commonweight.wire.evidence import MAX_RETAINED_ROUNDS
from node.draws import Draws
from tests.unit.sealing import (
    ASSIGNMENT,
    AUDITOR,
    CHAINS,
    PER_EPOCH,
    STAGE,
    STRANGER,
    draws_at,
    find,
    grant,
    outputs,
    sealed,
    signed,
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


FALSE_SEALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no value": ({"beacon": b""}, MalformedMessage, "32 bytes"),
    "a short output": ({"outputs": [b"\1", *outputs(1)[1:]]}, MalformedMessage, "32 bytes"),
    "an output too few": ({"outputs": outputs(1)[1:]}, MalformedMessage, "4 outputs"),
    "a value of its own": ({"beacon": b"\1" * 32}, CommitmentBroken, "doesn't follow from the tip"),
    "the value before": ({"beacon": CHAINS[0][1]}, CommitmentBroken, "doesn't follow from the tip"),
    "the value after": ({"beacon": CHAINS[0][3]}, CommitmentBroken, "doesn't follow from the tip"),
    "another epoch's value": ({"beacon": CHAINS[1][2]}, CommitmentBroken, "doesn't follow from the tip"),
    "another output of ours": ({"outputs": outputs(2)}, CommitmentBroken, "isn't what this node signed"),
    "a neighbour's output as ours": ({"outputs": outputs(1)[1:] + outputs(1)[:1]}, CommitmentBroken, "generation 1"),
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
    assert draws._draw(1) == frozenset()
    draws.seal(sealed(1), signed(1))


def test_a_round_that_was_sealed_isnt_sealed_otherwise(tmp_path: Path) -> None:
    draws = draws_at(tmp_path, 0, 1)
    draws.seal(sealed(0, (0, 1)), signed(1))
    for lie in ({"beacon": CHAINS[0][2]}, {"outputs": outputs(1)}):
        with pytest.raises(CommitmentBroken):
            draws.seal(sealed(0, (0, 1), **lie), signed(1))


def gets_a_state(draws: Draws, auditor: bytes, round_: int) -> bool:
    parameters = [draws.allows_parameters(auditor, round_, after=after) for after in (False, True)]
    return any(parameters) or draws.allows_moments(auditor, round_)


def test_what_is_granted_is_what_it_takes(tmp_path: Path) -> None:
    whole, single = find(STAGE, Kind.ROUND), find(STAGE, Kind.MICROBATCH)
    for audit, after_it in ((whole, True), (single, False)):
        draws = draws_at(tmp_path / audit.kind.value, audit.round)
        assert draws.admitted() == set()
        assert draws.grant(grant(audit)) == audit
        assert draws.admitted() == {AUDITOR.der}
        assert draws.allows_tensors(AUDITOR.der, audit.round)
        assert draws.allows_parameters(AUDITOR.der, audit.round, after=False)
        assert draws.allows_parameters(AUDITOR.der, audit.round, after=True) == after_it
        assert draws.allows_moments(AUDITOR.der, audit.round) == after_it
        assert not draws.allows_tensors(AUDITOR.der, audit.round + 1)
        assert not gets_a_state(draws, AUDITOR.der, audit.round + 1)
        assert not draws.allows_tensors(STRANGER.der, audit.round)
        assert not gets_a_state(draws, STRANGER.der, audit.round)


@pytest.mark.parametrize("stage", [STAGE - 1, STAGE + 1])
def test_a_neighbours_auditor_gets_tensors_and_no_state(tmp_path: Path, stage: int) -> None:
    audit = find(stage, Kind.ROUND)
    draws = draws_at(tmp_path, audit.round)
    draws.grant(grant(audit))
    assert draws.allows_tensors(AUDITOR.der, audit.round)
    assert not gets_a_state(draws, AUDITOR.der, audit.round)


def test_an_auditor_of_tokens_gets_no_state(tmp_path: Path) -> None:
    audit = find(0, Kind.DATA)
    head = type(ASSIGNMENT)()
    head.CopyFrom(ASSIGNMENT)
    head.stage = 0
    draws = draws_at(tmp_path, audit.round)
    own = replace(draws, stage=0)
    own.grant(grant(audit))
    assert own.allows_tensors(AUDITOR.der, audit.round)
    assert not gets_a_state(own, AUDITOR.der, audit.round)


def test_what_isnt_drawn_is_granted_to_nobody(tmp_path: Path) -> None:
    audit = find(STAGE)
    draws = draws_at(tmp_path, audit.round)
    draws.plan(audit.round + 1, tip_of(audit.round + 1))
    faults: list[tuple[Audit, type[Exception]]] = [
        (undrawn(audit.round), UnplannedMessage),
        (replace(audit, microbatch=99), UnplannedMessage),
        (replace(audit, round=audit.round + 1), UnplannedMessage),  # not sealed
        (find(STAGE + 2), UnplannedMessage),  # no neighbour's
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


def test_a_node_that_has_lost_what_it_knew_lets_nobody_fetch(tmp_path: Path) -> None:
    audit = find(STAGE)
    draws_at(tmp_path, audit.round)
    (tmp_path / "sealed.json").write_text("{")
    draws = Draws.open(tmp_path, ASSIGNMENT)
    draws.seal(sealed(audit.round), signed(audit.round))
    with pytest.raises(UnplannedMessage):
        draws.grant(grant(audit))


def test_what_is_known_is_bounded(tmp_path: Path) -> None:
    rounds = tuple(range(2 * PER_EPOCH))
    assert len(rounds) > MAX_RETAINED_ROUNDS
    draws = draws_at(tmp_path, *rounds)
    assert [bool(draws._draw(round_)) for round_ in rounds] == [
        round_ in rounds[-MAX_RETAINED_ROUNDS:] for round_ in rounds
    ]
