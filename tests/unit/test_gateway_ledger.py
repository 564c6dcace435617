"""The gateway's ledger: a payment is taken once, an order's charge is fixed once, nothing is forgotten."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from commonweight.chain.records import Authorization
from commonweight.errors import ConfigError, LedgerError
from gateway.ledger import Ledger, Order, Overdrawn, State, Taken

HUGE = 2**256 - 1
PAYER = "0x" + "Aa" * 20


def order(number: int, value: int = 100) -> Order:
    payment = Authorization(PAYER, value, 0, HUGE, bytes([number]) * 32, bytes([number]) * 65)
    return Order(bytes([number]) * 16, bytes(32), payment, expires=1_000, prompt_tokens=5)


def delivered(order: Order, completion_tokens: int, charge: int) -> Order:
    session = order.request_id[::-1]
    return replace(order, round=30, session=session, completion_tokens=completion_tokens, charge=charge)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'gateway.db'}")
    yield ledger
    ledger.close()


def find(ledger: Ledger, number: int) -> Order:
    found = ledger.find(PAYER, bytes([number]) * 32)
    assert found is not None
    return found


def test_an_order_is_kept_as_it_is(ledger: Ledger) -> None:
    ledger.accept(order(1, HUGE), HUGE, {})
    assert find(ledger, 1) == order(1, HUGE)
    assert ledger.find(PAYER, bytes(32)) is None


def test_a_payment_is_taken_once(ledger: Ledger) -> None:
    ledger.accept(order(1), HUGE, {})
    with pytest.raises(Taken):
        ledger.accept(replace(order(1), request_id=b"\x09" * 16), HUGE, {})


def test_all_that_is_signed_for_must_be_there(ledger: Ledger) -> None:
    ledger.accept(order(1, 60), 100, {})
    with pytest.raises(Overdrawn):
        ledger.accept(order(2, 41), 100, {})
    ledger.accept(order(2, 40), 100, {})
    ledger.close_order(replace(order(1, 60), charge=10))
    with pytest.raises(Overdrawn):  # it isn't collected yet
        ledger.accept(order(3, 1), 100, {})
    ledger.record_collected(order(1).request_id, "0x01")
    ledger.accept(order(3, 50), 90, {})
    ledger.close_order(order(2, 40))
    assert find(ledger, 2).state is State.VOID
    ledger.accept(order(4, 40), 90, {})


def test_what_was_collected_after_the_balance_was_read_counts(ledger: Ledger) -> None:
    ledger.accept(order(1, 60), 100, {})
    before = ledger.uncollected(PAYER)
    assert before == {order(1).request_id: 60}
    ledger.close_order(replace(order(1, 60), charge=10))
    ledger.record_collected(order(1).request_id, "0x01")
    assert ledger.uncollected(PAYER) == {}
    with pytest.raises(Overdrawn):  # there are 90
        ledger.accept(order(2, 91), 100, before)
    ledger.accept(order(2, 40), 100, before)


def test_what_was_delivered_survives_and_a_closed_order_doesn_t_change(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        ledger.accept(order(number), HUGE, {})
    ledger.record_delivered(delivered(order(1), 7, 31))
    ledger.close_order(delivered(order(2), 9, 37))
    assert {each.request_id: each.state for each in ledger.close_all()} == {
        order(1).request_id: State.SERVED,
        order(3).request_id: State.VOID,
    }
    assert ledger.close_all() == []
    ledger.record_delivered(delivered(order(1), 99, 999))
    ledger.close_order(replace(order(2), charge=999))
    assert ledger.served() == [
        replace(delivered(order(1), 7, 31), state=State.SERVED),
        replace(delivered(order(2), 9, 37), state=State.SERVED),
    ]


def test_what_is_done_isn_t_to_be_done(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        ledger.accept(order(number), HUGE, {})
        ledger.close_order(replace(order(number), round=30, completion_tokens=number - 1, charge=10))
    ledger.record_collected(order(1).request_id, "0x01")
    ledger.record_written_off(order(2).request_id)
    assert [each.request_id for each in ledger.served()] == [order(3).request_id]
    assert (find(ledger, 1).state, find(ledger, 1).transaction) == (State.COLLECTED, "0x01")
    assert find(ledger, 2).state is State.WRITTEN_OFF
    assert [each.completion_tokens for each in ledger.unreported()] == [1, 2], "no token, no report"
    ledger.record_reported(order(3).request_id)
    assert [each.completion_tokens for each in ledger.unreported()] == [1]


def test_what_is_mined_is_neither_to_be_collected_nor_done(ledger: Ledger) -> None:
    ledger.accept(order(1, 60), 100, {})
    ledger.close_order(replace(order(1, 60), charge=10))
    ledger.record_mined(order(1).request_id, "0x01")
    assert (ledger.served(), [each.transaction for each in ledger.mined()]) == ([], ["0x01"])
    ledger.accept(order(2, 90), 90, {})
    ledger.close_order(order(2, 90))
    ledger.record_unmined(order(1).request_id)
    assert (ledger.mined(), [each.transaction for each in ledger.served()]) == ([], [None])
    with pytest.raises(Overdrawn):  # the payer has it again, and owes it
        ledger.accept(order(3, 41), 100, {})
    ledger.record_mined(order(1).request_id, "0x02")
    ledger.record_collected(order(1).request_id, "0x02")
    assert (ledger.served(), ledger.mined()) == ([], [])
    assert (find(ledger, 1).state, find(ledger, 1).transaction) == (State.COLLECTED, "0x02")


def test_answers_are_kept_until_they_expire(ledger: Ledger) -> None:
    ledger.accept(order(1), HUGE, {})
    ledger.close_order(replace(order(1), charge=10, answer={"text": "€"}))
    ledger.forget_answers(1_000)
    assert find(ledger, 1).answer == {"text": "€"}
    ledger.forget_answers(1_001)
    assert find(ledger, 1).answer is None


def test_a_ledger_of_another_version_is_not_touched(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    Ledger(url).close()
    with sqlite3.connect(tmp_path / "gateway.db") as database:
        database.execute("ALTER TABLE orders DROP COLUMN session")
    with pytest.raises(LedgerError, match=r"another version of Commonweight: orders without session\. Let that"):
        Ledger(url)


def test_a_url_that_is_none() -> None:
    with pytest.raises(ConfigError, match="sqlite:///FILE") as caught:
        Ledger("nonsense://user:secret@host/name")
    assert "secret" not in str(caught.value)
