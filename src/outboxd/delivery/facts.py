"""What the sender has to tell: frozen records, for whoever listens.

The sender decides and acts; logs and metrics are made from these elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

from outboxd.delivery.outcome import Meaning


class AttemptMade(NamedTuple):
    """One HTTP exchange has ended."""

    id: str
    meaning: Meaning
    duration_s: float
    age_s: float  # since the event's receipt
    attempt_count: int  # this one included
    dead_reason: str | None  # set when it made a dead letter of the entry


class EntryExpired(NamedTuple):
    """An entry's ttl ran out before it could be delivered."""

    id: str


class EntrySetAside(NamedTuple):
    """An entry is refused while others pass: it waits by itself from now on."""

    id: str
    outcome: str  # of its request, an Outcome
    text: str  # in a sentence, with the entry's id and the reason


class BrakePulled(NamedTuple):
    """So many were rejected in a row: they are pending again, and nothing is sent but probes."""

    pending_again: int
    reason: str


class GateChanged(NamedTuple):
    """The destination's state is another one; told once a change."""

    before: str
    after: str
    reason: str | None
    hint: str | None
    next_probe_in_s: float | None


class OutageEnded(NamedTuple):
    """A probe got through; times in ms since 1970 (UTC)."""

    began_at: int
    ended_at: int
    reason: str
    delayed: int  # entries that were waiting, the probe's included
    oldest_at: int  # when the one that waited longest was received


class SettlingFailed(NamedTuple):
    """Outcomes cannot be committed: nothing is sent until they can."""

    error: str
    waiting: int  # outcomes kept in memory


class SettlingResumed(NamedTuple):
    """Outcomes can be committed again."""


Fact = (
    AttemptMade
    | EntryExpired
    | EntrySetAside
    | BrakePulled
    | GateChanged
    | OutageEnded
    | SettlingFailed
    | SettlingResumed
)
