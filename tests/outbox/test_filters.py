"""A query is read as the listing's contract has it, and what is not known is refused."""

from __future__ import annotations

import pytest

from outboxd.errors import BadQuery
from outboxd.outbox import filters
from outboxd.outbox.filters import read_filter, read_listing
from outboxd.outbox.model import EntryFilter


def test_a_query_without_names_wants_everything() -> None:
    assert read_filter([]) == EntryFilter()
    assert read_filter([("q", ""), ("type", "")]) == EntryFilter()
    assert read_listing([]) == (EntryFilter(), None, filters.LIMIT_DEFAULT)


def test_each_name_may_be_given_several_times() -> None:
    query = [
        ("state", "dead"),
        ("state", "PENDING"),
        ("held", "true"),
        ("type", "a"),
        ("type", "a"),
        ("type", "b"),
        ("severity", "Info"),
        ("cluster", "c"),
        ("namespace", "n"),
        ("service", "s"),
        ("reason", "rejected"),
        ("status", "422"),
        ("source", "spool"),
        ("producer", "uid:1000"),
        ("producer", "token:web-hosts"),
        ("key", "nightly"),
        ("id", "019AC0DE-1234"),
        ("error", "too long"),
        ("q", "text"),
        ("since", "1970-01-01T00:00:01Z"),
        ("until", "1970-01-01T00:00:02+00:00"),
        ("notType", "x"),
        ("notSeverity", "INFORMATION"),
        ("notStatus", "500"),
        ("notProducer", "agent"),
    ]
    assert read_filter(query) == EntryFilter(
        states=("dead", "pending"),
        held=True,
        event_types=("a", "b"),
        severities=("information",),
        clusters=("c",),
        namespaces=("n",),
        services=("s",),
        dead_reasons=("rejected",),
        last_statuses=(422,),
        sources=("spool",),
        producers=("uid:1000", "token:web-hosts"),
        dedup_key="nightly",
        id="019ac0de-1234",
        error="too long",
        q="text",
        since=1000,
        until=2000,
        excluded=(
            ("type", "x"),
            ("severity", "information"),
            ("status", "500"),
            ("producer", "agent"),
        ),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "gone"),
        ("severity", "fatal"),
        ("notSeverity", "fatal"),
        ("held", "maybe"),
        ("reason", "bored"),
        ("status", "4xx"),
        ("notStatus", "42"),
        ("source", "mail"),
        ("producer", "alice"),
        ("producer", "uid:-1"),
        ("producer", "token:"),
        ("notProducer", "uid:"),
        ("id", "019ac0d"),
        ("id", "not an id"),
        ("since", "yesterday"),
        ("until", "2026-13-01T00:00:00Z"),
        ("type", "x" * 1001),
        ("type", "\ud800"),
        ("severty", "error"),
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "-1"),
        ("limit", "1.5"),
        ("limit", "9" * 20),
    ],
)
def test_what_is_not_possible_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(BadQuery) as raised:
        read_listing([(name, value)])
    assert raised.value.field == name
    assert raised.value.hint


def test_a_name_of_one_value_is_refused_twice_and_a_slip_gets_a_hint() -> None:
    with pytest.raises(BadQuery, match="2 times"):
        read_filter([("q", "a"), ("q", "b")])
    with pytest.raises(BadQuery, match="101 times"):
        read_filter([("type", str(n)) for n in range(101)])
    with pytest.raises(BadQuery) as raised:
        read_filter([("severty", "error")])
    assert raised.value.hint == "did you mean 'severity'?"


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "9" * 19, "１"])
def test_a_cursor_that_no_page_gave_is_refused(cursor: str) -> None:
    with pytest.raises(BadQuery):
        filters.read_cursor(cursor)
