"""The whole way of a paid answer: `commonweight ask`, `commonweight gateway run`, a coordinator, nodes, a chain."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from commonweight.buyer import ask as buy
from commonweight.buyer import sign
from commonweight.chain.events import PaymentCollected
from commonweight.chain.keys import SCRYPT_N_DEVNET, import_key
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.router import RevenueRouter
from commonweight.chain.sender import Sender
from commonweight.chain.token import Token
from commonweight.cli.main import app
from commonweight.devnet.accounts import PASSWORD, key_file, password_file
from commonweight.errors import (
    CommonweightError,
    ConfigError,
    CostAboveLimit,
    InsufficientFunds,
    PeerUnreachable,
    Refused,
    StageLost,
)
from commonweight.failpoints import VARIABLE
from gateway.ledger import Order, State
from tests.integration.gateway_market import all_orders
from tests.integration.network import PATIENT, Network, Process

pytestmark = pytest.mark.slow
PRICE_PROMPT, PRICE_COMPLETION = 2_000_000, 3_000_000
PROMPT = "It is a"
TOKENS = 9
COST = 2 * len(PROMPT) + 3 * TOKENS


class Shop:
    """A network with a gateway, whose devnet folder a buyer has."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.holders: list[tuple[int, Process]] = []
        """The nodes and their numbers, by stage."""
        self.frozen = 0
        """Process id of a worker that keeps rounds from being sealed."""
        self.coordinator = self._start(
            [*network.coordinator_command(1000), "--gateway", network.accounts["gateway"].address]
        )
        network.peer = self.coordinator.wait_for("coordinator.listening").fields["peer"]
        deployed = network.deployment
        self.gateway = self._start(
            [
                *(sys.executable, "-m", "commonweight", "gateway", "run", "--coordinator", network.peer),
                *self._key("gateway"),
                *("--rpc", deployed.rpc_url, "--chain-id", str(deployed.chain_id), "--registry", deployed.registry),
                *("--model-id", deployed.model_id, "--ledger", f"sqlite:///{network.folder}/gateway.sqlite"),
                *("--price-prompt", str(PRICE_PROMPT), "--price-completion", str(PRICE_COMPLETION)),
            ]
        )
        self.url = self.gateway.wait_for("gateway.listening").fields["url"]
        self.token = Token(network.chain, deployed.revenue_token)
        self.router = RevenueRouter(network.chain, deployed.router)
        self.buyer = network.accounts["node-2"]
        self.funds = self.token.balance_of(self.buyer.address)
        keys = network.folder / "keys"
        import_key(keys / "poor.json", PASSWORD, b"\x55" * 32, scrypt_n=SCRYPT_N_DEVNET)
        (network.folder / "deployments.json").write_text(
            json.dumps(
                deployed.fields()
                | {
                    "gateway_url": self.url,
                    "buyer_key": str(key_file(keys, "node-2")),
                    "password_file": str(password_file(keys)),
                }
            )
        )

    def run(self, *arguments: str, input: str | None = None) -> Result:
        """`commonweight ask tiny`; raises what the command raised."""
        words = ["ask", "tiny", PROMPT, "--max-tokens", str(TOKENS), *arguments]
        result = CliRunner().invoke(app, [*words, "--dir", str(self.network.folder)], input=input)
        if isinstance(result.exception, CommonweightError):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def ask(self, *arguments: str) -> Any:
        return json.loads(self.run("--yes", "--json", *arguments).stdout)

    def stream(self, show: Callable[[str], None]) -> None:
        """The same request, with the text in the pieces in which it comes."""
        request = {"model": "tiny", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
        chain, key = self.network.chain, self.buyer.key
        buy(self.url, request, lambda offer: sign(offer, key, chain.timestamp()), show)

    @contextmanager
    def reopened(self) -> Iterator[None]:
        """At the end there are answers to sell again."""
        opened = [event for event in self.gateway.events if event.name == "route.opened"]
        yield
        self.gateway.wait_for("route.opened", lambda event: event not in opened)

    @property
    def orders(self) -> list[Order]:
        return all_orders(self.network.folder / "gateway.sqlite")

    def spent(self) -> int:
        spent = self.funds - self.token.balance_of(self.buyer.address)
        charged = [event.charged for event in self.router.events(PaymentCollected)]
        assert sum(charged) == spent
        return spent

    def _start(self, command: list[str]) -> Process:
        process = Process(command)
        self.network.processes.append(process)
        return process

    def _key(self, role: str) -> tuple[str, ...]:
        keys = self.network.folder / "keys"
        return ("--key", str(key_file(keys, role)), "--password-file", str(password_file(keys)))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with Network(tmp_path_factory.mktemp("network")) as network:
        shop = Shop(network)
        answer = httpx.post(f"{shop.url}/v1/completions", json={"model": "tiny", "prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "WIRE_NOT_SERVED"), "no node is there"
        assert httpx.get(f"{shop.url}/v1/models").json()["data"] == []
        nodes = {index: network.start_node(index, PATIENT) for index in range(network.stages)}
        shop.gateway.wait_for("route.opened")
        shop.holders = sorted(nodes.items(), key=lambda node: int(node[1].wait_for("node.assigned").fields["stage"]))
        # An epoch of this tiny model takes less time than an answer. With this worker frozen no other version comes.
        shop.frozen = shop.holders[0][1].wait_for("worker.started").fields["worker_pid"]
        os.kill(shop.frozen, signal.SIGSTOP)
        yield shop
        os.kill(shop.frozen, signal.SIGCONT)


def test_answers_are_bought(shop: Shop) -> None:
    before = shop.spent()
    answers = [shop.ask(), shop.ask("--temperature", "1", "--seed", "5"), shop.ask("--max-tokens", "2")]
    for answer, most in zip(answers, (TOKENS, TOKENS, 2), strict=True):
        assert answer["prompt_tokens"] == len(PROMPT)
        assert answer["completion_tokens"] <= most
        assert answer["cost"] == str(2 * len(PROMPT) + 3 * answer["completion_tokens"])
        assert shop.network.chain.receipt(answer["transaction"]) is not None
    assert shop.spent() - before == sum(int(answer["cost"]) for answer in answers)
    assert [order.state for order in shop.orders] == [State.COLLECTED] * 3


def test_it_is_shown_as_it_comes_and_asks_before_it_signs(shop: Shop) -> None:
    before = shop.spent()
    result = shop.run(input="n\n")
    assert result.exit_code == 1
    assert "costs at most 0.000041 tUSD" in result.stderr
    assert shop.network.deployment.router in result.stderr
    assert "Nothing was signed." in result.stderr
    assert shop.spent() == before
    result = shop.run(input="y\n")
    assert f"{len(PROMPT)} of prompt, {TOKENS} of answer" in result.stdout
    assert "0.000041 tUSD" in result.stdout
    assert "transaction  0x" in result.stdout
    assert shop.spent() == before + COST


def test_what_it_doesn_t_sign(shop: Shop) -> None:
    before = shop.spent()
    with pytest.raises(CostAboveLimit, match=r"up to 0.000041 tUSD, more than --max-cost 0.00004\b"):
        shop.run("--yes", "--max-cost", "0.00004")
    keys = shop.network.folder / "keys"
    poor = ("--key", str(keys / "poor.json"), "--password-file", str(password_file(keys)))
    with pytest.raises(InsufficientFunds, match="has 0 tUSD"):
        shop.run("--yes", *poor)
    with pytest.raises(ConfigError, match="--yes"):
        shop.run(input="")
    with pytest.raises(Refused, match="400: The prompt has 7 tokens and 90"):
        shop.run("--yes", "--max-tokens", "90")
    result = CliRunner().invoke(app, ["ask", "tiny", PROMPT, "--max-tokens", "5", "--gateway", shop.url, "--yes"])
    assert isinstance(result.exception, ConfigError)
    assert "without the chain nobody can tell" in str(result.exception)
    assert shop.ask("--max-cost", "0.000041")["cost"] == str(COST)
    assert shop.spent() == before + COST


def test_a_gateway_that_wants_the_money_elsewhere_gets_none(shop: Shop) -> None:
    """Here the buyer means another model, which has another router."""
    network = shop.network
    sender = Sender(network.chain, network.accounts["coordinator"].key)
    registry = ModelRegistry(network.chain, network.deployment.registry, sender)
    present = registry.model(bytes.fromhex(network.deployment.model_id[2:]))
    other = registry.register_model(replace(present.terms, name="Another"))
    with pytest.raises(Refused, match=f"to its router {other.router}. Nothing was signed"):
        shop.run("--yes", "--model", "0x" + other.model_id.hex())


def test_the_command_itself(shop: Shop) -> None:
    command = [sys.executable, "-m", "commonweight", "ask", "tiny", PROMPT, "--max-tokens", str(TOKENS), "--yes"]
    folder = ["--dir", str(shop.network.folder)]
    done = subprocess.run([*command, *folder], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert b"transaction  0x" in done.stdout
    with pytest.raises(PeerUnreachable, match="can't be reached"):
        shop.run("--gateway", "http://127.0.0.1:9")


def test_a_stage_that_is_gone_costs_nothing_and_one_killed_in_mid_answer_what_was_delivered(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shop.spent()
    index, node = shop.holders[-1]
    node.kill()
    assert node.wait() == -signal.SIGKILL
    with pytest.raises(Refused, match="503: "):
        shop.run("--yes")
    shop.gateway.wait_for("route.failed", lambda event: event.fields["code"] == "WIRE_NOT_SERVED")
    assert httpx.get(f"{shop.url}/healthz").status_code == 503
    assert shop.spent() == before
    # The new node's decode process computes one answer, a step for each token, and dies in the middle of the next one.
    monkeypatch.setenv(VARIABLE, f"decode.step:{TOKENS + 5}")
    with shop.reopened():
        node = shop.network.start_node(index)
    whole = shop.ask()
    assert (whole["completion_tokens"], whole["cost"]) == (TOKENS, str(COST))
    before, pieces = before + COST, list[str]()
    with shop.reopened():
        with pytest.raises(StageLost, match=r"last stage|Stage 1 ") as caught:
            shop.stream(pieces.append)
        assert "signal 9" in node.wait_for("decode.died").fields["message"]
    assert caught.value.code == "WIRE_STAGE_LOST"
    text = "".join(pieces)
    assert 0 < len(text) < TOKENS
    assert whole["text"].startswith(text)
    charge = 2 * len(PROMPT) + 3 * len(text)  # its tokens are bytes
    assert shop.spent() == before + charge
    assert shop.ask()["text"] == whole["text"], "its node has started it again"
    assert shop.spent() == before + charge + COST


def test_the_gateway_ends_in_good_order(shop: Shop) -> None:
    before = shop.spent()
    shop.gateway.kill(signal.SIGTERM)
    assert shop.gateway.wait() == 0
    assert shop.gateway.events[-1].name == "stopped"
    assert shop.spent() == before
    answered = [order for order in shop.orders if order.completion_tokens]
    assert all(order.state is State.COLLECTED and order.reported for order in answered)
    assert [order.charge for order in shop.orders if order not in answered] == [0], "what nobody could answer"


def test_the_answer_that_the_gateway_has_signed_is_the_one_that_all_stages_have(shop: Shop) -> None:
    os.kill(shop.frozen, signal.SIGCONT)
    session = shop.orders[-1].session
    assert session is not None
    shop.coordinator.wait_for("answer.sealed", lambda event: event.fields["session"] == session.hex())
