"""One change of many dead letters, in steps between which others commit."""

from __future__ import annotations

from outboxd.outbox.engine import Engine
from outboxd.outbox.model import ChangeStep, EntryChange, EntryFilter, ListPlace

# Some 10 ms a step: commits wait for it.
STEP_ENTRIES = 250


class BulkChange:
    """Retry or drop of all dead letters that match.

    It goes from the newest to the oldest and comes by each once: what dies anew
    meanwhile is not changed again. `step` runs in a transaction, which may be
    rolled back and run again; what it returned counts with `committed`.
    """

    def __init__(self, change: EntryChange, where: EntryFilter) -> None:
        self.changed = 0  # so far
        self.is_done = False
        self._change = change
        self._where = where
        self._place = ListPlace()

    def step(self, engine: Engine) -> ChangeStep:
        """Change a few more."""
        return engine.change_dead(self._change, self._where, self._place, STEP_ENTRIES)

    def committed(self, step: ChangeStep) -> None:
        """The step's transaction is in the outbox."""
        self.changed += step.changed
        self.is_done = step.place is None
        self._place = step.place or self._place
