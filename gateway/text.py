"""From token ids to text that can be sent: whole characters only, and nothing of a stop sequence."""

from collections import deque

from commonweight.model.tokenizer import Tokenizer

UNKNOWN = "\ufffd"
MAX_TAIL = 3
"""Bytes of a character that lacks its last one: so many U+FFFD at the end may still become a character."""
MAX_WINDOW, KEPT = 32, 16
"""Of a window that has grown so long, so many tokens are kept: each is decoded again with every one that comes."""


class TextStream:
    """The text of an answer, token by token.

    All that `push` and `flush` return, joined, is `tokenizer.decode` of all tokens, cut before the first of `stops` to
    be complete. What may still change, because a character or a stop sequence is under way, is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> None:
        self.tokens = 0
        """Those whose text has been returned in full."""
        self.stopped = False
        """Whether a stop sequence came; nothing is returned after it."""
        self._tokenizer, self._stops = tokenizer, stops
        # Some tokenizers decode a token by what stands before it: the last window is decoded with this one.
        self._context: list[int] = []
        self._window: list[int] = []
        self._decoded = 0  # characters of all windows before this one
        self._taken = 0  # characters of this window that are beyond change
        self._held = ""  # beyond change, but maybe the beginning of a stop sequence
        self._returned = 0
        self._ends: deque[int] = deque()  # where the text of each token ends that isn't counted yet

    def push(self, token: int) -> str:
        """The text that can be sent now that `token` has come; often none."""
        assert not self.stopped, "nothing comes after a stop sequence"
        self._window.append(token)
        text = self._text_of(self._window)
        end = self._decoded + len(text)
        self._ends = deque(min(each, end) for each in self._ends)
        self._ends.append(end)
        tail = min(len(text) - len(text.rstrip(UNKNOWN)), MAX_TAIL)
        fixed = len(text) - tail
        new, self._taken = text[self._taken : fixed], max(self._taken, fixed)
        if tail == 0:
            self._context, self._window = self._window, []
            self._decoded, self._taken = end, 0
        elif len(self._window) >= MAX_WINDOW:
            head, rest = self._window[:-KEPT], self._window[-KEPT:]
            before = self._text_of(head)
            if len(before) <= self._taken and text.startswith(before):
                self._context, self._window = head, rest
                self._decoded, self._taken = self._decoded + len(before), self._taken - len(before)
        return self._return(new)

    def flush(self) -> str:
        """The rest, when no more tokens come."""
        rest = self._return(self._text_of(self._window)[self._taken :])
        if not self.stopped:
            rest, self._held = rest + self._held, ""
            self.tokens += len(self._ends)
            self._ends.clear()
        return rest

    def _text_of(self, tokens: list[int]) -> str:
        """That stand right after the context."""
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode([*self._context, *tokens])[len(before) :]

    def _return(self, new: str) -> str:
        self._held += new
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _end, start = min(found)
            out, self._held = self._held[:start], ""
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._returned += len(out)
        while self._ends and self._ends[0] <= self._returned:
            self._ends.popleft()
            self.tokens += 1
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
