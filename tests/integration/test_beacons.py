"""The coordinator's beacon tips on a real chain that is away, slow, reorganised, or has another coordinator's."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak

from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.rpc import Chain
from commonweight.chain.settlement import EpochSettlement
from commonweight.devnet.accounts import node_stages
from commonweight.devnet.deployment import SEAT_STAKE, take_seats
from commonweight.errors import LedgerError
from commonweight.rules.statement import AuditorSeat
from coordinator.beacons import Beacons
from coordinator.ledger import Ledger
from tests.integration.epochs import Epochs

pytestmark = pytest.mark.asyncio

DEADLINE_S = 60


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochs]:
    with Epochs(tmp_path_factory.mktemp("beacons"), seat_stake=SEAT_STAKE) as epochs:
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
    monkeypatch.setattr("coordinator.beacons.emit", lambda name, /, **fields: said.append(name))
    return said


def beacons_of(epochs: Epochs, folder: Path, **options: Any) -> Beacons:
    contract = EpochSettlement(epochs.chain, epochs.model.settlement, epochs.sender("coordinator"))
    ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
    return Beacons(epochs.spec.economics.rounds_per_epoch, ledger, contract, epochs.model, **options)


def on_chain(epochs: Epochs, epoch: int) -> bytes | None:
    return epochs.settlement.beacon_of(epoch, epochs.address("coordinator"))


def leave_seat(epochs: Epochs, stage: int) -> None:
    providers = ProviderRegistry(epochs.chain, epochs.deployment.providers, epochs.sender(f"node-{stage}"))
    providers.leave_seat(epochs.model.model_id, stage)


def seats(epochs: Epochs, *stages: int) -> frozenset[AuditorSeat]:
    """As `take_seats` has taken them."""
    return frozenset(AuditorSeat(stage=stage, owner=epochs.address(f"node-{stage}")) for stage in stages)


class Rounds:
    """As much of a Training as commits follow."""

    def __init__(self) -> None:
        self.round = 0
        self.looks = asyncio.Queue[int]()
        self._sealed = asyncio.Condition()

    def reconsider(self) -> None:
        self.looks.put_nowait(self.round)

    async def wait_until_sealed(self, rounds_: int) -> None:
        async with self._sealed:
            await self._sealed.wait_for(lambda: self.round >= rounds_)

    async def go_to(self, round_: int) -> None:
        async with self._sealed:
            self.round = round_
            self._sealed.notify_all()


async def test_tips_are_committed_an_epoch_ahead_and_values_lead_to_them(epochs: Epochs, tmp_path: Path) -> None:
    beacons, rounds = beacons_of(epochs, tmp_path), Rounds()
    per_epoch = beacons.rounds_per_epoch
    assert beacons.tip(0) is None
    task = asyncio.create_task(beacons.run(rounds, 3))  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE_S):
        for expected in (0, 0):
            assert await rounds.looks.get() == expected
        assert (on_chain(epochs, 0), on_chain(epochs, 1), on_chain(epochs, 2)) == (
            beacons.tip(0),
            beacons.tip(per_epoch),
            None,
        )
        assert keccak(beacons.value(0)) == beacons.tip(per_epoch - 1)
        assert keccak(beacons.value(per_epoch - 1)) == beacons.value(per_epoch - 2)
        for first in (0, per_epoch):
            assert keccak(beacons.seed(first)) == beacons.value(first + per_epoch - 1)
            assert beacons.seed(first) == beacons.seed(first + per_epoch - 1)
        await rounds.go_to(per_epoch)
        for _ in range(2):
            await rounds.looks.get()
        assert on_chain(epochs, 2) == beacons.tip(2 * per_epoch) is not None
        await rounds.go_to(2 * per_epoch)
        await rounds.looks.get()
        assert on_chain(epochs, 3) is None  # it is never trained
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_restarted_coordinator_has_the_same_chain(epochs: Epochs, tmp_path: Path, told: list[str]) -> None:
    first, second = beacons_of(epochs, tmp_path), beacons_of(epochs, tmp_path)
    await first.commit(0)
    await second.commit(0)
    assert first.tip(0) == second.tip(0) == on_chain(epochs, 0)
    assert (first.value(1), first.seed(1)) == (second.value(1), second.seed(1))
    assert told == ["beacon.committed"]


async def test_another_coordinator_s_tip_ends_this_one(epochs: Epochs, tmp_path: Path) -> None:
    epochs.settlement.commit_beacon(0, b"\x0b" * 32)
    with pytest.raises(LedgerError, match=f"beacon tip 0x{'0b' * 32}; this ledger's is 0x"):
        await beacons_of(epochs, tmp_path).commit(0)


async def test_a_tip_counts_when_it_is_deep_enough_and_is_committed_again_after_a_reorganisation(
    epochs: Epochs, tmp_path: Path, told: list[str]
) -> None:
    snapshot = epochs.chain.request("evm_snapshot")
    waits: list[bytes | None] = []

    async def sleep(seconds: float) -> None:
        waits.append(on_chain(epochs, 0))
        if len(waits) == 1:
            epochs.chain.request("evm_revert", snapshot)
        else:
            epochs.chain.request("evm_mine")

    beacons = beacons_of(epochs, tmp_path, confirmations=3, sleep=sleep)
    async with asyncio.timeout(DEADLINE_S):
        await beacons.commit(0)
    assert beacons.tip(0) == on_chain(epochs, 0)
    assert len(waits) == 4
    assert told == ["beacon.committed"] * 2


async def test_a_chain_that_is_away_is_waited_for(
    epochs: Epochs, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = Chain.connect(epochs.deployment.rpc_url, epochs.chain.chain_id, timeout_s=1.0)
    monkeypatch.setattr(epochs, "chain", impatient)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            os.kill(epochs.local.pid, signal.SIGCONT)

    beacons = beacons_of(epochs, tmp_path, sleep=sleep)
    os.kill(epochs.local.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await beacons.commit(0)
    finally:
        os.kill(epochs.local.pid, signal.SIGCONT)
    assert pauses == [1.0, 2.0]
    assert told == ["chain.failed", "chain.failed", "beacon.committed"]
    assert beacons.tip(0) == on_chain(epochs, 0)


async def test_who_may_audit_is_fixed_with_the_tip(epochs: Epochs, tmp_path: Path) -> None:
    beacons = beacons_of(epochs, tmp_path)
    await beacons.commit(0)
    leave_seat(epochs, 0)
    await beacons.commit(1)
    assert (beacons.auditors(0), beacons.auditors(1)) == (seats(epochs, 0, 1), seats(epochs, 1))
    leave_seat(epochs, 1)
    again = beacons_of(epochs, tmp_path)
    for epoch in range(2):
        await again.commit(epoch)
    assert (again.auditors(0), again.auditors(1)) == (seats(epochs, 0, 1), seats(epochs, 1))


async def test_a_successor_has_the_auditors_of_when_the_tip_was_first_committed(epochs: Epochs, tmp_path: Path) -> None:
    first = beacons_of(epochs, tmp_path)
    await first.commit(0)
    leave_seat(epochs, 0)
    successor = beacons_of(epochs, tmp_path)
    successor.contract = EpochSettlement(epochs.chain, epochs.model.settlement, epochs.sender("node-1"))
    await successor.commit(0)
    assert epochs.settlement.beacon_of(0, epochs.address("node-1")) == successor.tip(0) == first.tip(0)
    assert successor.auditors(0) == first.auditors(0) == seats(epochs, 0, 1)


async def test_no_round_is_planned_before_it_is_known_who_may_audit_it(
    epochs: Epochs, tmp_path: Path, told: list[str]
) -> None:
    """Nor are they known before the tip is deep enough: until then a reorganisation may change who held a seat."""
    snapshot = epochs.chain.request("evm_snapshot")
    waits = 0

    async def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        assert beacons.tip(0) is None
        if waits == 1:
            epochs.chain.request("evm_revert", snapshot)
            leave_seat(epochs, 0)
        else:
            epochs.chain.request("evm_mine")

    beacons = beacons_of(epochs, tmp_path, confirmations=2, sleep=sleep)
    async with asyncio.timeout(DEADLINE_S):
        await beacons.commit(0)
    assert beacons.auditors(0) == seats(epochs, 1)
    assert told == ["beacon.committed"] * 2
