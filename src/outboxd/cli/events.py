"""`outboxd events`: what is in the outbox, and one entry whole with `events show ID`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import msgspec

from outboxd.cli import render
from outboxd.cli.queue import Queue, open_queue, resolve_id
from outboxd.cli.rows import AttemptRow, ListedEntry, Params, one_line, read_entry
from outboxd.errors import EX_OK, UsageError
from outboxd.outbox.filters import LISTS
from outboxd.producer.command_line import Arguments
from outboxd.producer_names import name_of, producers_called
from outboxd.text import harmless
from outboxd.times import parse_rfc3339, rfc3339
from outboxd.units import format_duration, parse_duration

PAGE = 500
# As the listing's query names them, and so do the options.
_FILTERS = (
    *("state", "type", "severity", "cluster", "namespace", "service", "q"),
    *("reason", "status"),
)


def run(arguments: Arguments) -> int:
    """The listing, or one entry."""
    with open_queue(arguments) as queue:
        if arguments.subcommand == "show":
            return show(queue, arguments.id, arguments.json)
        return list_entries(queue, filters(arguments), arguments)


def filters(arguments: Arguments, state: str | None = None) -> Params:
    """The filters of the command line as the listing's query."""
    params = [("state", state)] if state else []
    for name in ("state", *LISTS[1:], "key", "error", "q"):
        given = getattr(arguments, name, None) or []
        for value in [given] if isinstance(given, str) else given:
            params += [(name, each) for each in _values(name, value)]
    for text in getattr(arguments, "not"):
        name, _, value = text.partition("=")
        if name not in LISTS or not value:
            known = ", ".join(LISTS)
            raise UsageError(f"--not cannot be {text!r}", f"it is NAME=VALUE, NAME one of {known}")
        params += [(f"not{name.capitalize()}", each) for each in _values(name, value)]
    for name in ("since", "until"):
        text = getattr(arguments, name, None)
        if text:
            params.append((name, rfc3339(_moment(f"--{name}", text))))
    return params


def _values(name: str, value: str) -> list[str]:
    """What the listing is asked for: it knows producers by what it keeps of them."""
    return producers_called(value) if name == "producer" else [value]


def list_entries(
    queue: Queue,
    params: Params,
    arguments: Arguments,
    table: render.EntriesTable = render.entries_table,
) -> int:
    """Print entries, newest first, and say on stderr when there are more."""
    listing = EventPages(queue, params, arguments.limit or None, arguments.cursor)
    if arguments.json:
        for entry in listing:
            sys.stdout.write(one_line(entry) + "\n")
    else:
        now_ms = time.time_ns() // 1_000_000
        # A page at a time, so that an endless listing needs no memory; the
        # columns of one page are as wide as that page needs.
        for number, page in enumerate(listing.pages()):
            rows = [read_entry(entry) for entry in page]
            lines = table(rows, now_ms, render.terminal_columns(), render.colours())
            for line in lines if number == 0 else lines[1:]:
                print(line)
    if not listing.count:
        print("nothing matches" if params else "no events yet", file=sys.stderr)
    elif listing.next is not None:
        sys.stdout.flush()
        print(
            f"the newest {listing.count}; go on with --cursor {listing.next}, or --limit 0 for all",
            file=sys.stderr,
        )
    return EX_OK


class EventPages:
    """Entries of a listing, page after page, at most `limit` of them (None: all)."""

    def __init__(
        self, queue: Queue, params: Params, limit: int | None = None, cursor: str | None = None
    ) -> None:
        self.count = 0
        self.next = cursor
        self._queue = queue
        self._params = params
        self._limit = limit

    def pages(self) -> Iterator[list[msgspec.Raw]]:
        """The pages, at least one entry in each."""
        while self._limit is None or self.count < self._limit:
            wanted = PAGE if self._limit is None else min(PAGE, self._limit - self.count)
            page = self._queue.page(self._params, self.next, wanted)
            self.next = page.next
            self.count += len(page.entries)
            if page.entries:
                yield page.entries
            if self.next is None:
                return

    def __iter__(self) -> Iterator[msgspec.Raw]:
        for page in self.pages():
            yield from page


def show(queue: Queue, id: str, as_json: bool) -> int:
    """One entry with its attempts, why it waits and when it is due."""
    raw = queue.get(resolve_id(queue, id))
    if as_json:
        print(one_line(raw))
        return EX_OK
    entry = read_entry(raw)
    now_ms = time.time_ns() // 1_000_000
    print(f"{harmless(entry.event_type)}: {harmless(entry.summary)}")
    print()
    for line in render.fields(_fields(entry, now_ms, queue)):
        print(line)
    if entry.attempts:
        print()
        for line in _attempts(entry.attempts):
            print(line)
    return EX_OK


def why_it_waits(entry: ListedEntry, now_ms: int, queue: Queue) -> str | None:
    """In a sentence, why a pending entry has not gone out yet; None for others."""
    if entry.state != "pending":
        return None
    if entry.held:
        return f"held by the operator; `outboxd release {entry.id}` lets it go"
    if not queue.running:
        return "no agent is running"
    destination = queue.status()["destination"]
    state = destination["state"]
    because = f": {harmless(destination['reason'])}" if destination.get("reason") else ""
    if state == "held":
        return because[2:] or "the destination is held"
    if state in ("backingOff", "throttled"):
        word = "unavailable" if state == "backingOff" else "throttled"
        probe = destination.get("nextProbeAt")
        when = f"; next try {render.distance(probe, now_ms)}" if probe else ""
        return f"the destination is {word}{because}{when}"
    if entry.due_at and parse_rfc3339(entry.due_at) > now_ms:
        return "its last attempt failed while others were delivered; it waits for its own backoff"
    return "it stands in the queue"


def _moment(flag: str, text: str) -> int:
    """A time, or how long ago: "2026-11-21T23:31:36Z", "2h"."""
    try:
        return time.time_ns() // 1_000_000 - round(parse_duration(text) * 1000)
    except ValueError:
        pass
    try:
        return parse_rfc3339(text)
    except ValueError:
        raise UsageError(
            f"{flag} cannot be {text!r}",
            'write a time as 2026-11-21T23:31:36Z, or how long ago as "30m" or "7d"',
        ) from None


def _fields(entry: ListedEntry, now_ms: int, queue: Queue) -> list[tuple[str, str]]:
    waits = why_it_waits(entry, now_ms, queue)
    found: list[tuple[str, str | None]] = [
        ("Id", entry.id),
        ("State", _state(entry, now_ms)),
        ("Waits because", waits),
        ("Due", render.time_and_distance(entry.due_at, now_ms) if entry.due_at else None),
        ("Severity", entry.severity),
        ("Scope", render.scope_text(entry.scope) or "none: every service of the account"),
        ("Details", _details(entry.details)),
        ("Occurred", render.time_and_distance(entry.occurred_at or entry.received_at, now_ms)),
        ("Received", render.time_and_distance(entry.received_at, now_ms)),
        (
            "Delivered",
            render.time_and_distance(entry.delivered_at, now_ms) if entry.delivered_at else None,
        ),
        ("Source", entry.source),
        ("Producer", _producer(entry.producer)),
        ("Hop", _hop(entry)),
        ("Dedup key", entry.dedup_key),
        ("Repeats", str(entry.repeats) if entry.repeats else None),
        ("Attempts", str(entry.attempt_count)),
        ("Last outcome", _last_outcome(entry)),
        ("Possible duplicate", "yes" if entry.possible_duplicate else None),
        ("Sent body" if entry.attempt_count else "Would send", _text(entry.sent_body)),
    ]
    # Whatever came with the event stays text on this terminal.
    return [(name, harmless(value, lines=True)) for name, value in found if value]


def _state(entry: ListedEntry, now_ms: int) -> str:
    state = render.state_text(entry, now_ms)
    if entry.state != "delivered" or not entry.destination_is_gateway:
        return state
    return f"{state} to the gateway, which sends it on; `outboxd wait --through {entry.short_id}`"


def _producer(producer: str | None) -> str | None:
    """Who handed it in: the name, and what the outbox keeps."""
    if not producer:
        return None
    name = name_of(producer)
    return name if name == producer else f"{name} ({producer})"


def _hop(entry: ListedEntry) -> str | None:
    """What another agent told of the event's way to here."""
    hop = entry.hop
    if hop is None:
        return None
    count = f"{hop.attempts} attempt{'' if hop.attempts == 1 else 's'}"
    host = hop.host or "a host without a name"
    return f"from {host}, {format_duration(hop.age_ms / 1000)} old, {count}"


def _details(raw: msgspec.Raw) -> str | None:
    """The details, one `key: value` a line; values that are no text as JSON."""
    if bytes(raw) == b"null":
        return None
    details = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    lines = []
    for key, value in details.items():
        text = msgspec.json.decode(value) if bytes(value)[:1] == b'"' else _text(value)
        lines.append(f"{harmless(key)}: {harmless(str(text))}")
    return "\n".join(lines)


def _text(raw: msgspec.Raw) -> str | None:
    if bytes(raw) == b"null":
        return None
    if bytes(raw)[:1] == b'"':
        return harmless(str(msgspec.json.decode(raw)))
    return harmless(msgspec.json.format(bytes(raw), indent=-1).decode())


def _last_outcome(entry: ListedEntry) -> str | None:
    if entry.last_outcome is None:
        return None
    status = f" ({entry.last_status})" if entry.last_status is not None else ""
    error = f": {harmless(entry.last_error)}" if entry.last_error else ""
    return f"{entry.last_outcome}{status}{error}"


def _attempts(attempts: list[AttemptRow]) -> list[str]:
    return render.table(
        ("AT", "TOOK", "OUTCOME", "STATUS", "ERROR"),
        [
            (
                render.local_time(attempt.at),
                f"{attempt.duration_ms:g} ms",
                attempt.outcome,
                "-" if attempt.status is None else str(attempt.status),
                attempt.error or "",
            )
            for attempt in attempts
        ],
        render.terminal_columns(),
    )
