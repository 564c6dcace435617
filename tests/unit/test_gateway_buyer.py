"""Buying from a gateway that is broken or hostile: whatever it sends, there is an end and an error with a code."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from commonweight import buyer
from commonweight.buyer import Answered, Offer, ask
from commonweight.errors import MalformedMessage, PeerUnreachable

pytestmark = pytest.mark.asyncio
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
USAGE = b'data: {"choices":[{"text":"a","finish_reason":"stop"}],"usage":{"prompt_tokens":1,"cost":%s}}\n\n'
Handle = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def gateway(handle: Handle) -> AsyncIterator[str]:
    """Its URL; `handle` writes what it answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        # All of it: closing with something unread would reset the connection, answer and all.
        await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        with suppress(ConnectionError):  # the buyer may hang up
            await handle(writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def no_payment(_: Offer) -> str:
    raise AssertionError("nobody asked for one")


async def buy(handle: Handle) -> tuple[Answered, list[str]]:
    """The answer, and what was shown of it."""
    shown: list[str] = []
    async with gateway(handle) as url:
        answered = await asyncio.to_thread(ask, url, {"model": "tiny", "prompt": "a"}, no_payment, shown.append)
    return answered, shown


def saying(answer: bytes) -> Handle:
    async def handle(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + answer)
        await writer.drain()

    return handle


async def test_an_answer() -> None:
    answered, shown = await buy(saying(USAGE % b'"7"'))
    assert (answered.text, answered.finish_reason, answered.cost, shown) == ("a", "stop", 7, ["a"])


@pytest.mark.parametrize("cost", [b"Infinity", b"1e999", b"NaN", b"[]", b'"' + b"9" * 5_000 + b'"'])
async def test_a_cost_that_is_no_number(cost: bytes) -> None:
    with pytest.raises(MalformedMessage, match="no answer in OpenAI's format"):
        await buy(saying(USAGE % cost))


@pytest.mark.parametrize("begins", [b"", HEAD], ids=["before its head", "in its body"])
async def test_an_answer_that_trickles_has_an_end(monkeypatch: pytest.MonkeyPatch, begins: bytes) -> None:
    monkeypatch.setattr(buyer, "ANSWER_S", 0.2)
    came: list[bytes] = []

    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(begins)
        for byte in HEAD * 5:
            came.append(bytes([byte]))
            writer.write(came[-1])
            await writer.drain()
            await asyncio.sleep(0.01)  # each well before the next one is overdue

    with pytest.raises(PeerUnreachable, match=r"didn't end its answer within 0\.2 s"):
        await buy(trickle)
    assert 1 < len(came) < len(HEAD * 5)
