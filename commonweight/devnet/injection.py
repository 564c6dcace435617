"""How `devnet inject` reaches a devnet that runs: a Unix socket in its folder, one JSON line there, one back."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from commonweight.errors import CommonweightError, ConfigError, StateError, error_with_code

ANSWER_S = 30.0
SOCKET = "inject.sock"

Inject = Callable[[str, str], Awaitable[str]]
"""A fault and whom it befalls; what was done, in words. Raises CommonweightError."""


@asynccontextmanager
async def injections(folder: Path, inject: Inject) -> AsyncIterator[None]:
    """Answer whoever connects to the socket in `folder`, which only this user may, for as long as it lasts."""
    server = await asyncio.start_unix_server(lambda *streams: _answer(inject, *streams), sock=_listening(folder))
    try:
        yield
    finally:
        server.close()


def send_injection(folder: Path, fault: str, what: str) -> str:
    """Have the devnet of that folder inject a fault, and return what it says.

    Raises the error that it met, and StateError where it doesn't answer.
    """
    try:
        with socket.socket(socket.AF_UNIX) as ours, _short(folder) as short:
            ours.settimeout(ANSWER_S)
            ours.connect(short)
            ours.sendall(json.dumps({"fault": fault, "what": what}).encode() + b"\n")
            with ours.makefile("rb") as answers:
                answer = json.loads(answers.readline() or b"{}")
    except OSError as error:
        raise StateError(
            f"The devnet in {folder} takes no faults ({error}): it is coming up, or ending. Ask `commonweight devnet "
            "status`, and try again."
        ) from error
    if "error" in answer:
        raise error_with_code(answer["error"], answer["message"])
    if "done" not in answer:
        raise StateError(f"The devnet in {folder} ended before it answered.")
    return str(answer["done"])


async def _answer(inject: Inject, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        answer = {"done": await inject(*_read(await reader.readline()))}
    except CommonweightError as error:
        answer = {"error": error.code, "message": error.args[0]}
    with suppress(ConnectionError):
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
    writer.close()


def _read(line: bytes) -> tuple[str, str]:
    with suppress(ValueError):
        match json.loads(line):
            case {"fault": str(fault), "what": str(what)}:
                return fault, what
    raise ConfigError("A fault is one line of JSON with `fault` and `what`, both text.")


def _listening(folder: Path) -> socket.socket:
    ours = socket.socket(socket.AF_UNIX)
    with _short(folder) as short:
        ours.bind(short)
    (folder / SOCKET).chmod(0o600)
    return ours


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path with less than the 108 characters that a Unix socket may have, however deep the folder is."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
