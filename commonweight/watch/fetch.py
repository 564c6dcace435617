"""Getting a statement from wherever somebody says that it is. The hash decides; the address is a stranger's text."""

import stat
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from eth_hash.auto import keccak

from commonweight.errors import StatementUnavailable
from commonweight.rules.statement import MAX_STATEMENT_BYTES, to_hex

TIMEOUT_S = 10.0
"""For one address, from the connection to the last byte."""
_CHUNK = 64 * 1024


def fetch_statement(uris: Iterable[str], statement_hash: bytes, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """The canonical text with this hash from the first of `uris` (http, https, file, or a path) that has it.

    Reads at most 64 MiB from each, follows no redirect, and opens ordinary files only. Raises StatementUnavailable,
    which tells what each address answered.
    """
    answers = []
    for uri in uris:
        try:
            text = _read(uri, time.monotonic() + timeout_s, timeout_s)
        except (OSError, ValueError, requests.RequestException) as error:
            answers.append(f"{uri!r:.200}: {_reason(error)}")
            continue
        if keccak(text) == statement_hash:
            return text
        answers.append(f"{uri!r:.200}: it has another text")  # its hash would tell strangers about our files
    raise StatementUnavailable(
        f"The statement {to_hex(statement_hash)} can't be had: {'; '.join(answers) or 'nobody said where it is'}. "
        "Anybody who has it can give it to you, its hash proves it."
    )


def mirror_uris(mirrors: Iterable[str], statement_hash: bytes) -> list[str]:
    """Where each mirror (the base URL of a coordinator's or a node's HTTP service) has the statement, if it has it."""
    return [f"{mirror.rstrip('/')}/statements/{to_hex(statement_hash)}.json" for mirror in mirrors]


def _read(uri: str, deadline: float, timeout_s: float) -> bytes:
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return _get(uri, deadline, timeout_s)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise ValueError("only http, https and files on this machine are read")
    path = Path(uri if parts.scheme == "" else unquote(parts.path))
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_STATEMENT_BYTES:
        raise ValueError(f"it isn't an ordinary file of at most {MAX_STATEMENT_BYTES} bytes")
    with path.open("rb") as file:
        return file.read(MAX_STATEMENT_BYTES)


def _get(url: str, deadline: float, timeout_s: float) -> bytes:
    with requests.Session() as session:
        session.trust_env = False  # neither proxies nor a .netrc for a stranger's address
        with session.get(url, stream=True, timeout=timeout_s, allow_redirects=False) as response:
            if response.status_code != 200:
                raise ValueError(f"it answered HTTP {response.status_code}")
            text = bytearray()
            for chunk in response.iter_content(_CHUNK):
                text += chunk
                if len(text) > MAX_STATEMENT_BYTES:
                    raise ValueError(f"it sends more than {MAX_STATEMENT_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"it hadn't sent all within {timeout_s:g} s")
            return bytes(text)


def _reason(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "it didn't answer in time"
    if isinstance(error, requests.RequestException):
        return "it can't be reached"
    return str(getattr(error, "strerror", None) or error)
