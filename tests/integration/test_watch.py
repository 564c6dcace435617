"""The watcher against real proposals on a real chain: what it challenges, what it lets pass, and who gets the bond."""

import asyncio
import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak

from commonweight.chain.events import EpochRejected
from commonweight.chain.rpc import Chain
from commonweight.devnet.accounts import key_file, password_file, write_keys
from commonweight.errors import ChainError, StatementUnavailable
from commonweight.http import serving_http
from commonweight.rules.canonical import canonical_json
from commonweight.rules.statement import AnswerLine, ServedLine, to_hex
from commonweight.watch.fetch import fetch_statement, mirror_uris
from commonweight.watch.judge import Own, OwnReceipt
from commonweight.watch.store import StatementStore
from commonweight.watch.watcher import Watcher
from tests.integration import epochs as world
from tests.integration.epochs import WINDOW_S, Epochs, challenges, watcher_of, with_one_unit_more
from tests.integration.network import Process

epochs, told = world.epochs, world.told  # pytest finds fixtures by their names here


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochs]:
    with Epochs(tmp_path_factory.mktemp("epochs")) as epochs:
        yield epochs


def test_honest_epochs_pass_and_are_kept(epochs: Epochs, tmp_path: Path, told: list[Any]) -> None:
    first = epochs.statement(0)
    epochs.propose(first)
    watcher = watcher_of(epochs, tmp_path)
    watcher.step()
    epochs.finalize(0)
    second = epochs.statement(1, first)
    epochs.propose(second)
    watcher.step()
    assert [name for name, _ in told] == ["epoch.checked"] * 3  # epoch 0 pending and final, epoch 1 pending
    assert challenges(epochs) == []
    assert watcher.store.get(first.hash) == canonical_json(first.model_dump())
    assert watcher.store.get(second.hash) is not None


def test_one_unit_too_many_for_a_friend_costs_the_coordinator_its_bond(
    epochs: Epochs, tmp_path: Path, told: list[Any]
) -> None:
    honest = epochs.statement(0)
    forged = with_one_unit_more(honest, epochs.address("node-0"))
    epochs.propose(forged)
    watcher_of(epochs, tmp_path).step()

    (challenge,) = challenges(epochs)
    assert challenge.challenger == epochs.address("node-1")
    assert challenge.uri.startswith("data:application/json;base64,")
    assert told[0][0] == "epoch.disputed"
    assert "recomputed it is" in told[0][1]["message"]

    epochs.decide(0, bytes.fromhex(forged.root[2:]), uphold=False)
    assert [event.by_arbiter for event in epochs.settlement.events(EpochRejected)] == [True]
    bond = epochs.model.terms.proposer_bond
    assert epochs.settlement.bond_of(epochs.address("node-1")) == bond // 2 + epochs.model.terms.challenger_bond
    assert epochs.settlement.bond_of(epochs.address("coordinator")) == 9 * bond
    epochs.propose(honest)  # the number is open again
    epochs.finalize(0)
    assert epochs.settlement.next_epoch() == 1


def test_a_challenge_without_cause_costs_the_challenger(epochs: Epochs) -> None:
    honest = epochs.statement(0)
    epochs.propose(honest)
    usd = type(epochs.usd)(epochs.chain, epochs.usd.address, epochs.sender("node-1"))
    usd.approve(epochs.model.settlement, epochs.model.terms.challenger_bond)
    griefer = type(epochs.settlement)(epochs.chain, epochs.model.settlement, epochs.sender("node-1"))
    root = bytes.fromhex(honest.root[2:])
    griefer.challenge_epoch(0, root, bytes(32), "")
    epochs.decide(0, root, uphold=True)
    epochs.settlement.finalize_epoch(0)  # at once
    assert epochs.settlement.bond_of(epochs.address("node-1")) == 0
    assert epochs.settlement.bond_of(epochs.address("coordinator")) == 11 * epochs.model.terms.proposer_bond


FAULTS = {
    "signed by another key": lambda epochs: epochs.statement(0, signer="node-1"),
    "an operator pool that nobody paid in": lambda epochs: epochs.statement(0).model_copy(
        update={"operator_pool": "1"}
    ),
    "tokens that no answer has": lambda epochs: epochs.statement(0).model_copy(update={"served": (served(epochs),)}),
    "another model": lambda epochs: epochs.statement(0).model_copy(update={"model_id": "0x" + "22" * 32}),
    "an accumulator before the first": lambda epochs: epochs.statement(0).model_copy(
        update={"accumulator_before": "7"}
    ),
}


def served(epochs: Epochs) -> ServedLine:
    return ServedLine(stage=0, node=epochs.address("node-0"), account=epochs.address("node-0"), tokens=5)


@pytest.mark.parametrize("fault", FAULTS)
def test_any_wrong_number_is_challenged(epochs: Epochs, tmp_path: Path, told: list[Any], fault: str) -> None:
    epochs.propose(FAULTS[fault](epochs))
    watcher_of(epochs, tmp_path).step()
    assert [name for name, _ in told] == ["epoch.disputed", "epoch.challenged"]
    assert len(challenges(epochs)) == 1


def changed_answer(epochs: Epochs, **changes: Any) -> AnswerLine:
    return epochs.answer("sold").model_copy(update=changes)


FALSE_ANSWERS: dict[str, tuple[Callable[[Epochs], AnswerLine], str]] = {
    "a stage signed by another node": (lambda epochs: epochs.answer("sold", signers=("node-0", "node-0")), "stage 1's"),
    "sold by nobody": (lambda epochs: epochs.answer("sold", gateway="node-0"), "to have delivered 4 + 5 tokens"),
    "other tokens than were delivered": (lambda epochs: changed_answer(epochs, completion_tokens=4), "4 + 4"),
    "another prompt than went through": (
        lambda epochs: changed_answer(epochs, prompt_tokens=5, completion_tokens=4),
        "stage 0's",
    ),
    "more tokens than went through": (lambda epochs: changed_answer(epochs, completion_tokens=6), "with 8 fed"),
    "by a version to come": (lambda epochs: epochs.answer("sold", version=6), "no version 6"),
}


@pytest.mark.parametrize("fault", FALSE_ANSWERS)
def test_an_answer_that_wasn_t_signed_so_is_challenged(
    epochs: Epochs, tmp_path: Path, told: list[Any], fault: str
) -> None:
    first = epochs.statement(0)
    epochs.propose(first)
    epochs.finalize(0)
    make, why = FALSE_ANSWERS[fault]
    epochs.propose(epochs.statement(1, first, answers={3: [epochs.answer("honest")], 4: [make(epochs)]}))
    watcher_of(epochs, tmp_path).step()
    assert [name for name, _ in told] == ["epoch.checked", "epoch.disputed", "epoch.challenged"]
    assert why in told[1][1]["message"]
    assert len(challenges(epochs)) == 1


def test_a_wrong_epoch_that_somebody_else_has_challenged_is_told(
    epochs: Epochs, tmp_path: Path, told: list[Any]
) -> None:
    """A puppet of the proposer, say: its challenge silences nobody who found the fault."""
    forged = with_one_unit_more(epochs.statement(0), epochs.address("node-0"))
    epochs.propose(forged)
    epochs.usd.mint(epochs.address("gateway"), epochs.model.terms.challenger_bond)
    usd = type(epochs.usd)(epochs.chain, epochs.usd.address, epochs.sender("gateway"))
    usd.approve(epochs.model.settlement, epochs.model.terms.challenger_bond)
    puppet = type(epochs.settlement)(epochs.chain, epochs.model.settlement, epochs.sender("gateway"))
    puppet.challenge_epoch(0, bytes.fromhex(forged.root[2:]), bytes(32), "")
    watcher = watcher_of(epochs, tmp_path)
    for _ in range(2):
        watcher.step()
    assert [name for name, _ in told] == ["epoch.disputed"]
    assert "recomputed it is" in told[0][1]["message"]
    assert [event.challenger for event in challenges(epochs)] == [epochs.address("gateway")]


def test_a_text_that_is_no_statement_is_challenged(epochs: Epochs, tmp_path: Path) -> None:
    text = b"[" * 10_000
    statement_hash = epochs.published.put(text)
    epochs.settlement.propose_epoch(0, b"\1" * 32, 1, statement_hash, epochs.uri_of(statement_hash))
    watcher_of(epochs, tmp_path).step()
    assert len(challenges(epochs)) == 1


def test_a_withheld_statement_is_challenged_near_the_end_of_the_window(
    epochs: Epochs, tmp_path: Path, told: list[Any]
) -> None:
    statement = epochs.statement(0)
    epochs.propose(statement, publish=False)
    watcher = watcher_of(epochs, tmp_path)
    watcher.step()
    assert challenges(epochs) == []  # it may still come
    epochs.chain.request("evm_increaseTime", WINDOW_S - WINDOW_S // 8)
    watcher.step()
    assert len(challenges(epochs)) == 1
    assert told[0][1]["code"] == "CHAIN_NO_STATEMENT"


def test_a_proposal_can_not_make_the_watcher_read_files(epochs: Epochs, tmp_path: Path, told: list[Any]) -> None:
    statement = epochs.statement(0)
    epochs.propose(statement, uri=epochs.published.path_of(statement.hash).as_uri())
    epochs.chain.request("evm_increaseTime", WINDOW_S - WINDOW_S // 8)
    watcher_of(epochs, tmp_path).step()
    (challenge,) = challenges(epochs)
    evidence = json.loads(base64.b64decode(challenge.uri.partition(",")[2]))
    assert evidence["fault"] == "Its statement can't be had."
    assert keccak(canonical_json(evidence)) == challenge.evidence_hash


def test_a_challenge_that_a_reorganisation_takes_back_is_sent_again(epochs: Epochs, tmp_path: Path) -> None:
    epochs.propose(with_one_unit_more(epochs.statement(0), epochs.address("node-0")))
    before = epochs.chain.request("evm_snapshot")
    watcher = watcher_of(epochs, tmp_path)
    watcher.step()
    epochs.chain.request("evm_revert", before)
    assert challenges(epochs) == []
    watcher.step()
    watcher.step()
    assert len(challenges(epochs)) == 1


@pytest.mark.asyncio
async def test_a_statement_that_its_proposer_withholds_is_had_from_a_node(epochs: Epochs, tmp_path: Path) -> None:
    statement = epochs.statement(0)
    mirror = StatementStore(tmp_path / "a node's")
    mirror.put(canonical_json(statement.model_dump()))
    await asyncio.to_thread(epochs.propose, statement, publish=False)
    async with serving_http(mirror.app(), "127.0.0.1:0") as address:
        watcher = watcher_of(epochs, tmp_path, mirrors=(f"http://{address}/",))
        await asyncio.to_thread(watcher.step)
        elsewhere = mirror_uris([f"http://{address}"], bytes(32))
        with pytest.raises(StatementUnavailable, match="404"):
            await asyncio.to_thread(fetch_statement, elsewhere, bytes(32))
    assert watcher.store.get(statement.hash) is not None
    assert await asyncio.to_thread(challenges, epochs) == []


def test_a_node_finds_its_work_credited_to_somebody_else(epochs: Epochs, tmp_path: Path, told: list[Any]) -> None:
    stolen = epochs.statement(0, paid={1: "gateway"})  # a statement that adds up
    epochs.propose(stolen)
    mine = stolen.rounds[0].reports[1]
    receipt = OwnReceipt(round=0, stage=1, generation=1, signature=mine.signature)
    node = epochs.address("node-1")
    watcher_of(epochs, tmp_path / "stranger").step()
    assert challenges(epochs) == []
    watcher_of(epochs, tmp_path, own=lambda epoch: Own(node, frozenset({node}), [receipt] if epoch == 0 else [])).step()
    assert len(challenges(epochs)) == 1
    assert f"for {epochs.address('gateway')}" in told[-2][1]["message"]


def test_a_faulty_epoch_that_is_final_is_told_and_taken_as_it_is(
    epochs: Epochs, tmp_path: Path, told: list[Any]
) -> None:
    forged = with_one_unit_more(epochs.statement(0), epochs.address("node-0"))
    epochs.propose(forged)
    epochs.finalize(0)  # nobody watched
    epochs.propose(epochs.statement(1, forged))
    watcher = watcher_of(epochs, tmp_path)
    watcher.step()
    assert [name for name, _ in told] == ["epoch.faulty", "epoch.checked"]
    assert challenges(epochs) == []
    assert watcher.store.get(forged.hash) is not None  # whoever begins later needs it, too


def test_numbers_that_no_contract_holds_in_a_final_epoch_end_no_watch(
    epochs: Epochs, tmp_path: Path, told: list[Any]
) -> None:
    honest = epochs.statement(0)
    first, *rest = honest.accounts
    absurd = first.model_copy(update={"cumulative_shares": "9" * 78})
    epochs.propose(honest.model_copy(update={"accounts": (absurd, *rest)}))
    epochs.finalize(0)  # nobody watched
    epochs.propose(epochs.statement(1, honest))
    watcher_of(epochs, tmp_path).step()
    assert [name for name, _ in told] == ["epoch.faulty", "epoch.disputed", "epoch.challenged"]
    assert "can't follow the balances before it" in told[1][1]["message"]


def test_an_endpoint_that_lags_behind_itself_gets_nobody_challenged(
    epochs: Epochs, tmp_path: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one address there are often several nodes; one of them doesn't know yet what operators have earned."""
    first = epochs.statement(0)
    epochs.propose(first)
    epochs.finalize(0)
    watcher = watcher_of(epochs, tmp_path)
    watcher.step()
    told.clear()
    epochs.usd.mint(epochs.model.router, 10**6)
    behind = epochs.chain.block_number()
    epochs.router.sweep()
    second = epochs.statement(1, first, answers={3: [epochs.answer("sold")]})
    assert int(second.operator_pool) > 0
    epochs.propose(second)

    honest = Chain.read

    def read(self: Chain, contract: Any, name: str, function: str, *arguments: Any) -> Any:
        if name == "RevenueRouter":
            if self._pinned is not None and self._pinned > behind:
                raise ChainError("header not found")
            return honest(self.at(behind), contract, name, function, *arguments)
        return honest(self, contract, name, function, *arguments)

    monkeypatch.setattr(Chain, "read", read)
    with pytest.raises(ChainError, match="header not found"):
        watcher.step()
    assert (told, challenges(epochs)) == ([], [])
    monkeypatch.setattr(Chain, "read", honest)
    watcher.step()
    assert [name for name, _ in told] == ["epoch.checked"]


def test_a_wrong_epoch_is_fetched_and_told_once_and_left_when_its_window_is_over(
    epochs: Epochs, tmp_path: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs.propose(with_one_unit_more(epochs.statement(0), epochs.address("node-0")))
    fetched = []
    monkeypatch.setattr(
        "commonweight.watch.watcher.fetch_statement", lambda *asked: fetched.append(asked) or fetch_statement(*asked)
    )
    watcher = watcher_of(epochs, tmp_path)
    watcher.challenger = None
    for _ in range(3):
        watcher.step()
    watcher.challenger = epochs.sender("node-1")
    epochs.chain.request("evm_increaseTime", WINDOW_S + 1)
    watcher.step()
    assert len(fetched) == 1
    assert [name for name, _ in told] == ["epoch.disputed"]
    assert challenges(epochs) == []


@pytest.mark.asyncio
async def test_a_chain_that_stands_still_is_looked_at_again_only_for_what_is_still_to_come(
    epochs: Epochs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def telling(what: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def told(subject: Any) -> Any:
            result = call(subject)
            loop.call_soon_threadsafe(happened.put_nowait, what)
            return result

        return told

    async def until(what: str, times: int) -> list[str]:
        seen: list[str] = []
        while seen.count(what) < times:
            seen.append(await happened.get())
        return seen

    monkeypatch.setattr(Watcher, "poll_s", 0.01)
    monkeypatch.setattr(Chain, "block_hash", telling("asked", Chain.block_hash))
    monkeypatch.setattr(Watcher, "step", telling("looked", Watcher.step))
    statement = epochs.statement(0)
    await asyncio.to_thread(epochs.propose, statement, publish=False)
    watcher = watcher_of(epochs, tmp_path)
    watching = asyncio.create_task(watcher.run())
    async with asyncio.timeout(30):
        await until("looked", 3)
        epochs.published.put(canonical_json(statement.model_dump()))
        while watcher.store.get(statement.hash) is None:
            await until("looked", 1)
        assert (await until("asked", 50)).count("looked") <= 1  # the look that has stored it may just be ending
        await asyncio.to_thread(epochs.chain.request, "evm_mine")
        await until("looked", 1)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.asyncio
async def test_a_disk_that_is_full_ends_no_watch(
    epochs: Epochs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        "commonweight.watch.watcher.emit",
        lambda name, /, **fields: loop.call_soon_threadsafe(said.put_nowait, fields.get("code", name)),
    )
    monkeypatch.setattr(Watcher, "poll_s", 0.01)
    await asyncio.to_thread(lambda: epochs.propose(epochs.statement(0)))
    (tmp_path / "kept").touch()  # where the folder should be
    watching = asyncio.create_task(watcher_of(epochs, tmp_path).run())
    async with asyncio.timeout(30):
        while await said.get() != "STATE_FAILED":
            pass
        (tmp_path / "kept").unlink()
        while not (tmp_path / "kept").is_dir():
            assert await said.get() in ("epoch.checked", "STATE_FAILED")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def test_who_can_not_pay_the_bond_says_so_and_tries_again(epochs: Epochs, tmp_path: Path, told: list[Any]) -> None:
    epochs.propose(with_one_unit_more(epochs.statement(0), epochs.address("node-0")))
    watcher = watcher_of(epochs, tmp_path)
    watcher.challenger = epochs.sender("designer")  # owns no play money
    for _ in range(2):
        with pytest.raises(Exception, match="ERC20InsufficientBalance"):
            watcher.step()
    assert [name for name, _ in told] == ["epoch.disputed"]
    epochs.usd.mint(epochs.address("designer"), epochs.model.terms.challenger_bond)
    watcher.step()
    assert len(challenges(epochs)) == 1


def test_the_command_challenges_by_itself(epochs: Epochs, tmp_path: Path) -> None:
    forged = with_one_unit_more(epochs.statement(0), epochs.address("node-1"))
    epochs.propose(forged)
    keys = tmp_path / "keys"
    keys.mkdir()
    write_keys(keys, epochs.accounts)
    process = Process(
        [
            *(sys.executable, "-m", "commonweight", "watch", "--rpc", epochs.deployment.rpc_url),
            *("--registry", epochs.deployment.registry, "--model", epochs.deployment.model_id),
            *("--spec", str(epochs.spec_file), "--statements", str(tmp_path / "kept")),
            *("--key", str(key_file(keys, "node-0")), "--password-file", str(password_file(keys))),
        ]
    )
    try:
        challenged = process.wait_for("epoch.challenged")
    finally:
        process.kill(15)
    assert process.wait() == 0
    assert challenged.fields["root"] == forged.root
    assert json.loads(json.dumps(challenged.fields))["bond"] == str(epochs.model.terms.challenger_bond)
    (challenge,) = challenges(epochs)
    assert to_hex(challenge.evidence_hash) == challenged.fields["evidence_hash"]
