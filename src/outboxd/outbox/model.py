"""The words of the outbox: what an entry is and what moves it.

Types alone, no I/O. Times are milliseconds since 1970 (UTC) and end in `_at`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """Where an entry stands. `held` is beside the state, not one of them."""

    # Waits to be delivered. Leaves by a settlement (delivered, dead) or a drop.
    PENDING = "pending"
    # Komodor answered 2xx. Leaves by pruning, after `retain_delivered`.
    DELIVERED = "delivered"
    # Given up and kept, with the reason. Leaves by the operator's retry
    # (back to pending) or drop, and in no other way.
    DEAD = "dead"


class DeadReason(StrEnum):
    """Why an entry is a dead letter."""

    REJECTED = "rejected"  # Komodor refused this event itself (400, 413, 422 ...)
    EXHAUSTED = "exhausted"  # `attempts_max` spent while others were delivered
    EXPIRED = "expired"  # its ttl ran out


class Source(StrEnum):
    """By which door an event came in."""

    SOCKET = "socket"
    BATCH = "batch"
    SPOOL = "spool"
    AGENT = "agent"  # the agent's own report of an outage


class Outcome(StrEnum):
    """What one attempt meant; the table stands in `delivery.outcome`."""

    DELIVERED = "delivered"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    HOLD = "hold"
    REJECTED = "rejected"
    EXPIRED = "expired"  # no request was made: its ttl ran out


class Incoming(NamedTuple):
    """A valid event on its way into the outbox."""

    body: bytes  # the wire body as Komodor will get it, without stamps
    event_type: str
    severity: str
    scope: str  # compact JSON of the scope as sent, "" for none
    source: str  # a Source
    received_at: int
    occurred_at: int | None = None  # as the producer gave it
    expires_at: int | None = None
    dedup_key: str | None = None
    # With a mark the key is known only as long as no later mark comes with it, and
    # is remembered from its last arrival on: an alert that fires again is a new event.
    dedup_mark: int = 0
    producer: str = ""  # who handed it in, such as "uid:1000"; "" where nobody knows
    hop: str | None = None  # its way through other agents, as `event.hop` writes it


class Receipt(NamedTuple):
    """The answer of the one door, given after the commit."""

    id: str
    status: str  # "accepted" or "duplicate"
    state: str  # a State: "pending" when accepted, the first one's when duplicate
    repeated: bool = False  # a duplicate by its content, within `repeat_window`


class SpoolMark(NamedTuple):
    """How far a spool file has been taken; committed with its events."""

    file_key: str
    lines_done: int


class EntryChange(StrEnum):
    """What an operator may do to one entry."""

    RETRY = "retry"  # a dead letter becomes pending again; a pending entry is due at once
    HOLD = "hold"  # a pending entry is kept back
    RELEASE = "release"  # a held entry may go
    DROP = "drop"  # an entry is removed for good


class Claimed(NamedTuple):
    """An entry taken for sending."""

    seq: int
    id: str
    body: bytes
    received_at: int
    occurred_at: int | None
    expires_at: int | None
    attempt_count: int  # requests made so far
    spent: int  # of those, the ones that count against attempts_max
    possible_duplicate: bool
    repeats: int
    last_occurred_at: int | None
    source: str
    producer: str = ""
    hop: str | None = None


class Fetched(NamedTuple):
    """Entries that may be sent now, and what else a look for them showed."""

    entries: list[Claimed]
    damaged: list[int]  # seqs whose body is not the one that was stored
    next_due_at: int | None  # when an entry's own backoff ends next


class Expired(NamedTuple):
    """Pending entries whose ttl ran out, and when the next one's does."""

    entries: list[tuple[int, str]]  # seq and id
    next_at: int | None


class Attempt(NamedTuple):
    """One HTTP exchange."""

    at: int
    duration_ms: int
    outcome: str  # an Outcome
    status: int | None
    error: str | None


class Settlement(NamedTuple):
    """What an attempt means for its entry; written to the outbox."""

    seq: int
    state: str  # the State the entry has from now on
    attempt: Attempt | None  # None: no request was made (expired before sending)
    due_at: int = 0  # the earliest next claim when still pending; 0: at once
    spent: int = 0  # added to the entry's spent attempts (0 or 1)
    possible_duplicate: bool = False  # the request may have arrived; sticky
    dead_reason: str | None = None
    revives: bool = False  # a dead letter, rejected by mistake, waits again
    # Of an entry of which no attempt was settled before, by whom it is: only then may
    # the engine pass over reading it again (it looks whether nothing was changed).
    first_of: str | None = None


class Entry(NamedTuple):
    """An event's row in the outbox, whole."""

    seq: int
    id: str
    state: str
    held: bool
    event_type: str
    severity: str
    scope: str
    source: str
    received_at: int
    occurred_at: int | None
    expires_at: int | None
    due_at: int  # 0: at once
    ended_at: int | None  # when it was delivered or died
    dedup_key: str | None
    repeats: int
    last_occurred_at: int | None
    attempt_count: int
    spent: int
    possible_duplicate: bool
    last_outcome: str | None
    last_status: int | None
    last_error: str | None
    dead_reason: str | None
    attempts: str  # JSON list of [at, duration_ms, outcome, status, error], newest 50
    body: bytes
    producer: str  # "" where nobody knows
    hop: str | None  # its way through other agents, as `event.hop` writes it
    short_id: str  # the shortest beginning of the id that is no other entry's, at least its ms


class EntryFilter(NamedTuple):
    """Which entries a listing wants; every field given must match (AND);
    within one field any value does (OR). Times are of receipt.

    `filters.read_filter` makes one of a query, `listing.conditions` makes SQL of it.
    """

    states: tuple[str, ...] = ()
    held: bool | None = None
    event_types: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    dead_reasons: tuple[str, ...] = ()  # why it is a dead letter
    last_statuses: tuple[int, ...] = ()  # HTTP status of the last attempt
    sources: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()  # who handed it in
    owners: tuple[str, ...] = ()  # whose entries the asker may see, () for everybody's
    dedup_key: str | None = None
    id: str | None = None  # an id, or its beginning
    error: str = ""  # free text, matched without case in the last attempt's error
    # Free text, matched without case: in type, summary, scope and the values of the
    # details; in the dedup key and the attempts' errors; an id's beginning; a status.
    q: str = ""
    since: int | None = None  # received at or after
    until: int | None = None  # received before
    # (filter's name, value): entries with one of these are left out.
    excluded: tuple[tuple[str, str], ...] = ()

    def by_name(self) -> Iterator[tuple[str, Sequence[object], Sequence[object]]]:
        """Each filter of values by its name in a query: the values that are wanted, () for
        any, and those that are left out."""
        for name, wanted in (
            ("state", self.states),
            ("type", self.event_types),
            ("severity", self.severities),
            ("cluster", self.clusters),
            ("namespace", self.namespaces),
            ("service", self.services),
            ("reason", self.dead_reasons),
            ("status", self.last_statuses),
            ("source", self.sources),
            ("producer", self.producers),
        ):
            unwanted = [value for own, value in self.excluded if own == name]
            yield name, wanted, [int(v) for v in unwanted] if name == "status" else unwanted


class ListPlace(NamedTuple):
    """Where a listing goes on: before a seq. While `ids_after` is given the engine
    looks for the next entry by its time, and has found `best_seq` so far."""

    before_seq: int = 1 << 62  # the newest
    ids_after: str | None = None
    best_seq: int = 0


class ListStep(NamedTuple):
    """One step of a listing."""

    entries: list[Entry]
    place: ListPlace | None  # where to go on; None: the end was reached
    is_full: bool  # there is no room for more on the page


class ChangeStep(NamedTuple):
    """One step of a change of many: where to go on, and how many were changed."""

    place: ListPlace | None  # None: the end was reached
    changed: int


class PruneStep(NamedTuple):
    """One step of pruning: after which seq to go on, and how many were deleted."""

    after_seq: int | None  # None: the end was reached
    deleted: int


class IndexRow(NamedTuple):
    """What an index of the outbox needs of an entry."""

    seq: int
    received_at: int
    event_type: str
    severity: str
    state: str
    held: int
    scope: str  # UNLISTED where it is too long to be looked into
    dead_reason: str | None
    last_status: int | None  # HTTP's, of the newest attempt
    source: str
    producer: str  # "" where nobody knows


# A scope that names so much that no list of counts can hold it.
UNLISTED = "*"
SCOPE_LISTED_MAX = 4096  # characters


class Unsettled(StrEnum):
    """The entries that a small index of the outbox lists; the others were delivered."""

    DUE = "due"  # pending and not held
    HELD = "held"
    DEAD = "dead"


class Place(NamedTuple):
    """A place in the order of such an index."""

    due_at: int  # 0 in those that do not order by it
    seq: int


class UnsettledSums(NamedTuple):
    """A part of such an index, in few numbers."""

    by_block: dict[int, int]  # the sum of its seqs, by `seq // block_rows`
    last: Place | None  # where to go on; None: that was all


class DestinationHold(NamedTuple):
    """The operator's hold of the destination; outlives a restart."""

    reason: str
    by: str
    since_at: int


class Outage(NamedTuple):
    """The destination takes nothing, or is held by an answer, and since when."""

    began_at: int
    reason: str


UNBOUNDED = 1 << 62  # bytes free on a disk that is not this host's


class Sizes(NamedTuple):
    """What the outbox takes of its disk, and what is left there, in bytes."""

    stored: int  # the log included
    log: int
    free: int  # UNBOUNDED where that is another's to watch


class Counts(NamedTuple):
    """How many entries there are."""

    pending: int  # held ones included
    delivered: int
    dead: int
    held: int


class Damage(NamedTuple):
    """What damage to the outbox's files has cost so far."""

    salvaged: int
    lost: int


class Identity(NamedTuple):
    """What a dedup window remembers: an event with this key is known, and is that one."""

    key: str
    seq: int  # of the first event's entry, which may be gone
    id: str
    expires_at: int
    mark: int  # a later one of the same key is another event; 0: none is


class MoveRole(StrEnum):
    """What an outbox is in a move, or was in the last one."""

    LEAVING = "leaving"  # its entries are being copied to the other one
    LEFT = "left"  # the other one has them all: nobody may deliver from here
    ARRIVING = "arriving"  # it has a part of them
    ARRIVED = "arrived"


class MoveNote(NamedTuple):
    """What an outbox knows of the last move that it had a part in."""

    move_id: str  # the same in both
    role: str  # a MoveRole
    other: str  # names the other outbox
    at: int
