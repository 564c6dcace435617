"""Telling a peer what is announced: who comes in doesn't wait until everybody has announced again. Trio side only.

One stream, one question: the asker sends what it wants to know of and its own announcements, the other answers with
what it knows. Announcements prove themselves, so it doesn't matter who passes them on.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import trio
from libp2p.abc import INetStream

from commonweight.errors import IdentityMismatch, MalformedMessage, MessageTooLarge, PeerUnreachable
from commonweight.peers.announced import Announced, read_announced
from commonweight.peers.budget import Budgets
from commonweight.peers.directory import MAX_ENTRIES, Directory
from commonweight.peers.frames import Frames, frame
from commonweight.peers.host import Host
from commonweight.peers.pump import end_stream
from commonweight.rules.announcement import MAX_BYTES, Role
from commonweight.rules.canonical import canonical_json, parse_json

PROTOCOL = "/commonweight/announced/1"
ANSWER_S = 10.0
"""For a question to be asked and answered."""
MAX_QUESTION = 256
MAX_OWN = 4
"""Announcements of its own that an asker brings."""
MAX_ANSWERS = 64
"""At a time."""
MAX_ANSWERS_EACH = 4
"""Of these to one asker."""
ASKER_BURST, PER_ASKER_S = 10.0, 1.0
"""Questions of one asker that are answered: so many at once, then so many in a second."""
END = b""


class Exchange:
    """One host's questions and answers."""

    def __init__(self, host: Host, directory: Directory, own: Callable[[], Iterable[Announced]]) -> None:
        """`own` gives the announcements that this process makes at the moment. Answers from now on."""
        self._host = host
        self._directory = directory
        self._own = own
        self._answering: Counter[str] = Counter()
        self._budgets = Budgets(ASKER_BURST, PER_ASKER_S, lambda: host.connected)
        host.handle(PROTOCOL, self._answer)

    async def ask(self, peer_id: str, model_id: bytes | None, role: Role | None) -> int:
        """Have a connected peer tell what it knows of a model and role, or of all; how many announcements were news.

        They are in the directory then. Raises PeerUnreachable where it doesn't answer, or answers with something else.
        """
        stream = await self._host.open_stream(peer_id, PROTOCOL)
        try:
            with trio.fail_after(ANSWER_S):
                question = {
                    "model_id": None if model_id is None else "0x" + model_id.hex(),
                    "role": None if role is None else role.value,
                }
                own = [announced.data for announced in self._own()][:MAX_OWN]
                await stream.write(b"".join(map(frame, (canonical_json(question), *own, END))))
                return await self._take_in(Frames(stream), MAX_ENTRIES, peer_id)
        except Exception as error:  # libp2p's, of any layer (see host.py), TooSlowError, or what isn't in the frames
            raise PeerUnreachable(
                f"{peer_id} doesn't say what is announced: {error or type(error).__name__}"
            ) from error
        finally:
            await end_stream(stream)

    async def _answer(self, stream: INetStream) -> None:
        asker = str(stream.muxed_conn.peer_id)
        busy = self._answering[asker] >= MAX_ANSWERS_EACH or self._answering.total() >= MAX_ANSWERS
        if busy or not self._budgets.spend(asker):
            await end_stream(stream)
            return
        self._answering[asker] += 1
        try:
            with trio.fail_after(ANSWER_S):
                frames = Frames(stream)
                model_id, role = _read_question(await frames.read(MAX_QUESTION))
                await self._take_in(frames, MAX_OWN, asker)
                for entry in self._directory.live(model_id, role)[:MAX_ENTRIES]:
                    await stream.write(frame(entry.announced.data))
                await stream.write(frame(END))
        finally:
            self._answering[asker] -= 1
            self._answering += Counter()  # forgets who has none
            await end_stream(stream)

    async def _take_in(self, frames: Frames, at_most: int, peer_id: str) -> int:
        news = 0
        for _ in range(at_most + 1):
            data = await frames.read(MAX_BYTES)
            if data == END:
                return news
            try:
                news += self._directory.offer(read_announced(data))
            except (MalformedMessage, IdentityMismatch) as error:
                self._directory.refuse(error, peer_id)
        raise MessageTooLarge(f"{peer_id} sends more than {at_most} announcements.")


def _read_question(data: bytes) -> tuple[bytes | None, Role | None]:
    question: Any = parse_json(data, "A question", MAX_QUESTION)
    try:
        model_id, role = question["model_id"], question["role"]
        found = None if model_id is None else bytes.fromhex(model_id.removeprefix("0x"))
        return found, None if role is None else Role(role)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessage(f"A question names a model_id and a role, or null: {error!r:.80}.") from error
