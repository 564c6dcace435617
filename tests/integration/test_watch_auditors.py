"""The watcher, and `audit`, against statements that lie about who might audit, who did, and what they signed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commonweight.chain.keys import Key
from commonweight.rules.audits import Audit, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.epoch import signed_receipt
from commonweight.rules.receipt import Receipt
from commonweight.rules.statement import AuditorSeat, EquivocationLine, Opinion, Statement, to_hex
from commonweight.watch.proposals import KEYS_PER_QUESTION, who_answered, who_was_paid
from commonweight.watch.store import StatementStore
from commonweight.watch.watcher import Watcher
from tests.integration import cli_world
from tests.integration import epochs as made
from tests.integration.cli_world import (
    ALICE,
    AUDITORS,
    BOB,
    CAROL,
    JUDGE_0,
    NODE,
    SEAT_STAKE,
    STRANGER,
    World,
    finalize,
    propose,
    signing,
    statement_of,
)
from tools.build_vectors import mark

world, audited, told = cli_world.world, cli_world.audited, made.told  # pytest finds fixtures by their names here

STAGE = 1
"""Held by Bob's node, as stage 3 is; the auditors have seats there, too."""


def judged_by(world: World, epoch: int = 2, **options: Any) -> Statement:
    return statement_of(world, epoch, seated=AUDITORS, **options)


def watch(world: World, folder: Path) -> None:
    store = StatementStore(folder / "kept")
    for statement in world.statements:
        store.put(canonical_json(statement.model_dump()))
    Watcher(world.spec, world.chain, world.model, store).step()


def names(told: list[Any]) -> list[str]:
    return [name for name, _ in told]


def opinion_of(statement: Statement) -> Opinion:
    """The first that an auditor gave."""
    return next(each for line in statement.audits for each in line.opinions if each.owner is not None)


def with_opinion(statement: Statement, changed: Opinion, old: Opinion) -> Statement:
    audits = (
        line.model_copy(update={"opinions": tuple(changed if each == old else each for each in line.opinions)})
        for line in statement.audits
    )
    return statement.model_copy(update={"audits": tuple(audits)})


def signed_twice(world: World, node: Key, signer: Key) -> EquivocationLine:
    unit, outputs = mark("unit"), (mark("one"), mark("other"))
    one, other = (
        to_hex(signing(world, key)(Receipt(world.model.model_id, STAGE, unit, output)))
        for key, output in zip((node, signer), outputs, strict=True)
    )
    return EquivocationLine(
        stage=STAGE,
        node=node.address,
        unit=to_hex(unit),
        outputs=(to_hex(outputs[0]), to_hex(outputs[1])),
        signatures=(one, other),
    )


@pytest.mark.parametrize("said", Verdict)
def test_honest_epochs_with_auditors_pass(audited: World, tmp_path: Path, told: list[Any], said: Verdict) -> None:
    """Whatever they say; and what they are convicted of is carried on."""
    propose(audited, judged_by(audited, says=lambda *_: said, equivocations=[signed_twice(audited, NODE, NODE)]))
    finalize(audited)
    propose(audited, judged_by(audited, 3))
    watch(audited, tmp_path)
    assert names(told) == ["epoch.checked"] * 4
    assert opinion_of(audited.statements[2]).owner in (CAROL.address, STRANGER.address)
    assert len(audited.json("audit")["verified"]) == 4


def test_who_leaves_or_comes_after_the_tip_changes_nothing(audited: World, tmp_path: Path, told: list[Any]) -> None:
    statement = judged_by(audited)  # commits the tip
    audited.providers(CAROL).leave_seat(audited.model.model_id, STAGE)
    audited.bond(JUDGE_0, SEAT_STAKE)
    audited.providers(JUDGE_0).take_seat(audited.model.model_id, STAGE)
    assert {seat.owner for seat in statement.auditors if seat.stage == STAGE} == {
        BOB.address, CAROL.address, STRANGER.address
    }  # fmt: skip
    propose(audited, statement)
    finalize(audited)
    then = judged_by(audited, 3)
    assert {seat.owner for seat in then.auditors if seat.stage == STAGE} == {
        BOB.address, JUDGE_0.address, STRANGER.address
    }  # fmt: skip
    propose(audited, then)
    watch(audited, tmp_path)
    assert names(told) == ["epoch.checked"] * 4


Lie = Callable[[World, pytest.MonkeyPatch], Statement]


def without_carol(world: World, patch: pytest.MonkeyPatch) -> Statement:
    honest = cli_world.seats_of
    patch.setattr(cli_world, "seats_of", lambda *place: {s for s in honest(*place) if s.owner != CAROL.address})
    return judged_by(world)


def with_a_friend(world: World, patch: pytest.MonkeyPatch) -> Statement:
    honest, friend = cli_world.seats_of, AuditorSeat(stage=STAGE, owner=JUDGE_0.address)
    patch.setattr(cli_world, "seats_of", lambda *place: {*honest(*place), friend})
    return judged_by(world)


def by_another_s_node(world: World, patch: pytest.MonkeyPatch) -> Statement:
    """So that Bob himself may audit it."""
    patch.setitem(cli_world.OWNER_OF, NODE.address, ALICE.address)
    return judged_by(world)


def by_another_s_key(world: World, patch: pytest.MonkeyPatch) -> Statement:
    """The stranger speaks for whoever was drawn."""
    honest = judged_by(world)
    old = opinion_of(honest)
    liar = JUDGE_0
    changed = old.model_copy(update={"auditor": liar.address})
    audit = next(line.audit for line in honest.audits if old in line.opinions)
    signature = signing(world, liar)(signed_receipt(world.model.model_id, audit, changed))
    return with_opinion(honest, changed.model_copy(update={"signature": to_hex(signature)}), old)


def signed_by_nobody(world: World, patch: pytest.MonkeyPatch) -> Statement:
    honest = judged_by(world)
    old = opinion_of(honest)
    return with_opinion(honest, old.model_copy(update={"signature": "0x" + "22" * 65}), old)


def by_an_invented_referee(world: World, patch: pytest.MonkeyPatch) -> Statement:
    patch.setattr(cli_world, "COORDINATOR", JUDGE_0)
    honest = cli_world.seats_of(world, 2)
    patch.setattr(cli_world, "seats_of", lambda *_: honest)
    return judged_by(world)


def who_signed_once(world: World, patch: pytest.MonkeyPatch) -> Statement:
    return judged_by(world, equivocations=[signed_twice(world, NODE, STRANGER)])


def who_wasn_t_drawn(world: World, patch: pytest.MonkeyPatch) -> Statement:
    """A stage that Carol has no seat in."""
    honest = judged_by(world)
    line = next(line for line in honest.audits if line.stage == 0)
    (old,) = line.opinions
    changed = old.model_copy(update={"owner": CAROL.address, "account": CAROL.address, "auditor": CAROL.address})
    signature = signing(world, CAROL)(signed_receipt(world.model.model_id, line.audit, changed))
    return with_opinion(honest, changed.model_copy(update={"signature": to_hex(signature)}), old)


LIES: dict[Lie, str] = {
    without_carol: f"doesn't list {CAROL.address} as an auditor of stage 1; on chain it held a seat",
    with_a_friend: f"lists {JUDGE_0.address} as an auditor of stage 1; on chain it held no seat",
    by_another_s_node: f"stage 1: {ALICE.address} answers for {NODE.address}; on chain {BOB.address} does",
    by_another_s_key: f"answers for {JUDGE_0.address}; on chain",
    signed_by_nobody: "it is signed by nobody",
    by_an_invented_referee: f"{JUDGE_0.address} is no referee, and gave its opinion on the round audit of round 2",
    who_signed_once: f"is signed by {STRANGER.address}",
    who_wasn_t_drawn: f"opinions of ['{CAROL.address}'] in this order; the beacon ranks [None]",
}


@pytest.mark.parametrize("lie", LIES)
def test_the_lie_is_named(
    audited: World, tmp_path: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch, lie: Lie
) -> None:
    with monkeypatch.context() as patch:
        statement = lie(audited, patch)
    propose(audited, statement)
    watch(audited, tmp_path)
    assert names(told)[2:] == ["epoch.disputed"]
    assert LIES[lie] in told[2][1]["message"]


def test_a_key_is_bound_later_by_somebody_else(world: World) -> None:
    """What it did before was its own; the question is put in parts."""
    before = world.chain.block_number()
    signature = JUDGE_0.sign_digest(world.providers().binding_digest(BOB.address))
    world.providers(BOB).bind_signer(JUDGE_0.address, signature)
    many = {to_hex(mark("key", number)[:20]) for number in range(2 * KEYS_PER_QUESTION)}
    keys = {NODE.address, JUDGE_0.address, ALICE.address} | many
    then = who_answered(world.providers().at(before), keys, before)
    assert then[JUDGE_0.address] == {JUDGE_0.address}
    meanwhile = who_answered(world.providers(), keys, before)
    assert meanwhile[JUDGE_0.address] == {JUDGE_0.address, BOB.address}
    since = who_answered(world.providers(), keys, before + 1)
    assert since[JUDGE_0.address] == {BOB.address}
    for answered in (then, meanwhile, since):
        assert answered.keys() == keys
        assert answered[NODE.address] == {BOB.address}
        assert answered[ALICE.address] == {ALICE.address}


def test_an_owner_is_paid_itself_or_whom_it_ever_named(world: World) -> None:
    world.providers(BOB).set_payout(CAROL.address)
    world.providers(BOB).set_payout(ALICE.address)
    paid = who_was_paid(world.providers(), {BOB.address, NODE.address})
    assert paid[BOB.address] >= {BOB.address, CAROL.address, ALICE.address}
    assert paid[NODE.address] == {NODE.address}


def test_audit_tells_who_audited(audited: World) -> None:
    """Carol passes whatever she is shown, the stranger looks."""

    def waves(_: Audit, owner: str, __: bool) -> Verdict | None:
        return Verdict.PASSED if owner == CAROL.address else None

    for epoch in range(2, 8):
        propose(audited, judged_by(audited, epoch, says=waves))
        finalize(audited)
    verified = audited.json("audit")["verified"][2:]
    assert {each["auditor_seats"] for each in verified} == {7}
    shown = [each["known_bad"] for each in verified]
    assert sum(each["caught"] for each in shown) >= 1
    told = [(each, convicted) for each in verified for convicted in each["convicted_auditors"]]
    assert told
    stages = [convicted["stage"] for _, convicted in told]
    assert sum(each["passed"] for each in shown) == len(set(stages)), "then she is convicted, and not asked there again"
    for each, convicted in told:
        assert convicted["node"] == CAROL.address
        assert all(convicted in later["convicted"] for later in verified if later["epoch"] >= each["epoch"])
        text, shown = " ".join(audited.run("audit", str(each["epoch"])).stdout.split()), each["known_bad"]
        assert f"known bad {shown['shown']} shown: {shown['caught']} caught, {shown['passed']} passed" in text
        assert f"disproven stage {convicted['stage']}, auditor {CAROL.address}" in text
