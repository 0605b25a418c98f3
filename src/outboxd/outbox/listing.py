"""A page of a listing, put together step by step: the one loop that does it.

Each step is short, so that on an agent commits go on between them. Pure but for
the engine's `list_step`.
"""

from __future__ import annotations

from typing import NamedTuple

from outboxd.outbox.engine import Engine
from outboxd.outbox.model import Entry, EntryFilter


class Page(NamedTuple):
    """A page of a listing, newest first; `next` is the cursor of the one after."""

    entries: list[Entry]
    next: str | None


class Listing:
    """A page while it is put together: call `step` until it says that it is done."""

    def __init__(self, where: EntryFilter, cursor: str | None, limit: int) -> None:
        """At most `limit` entries, from where `cursor` says (None: the newest) on.

        Raises:
            ValueError: the cursor is none that a listing gave.
        """
        self._where = where
        self._limit = limit
        self._before_seq = _seq_of(cursor)
        self._found: list[Entry] = []

    def step(self, engine: Engine) -> bool:
        """Look at a few more entries; whether the page is complete."""
        wanted = self._limit - len(self._found)
        entries, self._before_seq = engine.list_step(self._where, self._before_seq, wanted)
        self._found += entries
        return self._before_seq is None or len(self._found) == self._limit

    def page(self) -> Page:
        """What was found."""
        return Page(self._found, None if self._before_seq is None else str(self._before_seq))


def read_page(engine: Engine, where: EntryFilter, cursor: str | None, limit: int) -> Page:
    """A whole page at once, where nobody waits meanwhile. ValueError for a bad cursor."""
    listing = Listing(where, cursor, limit)
    while not listing.step(engine):
        pass
    return listing.page()


def _seq_of(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise ValueError(f"not a cursor of this listing: {cursor!r}")
    return int(cursor)
