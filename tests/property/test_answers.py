"""Who is paid for answers follows from their audits, and whatever is changed in one is noticed."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import StatementMismatch
from commonweight.identity import NodeIdentity
from commonweight.rules.answer import Answer, answer_receipt, find_disagreement, pack_ids, served_receipt, session_id
from commonweight.rules.audits import TRAINING, Audit, Kind, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.epoch import (
    ANSWER_BYTES,
    ANSWERS_BYTES,
    AUDIT_BYTES,
    PART_BYTES,
    answers_per_round,
    audit_line,
    credit_report,
    drawn_auditors,
    drawn_audits,
    make_opinion,
    make_statement,
    sealed_beacon,
)
from commonweight.rules.panel import Owner
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.report import NO_TENSOR, report_receipt
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.statement import AnswerLine, Carried, Conviction, SealedRound, Statement
from commonweight.watch.judge import Proposal, check_epoch
from tests.property.histories import (
    FEWER,
    MODEL_ID,
    NODES,
    Epoch,
    altered,
    answered,
    build,
    histories,
    make_epoch,
    panels,
    sealed_rounds,
)
from tests.property.histories import answers as answers_of_round
from tests.property.strategies import flipped, hashes, specs
from tools.build_vectors import (
    SETTLEMENT,
    answer_line,
    beacon_chain,
    changed,
    honest_answer,
    honest_reports,
    judged,
    mark,
    seal,
)


def with_answers_audited(spec: ModelSpec, **rates: str) -> ModelSpec:
    """The same with every part of every answer audited, nothing else, and four rounds an epoch."""
    fields = spec.model_dump()
    every = {"round_rate": "0", "microbatch_rate": "0", "data_rate": "0", "answer_rate": "1"} | rates
    parts = {"verification": every, "economics": {"rounds_per_epoch": 4}}
    return build_spec(fields | {part: fields[part] | changes for part, changes in parts.items()})


def one_in_each(spec: ModelSpec, round_: int) -> list[AnswerLine]:
    """An answer of two tokens, by the first version."""
    return [answered(spec, round_, 0, spec.economics.rounds_per_epoch, fed=1, prompt=1, completion=1)]


def by_walking(rounds: Sequence[int], said: Mapping[int, Collection[Verdict]], is_outstanding: bool) -> set[int]:
    """The rounds whose answers are paid: from each withheld one both ways, until one has passed."""
    void: set[int] = set()
    for start in [number for number in rounds if Verdict.WITHHELD in said[number]] + [-1] * is_outstanding:
        void.add(start)
        before, after = [n for n in reversed(rounds) if n < start], [n for n in rounds if n > start]
        for direction in (before, after):
            for number in direction:
                if Verdict.PASSED in said[number]:
                    break
                void.add(number)
    return set(rounds) - void


@given(histories())
def test_who_is_paid_for_answers_follows_from_their_audits(history: list[Epoch]) -> None:
    """Who withholds isn't paid back to the last that passed, and who is convicted for none; others for all of them."""
    for epoch in history:
        statement, due = epoch.statement, Counter[tuple[int, str, str]]()
        answers = {sealed.round: sealed.answers for sealed in statement.rounds}
        numbers = sorted(answers)
        reports = {
            (sealed.round, stage, node): (replica, line.account)
            for sealed in statement.rounds
            for stage in range(epoch.spec.stages)
            for replica, line in enumerate(each for each in sealed.reports if each.stage == stage)
            for node in (line.node,)
        }
        for stage, node in {(stage, node) for _, stage, node in reports}:
            replicas = {n: reports[n, stage, node][0] for n in numbers if (n, stage, node) in reports}
            tokens = {
                n: sum(
                    line.prompt_tokens + line.completion_tokens
                    for line in answers[n]
                    if line.parts[stage].replica == replica
                )
                for n, replica in replicas.items()
            }
            rounds = [n for n in replicas if tokens[n]]
            said = {
                n: {
                    Verdict(line.verdict)
                    for line in statement.audits
                    if (line.round, line.stage, line.replica, line.kind) == (n, stage, replicas[n], "answer")
                }
                for n in rounds
            }
            owed = {(each.stage, each.node) for each in epoch.before.outstanding if each.kind == "answer"}
            if Conviction(stage=stage, node=node) in statement.convicted:
                continue
            assert not any(Verdict.FAILED in verdicts for verdicts in said.values())
            for number in by_walking(rounds, said, (stage, node) in owed):
                due[stage, node, reports[number, stage, node][1]] += tokens[number]
        found = {(line.stage, line.node, line.account): line.tokens for line in statement.served}
        assert found == dict(due)
        assert list(found) == sorted(found)


@FEWER
@given(specs(4), st.data())
def test_answers_and_rounds_are_unpaid_each_by_its_own_audits(spec: ModelSpec, data: st.DataObject) -> None:
    spec = with_answers_audited(spec, round_rate="1")
    withheld = data.draw(st.sampled_from([TRAINING, {Kind.ANSWER}]))
    rounds = sealed_rounds(spec, 1, answers=lambda number: one_in_each(spec, number))
    made = make_epoch(
        spec,
        1,
        Carried(),
        rounds,
        verdict=lambda audit: Verdict.WITHHELD if audit.kind in withheld else Verdict.PASSED,
    )
    made.check(made.statement)
    is_trained = Kind.ANSWER in withheld
    assert all((line.units != "0") == is_trained for each in made.statement.rounds for line in each.reports)
    assert [line.tokens for line in made.statement.served] == ([] if is_trained else [8] * spec.stages)
    assert {each.kind for each in made.statement.outstanding} == ({"answer"} if is_trained else {"round"})


@FEWER
@given(specs(4), st.integers(4, 7), st.data())
def test_a_false_answer_convicts_and_one_that_is_withheld_is_owed(
    spec: ModelSpec, bad: int, data: st.DataObject
) -> None:
    """The convicted one earns nothing in its stage, be it by training; the other is cleared by its next that passes."""
    spec = with_answers_audited(spec)
    stage = data.draw(st.integers(0, spec.stages - 1))
    verdict = data.draw(st.sampled_from([Verdict.FAILED, Verdict.WITHHELD]))
    before, served, units = Carried(), [], []
    for epoch in (1, 2):
        rounds = sealed_rounds(spec, epoch, answers=lambda number: one_in_each(spec, number))
        made = make_epoch(
            spec,
            epoch,
            before,
            rounds,
            verdict=lambda audit: verdict if (audit.round, audit.stage) == (bad, stage) else Verdict.PASSED,
        )
        made.check(made.statement)
        before = made.statement.carried()
        served.append({line.stage: line.tokens for line in made.statement.served})
        units.append([line.stage for line in made.statement.rounds[-1].reports if line.units == "0"])
        assert all(served[-1][other] == 8 for other in range(spec.stages) if other != stage)
    if verdict is Verdict.FAILED:
        assert [each.get(stage) for each in served] == [None, None]
        assert units == [[stage], [stage]]
    else:
        assert [each.get(stage) for each in served] == [6, 8]  # of four rounds, two tokens each
        assert units == [[], []]


@FEWER
@given(specs(4), st.integers(1, 3), st.data())
def test_which_answers_are_sealed_steers_no_audit_of_training_and_no_auditor(
    spec: ModelSpec, epoch: int, data: st.DataObject
) -> None:
    """So a coordinator, who says which, can't choose by it what is replayed of a stage's training, nor by whom."""
    tip, seed = beacon_chain(spec, epoch)[0], mark("seed", epoch)
    seats = data.draw(panels(spec.stages))["auditors"]

    def drawn(sealed: SealedRound) -> dict[Audit, tuple[Owner, ...]]:
        audits, beacon = drawn_audits(spec, sealed, tip, seed), sealed_beacon(spec, sealed, tip, seed)
        return {each: drawn_auditors(sealed, each, beacon, seats) for each in audits if each.kind in TRAINING}

    unanswered = [drawn(sealed) for sealed in sealed_rounds(spec, epoch)]
    answered = sealed_rounds(spec, epoch, answers=lambda number: data.draw(answers_of_round(spec, number)))
    assert [drawn(sealed) for sealed in answered] == unanswered


# What only signatures tell: an epoch that real keys have signed.

KEYS = [NodeIdentity(mark("key of a node", stage)) for stage in range(3)]
GATEWAY, REFEREE = (NodeIdentity(mark("key", name)) for name in ("gateway", "referee"))
DOMAIN = Domain(31337, SETTLEMENT)
EPOCH = 2
"""The first with answers by two versions."""


def signed_by(key: NodeIdentity, receipt: Receipt) -> bytes:
    return key.sign_digest(receipt.digest(DOMAIN))


@cache
def signed_epoch(answer_rate: str) -> tuple[ModelSpec, Statement, Proposal]:
    """Two answers in each round."""
    rates = {"round_rate": "0", "microbatch_rate": "0", "data_rate": "0", "answer_rate": answer_rate}
    spec = changed(verification=rates)
    signs = [partial(signed_by, key) for key in KEYS]
    per_epoch, tip = spec.economics.rounds_per_epoch, beacon_chain(spec, EPOCH)[0]

    def answers(number: int) -> list[AnswerLine]:
        return [
            answer_line(
                MODEL_ID,
                honest_answer(spec.stages, version, mark("session", number, version)[:16], 4, 9),
                completion_tokens=5,
                gateway=GATEWAY.address,
                served=partial(signed_by, GATEWAY),
                signs=signs,
            )
            for version in (per_epoch, 2 * per_epoch)
        ]

    rounds = []
    for number in range(EPOCH * per_epoch, (EPOCH + 1) * per_epoch):
        reports = []
        for report in honest_reports(spec.stages, spec.training.microbatches_per_round, number):
            who = dict.fromkeys(("node", "owner", "account"), KEYS[report.stage].address)
            commitments = report.commitments(spec.training.microbatches_per_round)
            signature = signs[report.stage](report_receipt(MODEL_ID, 1, number, report.stage, commitments, tip))
            reports.append(credit_report(spec, report, **who, generation=1, signature=signature))
        rounds.append(seal(spec, number, reports, answers(number)))
    statement = make_statement(
        spec,
        chain_id=DOMAIN.chain_id,
        settlement=DOMAIN.settlement,
        model_id=MODEL_ID,
        epoch=EPOCH,
        beacon_seed=mark("seed", EPOCH),
        rounds=rounds,
        audits=judged(spec, rounds, MODEL_ID, auditor=REFEREE.address, sign=partial(signed_by, REFEREE)),
        operator_earned=10**6,
        before=Carried(),
        accumulator_before=0,
    )
    proposal = Proposal(
        chain_id=DOMAIN.chain_id,
        settlement=DOMAIN.settlement,
        model_id=MODEL_ID,
        epoch=EPOCH,
        root=bytes.fromhex(statement.root[2:]),
        minted=int(statement.minted),
        accumulator_before=0,
        operator_earned=10**6,
        beacon_tip=tip,
        referees=frozenset({REFEREE.address}),
        seats=frozenset(),
        owners={},
        accounts=None,
    )
    check_epoch(spec, statement, Carried(), proposal)
    return spec, statement, proposal


answer_rates = st.sampled_from(["0", "1"])


def refused(rate: str, fields: dict[str, Any]) -> None:
    spec, _, proposal = signed_epoch(rate)
    with pytest.raises(StatementMismatch):
        check_epoch(spec, build(fields), Carried(), proposal)


def fields_of(rate: str) -> dict[str, Any]:
    return signed_epoch(rate)[1].model_dump(mode="json")


def test_an_epoch_with_answers_is_checked() -> None:
    spec, statement, _ = signed_epoch("1")
    assert sum(len(sealed.answers) for sealed in statement.rounds) == 4
    assert len(statement.audits) == 4 * spec.stages
    assert [line.tokens for line in statement.served] == [36] * spec.stages


@given(answer_rates, st.integers(0, 1), st.integers(0, 1), st.data())
def test_any_one_changed_field_of_an_answer_is_noticed(
    rate: str, position: int, index: int, data: st.DataObject
) -> None:
    """Also where no audit of answers is drawn."""
    fields = fields_of(rate)
    line = fields["rounds"][position]["answers"][index]
    stage = data.draw(st.integers(0, len(line["parts"]) - 1))
    numbers = ("version", "fed", "prompt_tokens", "completion_tokens")
    path = data.draw(
        st.sampled_from(
            [
                *((name,) for name in (*numbers, "session", "signature", "gateway")),
                *(("parts", stage, name) for name in ("replica", "trace", "signature")),
            ]
        )
    )
    old = line
    for key in path:
        old = old[key]
    if path[-1] in numbers:
        value = data.draw(st.sampled_from([-2, -1, 1, 2]).map(lambda step: old + step) | st.integers(1, 40))
    elif path[-1] == "replica":
        value = data.draw(st.integers(1, 40))
    elif path == ("gateway",):
        value = data.draw(st.sampled_from([REFEREE.address, KEYS[stage].address, NODES[0]]))
    else:
        raw = bytes.fromhex(old[2:])
        bit = data.draw(st.integers(0, 8 * len(raw) - 1))
        value = "0x" + (int.from_bytes(raw, "big") ^ (1 << bit)).to_bytes(len(raw), "big").hex()
    if value != old:
        refused(rate, altered(fields, ("rounds", position, "answers", index, *path), value))


@given(answer_rates, st.integers(0, 1), st.data())
def test_answers_that_can_t_be_are_refused_and_crash_nobody(rate: str, position: int, data: st.DataObject) -> None:
    fields, where = fields_of(rate), ("rounds", position, "answers")
    one, other = fields["rounds"][position]["answers"]
    elsewhere = fields["rounds"][1 - position]["answers"][0]
    parts = one["parts"]
    wrong = data.draw(
        st.sampled_from(
            [
                [one | {"parts": []}, other],
                [one | {"parts": parts[:-1]}, other],
                [one | {"parts": [*parts, parts[-1]]}, other],
                [one | {"parts": parts[::-1]}, other],
                [one | {"parts": other["parts"]}, other],
                [one, one],
                [one, elsewhere],
                [one | {"signature": other["signature"]}, other],
            ]
        )
    )
    refused(rate, altered(fields, where, wrong))


def test_an_answer_that_is_left_out_leaves_audits_without_a_unit() -> None:
    fields = fields_of("1")
    for position in (0, 1):
        refused("1", altered(fields, ("rounds", position, "answers"), fields["rounds"][position]["answers"][:1]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 0}, "no version 0"),
        ({"version": 3}, "no version 3"),
        ({"version": 6}, "no version 6"),
        ({"completion_tokens": 7}, "11 tokens were delivered, with 9 fed"),
        ({"fed": 17}, "with 17 fed to the stages, whose context is 16"),
    ],
)
def test_what_can_t_have_been_delivered_is_named(change: dict[str, int], why: str) -> None:
    spec, statement, proposal = signed_epoch("0")
    fields = statement.model_dump(mode="json")
    place = ("rounds", 0, "answers", 0)
    line = fields["rounds"][0]["answers"][0] | change
    with pytest.raises(StatementMismatch, match=why):
        check_epoch(spec, build(altered(fields, place, line)), Carried(), proposal)


def test_more_answers_than_a_round_is_sealed_with_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, statement, proposal = signed_epoch("0")
    assert answers_per_round(spec) > 1000
    line = ANSWER_BYTES + spec.stages * PART_BYTES
    monkeypatch.setattr("commonweight.rules.epoch.ANSWERS_BYTES", line * spec.economics.rounds_per_epoch)
    with pytest.raises(StatementMismatch, match="is sealed with 2 answers; at most are 1"):
        check_epoch(spec, statement, Carried(), proposal)


@given(specs(4), st.integers(1, 1024))
def test_a_statement_with_as_many_answers_as_may_be_has_room_for_them(spec: ModelSpec, stages: int) -> None:
    fields = spec.model_dump()
    spec = build_spec(fields | {"stages": stages, "architecture": fields["architecture"] | {"n_layers": stages}})
    count = answers_per_round(spec) * spec.economics.rounds_per_epoch
    rate = float(spec.verification.answer_rate)
    size = ANSWER_BYTES + spec.stages * (PART_BYTES + rate * AUDIT_BYTES)
    assert count * size <= ANSWERS_BYTES or answers_per_round(spec) == 1


def test_lines_are_as_long_as_is_reckoned_with() -> None:
    """With the largest numbers that they can hold."""
    _, statement, _ = signed_epoch("1")
    most = {"version": 2**53 - 1, "fed": 2**32 - 1, "prompt_tokens": 2**32 - 1, "completion_tokens": 2**32 - 1}
    line = statement.rounds[0].answers[0].model_copy(update=most)
    assert len(canonical_json(line.model_copy(update={"parts": ()}).model_dump())) < ANSWER_BYTES
    assert len(canonical_json(line.parts[0].model_dump())) < PART_BYTES
    opinion = make_opinion(bytes(32), Verdict.UNDECIDED, auditor=NODES[0], signature=bytes(65))
    audit = audit_line(statement.audits[0].audit, Verdict.UNDECIDED, [opinion])
    large = {"round": 2**53 - 1, "stage": 1023, "microbatch": 2**32 - 1}
    assert len(canonical_json(audit.model_copy(update=large).model_dump())) < AUDIT_BYTES


# What is signed.

answers = st.builds(
    Answer,
    version=st.integers(1, 2**53),
    session=st.binary(min_size=16, max_size=16),
    nonce=st.binary(min_size=16, max_size=16),
    prompt_tokens=st.integers(1, 2**32 - 1),
    fed=st.integers(1, 2**32 - 1),
    ids=hashes,
    taken=hashes,
    passed=hashes,
    temperature=st.floats(0, 1e6),
    seed=st.integers(0, 2**64 - 1),
)


@given(answers, answers, hashes)
def test_no_two_words_about_answers_have_one_unit(one: Answer, other: Answer, model_id: bytes) -> None:
    """So no two of them are an equivocation: their unit is all that they say."""
    receipts = [
        receipt
        for each in (one, other)
        for receipt in (
            answer_receipt(model_id, 0, each.version, each.session, each.prompt_tokens, each.fed, each.trace),
            served_receipt(model_id, each.version, each.session, each.prompt_tokens, each.fed),
        )
    ]
    units = {receipt.unit: receipt.output for receipt in receipts}
    assert all(units[receipt.unit] == receipt.output for receipt in receipts)
    assert len(units) == len(set(receipts))
    assert (receipts[0] == receipts[2]) == (one == other)


@given(answers, st.integers(0, 255), st.data())
def test_a_trace_commits_to_all_that_its_stage_did(answer: Answer, bit: int, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["nonce", "ids", "taken", "passed", "seed", "temperature"]))
    value = getattr(answer, name)
    if isinstance(value, bytes):
        value = flipped(value.rjust(32, b"\0"), bit % (8 * len(value)))[-len(value) :]
    else:
        value += 1
    if value != getattr(answer, name):
        assert replace(answer, **{name: value}).trace != answer.trace


@given(answers, st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), st.integers(0, 127), st.data())
def test_a_session_s_id_says_all_that_was_asked(
    answer: Answer, prompt: list[int], bit: int, data: st.DataObject
) -> None:
    """Which prompt, too: none can be continued by another's first tokens."""
    nonce, temperature, seed = answer.nonce, answer.temperature, answer.seed
    position = data.draw(st.integers(0, len(prompt) - 1))
    others = {
        session_id(flipped(nonce.rjust(32, b"\0"), bit)[16:], pack_ids(prompt), temperature, seed),
        session_id(nonce, pack_ids([*prompt, prompt[position]]), temperature, seed),
        session_id(
            nonce, pack_ids([*prompt[:position], prompt[position] ^ 1, *prompt[position + 1 :]]), temperature, seed
        ),
        session_id(nonce, pack_ids(prompt), temperature + 1, seed),
        session_id(nonce, pack_ids(prompt), temperature, seed ^ 1),
    }
    assert len({session_id(nonce, pack_ids(prompt), temperature, seed), *others}) == 6


@given(st.integers(1, 5), st.data())
def test_what_stages_disagree_about_is_named(stages: int, data: st.DataObject) -> None:
    parts = list(honest_answer(stages, 8, mark("session")[:16], 4, 7, temperature=0.5, seed=3))
    assert find_disagreement(parts) is None
    assert find_disagreement([replace(parts[0], taken=mark("code")), *parts[1:]]) == "a code came into the first stage"
    if stages > 1:
        stage = data.draw(st.integers(1, stages - 1))
        changes = {
            "version": 16,
            "session": mark("other")[:16],
            "nonce": mark("other nonce")[:16],
            "prompt_tokens": 5,
            "fed": 8,
            "ids": mark("ids"),
            "temperature": 0.25,
            "seed": 4,
            "taken": NO_TENSOR,
        }
        name = data.draw(st.sampled_from(sorted(changes)))
        parts[stage] = replace(parts[stage], **{name: changes[name]})
        found = find_disagreement(parts)
        assert found is not None
        assert "other codes" in found if name == "taken" else f"other {name}" in found
