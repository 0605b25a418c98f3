"""Which entries may be sent next, read by the deliverer's connection; see `Engine.fetch`.

It chooses and changes nothing: an entry is claimed by the turn of the lease that names
it as in flight.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import psycopg

from outboxd.outbox.model import Claimed, Fetched
from outboxd.outbox.postgresql.cursor import LOOK_AGAIN_S, Cursor
from outboxd.outbox.postgresql.rows import DUE, OWN


class Look:
    """One look for entries, without those in `taken`. Times are in ms since 1970."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        destination: str,
        cursor: Cursor,
        taken: Collection[int],
        now: int,
        horizon: int,
    ) -> None:
        """A due time beyond the horizon was written before the clock was set back."""
        self._connection = connection
        self._destination = destination
        self._cursor = cursor
        self._taken = list(taken)
        self._now, self._horizon = now, horizon

    def mixed(self, count: int, fresh_share: float) -> list[int]:
        """First the share of the newest, then those whose own backoff ended, then the oldest."""
        fresh = round(count * fresh_share)
        chosen = self._newest(fresh) if fresh else []
        for clause in (
            "due_at > %(horizon)s ORDER BY due_at, seq",
            "due_at > 0 AND due_at <= %(now)s ORDER BY due_at, seq",
        ):
            chosen += self._due(clause, count - len(chosen), chosen)
        return chosen + self._oldest(count - len(chosen), chosen)

    def _newest(self, count: int) -> list[int]:
        """Those above what was seen first; what lies between was taken before."""
        cursor = self._cursor
        clause = "due_at = 0 AND seq > %(bound)s ORDER BY seq DESC"
        found = self._due(clause, count, (), cursor.highest)
        if len(found) < count:
            # Down to the oldest that there is, and not through all that was delivered.
            clause = "due_at = 0 AND seq <= %(bound)s AND seq >= %(oldest)s ORDER BY seq DESC"
            found += self._due(clause, count - len(found), found, cursor.newest)
        cursor.found_newest(found)
        return found

    def _oldest(self, count: int, chosen: Sequence[int]) -> list[int]:
        if count <= 0:
            return []
        cursor = self._cursor
        clause = "due_at = 0 AND seq >= %(bound)s ORDER BY seq"
        found = self._due(clause, count, chosen, cursor.start())
        if len(found) < count and cursor.may_look_from_start():
            found = self._due(clause, count, chosen, cursor.start())
        cursor.found_oldest(found, (*self._taken, *chosen))
        return found

    def _due(self, clause: str, count: int, chosen: Sequence[int], bound: int = 0) -> list[int]:
        if count <= 0:
            return []
        where, order, by = clause.partition(" ORDER BY ")
        rows = self._connection.execute(
            f"SELECT seq FROM states WHERE destination = %(destination)s AND {DUE} AND {where}"
            f" AND seq <> ALL(%(not)s::bigint[]){order}{by} LIMIT %(wanted)s",
            {
                "destination": self._destination,
                "now": self._now,
                "horizon": self._horizon,
                "bound": bound,
                "oldest": self._cursor.oldest,
                "not": [*self._taken, *chosen],
                "wanted": count,
            },
        )
        return [seq for (seq,) in rows]

    def fifo(self, count: int) -> list[int]:
        """The oldest, but for those that wait by themselves."""
        return self._due("(due_at <= %(now)s OR due_at > %(horizon)s) ORDER BY seq", count, ())

    def fetched(self, seqs: Sequence[int], count: int) -> Fetched:
        """These entries, and when to look again; `count` were wanted."""
        rows = self._connection.execute(
            f"WITH w AS MATERIALIZED (SELECT seq, place, {OWN}"
            " FROM unnest(%(seqs)s::bigint[]) WITH ORDINALITY AS w (seq, place))"
            " SELECT seq, e.id::text, e.body, e.received_at, e.occurred_at, s.expires_at,"
            " s.attempt_count, s.spent, s.possible_duplicate, s.repeats, s.last_occurred_at,"
            " e.source, e.producer, e.hop"
            " FROM w JOIN entries e USING (destination, seq)"
            " JOIN states s USING (destination, seq) ORDER BY w.place",
            {"seqs": list(seqs), "destination": self._destination},
        ).fetchall()
        entries = [Claimed(seq, id, body.encode(), *rest) for seq, id, body, *rest in rows]
        ((next_due_at,),) = self._connection.execute(
            f"SELECT min(due_at) FROM states WHERE destination = %s AND {DUE} AND due_at > %s",
            (self._destination, self._now),
        ).fetchall()
        if len(entries) < count and not self._cursor.saw_all:
            soon_at = self._now + round(LOOK_AGAIN_S * 1000)
            next_due_at = soon_at if next_due_at is None else min(next_due_at, soon_at)
        return Fetched(entries, [], next_due_at)
