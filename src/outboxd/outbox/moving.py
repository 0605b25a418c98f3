"""An outbox is moved from one engine to another: nothing lost, nothing twice.

Over the verbs of `Engine` alone. Both are open to nobody else meanwhile. A note in
each says what became of it, so that a move that was cut off goes on where it
stopped, and no agent ever delivers from both: from the first note on the one that
is left is refused (`refuse_moved`), and so is the other one until it has all.
"""

from __future__ import annotations

import json
import uuid
from typing import NamedTuple

from outboxd.errors import OutboxdError, OutboxUnusable, UsageError
from outboxd.outbox.engine import Engine
from outboxd.outbox.model import (
    Counts,
    Entry,
    Identity,
    MoveNote,
    MoveRole,
    SpoolMark,
    State,
)
from outboxd.times import rfc3339

CHUNK_ROWS = 500
CHUNK_BYTES = 8 * 1024 * 1024  # of bodies


class Moved(NamedTuple):
    """What the outbox at the end of a move has, counted entry by entry."""

    counts: Counts
    identities: int
    doubtful: int  # in flight when the last agent ended: sent as possible duplicates
    was_done: bool = False  # an earlier run had moved all


class _Begun(NamedTuple):
    note: MoveNote  # the source's
    is_copied: bool
    is_done: bool
    doubtful: int


def move(source: Engine, target: Engine, has_spool: bool = True) -> Moved:
    """Bring all that `source` has into `target`, and leave the source marked.

    `has_spool`: how far spool files were taken is of use to the target.

    Raises:
        OutboxUnusable: one of them has a part in another move, or the target is not empty.
        UsageError: they are the same outbox.
        OutboxDamaged: the source is damaged; nothing is lost by it.
    """
    begun = _begin(source, target)
    if not begun.is_done:
        if not begun.is_copied:
            _copy_entries(source, target)
            _copy_identities(source, target)
            _copy_rest(source, target, has_spool)
        counted = _compare(source, target)
        _end(source, target, begun.note)
    else:
        with target.reading():
            counted = target.counts(), 0
    return Moved(*counted, begun.doubtful, begun.is_done)


def give_up(source: Engine) -> None:
    """A move that was cut off is not to be finished: the source may be used again.

    Raises:
        OutboxUnusable: no move from it was cut off.
    """
    with source.reading():
        note = source.move_note()
    if note is None or note.role != MoveRole.LEAVING:
        raise OutboxUnusable(
            f"no move from {source.path} was cut off", "there is nothing to give up"
        )
    with source.transaction():
        source.set_move_note(None)


def refuse_moved(engine: Engine) -> None:
    """For whoever opens an outbox to use it.

    Raises:
        OutboxUnusable: its entries are, or may be, in another one.
    """
    with engine.reading():
        note = engine.move_note()
    if note is None or note.role == MoveRole.ARRIVED:
        return
    path, other = engine.path, note.other
    if note.role == MoveRole.LEFT:
        raise OutboxUnusable(
            f"{path} was moved to {other} at {rfc3339(note.at)}: nothing is delivered from here",
            f"set [outbox] to {other}",
        )
    if note.role == MoveRole.LEAVING:
        raise OutboxUnusable(
            f"a move from {path} to {other} was cut off",
            "run `outboxd move FROM TO` again, which finishes it, or `outboxd move --give-up FROM`",
        )
    raise OutboxUnusable(
        f"a move from {other} to {path} was cut off, and this one has only a part",
        "run `outboxd move FROM TO` again, which finishes it",
    )


# --- its steps -----------------------------------------------------------------


def _begin(source: Engine, target: Engine) -> _Begun:
    with source.reading():
        note = source.move_note()
    with target.reading():
        there = target.move_note()
    if note is not None and note.role == MoveRole.ARRIVING:
        refuse_moved(source)
    is_same = note is not None and there is not None and note.move_id == there.move_id
    if note is not None and note.role == MoveRole.LEFT:
        if not is_same:
            refuse_moved(source)
        return _Begun(note, True, there is not None and there.role == MoveRole.ARRIVED, 0)
    doubtful = 0
    if note is None or note.role == MoveRole.ARRIVED:
        _refuse_used(target, there)
        doubtful, note = _note_leaving(source, target)
        with target.reading():
            there = target.move_note()
        is_same = there is not None and there.move_id == note.move_id
        if is_same:
            give_up(source)
            raise UsageError(
                f"{source.path} and {target.path} are the same outbox", "name another for TO"
            )
    if not is_same:
        # The mark of the source is all that there was time for.
        if note.other != target.path:
            refuse_moved(source)
        _refuse_used(target, there)
        with target.transaction():
            target.set_move_note(note._replace(role=MoveRole.ARRIVING, other=source.path))
    return _Begun(note, False, False, doubtful)


def _refuse_used(target: Engine, there: MoveNote | None) -> None:
    if there is not None and there.role != MoveRole.ARRIVED:
        refuse_moved(target)
    with target.reading():
        is_used = bool(target.seq_range()) or bool(target.identities_after("", 1))
    if is_used:
        raise OutboxUnusable(
            f"{target.path} is not empty", "a move goes into an outbox that has nothing in it"
        )


def _note_leaving(source: Engine, target: Engine) -> tuple[int, MoveNote]:
    note = MoveNote(str(uuid.uuid4()), MoveRole.LEAVING.value, target.path, source.clock.wall_ms())
    with source.transaction():
        doubtful = source.recover_sending()
        source.set_move_note(note)
    return doubtful, note


def _copy_entries(source: Engine, target: Engine) -> None:
    """Oldest first and each chunk whole: the newest one there says how far it went."""
    with target.reading():
        there = target.seq_range()
    seq = there[-1] if there else -1
    while True:
        with source.reading():
            entries = source.entries_after(seq, CHUNK_ROWS, CHUNK_BYTES)
        if not entries:
            return
        with target.transaction():
            target.put_in(entries, [])
        target.tidy()
        seq = entries[-1].seq


def _copy_identities(source: Engine, target: Engine) -> None:
    key = ""
    while True:
        with source.reading():
            identities = source.identities_after(key, CHUNK_ROWS)
        if not identities:
            return
        with target.transaction():
            target.put_in([], identities)
        target.tidy()
        key = identities[-1].key


def _copy_rest(source: Engine, target: Engine, has_spool: bool) -> None:
    with source.reading():
        hold, spool = source.destination_hold(), source.spool_progress()
    with target.transaction():
        target.set_destination_hold(hold)
        for file_key, lines_done in spool.items() if has_spool else ():
            target.mark_spool(SpoolMark(file_key, lines_done))


def _compare(source: Engine, target: Engine) -> tuple[Counts, int]:
    """Hold the target against the source, entry by entry; what both have.

    Raises:
        OutboxdError: they differ, which is our fault.
    """
    counts, seq = Counts(0, 0, 0, 0), -1
    while True:
        with source.reading():
            wanted = source.entries_after(seq, CHUNK_ROWS, CHUNK_BYTES)
        with target.reading():
            found = target.entries_after(seq, max(1, len(wanted)), 1 << 62)
        if [_plain(entry) for entry in wanted] != [_plain(entry) for entry in found]:
            raise _differ(source, target, f"entries behind {seq}")
        if not wanted:
            break
        counts = Counts(*(a + b for a, b in zip(counts, _counted(wanted), strict=True)))
        seq = wanted[-1].seq
    if target.counts() != counts:
        raise _differ(source, target, f"counts, {target.counts()} against {counts}")
    return counts, _compare_identities(source, target)


def _compare_identities(source: Engine, target: Engine) -> int:
    count, key = 0, ""
    while True:
        wanted: list[Identity]
        with source.reading():
            wanted = source.identities_after(key, CHUNK_ROWS)
        with target.reading():
            found = target.identities_after(key, CHUNK_ROWS)
        if wanted != found:
            raise _differ(source, target, "dedup keys")
        if not wanted:
            return count
        count, key = count + len(wanted), wanted[-1].key


def _plain(entry: Entry) -> Entry:
    """Without what each engine writes in its own way."""
    attempts = json.dumps(json.loads(entry.attempts))
    return entry._replace(attempts=attempts, short_id="")


def _counted(entries: list[Entry]) -> Counts:
    states = [entry.state for entry in entries]
    return Counts(
        states.count(State.PENDING),
        states.count(State.DELIVERED),
        states.count(State.DEAD),
        sum(entry.held for entry in entries),
    )


def _differ(source: Engine, target: Engine, what: str) -> OutboxdError:
    return OutboxdError(
        f"{source.path} and {target.path} do not agree on {what}",
        "please report it; `outboxd move --give-up FROM` lets FROM be used again",
    )


def _end(source: Engine, target: Engine, note: MoveNote) -> None:
    """First the one that is left, so that at no time both may be used."""
    with source.transaction():
        source.set_move_note(note._replace(role=MoveRole.LEFT, at=source.clock.wall_ms()))
    with target.transaction():
        target.set_move_note(
            note._replace(role=MoveRole.ARRIVED, other=source.path, at=target.clock.wall_ms())
        )
