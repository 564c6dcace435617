"""A gateway that is killed loses next to nothing and takes nothing twice: a process of its own, with a real chain."""

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from commonweight.chain.events import PaymentCollected
from commonweight.chain.local import LocalChain
from gateway.run import open_till
from gateway.shop import STEP_TOKENS
from tests.integration.chain_world import BUYER, ChainWorld, build_world
from tests.integration.gateway_market import (
    FUNDS,
    PRICE,
    PROMPT,
    REQUEST,
    Market,
    ProcessConfig,
    all_orders,
    config_of,
    open_market,
)
from tests.integration.network import Process

MAX_TOKENS = REQUEST["max_tokens"]
SPENT = "invalid_exact_evm_nonce_already_used"


@pytest.fixture(scope="module")
def registered_world() -> Iterator[ChainWorld]:
    with LocalChain.start("embedded", accounts=12) as local:
        yield build_world(local)


class Gateways:
    """One gateway after another, with the same ledger."""

    def __init__(self, world: ChainWorld, folder: Path) -> None:
        self.world, self.folder = world, folder
        self._till = open_till(config_of(world, folder))
        self.processes: list[Process] = []

    def start(self, failpoint: str = "", confirmations: int = 0) -> tuple[Process, str]:
        """A gateway that has taken up what the last one left, and its URL."""
        chain, file = self.world.chain, self.folder / "config.json"
        model = (self.world.registry_address, self.world.model.model_id.hex())
        config = ProcessConfig(chain.rpc_url, chain.chain_id, *model, str(self.folder), confirmations)
        file.write_text(json.dumps(asdict(config)))
        command = [sys.executable, "-m", "tests.integration.gateway_market", str(file)]
        process = Process(command, {"COMMONWEIGHT_FAILPOINT": failpoint})
        self.processes.append(process)
        return process, process.wait_for("gateway.listening").fields["url"]

    def payment(self) -> str:
        return Market(self.world, "", None, self._till, self.folder).payment()  # type: ignore[arg-type]

    def collected(self) -> list[int]:
        """What was charged, payment by payment; it is what the buyer has spent."""
        charged = [event.charged for event in self.world.router().events(PaymentCollected)]
        assert sum(charged) == FUNDS - self.world.usd().balance_of(BUYER.address) == self.world.router().unswept()
        return charged


@pytest.fixture
def gateways(world: ChainWorld, tmp_path: Path) -> Iterator[Gateways]:
    open_market(world)
    gateways = Gateways(world, tmp_path)
    yield gateways
    for process in gateways.processes:
        process.kill()
        process.wait()


def buy(url: str, payment: str, *, stream: bool) -> tuple[int, str]:
    """Status and body, as far as they came."""
    body = b""
    try:
        with httpx.stream(
            "POST",
            f"{url}/v1/completions",
            json=REQUEST | {"stream": stream},
            headers={"PAYMENT-SIGNATURE": payment},
            timeout=30,
        ) as answer:
            for part in answer.iter_bytes():
                body += part
    except httpx.TransportError:
        return 0, body.decode()
    return answer.status_code, body.decode()


def tokens_of(body: str) -> int:
    """How many tokens of a stream came: those of the script are characters."""
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith('data: {"id"')]
    return len("".join(json.loads(line)["choices"][0]["text"] for line in lines))


@pytest.mark.slow
def test_killed_at_any_point_it_collects_what_it_delivered_and_once(gateways: Gateways) -> None:
    charges: list[int] = []
    for failpoint, recorded in (
        ("gateway.accepted", 0),
        ("gateway.sent", 0),
        ("gateway.delivered:2", 1 + STEP_TOKENS),
        ("gateway.served", MAX_TOKENS),
        ("gateway.collecting:2", MAX_TOKENS),  # the first pass is what the one before left
        ("gateway.collected:2", MAX_TOKENS),
    ):
        process, url = gateways.start(failpoint)
        if charges and failpoint != "gateway.sent":
            process.wait_for("payment.collected")
        assert gateways.collected() == charges
        payment = gateways.payment()
        _, body = buy(url, payment, stream=True)
        assert process.wait() == -signal.SIGKILL, f"{failpoint} wasn't reached"
        came = tokens_of(body)
        assert recorded <= came <= recorded + STEP_TOKENS, "never more than was delivered, and hardly less"
        if recorded:
            charges.append(PRICE.cost(len(PROMPT), recorded))
    process, url = gateways.start()
    process.wait_for("payment.collected")
    assert gateways.collected() == charges
    status, body = buy(url, payment, stream=True)
    assert (status, json.loads(body)["error"]["code"]) == (402, SPENT)
    assert gateways.collected() == charges
    states = [str(order.state) for order in all_orders(gateways.folder / "gateway.db")]
    assert sorted(states) == ["collected"] * 4 + ["void"] * 2


def test_killed_in_mid_answer_it_reports_the_session_that_was_delivered(gateways: Gateways) -> None:
    process, url = gateways.start("gateway.delivered:2")
    buy(url, gateways.payment(), stream=True)
    assert process.wait() == -signal.SIGKILL
    session = process.wait_for("scripted.answered").fields["session"]
    assert not [event for event in process.events if event.name == "scripted.reported"]
    process, _ = gateways.start()
    reported = process.wait_for("scripted.reported").fields
    assert (reported["session"], reported["completion_tokens"]) == (session, 1 + STEP_TOKENS)


def test_killed_before_a_whole_answer_left_it_is_sent_when_asked_for_again(gateways: Gateways) -> None:
    process, url = gateways.start("gateway.served")
    payment = gateways.payment()
    assert buy(url, payment, stream=False) == (0, "")
    assert process.wait() == -signal.SIGKILL
    process, url = gateways.start()
    resumed = process.wait_for("gateway.resumed").fields
    assert (resumed["interrupted"], resumed["to_collect"], resumed["to_report"]) == (0, 1, 1)
    process.wait_for("payment.collected")
    process.wait_for("scripted.reported")
    status, body = buy(url, payment, stream=False)
    assert status == 200
    assert json.loads(body)["usage"]["completion_tokens"] == MAX_TOKENS
    assert gateways.collected() == [PRICE.cost(len(PROMPT), MAX_TOKENS)]
    process.kill(signal.SIGTERM)
    assert process.wait() == 0
    assert process.events[-1].name == "stopped"


def test_killed_before_its_collection_was_deep_enough_it_collects_again_what_the_chain_has_lost(
    gateways: Gateways,
) -> None:
    chain, depth, cost = gateways.world.chain, 2, PRICE.cost(len(PROMPT), MAX_TOKENS)
    before = chain.request("evm_snapshot")
    process, url = gateways.start(confirmations=depth)
    assert buy(url, gateways.payment(), stream=True)[0] == 200
    mined = process.wait_for("payment.collected").fields["transaction"]
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert gateways.collected() == [cost]
    assert chain.request("evm_revert", before) is True
    assert (chain.receipt(mined), gateways.collected()) == (None, [])

    process, _ = gateways.start(confirmations=depth)
    resumed = process.wait_for("gateway.resumed").fields
    assert (resumed["to_collect"], resumed["to_confirm"]) == (0, 1)
    assert process.wait_for("payment.reorganised").fields["transaction"] == mined
    again = process.wait_for("payment.collected").fields["transaction"]
    process.kill(signal.SIGTERM)
    assert process.wait() == 0
    assert gateways.collected() == [cost]
    (order,) = all_orders(gateways.folder / "gateway.db")
    assert (order.state, order.transaction) == ("mined", again)
