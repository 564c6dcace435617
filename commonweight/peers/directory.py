"""Who is announced at the moment: one entry for each key, model and role, bounded in number and in rate.

Whatever strangers send, the directory never grows beyond its bounds, and an entry that was found true never makes room
for one that nobody has looked at. It may be used from any thread.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from commonweight.errors import CommonweightError, MalformedMessage
from commonweight.events import emit
from commonweight.peers.announced import Announced, Key
from commonweight.rules.announcement import Order, Role, check_time, compare

MAX_ENTRIES = 4096
"""16 MiB at most."""
MAX_BURST = 5
"""Announcements of one key in quick succession: a start, an assignment, an address that changes."""
REFILL_S = 5.0
"""For one more of them."""
MAX_REPLACED = 4
"""Certificates that are remembered of a key, to notice one that comes back."""
TELL_S = 10.0
"""At most one event in this time about refusals for the same reason."""


class Reach(Enum):
    """What came of dialling the announced address."""

    UNTRIED = "untried"
    REACHED = "reached"
    """The announced certificate was presented there."""
    FAILED = "failed"
    """Nobody answered, or somebody else did."""


@dataclass(frozen=True)
class Entry:
    """What is known of one announcer."""

    announced: Announced
    replaced: tuple[bytes, ...] = ()
    """Certificates that it announced before, oldest first."""
    reach: Reach = Reach.UNTRIED
    tried_at_s: float = 0.0
    why: str = ""
    """Why it isn't reached."""
    burst: float = MAX_BURST - 1.0
    """How many announcements it may still make at once."""
    heard_at_s: float = 0.0


@dataclass(frozen=True)
class DirectoryStatistics:
    """A directory at one moment, and what it has turned away."""

    entries: int
    reached: int
    failed: int
    refused: int
    """Announcements that didn't count: malformed, too late, too often, too many."""
    conflicts: int


class Directory:
    """Live announcements."""

    def __init__(self, clock: Callable[[], float], *, max_entries: int = MAX_ENTRIES) -> None:
        """`clock` gives Unix time."""
        self._clock = clock
        self._favoured: dict[bytes, str] = {}
        self._max_entries = max_entries
        self._entries: dict[Key, Entry] = {}
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._conflicts = 0
        self._told_at_s: dict[str, float] = {}
        self.changed: Callable[[Entry], None] = lambda _: None
        """Called, in the thread that offers, with every entry that is new or newer."""

    def favour(self, model_id: bytes, account: str) -> None:
        """Reserve room for the model's coordinator, which has this account: no other counts as that from now on."""
        with self._lock:
            self._favoured[model_id] = account
            for key, entry in list(self._entries.items()):
                if key[0] == model_id and key[2] is Role.COORDINATOR and entry.announced.account != account:
                    del self._entries[key]

    def offer(self, announced: Announced) -> bool:
        """Take in what was received; whether it counts, and is worth passing on.

        It doesn't where it is refused, which is counted and told now and then, or where nothing about it is new.
        """
        try:
            with self._lock:
                entry = self._take(announced)
        except MalformedMessage as error:
            self.refuse(error, announced.peer_id)
            return False
        if entry is not None:
            self.changed(entry)
        return entry is not None

    def refuse(self, error: CommonweightError, peer_id: str) -> None:
        """Count an announcement that didn't get here, and tell of it unless that was done a moment ago."""
        now_s = self._clock()
        with self._lock:
            self._refused[error.code] += 1
            count = self._refused[error.code]
            if not 0 <= now_s - self._told_at_s.get(error.code, -TELL_S) < TELL_S:
                self._told_at_s[error.code] = now_s
            else:
                return
        emit("announcement.refused", peer=peer_id, code=error.code, message=error.args[0], count=count)

    def tried(self, announced: Announced, error: CommonweightError | None) -> None:
        """Record what came of dialling an announced address; nothing happens where a newer one has come meanwhile."""
        now_s = self._clock()
        with self._lock:
            entry = self._entries.get(announced.key)
            if entry is None or entry.announced != announced:
                return
            reach = Reach.REACHED if error is None else Reach.FAILED
            why = "" if error is None else error.args[0]
            self._entries[announced.key] = replace(entry, reach=reach, tried_at_s=now_s, why=why)
        if reach is Reach.FAILED and entry.reach is not Reach.FAILED:
            assert error is not None
            emit("address.refuted", peer=announced.target, code=error.code, message=why)

    def live(self, model_id: bytes | None = None, role: Role | None = None) -> tuple[Entry, ...]:
        """The entries that count now, of one model and role or of all; coordinators first."""
        with self._lock:
            self._expire()
            found = [
                entry
                for (model, _, its_role), entry in self._entries.items()
                if model_id in (None, model) and role in (None, its_role)
            ]
        return tuple(sorted(found, key=lambda entry: entry.announced.announcement.role is not Role.COORDINATOR))

    def statistics(self) -> DirectoryStatistics:
        """What is in it, and what was turned away."""
        with self._lock:
            reaches = Counter(entry.reach for entry in self._entries.values())
            return DirectoryStatistics(
                len(self._entries),
                reaches[Reach.REACHED],
                reaches[Reach.FAILED],
                self._refused.total(),
                self._conflicts,
            )

    def _take(self, announced: Announced) -> Entry | None:
        now_s = self._clock()
        announcement = announced.announcement
        check_time(announcement, now_s)
        coordinator = self._favoured.get(announcement.model_id)
        if announcement.role is Role.COORDINATOR and coordinator not in (None, announced.account):
            raise MalformedMessage(
                f"{announced.account} announces as coordinator of 0x{announcement.model_id.hex()}, whose coordinator "
                f"on the chain is {coordinator}."
            )
        new = Entry(announced, heard_at_s=now_s)
        known = self._entries.get(announced.key)
        if known is None:
            self._make_room(new)
        else:
            order = compare(announcement, known.announced.announcement, known.replaced)
            if order in (Order.SAME, Order.OLDER):
                return None
            if order is Order.CONFLICT:
                self._tell_conflict(new)
            new = self._succeed(known, new, now_s)
        self._entries[announced.key] = new
        return new

    def _succeed(self, known: Entry, new: Entry, now_s: float) -> Entry:
        """The newer entry, with what is remembered of the older. Raises MalformedMessage where it comes too soon."""
        burst = min(MAX_BURST, known.burst + max(0.0, now_s - known.heard_at_s) / REFILL_S)
        if burst < 1:
            raise MalformedMessage(
                f"{new.announced.peer_id} announces too often: at most {MAX_BURST} at once, then one in {REFILL_S:g} s."
            )
        before, after = known.announced.announcement, new.announced.announcement
        replaced = known.replaced
        if after.certificate != before.certificate:
            others = tuple(each for each in replaced if each not in (before.certificate, after.certificate))
            replaced = (*others, before.certificate)[-MAX_REPLACED:]
        new = replace(new, replaced=replaced, burst=burst - 1)
        if (after.certificate, after.address) == (before.certificate, before.address):
            new = replace(new, reach=known.reach, tried_at_s=known.tried_at_s, why=known.why)
        return new

    def _make_room(self, new: Entry) -> None:
        model_id, _, role = new.announced.key
        if len(self._entries) < self._max_entries or (role is Role.COORDINATOR and model_id in self._favoured):
            return
        self._expire()
        if len(self._entries) < self._max_entries:
            return
        failed = (entry for entry in self._entries.values() if entry.reach is Reach.FAILED)
        oldest = min(failed, key=lambda entry: entry.heard_at_s, default=None)
        if oldest is None:
            raise MalformedMessage(
                f"{self._max_entries} others are announced, and none of them is known to be false: no room for "
                f"{new.announced.peer_id}."
            )
        del self._entries[oldest.announced.key]

    def _expire(self) -> None:
        now_s = self._clock()
        for key in [key for key, entry in self._entries.items() if not _counts(entry, now_s)]:
            del self._entries[key]

    def _tell_conflict(self, entry: Entry) -> None:
        self._conflicts += 1
        announced = entry.announced
        emit(
            "announcement.conflict",
            peer=announced.target,
            model_id="0x" + announced.announcement.model_id.hex(),
            message=f"Two processes announce with the key of {announced.peer_id}: one of them must be stopped.",
        )


def _counts(entry: Entry, now_s: float) -> bool:
    """Also by the time that has passed here since it was heard: an announcer's clock may be behind ours, or ahead."""
    announcement = entry.announced.announcement
    return now_s < announcement.until_s and now_s < entry.heard_at_s + announcement.ttl_s
