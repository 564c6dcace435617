"""The coordinator slashes whom it convicted, on a real chain that contests, is silent, or has nothing left to take."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commonweight.chain.events import Slashed, SlashProposed
from commonweight.chain.keys import Key
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import SlashStatus
from commonweight.chain.token import TestUSD, Token
from commonweight.devnet.accounts import node_stages
from commonweight.devnet.deployment import REPORTER_BOND, SEAT_STAKE, take_seats
from commonweight.errors import Refused
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.epoch import audit_line, make_opinion
from commonweight.rules.receipt import Domain
from commonweight.rules.statement import to_hex
from coordinator import slashing as module
from coordinator.ledger import Fraud, Ledger
from coordinator.members import Place
from coordinator.seats import Seats, Standing
from coordinator.slashing import Slashing
from tests.integration.epochs import WINDOW_S, Epochs
from tools.build_vectors import mark

ARBITRATION_S = 300
CHEAT, STAGE = "node-0", 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochs]:
    terms = {"seat_stake": SEAT_STAKE, "arbitration_s": ARBITRATION_S}
    with Epochs(tmp_path_factory.mktemp("slashed"), {"microbatch_rate": "1"}, **terms) as epochs:
        take_seats(epochs.deployment, epochs.accounts, node_stages(2))
        yield epochs


@pytest.fixture
def epochs(base: Epochs) -> Iterator[Epochs]:
    snapshot = base.chain.request("evm_snapshot")
    yield base
    base.chain.request("evm_revert", snapshot)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr("coordinator.slashing.emit", lambda name, /, **fields: said.append(name))
    return said


def providers_of(epochs: Epochs, role: str) -> ProviderRegistry:
    return ProviderRegistry(epochs.chain, epochs.deployment.providers, epochs.sender(role))


def approve(providers: ProviderRegistry, amount: int) -> None:
    Token(providers.chain, providers.bond_token(), providers.sender).approve(providers.address, amount)


def slashing_of(epochs: Epochs, folder: Path, **options: Any) -> Slashing:
    """With node-0's fraud in the ledger."""
    ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
    ids = {"model_id": epochs.model.model_id, "spec_hash": epochs.spec.spec_hash}
    ledger.open_model(**ids, settlement=epochs.model.settlement, chain_id=epochs.chain.chain_id)
    caught = next(line.audit for line in epochs.statement(0).audits if line.stage == STAGE)
    done = epochs.statement(0, verdict=lambda audit: Verdict.FAILED if audit == caught else Verdict.PASSED)
    if not ledger.sealed_rounds(0, 1):
        for sealed in done.rounds:
            ledger.record_round(sealed, {}, {})
        for line in done.audits:
            ledger.record_verdict(line, last=False)
    place = Place(epochs.model.model_id, Domain(epochs.chain.chain_id, epochs.model.settlement))
    return Slashing(place, ledger, providers_of(epochs, "coordinator"), "http://127.0.0.1:1", **options)


def step(slashing: Slashing) -> float | None:
    """Of the only case that there is."""
    (case,) = slashing._cases()
    return slashing._advance(case)


def pass_time(epochs: Epochs, seconds: int) -> None:
    epochs.chain.request("evm_increaseTime", seconds)
    epochs.chain.request("evm_mine")


def seated(epochs: Epochs) -> bool:
    return providers_of(epochs, CHEAT).is_seated(epochs.model.model_id, epochs.address(CHEAT), STAGE)


def proof(slashing: Slashing) -> Fraud:
    (fraud,) = slashing.ledger.frauds()
    return fraud


def test_fraud_is_proposed_with_its_evidence_and_executed_after_the_window(
    epochs: Epochs, tmp_path: Path, told: list[str]
) -> None:
    slashing = slashing_of(epochs, tmp_path)
    money = Token(epochs.chain, slashing.providers.bond_token()).balance_of(epochs.address("coordinator"))
    assert step(slashing) == 0.0
    (event,) = slashing.providers.events(SlashProposed)
    evidence = proof(slashing).evidence
    assert "0x" + event.evidence_hash.hex() == evidence
    assert event.uri == f"http://127.0.0.1:1/evidence/{evidence}.json"
    assert (event.owner, event.stage) == (epochs.address(CHEAT), STAGE)
    assert step(slashing) == module.MAX_WAIT_S < WINDOW_S  # a contest would be told before the window ends
    assert seated(epochs)
    pass_time(epochs, WINDOW_S + 1)
    assert step(slashing) == 0.0
    assert step(slashing) is None
    assert not seated(epochs)
    assert told == ["slash.proposed", "slash.executed"]
    assert Token(epochs.chain, slashing.providers.bond_token()).balance_of(epochs.address("coordinator")) <= money


def test_a_restarted_coordinator_proposes_nothing_twice(epochs: Epochs, tmp_path: Path, told: list[str]) -> None:
    step(slashing_of(epochs, tmp_path))
    again = slashing_of(epochs, tmp_path)
    step(again)
    pass_time(epochs, WINDOW_S + 1)
    step(slashing_of(epochs, tmp_path))
    assert step(slashing_of(epochs, tmp_path)) is None
    assert len(again.providers.events(SlashProposed)) == 1
    assert told == ["slash.proposed"]


def contest(epochs: Epochs) -> int:
    providers = providers_of(epochs, CHEAT)
    (event,) = providers.events(SlashProposed)
    approve(providers, REPORTER_BOND)
    providers.contest_slash(event.slash_id, "")
    return event.slash_id


def test_on_an_arbiter_s_silence_it_is_dropped(epochs: Epochs, tmp_path: Path, told: list[str]) -> None:
    slashing = slashing_of(epochs, tmp_path)
    step(slashing)
    slash_id = contest(epochs)
    pass_time(epochs, WINDOW_S + 1)
    for _ in range(2):
        assert step(slashing) == module.MAX_WAIT_S
    pass_time(epochs, ARBITRATION_S)
    assert step(slashing) == 0.0
    assert step(slashing) is None
    assert slashing.providers.slash(slash_id).status is SlashStatus.DROPPED
    assert seated(epochs)
    assert told == ["slash.proposed", "slash.contested", "slash.dropped"]


def test_a_copy_of_the_evidence_by_somebody_else_takes_nobody_s_turn(epochs: Epochs, tmp_path: Path) -> None:
    slashing = slashing_of(epochs, tmp_path)
    copier = providers_of(epochs, CHEAT)
    approve(copier, REPORTER_BOND)
    evidence_hash = bytes.fromhex(proof(slashing).evidence[2:])
    copier.propose_slash(epochs.model.model_id, epochs.address(CHEAT), STAGE, evidence_hash, "http://nowhere.example")
    assert step(slashing) == 0.0
    reporters = {event.reporter for event in slashing.providers.events(SlashProposed)}
    assert reporters == {epochs.address(CHEAT), epochs.address("coordinator")}


def test_where_there_is_no_stake_any_more_nothing_is_proposed(epochs: Epochs, tmp_path: Path, told: list[str]) -> None:
    providers = providers_of(epochs, CHEAT)
    providers.leave_seat(epochs.model.model_id, STAGE)
    slashing = slashing_of(epochs, tmp_path)
    snapshot = epochs.chain.request("evm_snapshot")
    assert step(slashing) == 0.0  # its cool-down isn't over
    epochs.chain.request("evm_revert", snapshot)
    pass_time(epochs, epochs.model.terms.seat_cooldown_s + 1)
    assert step(slashing) is None
    assert told == ["slash.proposed", "slash.dropped"]


@pytest.mark.asyncio
async def test_without_tokens_for_the_bond_it_is_tried_again(
    epochs: Epochs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("coordinator.slashing.emit", lambda name, /, **fields: said.append((name, fields)))
    usd = TestUSD(epochs.chain, epochs.deployment.revenue_token, epochs.sender("coordinator"))
    usd.transfer(epochs.address("designer"), usd.balance_of(epochs.address("coordinator")))
    pauses: list[float] = []
    proposed = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            await asyncio.to_thread(epochs.usd.mint, epochs.address("coordinator"), REPORTER_BOND)
        if any(name == "slash.proposed" for name, _ in said):
            proposed.set()
            await asyncio.Event().wait()

    slashing = slashing_of(epochs, tmp_path, sleep=sleep)
    task = asyncio.create_task(slashing.run())
    async with asyncio.timeout(60):
        await proposed.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert pauses[:2] == [1.0, 2.0]
    assert [name for name, _ in said] == ["slash.failed", "slash.failed", "slash.proposed"]
    assert said[0][1]["node"] == epochs.address(CHEAT)


def test_an_auditor_whose_opinion_was_disproven_loses_its_owner_s_seat(
    epochs: Epochs, tmp_path: Path, told: list[str]
) -> None:
    key, owner, audit = Key(b"\x11" * 32), epochs.address("node-1"), Audit(0, 1, Kind.ROUND)
    providers = providers_of(epochs, "node-1")
    providers.bind_signer(key.address, key.sign_digest(providers.binding_digest(owner)))
    slashing = slashing_of(epochs, tmp_path)
    lazy = make_opinion(
        mark("false claim"),
        Verdict.PASSED,
        auditor=key.address,
        owner=owner,
        account=owner,
        signature=bytes(65),
    ).model_copy(update={"disproof": to_hex(mark("disproof"))})
    line = audit_line(audit, Verdict.PASSED, [lazy, *epochs.verdict_line(audit, Verdict.PASSED).opinions])
    slashing.ledger.record_verdict(line, last=False)
    _, case = slashing._cases()
    assert case == Fraud(1, key.address, lazy.disproof)
    slashing._advance(case)
    (event,) = providers.events(SlashProposed)
    assert (event.owner, event.stage, event.evidence_hash) == (owner, 1, mark("disproof"))
    assert event.uri == f"http://127.0.0.1:1/evidence/{lazy.disproof}.json"
    pass_time(epochs, WINDOW_S + 1)
    slashing._advance(case)
    assert slashing._advance(case) is None
    assert not providers.is_seated(epochs.model.model_id, owner, 1)
    assert told == ["slash.proposed", "slash.executed"]


def test_two_words_about_one_unit_are_slashed_at_once(epochs: Epochs, tmp_path: Path, told: list[str]) -> None:
    slashing = slashing_of(epochs, tmp_path)
    found = epochs.equivocation(1, "node-1")
    assert slashing.ledger.record_equivocation(found)
    case = slashing._cases()[-1]
    assert slashing._advance(case) is None
    (event,) = slashing.providers.events(Slashed)
    assert (event.owner, event.stage, to_hex(event.evidence_hash)) == (found.node, 1, found.unit)
    assert slashing._advance(case) is None  # after a restart
    assert told == ["slash.executed"]


def test_a_node_stands_in_for_the_owner_that_it_is_bound_to(epochs: Epochs) -> None:
    key, owner, payout = Key(b"\x12" * 32), epochs.address("node-1"), epochs.address("designer")
    providers, seats = providers_of(epochs, "node-1"), Seats(epochs.chain, epochs.model)
    with pytest.raises(Refused, match="holds no seat in model"):
        seats.standing(key.address, key.address)
    providers.bind_signer(key.address, key.sign_digest(providers.binding_digest(owner)))
    providers.set_payout(payout)
    assert seats.standing(key.address, key.address) == Standing(frozenset({1}), payout, owner)


def test_who_was_slashed_keeps_the_stage_it_holds_and_gets_no_other(epochs: Epochs, tmp_path: Path) -> None:
    """Nobody else has its state: to hang up on it would stop the model."""
    slashing = slashing_of(epochs, tmp_path)
    seats = Seats(epochs.chain, epochs.model)
    node = epochs.address(CHEAT)
    before = seats.standing(node, node, STAGE)
    assert before == Standing(frozenset({STAGE}), node, node)
    step(slashing)
    pass_time(epochs, WINDOW_S + 1)
    step(slashing)
    assert not seated(epochs)
    assert seats.standing(node, node, STAGE) == before
    pass_time(epochs, epochs.model.terms.seat_cooldown_s + 1)
    slashing.providers.release_seat(epochs.model.model_id, node, STAGE)  # anybody can
    assert seats.standing(node, node, STAGE) == before
    for other in (None, 1):
        with pytest.raises(Refused, match="holds no seat in model"):
            seats.standing(node, node, other)
