"""Text to token ids: plain bytes, or any `tokenizer.json` of the `tokenizers` library."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers
from eth_hash.auto import keccak

from commonweight.errors import DataError

END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""What published tokenizers call their end-of-document token; the first of these that the file defines is
used.
"""


class Tokenizer(Protocol):
    """Ids are 0 to vocab_size - 1. `hash` is what a spec's `data.tokenizer` holds."""

    hash: str
    vocab_size: int
    end_of_document: int

    def encode(self, text: str) -> Sequence[int]:
        """The ids of `text`, with no special token added."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; end-of-document tokens, others without text and what isn't valid UTF-8 don't raise."""
        ...


class ByteTokenizer:
    """Token n is byte n of the text's UTF-8; 0 ends a document, for byte 0 doesn't occur in text."""

    hash = "bytes"
    vocab_size = 256
    end_of_document = 0

    def encode(self, text: str) -> bytes:
        """The UTF-8 bytes, which are the ids. Raises DataError for a text that holds the character U+0000."""
        data = text.encode()
        if 0 in data:
            raise DataError(
                f"The text holds a zero byte at {data.index(0)}, with which the byte tokenizer ends a "
                "document. Remove it, or use a tokenizer.json."
            )
        return data

    def decode(self, ids: Iterable[int]) -> str:
        """The text; invalid UTF-8, as a model writes it, becomes U+FFFD, and an id that is no byte nothing."""
        return bytes(i for i in ids if 0 < i < 256).decode(errors="replace")


class FileTokenizer:
    """The tokenizer in a `tokenizer.json`; `hash` is the keccak256 of that file's bytes."""

    def __init__(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"The tokenizer {path} can't be read: {error.strerror}. Give 'bytes' or the path of a tokenizer.json."
            ) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises no narrower class
            raise DataError(f"{path} is not a tokenizer.json: {error}.") from error
        ends = [i for i in map(self._tokenizer.token_to_id, END_NAMES) if i is not None]
        if not ends:
            raise DataError(f"{path} has no end-of-document token; one of {', '.join(END_NAMES)} is needed.")
        self.end_of_document = ends[0]
        self.hash = "0x" + keccak(data).hex()
        # One more than the largest id: some files leave gaps, and a table must hold every id that can occur.
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> Sequence[int]:
        """The ids of `text`, with no special token added."""
        ids: list[int] = self._tokenizer.encode_batch([text], add_special_tokens=False)[0].ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The byte tokenizer for "bytes", else the one in the `tokenizer.json` at that path. Raises DataError."""
    return ByteTokenizer() if name_or_path == "bytes" else FileTokenizer(Path(name_or_path))
