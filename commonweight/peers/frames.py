"""Short messages on a libp2p stream: each with its length in four bytes before it. Trio side only.

libp2p's own reader gives up after 101 reads, whatever has come by then; this one doesn't.
"""

from libp2p.abc import INetStream

from commonweight.errors import MalformedMessage, MessageTooLarge

LENGTH = 4


class Frames:
    """What is read from one stream."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def read(self, max_bytes: int) -> bytes:
        """The next one. Raises MessageTooLarge before a longer one is read, MalformedMessage where the stream ends."""
        size = int.from_bytes(await self._take(LENGTH), "big")
        if size > max_bytes:
            raise MessageTooLarge(f"A message of {size} bytes; at most {max_bytes} are read here.")
        return await self._take(size)

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            part = await self._stream.read(count - len(self._buffer))
            if not part:
                raise MalformedMessage(f"The stream ended {count - len(self._buffer)} bytes too early.")
            self._buffer += part
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def frame(data: bytes) -> bytes:
    """The data with its length before it."""
    return len(data).to_bytes(LENGTH, "big") + data
