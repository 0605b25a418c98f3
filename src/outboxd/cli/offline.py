"""The queue by way of its file, for when no agent runs.

Takes the outbox's lock, so that no agent starts in the middle, looks or
changes, and lets go. It never creates an outbox: a command that only looks
must not leave files with the wrong owner behind.
"""

from __future__ import annotations

import os
import pwd
from contextlib import ExitStack
from typing import Any

import msgspec

from outboxd import __version__
from outboxd.cli.rows import Page, Params
from outboxd.config.load import Config
from outboxd.delivery.late import stamped
from outboxd.errors import NotPermitted, OutboxLocked, Unavailable
from outboxd.outbox.bulk import BulkChange
from outboxd.outbox.engine import Engine
from outboxd.outbox.listing import read_page
from outboxd.outbox.model import Claimed, DestinationHold, Entry, EntryChange, EntryFilter
from outboxd.outbox.shapes import attempts_json, entry_json
from outboxd.outbox.sqlite.opening import open_offline
from outboxd.status import DestinationState
from outboxd.times import parse_rfc3339, rfc3339

NOT_RUNNING = "no agent is running"


class FileQueue:
    """The outbox as its file has it."""

    running = False

    def __init__(self, config: Config) -> None:
        """Opens it; raises Unavailable where there is none or someone has it."""
        path = config.outbox.path
        self._config = config
        self._opened = ExitStack()
        self._engine: Engine | None = None
        if not _exists(path):
            return
        try:
            self._engine = self._opened.enter_context(open_offline(path))
        except OutboxLocked as error:
            raise Unavailable(
                error.message,
                "an agent or another command has it; if it is the agent, give it time to open"
                " its socket, or name that with --socket",
            ) from None

    def close(self) -> None:
        self._opened.close()

    def status(self) -> dict[str, Any]:
        """The shape of `GET /v1/status`, as far as a file can tell."""
        hold = self._engine.destination_hold() if self._engine else None
        return {
            "version": __version__,
            "agent": {"running": False},
            "destination": {
                "endpoint": self._config.komodor.endpoint,
                "state": DestinationState.HELD if hold else DestinationState.UNTRIED,
                "reason": f"{hold.reason} (by {hold.by})" if hold else NOT_RUNNING,
                "since": rfc3339(hold.since_at) if hold else None,
                "nextProbeAt": None,
                "permits": 0,
                "inFlight": 0,
            },
            "outbox": self._outbox_status(),
            "intake": {"accepting": False, "reason": NOT_RUNNING},
            "disk": {"freeBytes": free_bytes(self._config.outbox.path)},
        }

    def activity(self) -> dict[str, Any] | None:
        """A file knows of no activity."""
        return None

    def page(self, params: Params, cursor: str | None, limit: int) -> Page:
        """Entries that match, newest first."""
        if self._engine is None:
            return Page([], None)
        page = read_page(self._engine, _filter(params), cursor, limit)
        return Page([_raw(entry_json(entry)) for entry in page.entries], page.next)

    def get(self, id: str) -> msgspec.Raw:
        """One entry with its attempts; raises UnknownId."""
        engine = self._open()
        entry = engine.get(id)
        return _raw(
            {
                **entry_json(entry),
                "attempts": attempts_json(entry),
                "sentBody": msgspec.Raw(self._would_send(entry, engine.clock.wall_ms())),
            }
        )

    def change(self, change: EntryChange, id: str) -> None:
        """Do it to one entry; raises UnknownId."""
        engine = self._open()
        with engine.transaction():
            engine.change(change, id)

    def change_dead(self, change: EntryChange, params: Params) -> int:
        """Retry or drop all dead letters that match; how many."""
        engine = self._open()
        bulk = BulkChange(change, _filter(params))
        while not bulk.is_done:
            with engine.transaction():
                step = bulk.step(engine)
            bulk.committed(step)
        return bulk.changed

    def hold(self, id: str | None, reason: str | None) -> None:
        engine = self._open()
        with engine.transaction():
            if id is not None:
                engine.change(EntryChange.HOLD, id)
            else:
                engine.set_destination_hold(
                    DestinationHold(reason or "no reason given", _by(), engine.clock.wall_ms())
                )

    def release(self, id: str | None) -> None:
        engine = self._open()
        with engine.transaction():
            if id is not None:
                engine.change(EntryChange.RELEASE, id)
            else:
                engine.set_destination_hold(None)

    def _would_send(self, entry: Entry, now_ms: int) -> bytes:
        """The body with the stamps it has, or would have if it went out now."""
        delivery = self._config.delivery
        at = now_ms if entry.ended_at is None else entry.ended_at
        attempt_count = entry.attempt_count - (entry.ended_at is not None)
        claimed = Claimed(
            seq=entry.seq,
            id=entry.id,
            body=entry.body,
            received_at=entry.received_at,
            occurred_at=entry.occurred_at,
            expires_at=entry.expires_at,
            attempt_count=max(0, attempt_count),
            spent=entry.spent,
            possible_duplicate=entry.possible_duplicate,
            repeats=entry.repeats,
            last_occurred_at=entry.last_occurred_at,
            source=entry.source,
        )
        return stamped(claimed, at, delivery.stamp, delivery.late_after_s)

    def _open(self) -> Engine:
        if self._engine is None:
            raise Unavailable(
                f"no agent is running, and there is no outbox at {self._config.outbox.path}",
                "start one with `outboxd run`, or name its configuration with -c",
            )
        return self._engine

    def _outbox_status(self) -> dict[str, Any]:
        engine = self._engine
        if engine is None:
            return dict.fromkeys(
                ("pending", "delivered", "dead", "held", "bytes", "salvaged", "lostToDamage"), 0
            ) | {"oldestPendingAt": None}
        counts = engine.counts()
        damage = engine.damage()
        oldest_at = engine.oldest_pending_at()
        return {
            **counts._asdict(),
            "oldestPendingAt": None if oldest_at is None else rfc3339(oldest_at),
            "bytes": engine.sizes().stored,
            "salvaged": damage.salvaged,
            "lostToDamage": damage.lost,
        }


def free_bytes(path: str) -> int | None:
    """Free disk where the outbox is or would be, as its user may use it."""
    directory = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(directory) and directory != "/":
        directory = os.path.dirname(directory)
    try:
        space = os.statvfs(directory)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize


def _exists(path: str) -> bool:
    """Whether there is an outbox; raises NotPermitted where we may not even see that."""
    try:
        os.stat(path)
        permitted = os.access(path, os.R_OK | os.W_OK)
    except PermissionError:
        permitted = False
    except OSError:
        return False
    if not permitted:
        raise NotPermitted(
            f"no agent answers, and there is no permission to open the outbox {path}",
            "use sudo, or be the agent's user",
        )
    return True


def _raw(content: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(content))


def _by() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _filter(params: Params) -> EntryFilter:
    """The query of a listing, as the engine takes it."""
    found: dict[str, list[str]] = {}
    for name, value in params:
        found.setdefault(name, []).append(value)

    def time_of(name: str) -> int | None:
        return parse_rfc3339(found[name][-1]) if name in found else None

    return EntryFilter(
        states=tuple(found.get("state", ())),
        event_types=tuple(found.get("type", ())),
        severities=tuple(found.get("severity", ())),
        clusters=tuple(found.get("cluster", ())),
        namespaces=tuple(found.get("namespace", ())),
        services=tuple(found.get("service", ())),
        q=found.get("q", [""])[-1],
        since=time_of("since"),
        until=time_of("until"),
        dead_reasons=tuple(found.get("reason", ())),
        last_statuses=tuple(map(int, found.get("status", ()))),
    )
