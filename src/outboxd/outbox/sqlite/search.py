"""A look for texts in SQL: which entries may have them.

SQLite compares without Python, some five times as fast, and while it does other
threads go on. But it folds no case beyond ASCII and reads no JSON. So it leaves out
only what certainly does not match: plain ASCII without an escape in it, in which the
text does not stand. The others are for `mentions` to judge.
"""

from __future__ import annotations

import sqlite3

from outboxd.outbox.filters import may_begin_an_id
from outboxd.outbox.mentions import Text, Texts, like_pattern

# More letters than bytes make: then some are beyond ASCII, and may fold into it.
_UNPLAIN = "instr({0}, char(92)) OR length(CAST({0} AS BLOB)) > length({0})"
_ENTRY = (
    "SELECT e.seq, e.id, e.dedup_key, e.attempts, b.body FROM entries e"
    " JOIN bodies b ON b.seq = e.seq WHERE e.seq BETWEEN :first AND :last"
)


def texts(connection: sqlite3.Connection, seqs: range, wanted: Texts) -> list[tuple[int, Text]]:
    """See `Engine.texts`."""
    if not seqs:
        return []
    first, last = sorted((seqs[0], seqs[-1]))
    clauses, values = _conditions(wanted)
    rows = connection.execute(_ENTRY + clauses, {"first": first, "last": last, **values})
    return [(seq, Text(*text)) for seq, *text in rows.fetchall()]


def _conditions(wanted: Texts) -> tuple[str, dict[str, object]]:
    clauses: list[str] = []
    values: dict[str, object] = {}
    if wanted.q:
        places = ["b.body", "e.attempts", "e.dedup_key"]
        found = [_may_have(place, wanted.q, "q") for place in places]
        values["q"] = like_pattern(wanted.q)
        if may_begin_an_id(wanted.q):
            found.append("e.id LIKE :id_q")
            values["id_q"] = wanted.q + "%"
        clauses.append(f"({' OR '.join(found)})")
    if wanted.error:
        clauses.append(f"({_may_have('e.attempts', wanted.error, 'error')})")
        values["error"] = like_pattern(wanted.error)
    if wanted.dedup_key is not None:
        clauses.append("e.dedup_key = :dedup_key")
        values["dedup_key"] = wanted.dedup_key
    if wanted.id is not None:
        clauses.append("e.id LIKE :id")
        values["id"] = wanted.id + "%"
    return "".join(f" AND {clause}" for clause in clauses), values


def _may_have(column: str, text: str, name: str) -> str:
    unplain = _UNPLAIN.format(column)
    # Nothing in ASCII folds into what is not.
    return f"{column} LIKE :{name} ESCAPE '!' OR {unplain}" if text.isascii() else unplain
