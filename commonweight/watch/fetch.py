"""Getting a text from wherever somebody says that it is. Its hash decides; the address is a stranger's text."""

import asyncio
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from eth_hash.auto import keccak

from commonweight.errors import StatementUnavailable
from commonweight.rules.statement import MAX_STATEMENT_BYTES, to_hex

TIMEOUT_S = 10.0
"""For one address, from the connection to the last byte, however slowly it sends."""


def fetch_statement(uris: Iterable[str], statement_hash: bytes, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """The canonical text with this hash from the first of `uris` (http, https, file, or a path) that has it.

    Reads at most 64 MiB from each, follows no redirect, and opens ordinary files only. Raises StatementUnavailable,
    which tells what each address answered.
    """
    answers = []
    for uri in uris:
        try:
            text = fetch_text(uri, MAX_STATEMENT_BYTES, timeout_s=timeout_s)
        except ValueError as error:
            answers.append(f"{uri!r:.200}: {error}")
            continue
        if keccak(text) == statement_hash:
            return text
        answers.append(f"{uri!r:.200}: it has another text")  # its hash would tell strangers about our files
    raise StatementUnavailable(
        f"The statement {to_hex(statement_hash)} can't be had: {'; '.join(answers) or 'nobody said where it is'}. "
        "Anybody who has it can give it to you, its hash proves it."
    )


def fetch_text(uri: str, max_bytes: int, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """What is at `uri` (http, https, file, or a path), at most `max_bytes`, by the rules of `fetch_statement`.

    Raises ValueError that says what was answered instead.
    """
    try:
        return _read(uri, max_bytes, timeout_s)
    except (TimeoutError, httpx.TimeoutException) as error:
        raise ValueError(f"it hadn't sent all within {timeout_s:g} s") from error
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(_reason(error)) from error


def mirror_uris(mirrors: Iterable[str], statement_hash: bytes) -> list[str]:
    """Where each mirror (the base URL of a coordinator's or a node's HTTP service) has the statement, if it has it."""
    return [f"{mirror.rstrip('/')}/statements/{to_hex(statement_hash)}.json" for mirror in mirrors]


def _read(uri: str, max_bytes: int, timeout_s: float) -> bytes:
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return asyncio.run(_get(uri, max_bytes, timeout_s))
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise ValueError("only http, https and files on this machine are read")
    path = Path(uri if parts.scheme == "" else unquote(parts.path))
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
        raise ValueError(f"it isn't an ordinary file of at most {max_bytes} bytes")
    with path.open("rb") as file:
        return file.read(max_bytes)


async def _get(url: str, max_bytes: int, timeout_s: float) -> bytes:
    """On an event loop of its own: there one deadline holds for all, be it a header that comes byte by byte."""
    async with (
        asyncio.timeout(timeout_s),
        httpx.AsyncClient(trust_env=False, timeout=timeout_s) as client,  # neither proxies nor a .netrc for a stranger
        client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"it answered HTTP {response.status_code}")
        text = bytearray()
        async for chunk in response.aiter_raw():
            text += chunk
            if len(text) > max_bytes:
                raise ValueError(f"it sends more than {max_bytes} bytes")
        return bytes(text)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPError):
        return "it can't be reached"
    return str(getattr(error, "strerror", None) or error)
