"""The local chains, over HTTP and in another process: both back-ends behave alike, and neither outlives us."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from eth_utils.address import to_checksum_address
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweight.chain.anvil import ANVIL_VARIABLE, MEMORY_LIMIT_BYTES, find_anvil
from commonweight.chain.child import Ready
from commonweight.chain.embedded import MAX_BODY_BYTES, create_server
from commonweight.chain.evm import LocalEvm
from commonweight.chain.evm_rpc import MAX_BATCH, EvmRpc
from commonweight.chain.keys import devnet_key
from commonweight.chain.local import LocalChain, local_chain_command
from commonweight.errors import ChainError

CHAIN_ID = 31_338  # not the default, so that it is seen to arrive
GWEI = 10**9
# Runtime code that returns block.timestamp, and code that reverts with 0xdeadbeef; each with the code that deploys it.
TELL_TIME = "0x66425f5260205ff35f5260076019f3"
REVERT = "0x6b63deadbeef5f526004601cfd5f52600c6014f3"


def skip_without_anvil(backend: str) -> None:
    """A missing anvil is a failure, unless somebody says that it is meant to be missing."""
    if backend == "anvil" and find_anvil() is None and os.environ.get("COMMONWEIGHT_WITHOUT_ANVIL") == "1":
        pytest.skip("COMMONWEIGHT_WITHOUT_ANVIL=1")


@pytest.fixture(scope="module", params=["anvil", "embedded"])
def local(request: pytest.FixtureRequest) -> Iterator[LocalChain]:
    skip_without_anvil(request.param)
    with LocalChain.start(request.param, chain_id=CHAIN_ID, accounts=4) as chain:
        yield chain


@pytest.fixture(params=["anvil", "embedded"])
def backend(request: pytest.FixtureRequest) -> str:
    skip_without_anvil(request.param)
    return str(request.param)


class Client:
    """JSON-RPC without web3, to see what is on the wire."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def post(self, body: bytes) -> tuple[int, Any]:
        self._connection.request("POST", "/", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None

    def respond(self, method: str, *params: Any) -> Any:
        request = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        _, response = self.post(json.dumps(request).encode())
        assert response["id"] == 7
        return response

    def __call__(self, method: str, *params: Any) -> Any:
        response = self.respond(method, *params)
        assert "error" not in response, response
        return response["result"]

    def number(self, method: str, *params: Any) -> int:
        return int(self(method, *params), 16)

    def send(self, account: int = 0, **fields: Any) -> Any:
        """A mined transaction's receipt."""
        key = devnet_key(account)
        fields.setdefault("nonce", self.number("eth_getTransactionCount", key.address, "pending"))
        transaction = self("eth_sendRawTransaction", sign(account, **fields))
        return self.wait(transaction)

    def wait(self, transaction: str) -> Any:
        return wait_for(lambda: self("eth_getTransactionReceipt", transaction))

    def timestamp(self, tag: str = "latest") -> int:
        return int(self("eth_getBlockByNumber", tag, False)["timestamp"], 16)


def sign(account: int = 0, **fields: Any) -> str:
    defaults = {"type": 2, "chainId": CHAIN_ID, "gas": 200_000, "value": 0}
    fees = {"maxFeePerGas": 3 * GWEI, "maxPriorityFeePerGas": GWEI}
    if "to" in fields:
        fields["to"] = to_checksum_address(fields["to"])
    return (
        "0x" + bytes(devnet_key(account).account.sign_transaction({**defaults, **fees, **fields}).raw_transaction).hex()
    )


def wait_for(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the deadline passed"
        time.sleep(0.01)
    return value


@pytest.fixture
def rpc(local: LocalChain) -> Client:
    return Client(local.port)


def is_listening(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex(("127.0.0.1", port)) == 0


# What both back-ends agree on


def test_it_says_what_it_is(local: LocalChain, rpc: Client) -> None:
    assert local.running
    assert rpc.number("eth_chainId") == local.chain_id == CHAIN_ID
    assert rpc("net_version") == str(CHAIN_ID)
    assert urlsplit(local.rpc_url).port == local.port


def test_it_funds_the_devnet_keys(rpc: Client) -> None:
    assert [account.lower() for account in rpc("eth_accounts")] == [devnet_key(i).address.lower() for i in range(4)]
    assert rpc.number("eth_getBalance", devnet_key(3).address, "latest") == 10_000 * 10**18
    assert rpc.number("eth_getBalance", devnet_key(4).address, "latest") == 0


def test_a_transfer_is_mined_at_once_and_paid_for(rpc: Client) -> None:
    before = [rpc.number("eth_getBalance", devnet_key(i).address, "latest") for i in (0, 1)]
    receipt = rpc.send(to=devnet_key(1).address, value=5)
    after = [rpc.number("eth_getBalance", devnet_key(i).address, "latest") for i in (0, 1)]
    fee = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    assert receipt["status"] == "0x1"
    assert int(receipt["gasUsed"], 16) == 21_000
    assert [b - a for a, b in zip(before, after, strict=True)] == [-5 - fee, 5]
    transaction = rpc("eth_getTransactionByHash", receipt["transactionHash"])
    assert transaction["blockNumber"] == receipt["blockNumber"] == rpc("eth_blockNumber")
    block = rpc("eth_getBlockByHash", receipt["blockHash"], False)
    assert block["transactions"] == [receipt["transactionHash"]]
    assert rpc("eth_getBlockByNumber", block["number"], True)["transactions"][0]["hash"] == receipt["transactionHash"]


def test_a_revert_has_the_code_and_the_data_that_web3_expects(rpc: Client) -> None:
    address = rpc.send(data=REVERT)["contractAddress"]
    for method in ("eth_call", "eth_estimateGas"):
        error = rpc.respond(method, {"to": address, "from": devnet_key(0).address}, "latest")["error"]
        assert (error["code"], error["data"]) == (3, "0xdeadbeef")
        assert error["message"].startswith("execution reverted")
    assert rpc.send(to=address)["status"] == "0x0", "a revert is mined, as on every chain"


def test_the_pending_block_knows_the_time_and_the_latest_one_stands_still(rpc: Client) -> None:
    address = rpc.send(data=TELL_TIME)["contractAddress"]
    mined = rpc.timestamp()
    assert abs(mined - time.time()) < 30
    rpc("evm_increaseTime", 1_000)
    assert rpc.number("eth_call", {"to": address}, "latest") == mined
    assert rpc.number("eth_call", {"to": address}, "pending") >= mined + 1_000
    rpc("evm_mine")
    assert 0 <= rpc.timestamp() - mined - 1_000 < 10
    assert rpc.number("eth_call", {"to": address}, "latest") == rpc.timestamp()


def test_time_follows_the_wall_clock(rpc: Client) -> None:
    rpc("evm_mine")
    chain_before, wall_before = rpc.timestamp(), time.time()
    wait_for(lambda: rpc.timestamp("pending") >= chain_before + 2)
    elapsed = time.time() - wall_before
    rpc.send(to=devnet_key(1).address)
    assert abs(rpc.timestamp() - chain_before - elapsed) <= 1.5


def test_many_blocks_in_a_second_do_not_run_ahead_of_the_clock(rpc: Client) -> None:
    rpc("evm_mine")
    chain_before, wall_before = rpc.timestamp(), time.time()
    for _ in range(40):
        rpc("evm_mine")
    assert rpc.timestamp() - chain_before <= time.time() - wall_before + 1


def test_a_snapshot_brings_back_state_height_and_nonce(rpc: Client) -> None:
    def state() -> Any:
        return [
            rpc("eth_blockNumber"),
            rpc("eth_getBalance", devnet_key(2).address, "latest"),
            rpc("eth_getTransactionCount", devnet_key(0).address, "pending"),
        ]

    before = state()
    snapshot = rpc("evm_snapshot")
    gone = rpc.send(to=devnet_key(2).address, value=1)["transactionHash"]
    assert state() != before
    assert rpc("evm_revert", snapshot) is True
    assert state() == before
    assert rpc("eth_getTransactionReceipt", gone) is None
    assert rpc("evm_revert", snapshot) is False, "a snapshot is used up"
    assert rpc.send(to=devnet_key(2).address, value=2)["status"] == "0x1"


def test_logs_are_found_by_address_topic_and_range(rpc: Client) -> None:
    # LOG1(offset 0, size 0, topic 42), in the constructor already.
    receipts = [rpc.send(data="0x602a5f5fa1") for _ in range(2)]
    topic = f"0x{42:064x}"
    query = {"fromBlock": receipts[0]["blockNumber"], "toBlock": "latest", "topics": [topic]}
    assert [log["transactionHash"] for log in rpc("eth_getLogs", query)] == [r["transactionHash"] for r in receipts]
    one = rpc("eth_getLogs", {**query, "address": receipts[1]["contractAddress"]})
    assert [log["topics"] for log in one] == [[topic]]
    assert rpc("eth_getLogs", {**query, "topics": [f"0x{43:064x}"]}) == []
    assert rpc("eth_getLogs", {**query, "topics": [None]}) != []
    assert rpc("eth_getLogs", {**query, "topics": [[topic, f"0x{43:064x}"]]}) != []
    assert rpc("eth_getLogs", {"blockHash": receipts[0]["blockHash"]})[0]["logIndex"] == "0x0"


def test_fee_history_has_one_base_fee_more_than_blocks(rpc: Client) -> None:
    rpc.send(to=devnet_key(1).address)
    history = rpc("eth_feeHistory", "0x3", "latest", [50])
    assert len(history["baseFeePerGas"]) == len(history["gasUsedRatio"]) + 1 == len(history["reward"]) + 1 == 4
    assert history["gasUsedRatio"][-1] > 0


def test_transactions_that_cannot_run_are_refused(rpc: Client) -> None:
    nonce = rpc.number("eth_getTransactionCount", devnet_key(0).address, "pending")
    to = devnet_key(1).address
    refused = {
        "nonce too low": sign(to=to, nonce=nonce - 1, value=3),
        "insufficient funds": sign(to=to, nonce=nonce, value=10**24),
        "chain": sign(to=to, nonce=nonce, chainId=1),
        "": "0x1234",
    }
    for words, raw in refused.items():
        message = rpc.respond("eth_sendRawTransaction", raw)["error"]["message"].lower()
        assert words in message
    assert rpc.send(to=to, nonce=nonce)["status"] == "0x1"


def test_what_is_wrong_with_a_request_is_said_in_json_rpc(rpc: Client) -> None:
    assert rpc.respond("eth_unheardOf")["error"]["code"] == -32601
    assert rpc.respond("eth_getBalance", "zz", "latest")["error"]["code"] == -32602
    assert rpc.post(b'{"jsonrpc": "2.0", "id": 1, "meth')[1]["error"]["code"] in (-32700, -32600)
    assert rpc.post(b'{"jsonrpc": "2.0", "id": 1}')[1]["error"]["code"] == -32600
    assert rpc("eth_chainId"), "it lives on"


def test_a_batch_is_answered_in_one(rpc: Client) -> None:
    batch = [{"jsonrpc": "2.0", "id": i, "method": m, "params": []} for i, m in enumerate(["eth_chainId", "nope"])]
    responses = {response["id"]: response for response in rpc.post(json.dumps(batch).encode())[1]}
    assert int(responses[0]["result"], 16) == CHAIN_ID
    assert responses[1]["error"]["code"] == -32601


# The process


def test_sigterm_ends_the_command_and_what_it_started(backend: str, tmp_path: Path) -> None:
    command = local_chain_command(backend, chain_id=5, log_file=tmp_path / "log")  # type: ignore[arg-type]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready = Ready.parse(process.stdout.readline())
        assert (ready.backend, ready.chain_id, ready.pid) == (backend, 5, process.pid)
        assert is_listening(ready.port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stdout.read() == b"", "one line and no more"
    wait_for(lambda: not is_listening(ready.port))


@pytest.mark.parametrize(("backend", "victim"), [("embedded", "parent"), ("anvil", "parent"), ("anvil", "supervisor")])
def test_nothing_is_left_when_somebody_is_killed(backend: str, victim: str) -> None:
    skip_without_anvil(backend)
    script = (
        "import sys, time\n"
        "from commonweight.chain.local import LocalChain\n"
        "chain = LocalChain.start(sys.argv[1])\n"
        "print(chain.port, chain.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, backend], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port, supervisor = map(int, parent.stdout.readline().split())
        assert is_listening(port)
        os.kill(parent.pid if victim == "parent" else supervisor, signal.SIGKILL)
        wait_for(lambda: not is_listening(port))
        parent.kill()


def test_a_chain_survives_the_thread_that_started_it_and_stops_once(backend: str) -> None:
    started: list[LocalChain] = []
    thread = threading.Thread(target=lambda: started.append(LocalChain.start(backend)))  # type: ignore[arg-type]
    thread.start()
    thread.join()
    (chain,) = started
    for _ in range(20):
        assert Client(chain.port)("eth_chainId")
    assert chain.running
    assert chain.log_file.exists()
    chain.stop()
    chain.stop()
    assert not chain.running
    assert not chain.log_file.exists(), "a log that nobody asked for"


def test_a_port_that_is_taken_is_an_error_with_the_log(backend: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ChainError, match=r"(?s)ended.*in use"):
            LocalChain.start(backend, port=taken.getsockname()[1])  # type: ignore[arg-type]


def test_anvil_is_contained() -> None:
    skip_without_anvil("anvil")
    with LocalChain.start("anvil") as chain:
        (anvil,) = Path(f"/proc/{chain.pid}/task/{chain.pid}/children").read_text().split()
        limits = Path(f"/proc/{anvil}/limits").read_text()
        assert str(MEMORY_LIMIT_BYTES) in next(line for line in limits.splitlines() if "address space" in line)


def test_a_missing_anvil_is_said_with_the_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("commonweight.chain.anvil._CHECKOUT_ANVIL", tmp_path / "anvil")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(ANVIL_VARIABLE, raising=False)
    assert find_anvil() is None
    assert "commonweight.chain.embedded" in local_chain_command("auto")
    with pytest.raises(ChainError, match="npm ci"):
        LocalChain.start("anvil")
    monkeypatch.setenv(ANVIL_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ChainError, match="can't be executed"):
        find_anvil()


def test_an_orphan_does_not_start() -> None:
    command = local_chain_command("embedded", parent_pid=1)
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode != 0
    assert done.stdout == b""


# The embedded server, against nonsense


def test_a_transaction_after_t_seconds_sees_them() -> None:
    now = [1_000_000.0]
    evm = LocalEvm(CHAIN_ID, {bytes.fromhex(devnet_key(0).address[2:]): 10**20}, clock=lambda: now[0])
    rpc = EvmRpc(evm, [])
    stamps = []
    for nonce, elapsed in enumerate([0, 3, 0.4, 60, -100]):
        now[0] += elapsed
        body = {"id": 1, "method": "eth_sendRawTransaction", "params": [sign(nonce=nonce, to=devnet_key(1).address)]}
        assert "result" in json.loads(rpc.answer(json.dumps(body).encode()))
        header = evm.block(evm.height)
        assert header is not None
        stamps.append(header.header.timestamp - 1_000_000)
    assert stamps == [0, 3, 3, 63, 63], "and time never goes back"


def in_process() -> EvmRpc:
    return EvmRpc(LocalEvm(CHAIN_ID, {bytes.fromhex(devnet_key(0).address[2:]): 10**20}), [])


FUZZED = in_process()
METHODS = sorted(FUZZED._methods)
hexes = st.integers(0, 2**260).map(hex) | st.binary(max_size=70).map(lambda raw: "0x" + raw.hex())
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**300) | st.text(max_size=12) | hexes
words = st.sampled_from(["latest", "pending", "earliest", "0x0", "0x" + "00" * 20, "0x" + "11" * 32, [50], "0x1"])
fields = st.sampled_from(
    ["from", "to", "data", "value", "gas", "topics", "address", "fromBlock", "toBlock", "blockHash"]
)
params = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=150)
@given(method=st.sampled_from(METHODS), arguments=st.lists(params, max_size=4))
def test_no_parameters_break_a_method(method: str, arguments: list[Any]) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": arguments}).encode()
    response = json.loads(FUZZED.answer(body))
    assert response["id"] == 1
    assert ("result" in response) != ("error" in response)
    if "error" in response:
        assert response["error"]["code"] != -32603, response


@settings(max_examples=100)
@given(body=st.binary(max_size=60) | params.map(lambda value: json.dumps(value).encode()))
def test_no_body_breaks_the_server(body: bytes) -> None:
    answer = json.loads(FUZZED.answer(body))
    assert all("error" in one for one in (answer if isinstance(answer, list) else [answer]))


def test_batches_have_limits_and_notifications_no_answer() -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}
    assert json.loads(FUZZED.answer(b"[]"))["error"]["code"] == -32600
    assert json.loads(FUZZED.answer(json.dumps([request] * (MAX_BATCH + 1)).encode()))["error"]["code"] == -32600
    assert len(json.loads(FUZZED.answer(json.dumps([request] * MAX_BATCH).encode()))) == MAX_BATCH
    assert FUZZED.answer(b'{"jsonrpc": "2.0", "method": "eth_chainId"}') == b""


def test_deep_nesting_is_refused_and_brackets_in_strings_are_not() -> None:
    for deep in (b"[" * 100_000, b'{"a":' * 100_000, b'"' + b'\\"' * 1_000 + b'"' + b"[" * 100_000):
        assert json.loads(FUZZED.answer(deep))["error"]["code"] == -32700
    flat = {"jsonrpc": "2.0", "id": '"[[[[\\' * 40, "method": "eth_chainId"}
    assert json.loads(FUZZED.answer(json.dumps([flat] * 40).encode()))[0]["result"] == hex(CHAIN_ID)


def test_raw_nonsense_on_the_socket_leaves_the_server_alive() -> None:
    server = create_server(0, CHAIN_ID, 1)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        nonsense = [
            b"\x00" * 1000,
            b"GET / HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\nshort",
            b"POST / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n",
            b"POST " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        ]
        for raw in nonsense:
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
        connection.endheaders()
        assert connection.getresponse().status == 413
        assert Client(server.port).number("eth_chainId") == CHAIN_ID
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
