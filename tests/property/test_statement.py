"""Whoever has an epoch's statement and the spec can recompute it, and notices any number that was changed."""

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from eth_utils.address import to_checksum_address
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from commonweight.errors import CommonweightError, StatementMismatch
from commonweight.rules.accounting import MAX_ACCUMULATOR, Balance
from commonweight.rules.canonical import canonical_json, content_hash
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.merkle import verify_proof
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import (
    CreditedReport,
    SealedRound,
    Statement,
    check_statement,
    credit_report,
    make_statement,
    parse_statement,
)
from tests.property.strategies import honest_reports, json_values, sha, specs

OWNERS = tuple(to_checksum_address(sha("owner", i)[:20]) for i in range(4))
MODEL_ID = sha("model")
NUMBERS = ("units", "shares", "cumulative_shares", "debt_before", "minted", "compute_shares", "accumulator_before")
FEWER = settings(max_examples=settings().max_examples // 2)
"""Half as many as elsewhere: drawing a history takes milliseconds."""
COUNTERS = ("chain_id", "epoch", "round", "stage")


@dataclass(frozen=True)
class Epoch:
    """A statement and what it was made from."""

    spec: ModelSpec
    statement: Statement
    before: dict[str, Balance]

    def check(self, statement: Statement) -> None:
        check_statement(self.spec, statement, self.before)

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads(canonical_json(self.statement.model_dump()))


@st.composite
def histories(draw: st.DrawFn, max_epochs: int = 3) -> list[Epoch]:
    """Successive epochs of a model whose stages change hands."""
    spec = draw(specs(max_layers=4))
    balances: dict[str, Balance] = {}
    accumulator, history = 0, []
    for epoch in range(draw(st.integers(1, max_epochs))):
        first = epoch * spec.economics.rounds_per_epoch
        rounds = [
            SealedRound(
                round=number,
                reports=tuple(
                    credit_report(
                        spec,
                        report,
                        to_checksum_address(sha("node", report.stage)[:20]),
                        draw(st.sampled_from(OWNERS)),
                        sha("signature", number) * 2 + b"\x1b",
                    )
                    for report in honest_reports(spec.stages, spec.training.microbatches_per_round, number)
                ),
            )
            for number in range(first, first + spec.economics.rounds_per_epoch)
        ]
        statement = make_statement(
            spec,
            chain_id=31337,
            settlement=OWNERS[0],
            model_id=MODEL_ID,
            epoch=epoch,
            rounds=rounds,
            balances_before=balances,
            accumulator_before=accumulator,
        )
        history.append(Epoch(spec, statement, balances))
        balances = statement.balances()
        accumulator += draw(st.integers(0, 2**140))
    return history


def numbers_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every number, written as a string or not."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in NUMBERS or key in COUNTERS:
                yield (*path, key)
            yield from numbers_in(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers_in(item, (*path, index))


def altered(fields: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    fields = copy.deepcopy(fields)
    part: Any = fields
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return fields


def build(fields: dict[str, Any]) -> Statement:
    return Statement.model_validate_json(canonical_json(fields))


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
        minted = emission(economics, statement.epoch)
        assert int(statement.minted) == minted
        compute = split_emission(minted, economics.designer_bps, economics.data_bps).compute
        assert sum(int(line.shares) for line in statement.accounts) == compute == int(statement.compute_shares)
        credited = sum(int(report.units) for sealed in statement.rounds for report in sealed.reports)
        assert sum(int(line.units) for line in statement.accounts) == credited
        for line in statement.accounts:
            earned[line.account] = earned.get(line.account, 0) + int(line.shares)
            assert int(line.cumulative_shares) == earned[line.account]
        assert [line.account for line in statement.accounts] == sorted(earned)
        tree = statement.tree()
        assert statement.root == "0x" + tree.root.hex()
        assert all(verify_proof(tree.root, tree._nodes[tree._position[i]], tree.proof(i)) for i in range(len(earned)))


@given(histories(), st.data())
def test_any_one_changed_number_is_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = data.draw(st.sampled_from(history))
    path = data.draw(st.sampled_from(sorted(numbers_in(epoch.fields), key=str)))
    part: Any = epoch.fields
    for key in path:
        part = part[key]
    value = data.draw(
        (st.integers(0, 10**78 - 1) if isinstance(part, str) else st.integers(0, 2**53 - 1))
        | st.sampled_from([-2, -1, 1, 2]).map(lambda step: int(part) + step)
    )
    assume(value >= 0 and value != int(part))
    if path == ("accumulator_before",) and epoch.before and value <= MAX_ACCUMULATOR:
        # Where nobody earned anything in the epoch before, it decides nothing.
        assume(any(balance.epoch_shares for balance in epoch.before.values()))
    other = altered(epoch.fields, path, type(part)(value))
    assert content_hash(other) != epoch.statement.hash
    with pytest.raises(StatementMismatch):
        epoch.check(build(other))


@FEWER
@given(histories(), st.data())
def test_other_changes_are_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[-1]
    fields = epoch.fields
    flip = "0x" + "5a" * 32
    stranger = to_checksum_address(sha("stranger")[:20])
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
    ]
    for other in others:
        with pytest.raises(StatementMismatch):
            epoch.check(build(other))


@FEWER
@given(histories(), st.data())
def test_other_balances_before_are_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[-1]
    account = data.draw(st.sampled_from(OWNERS))
    old = epoch.before.get(account, Balance(0, 0, 0))
    more = {**epoch.before, account: Balance(old.cumulative_shares + 1, old.epoch_shares, old.debt_before)}
    with pytest.raises(StatementMismatch):
        check_statement(epoch.spec, epoch.statement, more)


@FEWER
@given(histories(1), specs(max_layers=4))
def test_another_spec_is_noticed(history: list[Epoch], other: ModelSpec) -> None:
    if other != history[0].spec:
        with pytest.raises(StatementMismatch, match="is of spec"):
            check_statement(other, history[0].statement, {})


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
    fields = dict.fromkeys(("hops_root", "gradient_hash", "state_before", "state_after"), "0x" + "00" * 32)
    fields |= {"stage": 0, "node": OWNERS[0], "signature": "0x" + "00" * 65, "units": "1"}  # type: ignore[dict-item]
    assert CreditedReport(**fields, account=OWNERS[0]).account == OWNERS[0]  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        CreditedReport(**fields, account=account)  # type: ignore[arg-type]


@FEWER
@given(histories(max_epochs=1), st.data())
def test_a_round_that_goes_on_from_another_state_is_named(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[0]
    assume(len(epoch.statement.rounds) > 1)
    number = data.draw(st.integers(1, len(epoch.statement.rounds) - 1))
    stage = data.draw(st.integers(0, epoch.spec.stages - 1))
    path = ("rounds", number, "reports", stage, "state_before")
    statement = Statement.model_validate_json(json.dumps(altered(epoch.fields, path, "0x" + "ab" * 32)))
    with pytest.raises(StatementMismatch, match=rf"Round {number} begins stage {stage} from state 0xabab"):
        epoch.check(statement)
