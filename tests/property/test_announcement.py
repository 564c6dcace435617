"""Announcements: one encoding, one digest, what they outlive and what they replace."""

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import MalformedMessage
from commonweight.rules.announcement import (
    MAX_BYTES,
    MAX_CERTIFICATE_BYTES,
    MAX_PEER_ADDRESSES,
    MAX_SKEW_S,
    MAX_TTL_S,
    MIN_TTL_S,
    Announcement,
    Order,
    Role,
    announcement_from_json,
    check_time,
    compare,
)
from commonweight.rules.canonical import canonical_json, parse_json
from commonweight.rules.receipt import Receipt
from tests.property.strategies import addresses, domains, hashes, json_values

TIMES = st.integers(0, 2**40)
texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)

announcements = st.builds(
    Announcement,
    role=st.sampled_from(Role),
    chain_id=st.integers(1, 2**53 - 1),
    registry=addresses,
    model_id=hashes,
    stage=st.none() | st.integers(0, 2**16),
    address=texts,
    certificate=st.binary(min_size=1, max_size=MAX_CERTIFICATE_BYTES),
    capacity=st.none() | st.integers(0, 2**53 - 1),
    peer_addresses=st.lists(texts, max_size=MAX_PEER_ADDRESSES).map(tuple),
    sequence=st.integers(0, 2**53 - 1),
    issued_at_s=TIMES,
    ttl_s=st.integers(MIN_TTL_S, MAX_TTL_S),
)


@given(announcements)
def test_what_is_written_is_read(announcement: Announcement) -> None:
    data = canonical_json(announcement.to_json())
    assert announcement_from_json(parse_json(data, "it", MAX_BYTES)) == announcement


@given(announcements, announcements)
def test_each_field_is_in_the_digest(one: Announcement, other: Announcement) -> None:
    for field in fields(Announcement):
        changed = replace(one, **{field.name: getattr(other, field.name)})
        assert (changed.digest() == one.digest()) == (changed == one)


@given(announcements, hashes, domains)
def test_no_receipt_has_the_digest_of_an_announcement(announcement: Announcement, unit: bytes, domain: Any) -> None:
    assert Receipt(announcement.model_id, announcement.stage or 0, unit, unit).digest(domain) != announcement.digest()


@given(announcements, st.data())
def test_another_value_for_a_field_is_read_as_itself_or_refused(
    announcement: Announcement, data: st.DataObject
) -> None:
    value = announcement.to_json()
    name = data.draw(st.sampled_from(sorted(value)))
    broken = copy.deepcopy(value) | {name: data.draw(json_values)}
    try:
        read = announcement_from_json(broken)
    except MalformedMessage as error:
        named = error.args[0]
    else:
        named = name
        assert read.to_json() == broken
    assert name in named


@given(json_values)
def test_any_other_value_is_refused(value: Any) -> None:
    with pytest.raises(MalformedMessage):
        announcement_from_json(value)


@given(announcements, st.integers(-2 * MAX_TTL_S, 2 * MAX_TTL_S))
def test_it_counts_from_a_skew_before_its_issue_to_its_end(announcement: Announcement, passed_s: int) -> None:
    now_s = announcement.issued_at_s + passed_s
    if -MAX_SKEW_S <= passed_s < announcement.ttl_s:
        check_time(announcement, now_s)
    else:
        with pytest.raises(MalformedMessage, match="clock"):
            check_time(announcement, now_s)


@given(announcements, announcements, st.lists(st.binary(min_size=1, max_size=8), max_size=3).map(tuple))
def test_of_two_at_most_one_is_newer(one: Announcement, other: Announcement, replaced: tuple[bytes, ...]) -> None:
    orders = {compare(one, other, replaced), compare(other, one, replaced)}
    assert orders in ({Order.NEWER, Order.OLDER}, {Order.CONFLICT, Order.OLDER}, {Order.SAME}, {Order.CONFLICT})
    assert compare(one, one, replaced) is Order.SAME


@given(announcements, st.binary(min_size=1, max_size=8), st.binary(min_size=1, max_size=8))
def test_a_restart_replaces_and_a_certificate_that_comes_back_conflicts(
    announcement: Announcement, first: bytes, second: bytes
) -> None:
    before = replace(announcement, certificate=first, sequence=1)
    after = replace(announcement, certificate=second, sequence=2)
    assert compare(after, before, ()) is Order.NEWER
    back = replace(announcement, certificate=first, sequence=3)
    assert compare(back, after, (first,)) is (Order.NEWER if first == second else Order.CONFLICT)
