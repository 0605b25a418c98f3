"""How many entries there are, by producer, as every gateway has counted them.

Each connection adds what it changed to rows of its own (so that gateways never wait
for each other's counts); the sum of all rows is what there is. What others have
added is seen by `load`, now and then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import psycopg

from outboxd.outbox.model import Counts, State

_NONE = Counts(0, 0, 0, 0)


class Tallied(NamedTuple):
    """What all gateways have counted."""

    by_producer: Mapping[str, Counts]
    accepted: int  # ever: it only grows


class Tallies:
    """The counts as one gateway knows them. Read from any thread; replaced, never changed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known = Tallied({}, 0)
        self.has_pending = False  # some wait though none is counted: never pass over them

    @property
    def accepted(self) -> int:
        """How many events all gateways have ever accepted."""
        return self._known.accepted

    def counts(self) -> Counts:
        """Of all producers. What another gateway accepted and this one has delivered may
        not have been heard of yet: never below 0."""
        known = list(self._known.by_producer.values())
        if not known:
            return _NONE
        counts = Counts(*(max(0, sum(each)) for each in zip(*known, strict=True)))
        return counts._replace(pending=max(counts.pending, int(self.has_pending)))

    def waiting(self) -> Mapping[str, int]:
        """What is pending, by producer."""
        known = self._known.by_producer
        return {name: counts.pending for name, counts in known.items() if counts.pending > 0}

    def load(self, connection: psycopg.Connection[Any], destination: str) -> None:
        """As the tables have it, of one destination."""
        rows = connection.execute(
            "SELECT producer, sum(pending)::bigint, sum(delivered)::bigint, sum(dead)::bigint,"
            " sum(held)::bigint, sum(accepted)::bigint FROM tallies WHERE destination = %s"
            " GROUP BY producer",
            (destination,),
        ).fetchall()
        by_producer = {producer: Counts(*counts) for producer, *counts, _ in rows}
        with self._lock:
            self._known = Tallied(by_producer, sum(row[-1] for row in rows))

    def add(self, changes: CountChanges) -> None:
        """What was committed."""
        with self._lock:
            by_producer = dict(self._known.by_producer)
            for producer, more in changes.by_producer.items():
                before = by_producer.get(producer, _NONE)
                by_producer[producer] = Counts(*(a + b for a, b in zip(before, more, strict=True)))
            self._known = Tallied(by_producer, self._known.accepted + changes.accepted())


class CountChanges:
    """What one transaction changes."""

    def __init__(self) -> None:
        self.by_producer: dict[str, Counts] = {}
        self._accepted: dict[str, int] = {}

    def accept(self, producer: str) -> None:
        """A new entry."""
        self._accepted[producer] = self._accepted.get(producer, 0) + 1
        self.count(producer, State.PENDING, False, +1)

    def count(self, producer: str, state: str, held: bool, by: int) -> None:
        """So many entries more, or less, in this state."""
        counts = self.by_producer.get(producer, _NONE)
        self.by_producer[producer] = Counts(
            counts.pending + by * (state == State.PENDING),
            counts.delivered + by * (state == State.DELIVERED),
            counts.dead + by * (state == State.DEAD),
            counts.held + by * held,
        )

    def moved(self, rows: Sequence[tuple[str, str, bool, str, bool]]) -> None:
        """Entries were changed: each one's producer, state and hold before, and after."""
        for producer, before, was_held, after, is_held in rows:
            self.count(producer, before, was_held, -1)
            self.count(producer, after, is_held, +1)

    def accepted(self) -> int:
        """How many new entries."""
        return sum(self._accepted.values())

    def write(self, connection: psycopg.Connection[Any], destination: str, gateway: str) -> None:
        """Add them to the rows of a gateway's connection, last in its transaction."""
        rows = [
            {"producer": name, **counts._asdict(), "accepted": self._accepted.get(name, 0)}
            for name, counts in sorted(self.by_producer.items())
            if any(counts) or name in self._accepted
        ]
        if rows:
            connection.execute(
                "INSERT INTO tallies AS t (gateway, destination, producer, pending, delivered,"
                " dead, held, accepted) SELECT %s, %s, * FROM json_to_recordset(%s) AS v"
                " (producer text, pending bigint, delivered bigint, dead bigint, held bigint,"
                " accepted bigint) ORDER BY producer"
                " ON CONFLICT (gateway, destination, producer) DO UPDATE SET"
                " pending = t.pending + excluded.pending,"
                " delivered = t.delivered + excluded.delivered, dead = t.dead + excluded.dead,"
                " held = t.held + excluded.held, accepted = t.accepted + excluded.accepted",
                (gateway, destination, json.dumps(rows)),
            )
