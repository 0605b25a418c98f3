"""A page of a listing, put together step by step: the one loop that does it.

Each step is short, so that on an agent commits go on between them, and a page
ends after some bytes. Pure but for the engine's `list_step`.
"""

from __future__ import annotations

from typing import NamedTuple

from outboxd.outbox.engine import Engine
from outboxd.outbox.filters import read_cursor
from outboxd.outbox.model import Entry, EntryFilter, ListPlace

PAGE_BYTES_MAX = 1024 * 1024  # of bodies on one page; a single larger one is a page


class Page(NamedTuple):
    """A page of a listing, newest first; `next` is the cursor of the one after."""

    entries: list[Entry]
    next: str | None


class Listing:
    """A page while it is put together: call `step` until it says that it is done."""

    def __init__(self, where: EntryFilter, cursor: str | None, limit: int) -> None:
        """At most `limit` entries, from where `cursor` says (None: the newest) on.

        Raises:
            BadQuery: the cursor is none that a listing gave.
        """
        self._where = where
        self._limit = limit
        self._place: ListPlace | None = _place(cursor)
        self._found: list[Entry] = []
        self._bytes = 0

    def step(self, engine: Engine) -> bool:
        """Look at a few more entries; whether the page is complete."""
        assert self._place is not None, "the page is complete"
        wanted = self._limit - len(self._found)
        room = PAGE_BYTES_MAX - self._bytes
        # An entry that is larger than a page is one by itself.
        step = engine.list_step(self._where, self._place, wanted, room, bool(self._found))
        self._place = step.place
        self._found += step.entries
        self._bytes += sum(len(entry.body) for entry in step.entries)
        return step.place is None or step.is_full

    def page(self) -> Page:
        """What was found."""
        return Page(self._found, None if self._place is None else str(self._place.before_seq))


def read_page(engine: Engine, where: EntryFilter, cursor: str | None, limit: int) -> Page:
    """A whole page at once, where nobody waits meanwhile. BadQuery for a bad cursor."""
    listing = Listing(where, cursor, limit)
    while not listing.step(engine):
        pass
    return listing.page()


def _place(cursor: str | None) -> ListPlace:
    before_seq = read_cursor(cursor)
    return ListPlace() if before_seq is None else ListPlace(before_seq)
