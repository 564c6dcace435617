"""Whoever has an epoch's statement and the spec can recompute it, and notices any number that was changed."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from eth_utils.address import to_checksum_address
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from commonweight.errors import CommonweightError, StatementMismatch
from commonweight.rules.accounting import MAX_ACCUMULATOR, NOTHING, Balance, divide_shares
from commonweight.rules.audits import Verdict
from commonweight.rules.canonical import canonical_json, content_hash
from commonweight.rules.checking import MAX_OPERATOR_POOL, check_statement
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.epoch import credited_load, credited_receipt, report_units, sealed_loads
from commonweight.rules.merkle import verify_proof
from commonweight.rules.report import report_receipt
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.stages import stage_units
from commonweight.rules.statement import Carried, CreditedReport, Statement, parse_statement
from tests.property.histories import (
    FEWER,
    MODEL_ID,
    OWNERS,
    Epoch,
    altered,
    answered,
    build,
    histories,
    make_epoch,
    owners,
    remake,
    sealed_rounds,
)
from tests.property.strategies import json_values, specs
from tools.build_vectors import honest_reports, mark

NUMBERS = (
    *("units", "shares", "cumulative_shares", "debt_before", "operator_revenue"),
    *("minted", "compute_shares", "accumulator_before", "operator_pool"),
)
COUNTERS = ("chain_id", "epoch", "round", "stage", "microbatch", "generation", "tokens")


@FEWER
@given(histories())
def test_what_was_made_checks_and_survives_the_round_trip(history: list[Epoch]) -> None:
    for epoch in history:
        epoch.check(epoch.statement)
        text = canonical_json(epoch.statement.model_dump())
        assert epoch.statement.hash == content_hash(json.loads(text))
        assert parse_statement(text, epoch.statement.hash) == epoch.statement
        assert parse_statement(json.dumps(epoch.fields, indent=1).encode(), epoch.statement.hash) == epoch.statement


@FEWER
@given(histories())
def test_sums_are_those_of_the_emission(history: list[Epoch]) -> None:
    earned: dict[str, int] = {}
    for epoch in history:
        economics, statement = epoch.spec.economics, epoch.statement
        reports = [report for sealed in statement.rounds for report in sealed.reports]
        credited = sum(int(report.units) for report in reports)
        done = sum(report_units(epoch.spec, report.stage, len(credited_load(epoch.spec, report))) for report in reports)
        minted = int(statement.minted)
        assert minted == floor(Fraction(emission(economics, statement.epoch) * credited, done))
        compute = split_emission(minted, economics.designer_bps, economics.data_bps).compute
        assert sum(int(line.shares) for line in statement.accounts) == compute == int(statement.compute_shares)
        opinions = [opinion for line in statement.audits for opinion in line.opinions]
        audited = sum(int(opinion.units) for opinion in opinions)
        assert sum(int(line.units) for line in statement.accounts) == credited + audited
        for line in statement.accounts:
            earned[line.account] = earned.get(line.account, 0) + int(line.shares)
            assert int(line.cumulative_shares) == earned[line.account]
        served = {line.account for line in statement.served}
        earned |= {account: earned.get(account, 0) for account in served}
        assert [line.account for line in statement.accounts] == sorted(earned)
        tree = statement.tree()
        assert statement.root == "0x" + tree.root.hex()
        assert all(verify_proof(tree.root, tree._nodes[tree._position[i]], tree.proof(i)) for i in range(len(earned)))


@FEWER
@given(histories())
def test_operators_divide_all_that_they_earned_once_somebody_serves(history: list[Epoch]) -> None:
    for epoch in history:
        statement, divided = epoch.statement, epoch.before.operator_revenue
        pool = int(statement.operator_pool)
        assert sum(int(line.operator_revenue) for line in statement.accounts) == pool
        assert pool == (epoch.operator_earned if statement.served else divided)
        gained = {
            line.account: int(line.operator_revenue) - epoch.before.balances.get(line.account, NOTHING).operator_revenue
            for line in statement.accounts
        }
        weights: dict[str, int] = {}
        for line in statement.served:
            weights[line.account] = weights.get(line.account, 0) + line.tokens * stage_units(epoch.spec, line.stage)
        expected = divide_shares(pool - divided, weights) if weights else {}
        assert gained == {account: expected.get(account, 0) for account in gained}


def unaudited(spec: ModelSpec) -> ModelSpec:
    """The same with no audits."""
    fields = spec.model_dump()
    rates = dict.fromkeys(("round_rate", "microbatch_rate", "data_rate", "answer_rate"), "0")
    return build_spec(fields | {"verification": fields["verification"] | rates})


def answering_epoch(spec: ModelSpec, epoch: int, before: Carried, earned: int, lengths: Sequence[int]) -> Epoch:
    """Nothing is audited; answers with so many prompt tokens each are sealed with the epoch's last round."""
    per_epoch = spec.economics.rounds_per_epoch
    last = (epoch + 1) * per_epoch - 1
    lines = [
        answered(spec, last, index, per_epoch, fed=length, prompt=length, completion=1)
        for index, length in enumerate(lengths)
    ]
    rounds = sealed_rounds(spec, epoch, answers=lambda number: lines if number == last else ())
    return make_epoch(spec, epoch, before, rounds, verdict=lambda _: Verdict.PASSED, operator_earned=earned)


@FEWER
@given(specs(max_layers=4), st.integers(1, 2**40), st.data())
def test_a_token_is_worth_the_work_of_the_stage_that_it_went_through(
    spec: ModelSpec, price: int, data: st.DataObject
) -> None:
    spec = unaudited(spec)
    work = [stage_units(spec, stage) for stage in range(spec.stages)]
    lengths = data.draw(st.lists(st.integers(1, spec.training.sequence_length), min_size=1, max_size=3))
    statement = answering_epoch(spec, 1, Carried(), sum(work) * price, lengths).statement
    assert [line.tokens for line in statement.served] == [sum(lengths) + len(lengths)] * spec.stages
    earned = {line.account: int(line.operator_revenue) for line in statement.accounts}
    assert [earned[OWNERS[stage]] for stage in range(spec.stages)] == [units * price for units in work]


@FEWER
@given(specs(max_layers=4), st.integers(1, 2**96), st.integers(0, 10**9))
def test_what_nobody_served_waits_for_who_serves_next(spec: ModelSpec, earned: int, more: int) -> None:
    spec, before, pools = unaudited(spec), Carried(), []
    for epoch, count in enumerate((0, 1, 0, 0, 2)):
        made = answering_epoch(spec, epoch, before, earned + epoch * more, [1] * count)
        made.check(made.statement)
        before = made.statement.carried()
        pools.append(int(made.statement.operator_pool))
    assert pools == [0, *[earned + more] * 3, earned + 4 * more]


@FEWER
@given(histories(1), st.integers(0, 2**96), st.integers(1, 2**96))
def test_a_pool_below_what_is_divided_is_refused(history: list[Epoch], pool: int, missing: int) -> None:
    epoch, divided = history[0], pool + missing
    before = Carried({OWNERS[0]: replace(NOTHING, operator_revenue=divided)})
    with pytest.raises(ValueError, match=f"have earned {pool}; {divided} is divided among them already"):
        remake(epoch, operator_earned=pool, before=before)
    short = build(altered(epoch.fields, ("operator_pool",), str(pool)))
    with pytest.raises(StatementMismatch, match=f"divides {pool} among operators, after {divided} before"):
        check_statement(epoch.spec, short, before)


@FEWER
@given(histories(1), st.integers(MAX_OPERATOR_POOL - 1, MAX_OPERATOR_POOL + 2))
def test_a_pool_that_no_contract_can_count_is_refused(history: list[Epoch], pool: int) -> None:
    other = altered(history[0].fields, ("operator_pool",), str(pool))
    with pytest.raises(StatementMismatch):
        history[0].check(build(other))


@FEWER
@given(histories(1))
def test_a_credited_line_is_what_its_provider_signed(history: list[Epoch]) -> None:
    spec, tip = history[0].spec, bytes.fromhex(history[0].statement.beacon_tip[2:])
    for sealed in history[0].statement.rounds:
        count = spec.training.microbatches_per_round
        honest = honest_reports(spec.stages, count, sealed.round, sealed_loads(spec, sealed))
        for line, report in zip(sealed.reports, honest, strict=True):
            unit = MODEL_ID, line.generation, sealed.round, report.stage
            signed = report_receipt(*unit, report.commitments(count), tip)
            assert credited_receipt(MODEL_ID, sealed.round, line, tip) == signed
            assert credited_load(spec, line) == report.load


@given(histories(), st.data())
def test_any_one_changed_number_is_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = data.draw(st.sampled_from(history))
    # In which stage somebody has a seat, or has signed twice, and what of an answer, only the chain and the signatures
    # tell for sure.
    told_elsewhere = {"auditors", "equivocations", "answers"}
    paths = (path for path in numbers_in(epoch.fields) if not told_elsewhere & set(path))
    path = data.draw(st.sampled_from(sorted(paths, key=str)))
    part: Any = epoch.fields
    for key in path:
        part = part[key]
    value = data.draw(
        (st.integers(0, 10**78 - 1) if isinstance(part, str) else st.integers(0, 2**53 - 1))
        | st.sampled_from([-2, -1, 1, 2]).map(lambda step: int(part) + step)
    )
    assume(value >= (path[-1] == "tokens") and value != int(part))
    if path == ("accumulator_before",) and epoch.before.balances and value <= MAX_ACCUMULATOR:
        # Where nobody earned anything in the epoch before, it decides nothing.
        assume(any(balance.epoch_shares for balance in epoch.before.balances.values()))
    if path[-1] == "generation" and len(epoch.statement.rounds[int(path[1])].reports) == 1:
        assume(not is_increasing(epoch, path, value))  # only the signature tells
    other = altered(epoch.fields, path, type(part)(value))
    assert content_hash(other) != epoch.statement.hash
    with pytest.raises(StatementMismatch):
        epoch.check(build(other))


@FEWER
@given(histories(max_epochs=1), st.sampled_from(["cumulative_shares", "debt_before"]))
def test_balances_that_no_contract_holds_are_a_fault_and_no_crash(history: list[Epoch], name: str) -> None:
    """A final epoch that nobody challenged may have left them; what follows is measured against it."""
    epoch = history[-1]
    absurd = replace(epoch.before, balances={OWNERS[0]: replace(Balance(0, 0, 0, 0), **{name: 10**78 - 1})})
    with pytest.raises(StatementMismatch, match="can't follow the balances before it"):
        check_statement(epoch.spec, epoch.statement, absurd)


def numbers_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every number, written as a string or not."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in NUMBERS or (key in COUNTERS and item is not None):
                yield (*path, key)
            yield from numbers_in(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers_in(item, (*path, index))


def is_increasing(epoch: Epoch, path: tuple[str | int, ...], value: int) -> bool:
    """Whether the generations of an epoch still never go back with that of a round of one report changed."""
    generations = [sealed.reports[0].generation for sealed in epoch.statement.rounds]
    generations[int(path[1])] = value
    return generations == sorted(generations)


@FEWER
@given(histories(), st.data())
def test_other_changes_are_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[-1]
    fields = epoch.fields
    flip = "0x" + "5a" * 32
    stranger = to_checksum_address(mark("stranger")[:20])
    others = [
        altered(fields, ("root",), flip),
        altered(fields, ("spec_hash",), flip),
        altered(fields, ("settlement",), stranger),
        altered(fields, ("accounts", 0, "account"), stranger),
        altered(fields, ("accounts",), fields["accounts"][1:]),
        altered(fields, ("accounts",), [*fields["accounts"], fields["accounts"][0]]),
        altered(fields, ("rounds", 0, "reports", 0, "account"), stranger),
        altered(fields, ("rounds",), fields["rounds"][1:]),
        altered(fields, ("rounds",), [*fields["rounds"], fields["rounds"][-1]]),
        altered(fields, ("rounds",), []),
        altered(fields, ("rounds", 0, "reports"), fields["rounds"][0]["reports"][1:]),
        altered(fields, ("rounds", 0, "reports"), fields["rounds"][0]["reports"] * 2),
        altered(fields, ("rounds", 0, "reports"), []),
        altered(fields, ("served",), [*fields["served"], served_line(epoch.spec.stages)]),
        altered(fields, ("served",), [*fields["served"], served_line(0)]),
    ]
    last = len(fields["rounds"][-1]["reports"]) - 1
    if last:  # a round is sealed in one generation
        report = ("rounds", len(fields["rounds"]) - 1, "reports", last)
        generation = epoch.statement.rounds[-1].reports[-1].generation
        others.append(altered(fields, (*report, "generation"), generation + 1))
    if fields["served"]:
        others.append(altered(fields, ("served",), [*fields["served"], fields["served"][0]]))
        others.append(altered(fields, ("served", 0, "account"), stranger))
    if len(fields["served"]) > 1:
        others.append(altered(fields, ("served",), fields["served"][::-1]))
    if int(fields["operator_pool"]) > epoch.before.operator_revenue:
        others.append(altered(fields, ("served",), []))
    for other in others:
        with pytest.raises(StatementMismatch):
            epoch.check(build(other))


def served_line(stage: int) -> dict[str, Any]:
    """Of a node after all others in the order."""
    return {"stage": stage, "node": to_checksum_address(b"\xff" * 20), "account": OWNERS[0], "tokens": 1}


@FEWER
@given(histories(), st.data())
def test_other_balances_before_are_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[-1]
    account = data.draw(owners)
    old = epoch.before.balances.get(account, NOTHING)
    others = [replace(old, cumulative_shares=old.cumulative_shares + 1), replace(old, debt_before=old.debt_before + 1)]
    if account not in {line.account for line in epoch.statement.served}:
        others.append(replace(old, operator_revenue=old.operator_revenue + 1))
    for other in others:
        before = replace(epoch.before, balances={**epoch.before.balances, account: other})
        with pytest.raises(StatementMismatch):
            check_statement(epoch.spec, epoch.statement, before)


@FEWER
@given(histories(1), specs(max_layers=4))
def test_another_spec_is_noticed(history: list[Epoch], other: ModelSpec) -> None:
    if other != history[0].spec:
        with pytest.raises(StatementMismatch, match="is of spec"):
            check_statement(other, history[0].statement, Carried())


@FEWER
@given(histories(1), st.data())
def test_another_hash_is_refused(history: list[Epoch], data: st.DataObject) -> None:
    text = canonical_json(history[0].statement.model_dump())
    bit = data.draw(st.integers(0, 255))
    other = (int.from_bytes(history[0].statement.hash, "big") ^ (1 << bit)).to_bytes(32, "big")
    with pytest.raises(StatementMismatch, match="the chain has"):
        parse_statement(text, other)


@given(st.binary(max_size=60) | json_values.map(canonical_json))
def test_hostile_texts_bring_out_only_our_errors(data: bytes) -> None:
    with pytest.raises(CommonweightError):
        parse_statement(data, bytes(32))


@given(histories(2), json_values, st.data())
def test_a_damaged_statement_brings_out_only_our_errors(history: list[Epoch], value: Any, data: st.DataObject) -> None:
    """Its hash is right, because whoever wrote it is the liar."""
    epoch = history[-1]

    def every_path(part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
        if path:
            yield path
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            yield from every_path(part[key], (*path, key))

    path = data.draw(st.sampled_from(sorted(every_path(epoch.fields), key=str)))
    digits = st.integers(0, 10**78).map(str)
    other = altered(epoch.fields, path, data.draw(st.just(value) | digits | st.text(max_size=70)))
    text = bytearray(canonical_json(other))
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(text) - 1))
        text[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        expected = content_hash(json.loads(bytes(text)))
    except ValueError:
        expected = bytes(32)
    with suppress(CommonweightError):
        epoch.check(parse_statement(bytes(text), expected))


@pytest.mark.parametrize(
    "account", [OWNERS[0].lower(), "0x" + OWNERS[0][2:].upper(), OWNERS[0][:-1], OWNERS[0] + "\n", "0x", ""]
)
def test_an_account_has_one_spelling(account: str) -> None:
    hashes = ("hops_root", "gradient_hash", "round_gradient_hash", "state_before", "state_after")
    fields = dict.fromkeys(hashes, "0x" + "00" * 32) | {"load": "0x01"}
    fields |= {
        "stage": 0,
        "node": OWNERS[0],
        "owner": OWNERS[0],
        "generation": 1,
        "signature": "0x" + "00" * 65,
        "units": "1",
    }  # type: ignore[dict-item]
    assert CreditedReport(**fields, account=OWNERS[0]).account == OWNERS[0]  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        CreditedReport(**fields, account=account)  # type: ignore[arg-type]


@FEWER
@given(histories(), st.data())
def test_a_round_that_goes_on_from_another_state_is_named(history: list[Epoch], data: st.DataObject) -> None:
    """The first round of an epoch, too: it goes on from the last of the epoch before."""
    epoch = data.draw(st.sampled_from(history))
    index = data.draw(st.integers(0, len(epoch.statement.rounds) - 1))
    assume(epoch.first + index > 0)
    stage = data.draw(st.integers(0, epoch.spec.stages - 1))
    fields = epoch.fields
    for line in fields["rounds"][index]["reports"]:
        if line["stage"] == stage:  # replicas that began from different ones are told before
            line["state_before"] = "0x" + "ab" * 32
    statement = Statement.model_validate_json(json.dumps(fields))
    with pytest.raises(StatementMismatch, match=rf"Round {epoch.first + index} begins stage {stage} from state 0xabab"):
        epoch.check(statement)


@FEWER
@given(histories(), st.data())
def test_a_round_that_isn_t_divided_among_its_replicas_is_named(history: list[Epoch], data: st.DataObject) -> None:
    """Each microbatch is credited once, to who is listed once, in order; and all of a stage were stepped alike."""
    epoch = data.draw(st.sampled_from(history))
    index = data.draw(st.integers(0, len(epoch.statement.rounds) - 1))
    reports, count = epoch.fields["rounds"][index]["reports"], epoch.spec.training.microbatches_per_round
    number = data.draw(st.integers(0, len(reports) - 1))
    line = reports[number]
    rest = [*reports[:number], *reports[number + 1 :]]
    load, microbatch = int(line["load"], 16), data.draw(st.integers(0, count - 1))
    changed = {
        "divided on stage": [
            line | {"load": f"0x{load ^ 1 << microbatch:02x}"},
            line | {"load": "0x00"},
        ],
        "a load that is none": [
            line | {"load": f"0x{load | 1 << count:02x}"},
            line | {"load": line["load"] + "00"},
        ],
        "different ways|another gradient": [line | {"round_gradient_hash": "0x" + "5a" * 32}],
    }
    alone = sum(each["stage"] == line["stage"] for each in reports) == 1
    if alone:
        changed["another gradient"] = [line | {"gradient_hash": "0x" + "5a" * 32}]
    else:
        changed["different ways"] = [line | {"state_after": "0x" + "5a" * 32}]
    for why, others in changed.items():
        for other in others:
            told = altered(epoch.fields, ("rounds", index, "reports", number), other)
            with pytest.raises(StatementMismatch, match=why):
                epoch.check(build(told))
    for told in ([*rest, line][::-1], [*reports, line], rest):
        if told != reports:
            with pytest.raises(StatementMismatch, match=r"once, in order|doesn't credit each|divided on stage"):
                epoch.check(build(altered(epoch.fields, ("rounds", index, "reports"), told)))


@FEWER
@given(histories(), st.data())
def test_an_epoch_after_another_state_is_named(history: list[Epoch], data: st.DataObject) -> None:
    """Be it that of another stage: states can't be swapped where nobody has sealed a round."""
    epoch = history[-1]
    assume(epoch.before.states)
    stage = data.draw(st.integers(0, epoch.spec.stages - 1))
    other = data.draw(st.integers(0, epoch.spec.stages - 1))
    assume(other != stage or epoch.spec.stages == 1)
    swapped = epoch.before.states[other] if other != stage else "0x" + "ab" * 32
    before = replace(epoch.before, states={**epoch.before.states, stage: swapped})
    with pytest.raises(StatementMismatch, match=rf"Round {epoch.first} begins stage {stage} .* left it at {swapped}"):
        check_statement(epoch.spec, epoch.statement, before)
