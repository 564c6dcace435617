"""Bytes copied both ways between two streams, until both have ended, one breaks, or a limit is met. Trio side only.

Nothing is read before what was read is written: what waits is bounded by the streams' own windows.

A stream is given up by resetting it, and never by cancelling who reads or writes: in py-libp2p 0.8.1 a cancelled write
can leave half a frame behind, or an encrypted one unsent, which breaks the connection for all its other streams.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, cast

import trio
from libp2p.abc import INetStream
from libp2p.io.exceptions import IOException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.yamux.yamux import YamuxStream

CHUNK_BYTES = 256 << 10
"""Read at a time; the streams cut it further."""
RESET_S = 2.0

Why = Literal["ended", "broken", "idle", "bytes", "duration"]


class Broken(Exception):
    """The stream is reset, or what it runs over is gone."""


class Bytes(Protocol):
    """One end of something that carries bytes both ways."""

    async def receive(self) -> bytes:
        """The next bytes; b"" once the other side sends no more. Raises Broken."""

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more. Raises Broken."""

    async def send_eof(self) -> None:
        """Send no more, and go on receiving. Raises Broken."""

    async def close(self) -> None:
        """Free it, once both sides send no more."""

    async def reset(self) -> None:
        """Give it up; whoever waits in it raises Broken or receives b""."""


@dataclass(frozen=True)
class PumpLimits:
    """What ends a pump before its streams do."""

    idle_s: float
    """Without a byte in either direction."""
    duration_s: float = float("inf")
    bytes: int | None = None
    """Both directions together."""


@dataclass(frozen=True)
class Carried:
    """What went through, and why no more does."""

    bytes: int
    why: Why


async def pump(left: Bytes, right: Bytes, limits: PumpLimits) -> Carried:
    """Copy both ways; each direction ends by itself. Both streams are closed or reset when this returns."""
    return await _Pump(left, right, limits).run()


class _Pump:
    def __init__(self, left: Bytes, right: Bytes, limits: PumpLimits) -> None:
        self._ends = (left, right)
        self._limits = limits
        self._bytes = 0
        self._why: Why = "ended"
        self._over = trio.Event()
        self._running = 2
        self._ends_at = trio.current_time() + limits.duration_s
        self._idle_at = trio.current_time() + limits.idle_s

    async def run(self) -> Carried:
        left, right = self._ends
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, left, right)
                nursery.start_soon(self._copy, right, left)
                nursery.start_soon(self._watch)
        finally:
            with trio.move_on_after(RESET_S) as scope:
                scope.shield = True
                for end in self._ends:
                    await (end.close() if self._why == "ended" and not self._running else end.reset())
        return Carried(self._bytes, self._why)

    async def _copy(self, source: Bytes, sink: Bytes) -> None:
        try:
            while data := await source.receive():
                self._idle_at = trio.current_time() + self._limits.idle_s
                self._bytes += len(data)
                if self._limits.bytes is not None and self._bytes > self._limits.bytes:
                    await self._give_up("bytes")
                    break
                await sink.send(data)
            else:
                await sink.send_eof()
                self._running -= 1
                if not self._running:
                    self._over.set()
        except Broken:
            await self._give_up("broken")

    async def _watch(self) -> None:
        while True:
            with trio.move_on_at(min(self._idle_at, self._ends_at)):
                return await self._over.wait()
            if trio.current_time() >= self._ends_at:
                return await self._give_up("duration")
            if trio.current_time() >= self._idle_at:
                return await self._give_up("idle")

    async def _give_up(self, why: Why) -> None:
        if not self._over.is_set():
            self._why = why
            self._over.set()
            for end in self._ends:
                await end.reset()


class StreamBytes:
    """A libp2p stream."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream

    async def receive(self) -> bytes:
        try:
            return await self._stream.read(CHUNK_BYTES)
        except StreamEOF as error:
            if _is_reset(self._stream):
                raise Broken from error
            return b""
        except (IOException, ValueError) as error:
            raise Broken from error

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except (IOException, ValueError) as error:
            raise Broken from error

    async def send_eof(self) -> None:
        try:
            await cast(NetStream, self._stream).close_write()
        except (IOException, ValueError) as error:
            raise Broken from error

    async def close(self) -> None:
        try:
            await self._stream.close()
        except (IOException, ValueError):
            await self.reset()

    async def reset(self) -> None:
        await reset_stream(self._stream)


async def end_stream(stream: INetStream) -> None:
    """Send no more, and free the stream once the other side has read that and sends no more either; a reset could
    overtake what was sent last.
    """
    with trio.move_on_after(RESET_S):
        try:
            await cast(NetStream, stream).close_write()
            while await stream.read(CHUNK_BYTES):
                pass
        except (IOException, ValueError):
            pass
    await reset_stream(stream)


async def reset_stream(stream: INetStream) -> None:
    """Give a stream up, and wake whoever reads from it: libp2p forgets to."""
    muxed = cast(NetStream, stream).muxed_stream
    waiting = muxed.conn.stream_events.get(muxed.stream_id) if isinstance(muxed, YamuxStream) else None
    with trio.move_on_after(RESET_S) as scope:
        scope.shield = True
        await stream.reset()
    if waiting is not None:
        waiting.set()


def _is_reset(stream: INetStream) -> bool:
    """libp2p tells a reader of a reset, and of a connection that is gone, as if the stream had ended."""
    muxed = cast(NetStream, stream).muxed_stream
    return isinstance(muxed, YamuxStream) and (muxed.reset_received or muxed.conn.event_shutting_down.is_set())


class SocketBytes:
    """A TCP connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(CHUNK_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken from error

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken from error

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken from error

    async def close(self) -> None:
        await self._stream.aclose()

    async def reset(self) -> None:
        await self._stream.aclose()
