"""Text streams: whole characters, stop sequences, and the count of tokens that were handed out."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.model.tokenizer import ByteTokenizer, Tokenizer
from gateway.text import MAX_WINDOW, UNKNOWN, TextStream

BYTES = ByteTokenizer()


class Words:
    """A tokenizer whose tokens decode differently at the beginning of a text, as many published ones do."""

    hash, vocab_size, end_of_document = "words", 4, 0

    def encode(self, text: str) -> Sequence[int]:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join("abcd"[i] for i in ids)


class Pairs:
    """A tokenizer whose tokens end and begin in the middle of characters."""

    hash, vocab_size, end_of_document = "pairs", 5, 0
    pieces = (b"", b"\xff", b"\xe2\x82", b"\xac\xff", b"a\xf0\x9f")

    def encode(self, text: str) -> Sequence[int]:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


class Counting(ByteTokenizer):
    """Counts the tokens that it decodes."""

    decoded = 0

    def decode(self, ids: Iterable[int]) -> str:
        tokens = list(ids)
        self.decoded += len(tokens)
        return super().decode(tokens)


def run(ids: Iterable[int], *stops: str, tokenizer: Tokenizer = BYTES) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, stream
    return [*pieces, stream.flush()], stream


def test_a_character_is_sent_when_it_is_whole() -> None:
    pieces, stream = run("aß€🌍".encode())
    assert pieces == ["a", "", "ß", "", "", "€", "", "", "", "🌍", ""]
    assert stream.tokens == 10


def test_tokens_count_when_all_of_their_text_is_out() -> None:
    stream = TextStream(BYTES)
    counts = []
    for byte in "a€b".encode():
        stream.push(byte)
        counts.append(stream.tokens)
    assert counts == [1, 1, 1, 4, 5]


def test_what_is_no_text_becomes_a_sign_for_it() -> None:
    pieces, stream = run(b"\xff\xfea\xe2\x82")
    assert "".join(pieces) == UNKNOWN + UNKNOWN + "a" + UNKNOWN
    assert stream.tokens == 5


@given(st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"x")))
def test_the_pieces_are_the_decoded_whole(data: bytes) -> None:
    pieces, stream = run(data)
    assert "".join(pieces) == BYTES.decode(data)
    assert stream.tokens == len(data)


@given(st.lists(st.sampled_from(b"a\xff\xf0\x9f\x8c\xe2\x82\xac"), max_size=3 * MAX_WINDOW))
def test_also_where_most_of_it_is_no_text(ids: list[int]) -> None:
    pieces, stream = run(ids)
    assert "".join(pieces) == BYTES.decode(ids)
    assert stream.tokens == len(ids)


@given(st.lists(st.integers(0, 4), min_size=MAX_WINDOW, max_size=3 * MAX_WINDOW))
def test_and_tokens_hold_parts_of_characters(ids: list[int]) -> None:
    pieces, stream = run(ids, tokenizer=Pairs())
    assert "".join(pieces) == Pairs().decode(ids)
    assert stream.tokens == len(ids)


@pytest.mark.parametrize("invalid", [b"\xff", b"\xe2\x82", b"\xf0\x9f\x8c\xff"])
def test_no_token_costs_more_than_the_one_before(invalid: bytes) -> None:
    tokenizer, stray = Counting(), invalid * (4_000 // len(invalid))
    pieces, stream = run(stray, tokenizer=tokenizer)
    assert "".join(pieces) == BYTES.decode(stray)
    assert stream.tokens == 4_000
    assert tokenizer.decoded < 4_000 * 4 * MAX_WINDOW


@given(st.text("ab€", max_size=30), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_sequence_to_be_complete(text: str, stops: list[str]) -> None:
    pieces, stream = run(text.encode(), *stops)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(found)[1]] if found else text
    assert ("".join(pieces), stream.stopped) == (expected, bool(found))
    assert stream.tokens == len(expected.encode()), "a token of the stop sequence isn't delivered"


@given(st.text("ab€", max_size=30), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_never_more_tokens_are_counted_than_text_was_handed_out(text: str, stops: list[str]) -> None:
    stream, out = TextStream(BYTES, tuple(stops)), ""
    for byte in text.encode():
        out += stream.push(byte)
        assert stream.tokens == len(out.encode())
        if stream.stopped:
            break


@pytest.mark.parametrize("ids", [[0], [0, 1], [3, 2, 1, 0, 1, 2]])
def test_tokens_are_decoded_with_what_stands_before_them(ids: list[int]) -> None:
    pieces, _ = run(ids, tokenizer=Words())
    assert "".join(pieces) == Words().decode(ids)
