"""Which work an epoch's statement pays follows from the audits that its beacons drew, for everyone to recompute."""

from dataclasses import replace

import pytest
from eth_utils.address import to_checksum_address
from hypothesis import assume, given
from hypothesis import strategies as st

from commonweight.errors import StatementMismatch
from commonweight.rules.audits import TRAINING, Audit, Kind, Verdict, left_outstanding, paid_rounds
from commonweight.rules.checking import check_statement
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.epoch import signed_receipt
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.stages import stage_units
from commonweight.rules.statement import Carried, Conviction, Outstanding
from tests.property.histories import (
    FEWER,
    MODEL_ID,
    NODES,
    OWNERS,
    Epoch,
    altered,
    build,
    histories,
    make_epoch,
    remake,
    sealed_rounds,
    sign,
)
from tests.property.strategies import specs
from tools.build_vectors import mark

ALL_ROUNDS = {"round_rate": "1", "microbatch_rate": "0", "data_rate": "0", "answer_rate": "0"}
"""Rates: every stage of every round is replayed, whole."""


@FEWER
@given(histories(1))
def test_an_opinion_is_what_its_auditor_signed(history: list[Epoch]) -> None:
    for line in history[0].statement.audits:
        for opinion in line.opinions:
            assert opinion.signature == "0x" + sign(signed_receipt(MODEL_ID, line.audit, opinion)).hex()


@given(histories())
def test_who_is_paid_and_what_is_outstanding_follow_from_the_audits(history: list[Epoch]) -> None:
    """Each provider by its own in that stage; what isn't paid has no units."""
    convicted: set[tuple[int, str]] = set()
    outstanding: dict[tuple[int, str], frozenset[Kind]] = {}
    for epoch in history:
        disproven = {
            (line.stage, opinion.auditor)
            for line in epoch.statement.audits
            for opinion in line.opinions
            if int(opinion.disproof, 16)
        }
        found_out = disproven | {(line.stage, line.node) for line in epoch.statement.equivocations}
        convicted |= found_out
        lines = {
            (sealed.round, line.stage, line.node): line for sealed in epoch.statement.rounds for line in sealed.reports
        }
        rounds = {sealed.round: sealed for sealed in epoch.statement.rounds}
        for stage, node in {(stage, node) for _, stage, node in lines}:
            numbers = [number for number in rounds if (number, stage, node) in lines]
            own = {
                line.audit: Verdict(line.verdict)
                for line in epoch.statement.audits
                if line.stage == stage
                and [each.node for each in rounds[line.round].reports if each.stage == stage][line.replica] == node
            }
            before = outstanding.get((stage, node), frozenset())
            if Verdict.FAILED in own.values():
                convicted.add((stage, node))
            training = {audit: verdict for audit, verdict in own.items() if audit.kind in TRAINING}
            is_honest = (stage, node) not in convicted
            paid = paid_rounds(numbers, training, before & TRAINING) if is_honest else set()
            for number in numbers:
                line = lines[number, stage, node]
                due = stage_units(epoch.spec, stage) * int(line.load, 16).bit_count()
                assert int(line.units) == due * (number in paid)
            outstanding[stage, node] = left_outstanding(own, before)
        assert [(each.stage, each.node) for each in epoch.statement.convicted] == sorted(convicted)
        assert [(each.stage, each.node, each.kind) for each in epoch.statement.outstanding] == sorted(
            (*provider, kind.value) for provider, kinds in outstanding.items() for kind in kinds
        )


def audited(spec: ModelSpec, rounds_per_epoch: int = 4) -> ModelSpec:
    """The same with every round replayed whole, and something to earn."""
    fields = spec.model_dump()
    economics = {
        "rounds_per_epoch": rounds_per_epoch,
        "max_supply": "24000",
        "initial_emission": "1000",
        "halving_epochs": 12,
        "designer_bps": 500,
        "data_bps": 0,
    }
    return build_spec(fields | {"economics": economics, "verification": fields["verification"] | ALL_ROUNDS})


@FEWER
@given(specs(max_layers=4), st.data())
def test_who_is_convicted_earns_nothing_more_in_that_stage(spec: ModelSpec, data: st.DataObject) -> None:
    spec = audited(spec)
    stage = data.draw(st.integers(0, spec.stages - 1))
    fraud = Audit(data.draw(st.integers(4, 7)), stage, Kind.ROUND)
    cheat, successor = NODES[stage], NODES[(stage + 1) % 4]
    before, paid, convicted = Carried(), [], []
    for epoch in range(4):  # honest; caught; goes on; gone
        node = successor if epoch == 3 else cheat
        rounds = sealed_rounds(spec, epoch, node=lambda _, each, node=node: node if each == stage else NODES[each])
        made = make_epoch(
            spec, epoch, before, rounds, verdict=lambda audit: Verdict.FAILED if audit == fraud else Verdict.PASSED
        )
        made.check(made.statement)
        before = made.statement.carried()
        paid.append(int(made.statement.rounds[-1].reports[stage].units) > 0)
        convicted.append(made.statement.convicted)
        lines = [line for sealed in made.statement.rounds for line in sealed.reports]
        assert all((line.units == "0") == (line.stage == stage and not paid[-1]) for line in lines)
    assert paid == [True, False, False, True]
    assert convicted == [(), *[(Conviction(stage=stage, node=cheat),)] * 3]


@FEWER
@given(specs(max_layers=4))
def test_nothing_is_minted_where_nothing_is_paid(spec: ModelSpec) -> None:
    spec = audited(spec)
    before, minted = Carried(), []
    for epoch in range(3):
        verdict = Verdict.WITHHELD if epoch == 1 else Verdict.PASSED
        made = make_epoch(spec, epoch, before, sealed_rounds(spec, epoch), verdict=lambda _, verdict=verdict: verdict)
        made.check(made.statement)
        minted.append(made.statement.minted)
        earned = {account: balance.cumulative_shares for account, balance in before.balances.items()}
        before = made.statement.carried()
        if epoch == 1:
            assert made.statement.compute_shares == "0"
            assert {account: each.cumulative_shares for account, each in before.balances.items()} == earned
    assert minted == ["1000", "0", "1000"]


@FEWER
@given(specs(max_layers=4), st.data())
def test_who_withholds_and_goes_owes_it_when_it_comes_back(spec: ModelSpec, data: st.DataObject) -> None:
    spec = audited(spec)
    stage = data.draw(st.integers(0, spec.stages - 1))
    debtor, successor = NODES[stage], NODES[(stage + 1) % 4]
    # The last audit of epoch 0 is withheld; another has the seat in epoch 1; back in epoch 2, it passes the third.
    withheld = {Audit(number, stage, Kind.ROUND) for number in (3, 8, 9)}
    before, unpaid, outstanding = Carried(), [], []
    for epoch in range(4):
        node = successor if epoch == 1 else debtor
        rounds = sealed_rounds(spec, epoch, node=lambda _, each, node=node: node if each == stage else NODES[each])
        made = make_epoch(
            spec, epoch, before, rounds, verdict=lambda audit: Verdict.WITHHELD if audit in withheld else Verdict.PASSED
        )
        made.check(made.statement)
        before = made.statement.carried()
        lines = [(sealed.round, line) for sealed in made.statement.rounds for line in sealed.reports]
        unpaid += [(number, line.stage) for number, line in lines if line.units == "0"]
        outstanding.append(made.statement.outstanding)
    due = (Outstanding(stage=stage, node=debtor, kind="round"),)
    assert outstanding == [due, due, (), ()]
    assert unpaid == [(number, stage) for number in (3, 8, 9)]


@FEWER
@given(histories(), st.data())
def test_what_is_outstanding_before_decides_and_is_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[-1]
    others = [epoch.before.outstanding - {each} for each in epoch.before.outstanding]
    stage = data.draw(st.integers(0, epoch.spec.stages - 1))
    due = Outstanding(stage=stage, node=data.draw(st.sampled_from(NODES)), kind=data.draw(kinds))
    others.append(epoch.before.outstanding | {due})
    for outstanding in others:
        before = replace(epoch.before, outstanding=outstanding)
        again = remake(epoch, before=before)
        names = ("rounds", "outstanding", "served")
        if all(getattr(again, name) == getattr(epoch.statement, name) for name in names):
            check_statement(epoch.spec, epoch.statement, before)
        else:
            with pytest.raises(StatementMismatch, match=r"outstanding|is worth|operator_revenue|served"):
                check_statement(epoch.spec, epoch.statement, before)


kinds = st.sampled_from([kind.value for kind in Kind])


@FEWER
@given(histories(), st.data())
def test_an_outstanding_audit_dropped_added_or_altered_is_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = data.draw(st.sampled_from(history))
    listed = epoch.fields["outstanding"]
    absent = {"stage": epoch.spec.stages, "node": OWNERS[0], "kind": data.draw(kinds)}
    others = [[*listed, absent], [absent, *listed]]
    for place, line in enumerate(listed):
        rest = listed[:place], listed[place + 1 :]
        others += [[*rest[0], *rest[1]], [*rest[0], line, line, *rest[1]], listed[place:] + listed[:place] + [absent]]
        other_kind = data.draw(kinds.filter(lambda kind, line=line: kind != line["kind"]))
        changes = ({"stage": line["stage"] + 1}, {"node": OWNERS[0]}, {"kind": other_kind})
        others += [[*rest[0], line | change, *rest[1]] for change in changes]
    if len(listed) > 1:
        others.append(listed[::-1])
    for other in others:
        with pytest.raises(StatementMismatch, match="outstanding is"):
            epoch.check(build(altered(epoch.fields, ("outstanding",), other)))


@FEWER
@given(histories(), st.data())
def test_nobody_earns_by_what_another_isn_t_paid(history: list[Epoch], data: st.DataObject) -> None:
    """A unit, of work or of audits, is worth at most what it would be if all that was done were paid."""
    epoch = data.draw(st.sampled_from(history))
    spec, statement = epoch.spec, epoch.statement
    due = emission(spec.economics, statement.epoch)
    compute = split_emission(due, spec.economics.designer_bps, spec.economics.data_bps).compute
    count = spec.training.microbatches_per_round * len(statement.rounds)
    done = count * sum(stage_units(spec, stage) for stage in range(spec.stages))
    audits = sum(int(opinion.units) for line in statement.audits for opinion in line.opinions)
    is_all_paid = all(line.units != "0" for sealed in statement.rounds for line in sealed.reports)
    for line in statement.accounts:
        most = compute * int(line.units) // (done + audits)
        assert int(line.shares) <= most + ROUNDED
        if is_all_paid:
            assert int(line.shares) >= most - ROUNDED
    assert int(statement.minted) <= due


ROUNDED = 4
"""Base units: of two statements, each rounds what is minted, designer's and data's parts, and the account's share."""


@given(histories(), st.data())
def test_every_change_of_beacons_and_audits_is_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = data.draw(st.sampled_from(history))
    fields, flip = epoch.fields, "0x" + "5a" * 32
    audits, last = fields["audits"], len(fields["rounds"]) - 1
    opinion = {
        "auditor": OWNERS[0],
        "owner": None,
        "account": None,
        "claim": flip,
        "verdict": "passed",
        "evidence": "0x" + "00" * 32,
        "disproof": "0x" + "00" * 32,
        "units": "0",
        "signature": "0x" + "00" * 65,
    }
    unit = {"round": epoch.first, "stage": epoch.spec.stages, "replica": 0, "kind": "round", "microbatch": None}
    unknown = {**unit, "verdict": "passed", "opinions": [opinion]}
    others = [
        altered(fields, ("beacon_tip",), flip),
        altered(fields, ("rounds", data.draw(st.integers(0, last)), "beacon"), flip),
        altered(fields, ("rounds", 0, "beacon"), fields["beacon_tip"]),
        altered(fields, ("audits",), [*audits, unknown]),
        altered(fields, ("audits",), [unknown, *audits]),
        altered(fields, ("convicted",), [*fields["convicted"], {"stage": 2**53 - 1, "node": OWNERS[0]}]),
    ]
    if last:
        others.append(altered(fields, ("rounds", last, "beacon"), fields["rounds"][0]["beacon"]))
    if audits:
        place = data.draw(st.integers(0, len(audits) - 1))
        line = audits[place]
        kind = data.draw(st.sampled_from([each.value for each in Kind if each.value != line["kind"]]))
        others += [
            altered(fields, ("audits",), audits[:place] + audits[place + 1 :]),
            altered(fields, ("audits",), [*audits, line]),
            altered(fields, ("audits",), []),
            altered(fields, ("audits", place, "kind"), kind),
            altered(fields, ("audits", place, "replica"), line["replica"] + 1),
            altered(fields, ("audits", place, "microbatch"), 0 if line["microbatch"] is None else None),
            altered(fields, ("audits", place, "opinions"), line["opinions"][:-1] or [opinion | {"owner": NODES[3]}]),
        ]
    if len(audits) > 1:
        others.append(altered(fields, ("audits",), audits[::-1]))
    for place in range(len(fields["convicted"])):
        rest = [each for number, each in enumerate(fields["convicted"]) if number != place]
        others.append(altered(fields, ("convicted",), rest))
        others.append(altered(fields, ("convicted",), [*fields["convicted"], fields["convicted"][place]]))
    for other in others:
        with pytest.raises(StatementMismatch):
            epoch.check(build(other))


@given(histories(), st.sampled_from(Verdict), st.data())
def test_another_verdict_than_the_opinions_come_to_is_noticed(
    history: list[Epoch], verdict: Verdict, data: st.DataObject
) -> None:
    epoch = data.draw(st.sampled_from(history))
    assume(epoch.statement.audits)
    place = data.draw(st.integers(0, len(epoch.statement.audits) - 1))
    assume(epoch.statement.audits[place].verdict != verdict.value)
    with pytest.raises(StatementMismatch):
        epoch.check(build(altered(epoch.fields, ("audits", place, "verdict"), verdict.value)))


@given(histories(), st.sampled_from(Verdict), st.data())
def test_another_word_of_the_referee_decides_or_is_told_by_its_signature(
    history: list[Epoch], verdict: Verdict, data: st.DataObject
) -> None:
    epoch = data.draw(st.sampled_from(history))
    alone = [place for place, line in enumerate(epoch.statement.audits) if len(line.opinions) == 1]
    alone = [place for place in alone if epoch.statement.audits[place].opinions[0].owner is None]
    assume(alone)
    place = data.draw(st.sampled_from(alone))
    evidence = "0x" + ("5a" if verdict is Verdict.FAILED else "00") * 32
    fields = altered(epoch.fields, ("audits", place, "verdict"), verdict.value)
    for name, value in (("verdict", verdict.value), ("evidence", evidence)):
        fields = altered(fields, ("audits", place, "opinions", 0, name), value)
    other = build(fields)
    again = remake(epoch, audits=other.audits)
    names = ("rounds", "convicted", "outstanding", "served", "accounts")
    if all(getattr(again, name) == getattr(epoch.statement, name) for name in names):
        epoch.check(other)
    else:
        with pytest.raises(StatementMismatch):
            epoch.check(other)


@FEWER
@given(histories())
def test_other_convictions_before_are_noticed(history: list[Epoch]) -> None:
    epoch = history[-1]
    stranger = Conviction(stage=0, node=to_checksum_address(mark("stranger")[:20]))
    others = [epoch.before.convicted | {stranger}]
    anew = {
        Conviction(stage=line.stage, node=sealed.provider(line.audit).node)
        for line in epoch.statement.audits
        for sealed in epoch.statement.rounds
        if line.verdict == "failed" and line.round == sealed.round
    }
    anew |= {Conviction(stage=line.stage, node=line.node) for line in epoch.statement.equivocations}
    others += [epoch.before.convicted - {each} for each in epoch.before.convicted - anew]
    for other in others:
        with pytest.raises(StatementMismatch, match=r"convicted|is worth|a line reads"):
            check_statement(epoch.spec, epoch.statement, replace(epoch.before, convicted=other))
