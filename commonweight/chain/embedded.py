"""`python -m commonweight.chain.embedded`: the embedded chain as a JSON-RPC server on 127.0.0.1.

Needs nothing but pip packages. Prints one `Ready` line when it listens, and ends on SIGTERM or with its
parent.
"""

import logging
import os
import select
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from commonweight.chain.child import Ready, announce, parse_options, signal_pipe, watch_parent
from commonweight.chain.evm import LocalEvm
from commonweight.chain.evm_rpc import EvmRpc, refusal
from commonweight.chain.keys import devnet_key

MAX_BODY_BYTES = 2 << 20  # as anvil's default
FUNDS_WEI = 10_000 * 10**18
_IDLE_TIMEOUT_S = 60.0

log = logging.getLogger(__name__)


class RpcServer(ThreadingHTTPServer):
    """HTTP around an EvmRpc. Port 0 takes a free one; `port` tells which."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rpc: EvmRpc, port: int) -> None:
        self.rpc = rpc
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.warning("connection from %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body in one packet: 20 ms per transaction instead of 470
    disable_nagle_algorithm = True
    timeout = _IDLE_TIMEOUT_S

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(411, "a request needs a Content-Length")
        elif len(length) > 9 or int(length) > MAX_BODY_BYTES:
            self._refuse(413, f"a request has at most {MAX_BODY_BYTES} bytes, this one {length[:20]}")
        else:
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                self.close_connection = True  # the client left in the middle
                return
            self._reply(200, cast(RpcServer, self.server).rpc.answer(body))

    def _refuse(self, status: int, message: str) -> None:
        """Answers without reading the body, which is why the connection can't go on."""
        self.close_connection = True
        self._reply(status, refusal(message))

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def create_server(port: int, chain_id: int, accounts: int) -> RpcServer:
    """A listening server over a fresh chain, on which `devnet_key(0..accounts)` hold 10,000 ETH each, as on
    anvil.
    """
    addresses = [devnet_key(index).address for index in range(accounts)]
    evm = LocalEvm(chain_id, {bytes.fromhex(address[2:]): FUNDS_WEI for address in addresses})
    return RpcServer(EvmRpc(evm, addresses), port)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options("embedded", __doc__, "append the log here; standard error by default", arguments)
    logging.basicConfig(filename=options.log_file, format="%(asctime)s %(levelname)s %(message)s")

    parent = watch_parent(options.parent_pid)
    asked_to_end = signal_pipe()
    server = create_server(options.port, options.chain_id, options.accounts)
    threading.Thread(target=server.serve_forever, name="rpc", daemon=True).start()
    url = f"http://127.0.0.1:{server.port}"
    announce(Ready("embedded", url, server.port, options.chain_id, os.getpid()))
    select.select([fd for fd in (parent, asked_to_end) if fd is not None], [], [])
    server.server_close()  # its threads are daemons, its state is gone with us


if __name__ == "__main__":
    main()
