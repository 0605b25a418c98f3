"""What an engine of the outbox does: the one seam between the outbox and its database.

Verbs are synchronous and run on one thread at a time: the writer's, or that of
a command while no agent runs. Verbs that change run inside `transaction`, those
that read inside either. Nothing outside an engine's own package (`sqlite`) may
know SQL or a database's exceptions.

Whatever fails is told in these words: `DiskShort` (nothing was kept; goes on
when there is room), `SyncFailed` and `OutboxDamaged` (the agent must stop and
start afresh), `OutboxLocked`, and `OutboxdError` itself for a mistake of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from outboxd.clock import Clock
from outboxd.errors import OutboxdError
from outboxd.outbox.mentions import Text, Texts
from outboxd.outbox.model import (
    ChangeStep,
    Counts,
    Damage,
    DestinationHold,
    Entry,
    EntryChange,
    EntryFilter,
    Expired,
    Fetched,
    Identity,
    Incoming,
    IndexRow,
    ListPlace,
    ListStep,
    MoveNote,
    Place,
    PruneStep,
    Receipt,
    Settlement,
    Sizes,
    SpoolMark,
    Unsettled,
    UnsettledSums,
)


class SearchLimits(NamedTuple):
    """Of one look for texts: so that nobody waits long who shares the connection with it."""

    rows_max: int
    look_s: float  # one that takes longer is followed by a smaller one


class Engine(Protocol):
    """One open outbox."""

    clock: Clock
    path: str  # names it in messages
    reads_apart: bool  # on a connection of its own: no commit ever waits for it
    search_limits: SearchLimits

    # --- running ---

    def transaction(self) -> AbstractContextManager[None]:
        """What is changed within is there after it, synced, or nothing of it is."""

    def reading(self) -> AbstractContextManager[None]:
        """Read within; errors are told in the words above."""

    def close(self) -> None:
        """Close it in good order. Raises SyncFailed: then it is left as it is."""

    def set_windows(self, key_window_s: float, repeat_window_s: float) -> None:
        """How long dedup keys and equal events are remembered, in s."""

    def tidy(self) -> None:
        """What must follow now and then on a commit; called after each."""

    def make_room(self) -> bool:
        """On a full disk: give up the room kept back for outcomes; whether there was any."""

    def note_fatal(self, error: OutboxdError) -> None:
        """The agent stops because of this: leave what the next start should know."""

    def sizes(self) -> Sizes:
        """In bytes. From any thread."""

    # --- changing ---

    def accept(self, items: Sequence[Incoming]) -> list[Receipt]:
        """Keep events that are not known yet; a receipt each, in order, which is
        worth nothing before the commit."""

    def mark_spool(self, mark: SpoolMark) -> None:
        """How far a spool file has been taken."""

    def forget_spool(self, file_keys: Sequence[str]) -> None:
        """These spool files are gone for certain."""

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Write what attempts meant. Passes over entries that were dropped or are
        no longer pending."""

    def set_sending(self, seqs: Collection[int]) -> None:
        """Exactly these entries are in flight; after a crash they may have arrived."""

    def recover_sending(self) -> int:
        """After a crash: mark what was in flight as possible duplicates; how many."""

    def change(self, change: EntryChange, id: str) -> Entry:
        """Do it; the entry as it is now (as it was, for a drop). What is delivered,
        and for hold and release what is dead, stays as it is. Raises UnknownId."""

    def change_dead(
        self, change: EntryChange, where: EntryFilter, place: ListPlace, limit: int
    ) -> ChangeStep:
        """Retry or drop the dead letters that match among the newest `limit` ones
        before `place` (None: of all)."""

    def set_destination_hold(self, hold: DestinationHold | None) -> None:
        """Set or (None) lift the operator's hold of the destination."""

    def set_aside_damaged(self, seq: int, detail: str) -> None:
        """Keep the remains of a damaged entry apart, and count it lost."""

    def prune(self, after_seq: int, window: int, ended_before: int) -> PruneStep:
        """Delete what was delivered before `ended_before`, among the `window`
        entries after `after_seq`."""

    def prune_dedup(self, limit: int) -> int:
        """Forget at most so many identities whose window has ended; how many."""

    # --- reading ---

    def counts(self) -> Counts:
        """As of the last commit. From any thread."""

    def waiting(self) -> Mapping[str, int]:
        """How many entries of each producer are pending, as of the last commit; who has
        none is not in it. From any thread; it is never changed, but replaced."""

    def damage(self) -> Damage:
        """What damage has cost so far."""

    def destination_hold(self) -> DestinationHold | None:
        """The operator's hold, None for none."""

    def spool_progress(self) -> dict[str, int]:
        """Spool files whose unlink is not certain, and how many of their lines were taken."""

    def fetch(
        self,
        count: int,
        taken: Collection[int],
        order: str,
        fresh_share: float,
        due_horizon_s: float,
    ) -> Fetched:
        """At most `count` entries that may be sent now, without those in `taken`.

        `order` "mixed": first `fresh_share` of the newest, then those whose own
        backoff ended, then the oldest. "fifo": the oldest, but for those that wait
        by themselves. A due time further ahead than `due_horizon_s` was
        written before the clock was set back, and counts as due.
        """

    def expired(self, limit: int, clock_steps: Sequence[tuple[int, int]] = ()) -> Expired:
        """At most `limit` pending entries whose ttl ran out.

        A clock step (until, forward_ms): entries received until then have that much
        longer, since the clock was set forward and no time passed. The first that
        matches counts.
        """

    def get(self, id: str) -> Entry:
        """The entry with this id. Raises UnknownId."""

    def state_of_key(self, producer: str, dedup_key: str) -> str | None:
        """The state of the producer's entry with this key, as a receipt would have it;
        None where the key is not known, or no longer."""

    def list_step(
        self, where: EntryFilter, place: ListPlace, limit: int, bytes_max: int, is_begun: bool
    ) -> ListStep:
        """Look for some milliseconds, newest first, for at most `limit` matches with
        `bytes_max` of bodies. A first match is taken whatever it weighs, unless the
        page `is_begun` and has one."""

    def entries_of(self, where: EntryFilter, seqs: Sequence[int]) -> list[Entry]:
        """Those of a few entries that match but for its texts, newest first."""

    def oldest_pending_at(self, *, with_held: bool = True) -> int | None:
        """When the pending entry that waits longest was received; perhaps but for those
        that the operator keeps back."""

    def last_dead_at(self) -> int | None:
        """When an entry last became a dead letter, as far as a short look tells."""

    def own_reports_pending(self) -> int:
        """How many of the entries that are due are the agent's own reports."""

    # --- for an index kept in memory ---

    def seq_range(self) -> range:
        """The seqs of all entries; there may be gaps."""

    def index_rows(self, seqs: range) -> list[IndexRow]:
        """The first of the entries with these seqs, in order: as many as a few milliseconds
        allow, at least one; none where there are none. The rest is asked for behind it."""

    def unsettled_sums(self, kind: Unsettled, block_rows: int, after: Place) -> UnsettledSums:
        """A part of an index, from behind a place on: what a few milliseconds allow. The
        sums of a block change when a state of one of its entries does."""

    def rows_by_block(self, block_rows: int, seqs: range) -> dict[int, int]:
        """How many entries there are, by `seq // block_rows`."""

    def texts(self, seqs: range, wanted: Texts) -> list[tuple[int, Text]] | None:
        """Seq and texts of the entries with these seqs, in any order. Those that cannot
        have the wanted texts may be left out, which saves who asks a look at each. None:
        that is too much for one look, and fewer are to be asked for; never of a single one."""

    # --- for a move to another engine ---

    def move_note(self) -> MoveNote | None:
        """What is known of the last move, None where there was none."""

    def set_move_note(self, note: MoveNote | None) -> None:
        """Write it down. From LEAVING on nobody else changes anything here."""

    def entries_after(self, seq: int, limit: int, bytes_max: int) -> list[Entry]:
        """Whole entries behind a seq, oldest first: at most `limit`, and after the first
        no more than `bytes_max` of bodies. Raises OutboxDamaged."""

    def identities_after(self, key: str, limit: int) -> list[Identity]:
        """What the dedup windows remember, in the order of the keys, behind one."""

    def put_in(self, entries: Sequence[Entry], identities: Sequence[Identity]) -> None:
        """Keep entries that are not there, and identities whether they are or not, as
        they were elsewhere; what comes in later gets higher seqs."""
