"""Getting statements from strangers: whatever they answer, it ends in time and within bounds."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from eth_hash.auto import keccak

from commonweight.errors import StatementUnavailable
from commonweight.watch import fetch
from commonweight.watch.fetch import fetch_statement

TEXT = b'{"a":1}'
HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def stranger(answer: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """Answers one request with these bytes: at once, or one byte each `pause_s` until nobody listens any more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                try:
                    if not pause_s:
                        connection.sendall(answer)
                        return
                    for byte in answer:
                        connection.sendall(bytes([byte]))
                        time.sleep(pause_s)
                except OSError:
                    pass  # it has hung up

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/statements/x.json"
        thread.join(30)
        assert not thread.is_alive()


def test_the_first_address_that_has_it_gives_it(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"something else")
    (tmp_path / "it").write_bytes(TEXT)
    with stranger(HEAD + b"Content-Length: 7\r\n\r\n" + TEXT) as url:
        assert fetch_statement([str(tmp_path / "none"), str(tmp_path / "other"), url], keccak(TEXT)) == TEXT
    assert fetch_statement([(tmp_path / "it").as_uri()], keccak(TEXT)) == TEXT


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000,
        HEAD + b"Content-Length: 10000\r\n\r\n" + b"[" * 10_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n[\r\n" * 2_000,
    ],
    ids=["header", "body", "chunks"],
)
def test_who_sends_byte_by_byte_is_left_at_the_deadline(answer: bytes) -> None:
    """Or whoever proposes a wrong epoch could hold its watchers up until the window is over."""
    started = time.monotonic()
    with (
        stranger(answer, pause_s=0.05) as url,
        pytest.raises(StatementUnavailable, match=r"hadn't sent all within 0\.5 s"),
    ):
        fetch_statement([url], bytes(32), timeout_s=0.5)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "can't be reached"),
        (b"what?\r\n\r\n", "can't be reached"),
        (HEAD + b"Content-Length: 7\r\n\r\n[", "can't be reached"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
        (HEAD + b"Content-Length: 7\r\n\r\n[[[[[[[", "another text"),
        (HEAD + b"Content-Length: 101\r\n\r\n" + b"[" * 101, "more than 100 bytes"),
    ],
    ids=["nothing", "no HTTP", "cut short", "redirect", "another text", "too long"],
)
def test_what_a_stranger_may_answer(answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_STATEMENT_BYTES", 100)
    with stranger(answer) as url, pytest.raises(StatementUnavailable, match=words):
        fetch_statement([url], bytes(32))


@pytest.mark.parametrize(
    "uri",
    ["", "http://", "http://[::1", "http://a\0b/", "http://host:99999/", "ftp://host/x", "file://elsewhere/x", "\0"],
)
def test_what_is_no_address(uri: str) -> None:
    with pytest.raises(StatementUnavailable):
        fetch_statement([uri], bytes(32))
