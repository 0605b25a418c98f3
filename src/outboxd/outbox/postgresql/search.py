"""A look for texts in SQL: which entries may have them.

The server compares, so that what does not match never crosses the network. It leaves out
only what certainly does not: plain ASCII without an escape in it, in which the text does
not stand. The others are for `mentions` to judge, whose folding of cases and reading of
JSON no server shares.
"""

from __future__ import annotations

from typing import Any

import psycopg

from outboxd.outbox.filters import may_begin_an_id
from outboxd.outbox.mentions import Text, Texts, like_pattern
from outboxd.outbox.postgresql.connection import only_value

_ENTRY = (
    "SELECT seq, e.id::text, e.dedup_key, s.attempts::text, e.body FROM entries e"
    " JOIN states s USING (destination, seq) WHERE destination = %(destination)s"
    " AND seq BETWEEN %(first)s AND %(last)s"
)
# Of bodies that one look lets the server compare and, where all may match, send.
LOOK_BYTES_MAX = 8 * 1024 * 1024
_WEIGHT = (
    # The length of what is stored apart stands with the row.
    "SELECT coalesce(sum(octet_length(body)), 0) FROM entries WHERE destination = %s"
    " AND seq BETWEEN %s AND %s"
)
_ATTEMPTS = "s.attempts::text"
# More letters than bytes make: then some are beyond ASCII, and may fold into it.
_UNPLAIN = "strpos({0}, chr(92)) > 0 OR octet_length({0}) > length({0})"


def texts(
    connection: psycopg.Connection[Any], destination: str, seqs: range, wanted: Texts
) -> list[tuple[int, Text]] | None:
    """See `Engine.texts`."""
    if not seqs:
        return []
    first, last = sorted((seqs[0], seqs[-1]))
    weight_bytes = only_value(connection, _WEIGHT, (destination, first, last))
    if weight_bytes > LOOK_BYTES_MAX and len(seqs) > 1:
        return None
    clauses, values = _conditions(wanted)
    rows = connection.execute(
        _ENTRY + clauses, {"destination": destination, "first": first, "last": last, **values}
    )
    return [(seq, Text(*text)) for seq, *text in rows]


def _conditions(wanted: Texts) -> tuple[str, dict[str, object]]:
    clauses: list[str] = []
    values: dict[str, object] = {}
    if wanted.q:
        found = [_may_have(place, wanted.q, "q") for place in ("e.body", "e.dedup_key")]
        # Most have no attempt that failed, and taking one's text from jsonb costs the most.
        found.append(f"s.attempts <> '[]' AND ({_may_have(_ATTEMPTS, wanted.q, 'q')})")
        values["q"] = like_pattern(wanted.q)
        if may_begin_an_id(wanted.q):
            found.append("e.id::text LIKE %(id_q)s")
            values["id_q"] = wanted.q + "%"
        clauses.append(f"({' OR '.join(found)})")
    if wanted.error:
        clauses.append(f"({_may_have(_ATTEMPTS, wanted.error, 'error')})")
        values["error"] = like_pattern(wanted.error)
    if wanted.dedup_key is not None:
        clauses.append("e.dedup_key = %(dedup_key)s")
        values["dedup_key"] = wanted.dedup_key
    if wanted.id is not None:
        clauses.append("e.id::text LIKE %(id)s")
        values["id"] = wanted.id + "%"
    return "".join(f" AND {clause}" for clause in clauses), values


def _may_have(column: str, text: str, name: str) -> str:
    unplain = _UNPLAIN.format(column)
    # Nothing in ASCII folds into what is not. By "C" no letter of ASCII folds into another
    # than its own small one, whatever the database's locale (Turkish has two letters i).
    likes = f"{column} COLLATE \"C\" ILIKE %({name})s ESCAPE '!' OR {unplain}"
    return likes if text.isascii() else unplain
