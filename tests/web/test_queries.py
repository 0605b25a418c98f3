"""A query is read as the listing's contract has it, and what is not known is refused."""

from __future__ import annotations

import pytest

from outboxd.outbox.model import EntryFilter
from outboxd.serve.request import Query
from outboxd.web import queries
from outboxd.web.queries import BadQuery


def test_a_query_without_names_wants_everything() -> None:
    assert queries.entry_filter(Query([])) == EntryFilter()
    assert queries.entry_filter(Query([("q", ""), ("type", "")])) == EntryFilter()


def test_each_name_may_be_given_several_times() -> None:
    query = Query(
        [
            ("state", "dead"),
            ("state", "pending"),
            ("held", "true"),
            ("type", "a"),
            ("type", "a"),
            ("type", "b"),
            ("severity", "error"),
            ("cluster", "c"),
            ("namespace", "n"),
            ("service", "s"),
            ("q", "text"),
            ("since", "1970-01-01T00:00:01Z"),
            ("until", "1970-01-01T00:00:02+00:00"),
        ]
    )
    assert queries.entry_filter(query) == EntryFilter(
        states=("dead", "pending"),
        held=True,
        event_types=("a", "b"),
        severities=("error",),
        clusters=("c",),
        namespaces=("n",),
        services=("s",),
        q="text",
        since=1000,
        until=2000,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "gone"),
        ("severity", "fatal"),
        ("held", "maybe"),
        ("since", "yesterday"),
        ("until", "2026-13-01T00:00:00Z"),
        ("type", "x" * 1001),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(BadQuery) as refused:
        queries.entry_filter(Query([(name, value)]))
    assert refused.value.field == name


def test_a_slip_in_a_name_is_told_the_nearest_one() -> None:
    with pytest.raises(BadQuery) as refused:
        queries.check_names(Query([("severty", "error")]))
    assert refused.value.hint == "did you mean severity?"


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "9" * 20])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(BadQuery):
        queries.whole_number(Query([("limit", value)]), "limit", 50, 500)


def test_a_number_above_the_highest_is_the_highest() -> None:
    assert queries.whole_number(Query([("limit", "900")]), "limit", 50, 500) == 500


@pytest.mark.parametrize(
    "span_ms", [1, 999, 60_000, 3_600_000, 86_400_000 * 9, 86_400_000 * 90_000]
)
@pytest.mark.parametrize("buckets", [20, 90, 400])
def test_an_axis_holds_its_span_in_few_whole_steps(span_ms: int, buckets: int) -> None:
    since = 1_750_000_000_123
    low, high, step_ms = queries.axis(since, since + span_ms, buckets)
    assert low <= since
    assert high >= since + span_ms
    assert (high - low) / step_ms <= buckets
