"""The coordinator's settlement against a real chain that challenges, is silent, reorganises, or isn't there."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.rpc import Chain
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.token import Token
from commonweight.devnet.deployment import SEAT_STAKE
from commonweight.errors import ChainError, LedgerError, Refused
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.checking import check_statement
from commonweight.rules.receipt import Domain
from commonweight.rules.statement import AuditorSeat, Carried, Conviction, ServedLine, Statement
from commonweight.watch.store import StatementStore
from coordinator import settlement as module
from coordinator.ledger import Ledger
from coordinator.members import Place
from coordinator.settlement import Settlement
from tests.integration.epochs import WINDOW_S, Epochs
from tools.build_vectors import beacon_chain, mark

RATES = {"round_rate": "0.6", "microbatch_rate": "1", "data_rate": "0.5", "answer_rate": "0.6", "known_bad_rate": "0.5"}
AUDITORS = ("node-1", "node-0")
"""Who audits each stage: who holds the other one."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochs]:
    with Epochs(tmp_path_factory.mktemp("settled"), RATES, seat_stake=SEAT_STAKE) as epochs:
        yield epochs


@pytest.fixture
def epochs(base: Epochs) -> Iterator[Epochs]:
    snapshot = base.chain.request("evm_snapshot")
    yield base
    base.chain.request("evm_revert", snapshot)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr("coordinator.settlement.emit", lambda name, /, **fields: said.append(name))
    return said


def settlement_of(epochs: Epochs, folder: Path, done: Statement | None = None, **options: Any) -> Settlement:
    """With a ledger in which every round of epoch 0 is sealed, and every audit decided; as in `done`, if given."""
    ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
    ids = {"model_id": epochs.model.model_id, "spec_hash": epochs.spec.spec_hash}
    ledger.open_model(**ids, settlement=epochs.model.settlement, chain_id=epochs.chain.chain_id)
    for epoch in range(2):
        ledger.beacon_seed(epoch, mark("seed", epoch))
    record(ledger, done or epochs.statement(0))
    contract = EpochSettlement(epochs.chain, epochs.model.settlement, epochs.sender("coordinator"))
    return Settlement(
        epochs.spec,
        Place(epochs.model.model_id, Domain(epochs.chain.chain_id, epochs.model.settlement)),
        ledger,
        epochs.chain,
        contract,
        epochs.model,
        type(epochs.router)(epochs.chain, epochs.model.router, epochs.sender("coordinator")),
        StatementStore(folder / "statements"),
        "http://127.0.0.1:1",
        **options,
    )


def record(ledger: Ledger, statement: Statement) -> None:
    for sealed in statement.rounds:
        ledger.record_round(sealed, {}, {})
    for line in statement.audits:
        ledger.record_verdict(line, last=False)


def take_seats(epochs: Epochs) -> dict[str, Any]:
    """Every auditor takes its stage's seat; what a statement has of it."""
    for stage, role in enumerate(AUDITORS):
        sender = epochs.sender(role)
        providers = ProviderRegistry(epochs.chain, epochs.deployment.providers, sender)
        Token(epochs.chain, epochs.deployment.revenue_token, sender).approve(providers.address, SEAT_STAKE)
        providers.bond(sender.address, SEAT_STAKE)
        providers.take_seat(epochs.model.model_id, stage)
    seats = [AuditorSeat(stage=stage, owner=epochs.address(role)) for stage, role in enumerate(AUDITORS)]
    return {"auditors": seats, "seated": AUDITORS}


def pass_time(epochs: Epochs, seconds: int = WINDOW_S + 1) -> None:
    epochs.chain.request("evm_increaseTime", seconds)
    epochs.chain.request("evm_mine")


def test_an_epoch_is_proposed_with_a_bond_and_made_final_after_its_window(
    epochs: Epochs, tmp_path: Path, told: list[str]
) -> None:
    settlement = settlement_of(epochs, tmp_path)
    bond = epochs.settlement.bond_of(epochs.address("coordinator"))
    epochs.settlement.withdraw_bond(epochs.address("coordinator"), bond)  # it must post one anew
    assert settlement._advance(0) == 0.0
    assert epochs.settlement.bond_of(epochs.address("coordinator")) == epochs.model.terms.proposer_bond
    record = epochs.settlement.epoch(0)
    assert record is not None
    assert settlement.statements.get(record.statement_hash) is not None
    assert settlement._advance(0) == module.MAX_WAIT_S < WINDOW_S  # a challenge would be told before the window ends
    pass_time(epochs)
    assert settlement._advance(0) == 0.0
    assert settlement._advance(0) is None
    assert settlement.ledger.final_epochs() == 1
    assert told == ["epoch.closed", "bond.deposited", "epoch.proposed", "epoch.finalised"]


def test_a_reorganisation_that_takes_the_epoch_back_is_made_good(
    epochs: Epochs, tmp_path: Path, told: list[str]
) -> None:
    settlement = settlement_of(epochs, tmp_path, confirmations=2)
    before = epochs.chain.request("evm_snapshot")
    settlement._advance(0)
    pass_time(epochs)
    settlement._advance(0)
    assert settlement._advance(0) == module.POLL_S  # final, and not deep enough to build on
    assert settlement.ledger.final_epochs() == 0

    epochs.chain.request("evm_revert", before)
    assert epochs.settlement.epoch(0) is None
    settlement._advance(0)
    pass_time(epochs)
    settlement._advance(0)
    for _ in range(2):
        epochs.chain.request("evm_mine")
    assert settlement._advance(0) is None
    assert told.count("epoch.proposed") == told.count("epoch.finalised") == 2
    assert told.count("epoch.closed") == 1  # the same statement, whatever the chain does


def test_no_epoch_is_closed_on_one_that_was_taken_back(epochs: Epochs, tmp_path: Path, told: list[str]) -> None:
    """Its statement would hold an accumulator of 0 for good, every watcher would challenge it, and the bond be lost."""
    settlement = settlement_of(epochs, tmp_path)
    epochs.usd.mint(epochs.model.router, 10**6)
    settlement._advance(0)
    pass_time(epochs)
    before = epochs.chain.request("evm_snapshot")
    settlement._advance(0)
    assert settlement._advance(0) is None
    record(settlement.ledger, epochs.statement(1, settlement.ledger.statement(0)))

    epochs.chain.request("evm_revert", before)
    with pytest.raises(ChainError, match="Epoch 0 was final and isn't any more"):
        settlement._advance(1)
    assert settlement.ledger.statement(1) is None
    epochs.settlement.finalize_epoch(0)
    assert settlement._advance(1) == 0.0
    assert told[-3:] == ["revenue.swept", "epoch.closed", "epoch.proposed"]


def test_what_operators_have_earned_may_be_taken_back_for_a_while(
    epochs: Epochs, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settlement = settlement_of(epochs, tmp_path)
    line = ServedLine(stage=0, node=epochs.address("node-0"), account=epochs.address("node-0"), tokens=5)
    earned = epochs.statement(0).model_dump() | {"operator_pool": "7"}
    earned["accounts"][0]["operator_revenue"] = "7"
    first = Statement.model_validate(earned | {"served": (line,)})
    settlement.ledger.record_statement(0, canonical_json(first.model_dump()), first.hash)
    epochs.propose(first)
    epochs.finalize(0)
    with pytest.raises(ChainError, match="has set 0 aside for operators; epoch 0 has divided 7"):
        settlement._advance(1)
    assert told == []


def challenge(epochs: Epochs) -> bytes:
    pending = epochs.settlement.pending()
    assert pending is not None
    usd = type(epochs.usd)(epochs.chain, epochs.usd.address, epochs.sender("node-1"))
    usd.approve(epochs.model.settlement, epochs.model.terms.challenger_bond)
    contract = EpochSettlement(epochs.chain, epochs.model.settlement, epochs.sender("node-1"))
    contract.challenge_epoch(0, pending.root, bytes(32), "")
    return pending.root


def test_silence_of_the_arbiter_costs_time_only(epochs: Epochs, tmp_path: Path, told: list[str]) -> None:
    settlement = settlement_of(epochs, tmp_path)
    settlement._advance(0)
    challenge(epochs)
    assert settlement._advance(0) == module.POLL_S
    pass_time(epochs, epochs.model.terms.arbitration_s + 1)
    settlement._advance(0)  # ends the challenge
    settlement._advance(0)  # and proposes again
    challenge(epochs)
    settlement._advance(0)  # by the same griefer, and told again
    assert told == ["epoch.closed", *["epoch.proposed", "challenge.seen"] * 2]
    pass_time(epochs, epochs.model.terms.arbitration_s + 1)
    settlement._advance(0)
    settlement._advance(0)
    pass_time(epochs)
    settlement._advance(0)
    assert settlement._advance(0) is None


def test_what_the_arbiter_rejects_is_not_proposed_again(epochs: Epochs, tmp_path: Path) -> None:
    settlement = settlement_of(epochs, tmp_path)
    settlement._advance(0)
    root = challenge(epochs)
    epochs.decide(0, root, uphold=False)
    with pytest.raises(Refused, match="arbiter has rejected epoch 0"):
        settlement._advance(0)


def test_an_upheld_epoch_needs_no_window(epochs: Epochs, tmp_path: Path) -> None:
    settlement = settlement_of(epochs, tmp_path)
    settlement._advance(0)
    root = challenge(epochs)
    epochs.decide(0, root, uphold=True)
    assert settlement._advance(0) == 0.0
    assert settlement._advance(0) is None


@pytest.mark.asyncio
async def test_a_chain_that_is_away_is_waited_for_and_caught_up_with(
    epochs: Epochs, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = Chain.connect(epochs.deployment.rpc_url, epochs.chain.chain_id, timeout_s=2.0)
    monkeypatch.setattr(epochs, "chain", impatient)
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            os.kill(epochs.local.pid, signal.SIGCONT)

    settlement = await asyncio.to_thread(lambda: settlement_of(epochs, tmp_path, sleep=pause))
    await asyncio.to_thread(settlement._advance, 0)
    await asyncio.to_thread(pass_time, epochs)
    os.kill(epochs.local.pid, signal.SIGSTOP)
    try:
        await settlement._settle(0)
    finally:
        os.kill(epochs.local.pid, signal.SIGCONT)
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert told.count("chain.failed") == 3
    assert settlement.ledger.final_epochs() == 1


def test_the_statement_lists_every_audit_and_pays_nothing_for_fraud(epochs: Epochs, tmp_path: Path) -> None:
    honest = epochs.statement(0)
    caught = next(line.audit for line in honest.audits if line.stage == 0)
    done = epochs.statement(0, verdict=lambda audit: Verdict.FAILED if audit == caught else Verdict.PASSED)
    settlement = settlement_of(epochs, tmp_path, done)
    settlement._advance(0)
    statement = settlement.ledger.statement(0)
    assert statement == done
    check_statement(epochs.spec, statement, Carried())
    assert [(each.stage, each.node) for each in statement.convicted] == [(0, epochs.address("node-0"))]
    units = {report.stage: report.units for sealed in statement.rounds for report in sealed.reports}
    assert units[0] == "0" != units[1]


def test_who_was_convicted_in_an_epoch_isn_t_paid_in_the_next(epochs: Epochs, tmp_path: Path) -> None:
    caught = next(line.audit for line in epochs.statement(0).audits if line.stage == 0)
    done = epochs.statement(0, verdict=lambda audit: Verdict.FAILED if audit == caught else Verdict.PASSED)
    settlement = settlement_of(epochs, tmp_path, done)
    settlement._advance(0)
    pass_time(epochs)
    settlement._advance(0)
    assert settlement._advance(0) is None
    record(settlement.ledger, epochs.statement(1, done))
    settlement._advance(1)
    second = settlement.ledger.statement(1)
    assert second is not None
    check_statement(epochs.spec, second, done.carried())
    assert second.convicted == done.convicted
    assert {report.units for sealed in second.rounds for report in sealed.reports if report.stage == 0} == {"0"}


def test_a_successor_signs_the_referee_s_opinions_that_it_takes_over(epochs: Epochs, tmp_path: Path) -> None:
    """Those of seat holders stay as they were signed; both kinds convict."""
    seats = take_seats(epochs)
    caught = next(line.audit for line in epochs.statement(0, **seats).audits if line.stage == 0)

    def verdict(audit: Audit) -> Verdict:
        return Verdict.FAILED if audit == caught else Verdict.PASSED

    done = epochs.statement(0, auditor="designer", verdict=verdict, **seats)
    by = {opinion.auditor for line in done.audits for opinion in line.opinions}
    assert by == {epochs.address(role) for role in (*AUDITORS, "designer")}
    settlement = settlement_of(epochs, tmp_path, done)
    settlement._advance(0)
    taken_over = settlement.ledger.statement(0)
    assert taken_over == epochs.statement(0, verdict=verdict, **seats)
    check_statement(epochs.spec, taken_over, Carried())


def test_a_successor_proposes_what_its_predecessor_has_closed_as_its_own(epochs: Epochs, tmp_path: Path) -> None:
    """By its key, or nobody would believe it."""
    seats = take_seats(epochs)
    closed = epochs.statement(0, auditor="designer", **seats)
    settlement = settlement_of(epochs, tmp_path, closed)
    settlement.ledger.record_statement(0, canonical_json(closed.model_dump()), closed.hash)
    settlement._advance(0)
    proposed = settlement.ledger.statement(0)
    assert proposed == epochs.statement(0, **seats) != closed
    on_chain = settlement.contract.epoch(0)
    assert on_chain is not None
    assert on_chain.statement_hash == proposed.hash
    assert settlement.statements.get(proposed.hash) is not None


def test_what_every_watcher_would_challenge_isn_t_proposed(
    epochs: Epochs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a reorganisation that has moved a seat: opinions were asked for in another order."""
    settlement = settlement_of(epochs, tmp_path, epochs.statement(0, **take_seats(epochs)))
    monkeypatch.setattr("coordinator.settlement.auditor_seats", lambda *_: frozenset())
    with pytest.raises(LedgerError, match=r"every watcher would challenge it\..*the beacon ranks"):
        settlement._advance(0)
    assert settlement.ledger.statement(0) is None
    assert settlement.contract.epoch(0) is None


def test_auditors_are_paid_out_of_the_epoch_and_not_for_passing_what_is_known_bad(
    epochs: Epochs, tmp_path: Path
) -> None:
    seats, lazy = take_seats(epochs), epochs.address(AUDITORS[0])

    def says(audit: Audit, owner: str, known_bad: bool) -> Verdict | None:
        return Verdict.PASSED if known_bad and owner == lazy else None

    done = epochs.statement(0, says=says, **seats)
    settlement = settlement_of(epochs, tmp_path, done)
    settlement._advance(0)
    statement = settlement.ledger.statement(0)
    assert statement == done
    check_statement(epochs.spec, statement, Carried())
    assert statement.convicted == (Conviction(stage=0, node=lazy),)
    earned = {
        owner: sum(int(each.units) for line in statement.audits for each in line.opinions if each.owner == owner)
        for owner in map(epochs.address, AUDITORS)
    }
    assert earned[lazy] == 0 < earned[epochs.address(AUDITORS[1])]


def test_two_results_of_one_unit_convict_in_the_epoch_that_closes_next_and_once(epochs: Epochs, tmp_path: Path) -> None:
    settlement, found = settlement_of(epochs, tmp_path), epochs.equivocation(1, "node-1")
    assert settlement.ledger.record_equivocation(found)
    settlement._advance(0)
    first = settlement.ledger.statement(0)
    assert first == epochs.statement(0, equivocations=[found])
    check_statement(epochs.spec, first, Carried())
    assert first.convicted == (Conviction(stage=1, node=epochs.address("node-1")),)
    assert {report.units for sealed in first.rounds for report in sealed.reports if report.stage == 1} == {"0"}
    pass_time(epochs)
    settlement._advance(0)
    assert settlement._advance(0) is None
    record(settlement.ledger, epochs.statement(1, first))
    settlement._advance(1)
    second = settlement.ledger.statement(1)
    assert second is not None
    check_statement(epochs.spec, second, first.carried())
    assert (second.equivocations, second.convicted) == ((), first.convicted)


def second_epoch(epochs: Epochs, folder: Path, **options: Any) -> Statement:
    """The statement of epoch 1, from a ledger that has what `epochs.statement` has with these options; buyers have
    paid before, and nothing was served in epoch 0.
    """
    settlement = settlement_of(epochs, folder)
    epochs.usd.mint(epochs.model.router, 10**6)
    settlement._advance(0)
    pass_time(epochs)
    settlement._advance(0)
    assert settlement._advance(0) is None
    first = settlement.ledger.statement(0)
    assert first is not None
    assert (first.served, first.operator_pool) == ((), "0")
    record(settlement.ledger, epochs.statement(1, first, **options))
    settlement._advance(1)
    second = settlement.ledger.statement(1)
    assert second == epochs.statement(1, first, **options)  # now that what was paid in is split
    check_statement(epochs.spec, second, first.carried())
    return second


def served_tokens(statement: Statement) -> dict[str, int]:
    return {line.node: line.tokens for line in statement.served}


def test_serving_is_paid_by_the_answers_that_were_sealed(epochs: Epochs, tmp_path: Path) -> None:
    answers = {3: [epochs.answer("a", tokens=(4, 5))], 5: [epochs.answer("b", tokens=(3, 2)), epochs.answer("c")]}
    second = second_epoch(epochs, tmp_path, answers=answers)
    assert any(line.kind == "answer" for line in second.audits)
    assert served_tokens(second) == {epochs.address(f"node-{stage}"): 9 + 5 + 9 for stage in range(2)}
    assert int(second.operator_pool) > 0


def test_answers_whose_traces_are_withheld_aren_t_paid_and_rounds_are(epochs: Epochs, tmp_path: Path) -> None:
    def verdict(audit: Audit) -> Verdict:
        return Verdict.WITHHELD if (audit.kind, audit.stage) == (Kind.ANSWER, 1) else Verdict.PASSED

    answers = {round_: [epochs.answer(f"{round_} {n}") for n in range(3)] for round_ in (3, 4)}
    second = second_epoch(epochs, tmp_path, answers=answers, verdict=verdict)
    assert served_tokens(second) == {epochs.address("node-0"): 6 * 9}
    assert [(each.stage, each.kind) for each in second.outstanding] == [(1, "answer")]
    assert all(report.units != "0" for sealed in second.rounds for report in sealed.reports)


def test_a_false_answer_convicts_as_false_work_does(epochs: Epochs, tmp_path: Path) -> None:
    def verdict(audit: Audit) -> Verdict:
        return Verdict.FAILED if (audit.kind, audit.stage) == (Kind.ANSWER, 0) else Verdict.PASSED

    answers = {4: [epochs.answer(f"{n}") for n in range(4)]}
    second = second_epoch(epochs, tmp_path, answers=answers, verdict=verdict)
    assert second.convicted == (Conviction(stage=0, node=epochs.address("node-0")),)
    assert served_tokens(second) == {epochs.address("node-1"): 4 * 9}
    assert {report.units for sealed in second.rounds for report in sealed.reports if report.stage == 0} == {"0"}


def test_nothing_is_minted_where_nothing_is_paid(epochs: Epochs, tmp_path: Path) -> None:
    done = epochs.statement(0, verdict=lambda _: Verdict.FAILED)
    settlement = settlement_of(epochs, tmp_path, done)
    settlement._advance(0)
    pass_time(epochs)
    settlement._advance(0)
    assert settlement._advance(0) is None
    record_ = epochs.settlement.epoch(0)
    assert record_ is not None
    assert (record_.finalized, record_.minted) == (True, 0)


def test_an_epoch_with_an_undecided_audit_is_not_closed(epochs: Epochs, tmp_path: Path, told: list[str]) -> None:
    whole = epochs.statement(0)
    settlement = settlement_of(epochs, tmp_path, whole.model_copy(update={"audits": whole.audits[1:]}))
    drawn = len(whole.audits)
    with pytest.raises(LedgerError, match=rf"{drawn} audits were drawn in epoch 0; the ledger has {drawn - 1} verd"):
        settlement._advance(0)
    assert told == []


def test_a_tip_that_a_reorganisation_took_is_committed_again(epochs: Epochs, tmp_path: Path) -> None:
    settlement = settlement_of(epochs, tmp_path)
    coordinator = epochs.address("coordinator")
    assert epochs.settlement.beacon_of(0, coordinator) is None
    settlement._advance(0)
    assert epochs.settlement.beacon_of(0, coordinator) == beacon_chain(epochs.spec, 0)[0]
