"""The queue by way of its file (or its database), for when no agent runs.

Takes the outbox's lock, so that no agent starts in the middle, looks or
changes, and lets go. It never creates an outbox: a command that only looks
must not leave files with the wrong owner behind.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from socket import gethostname
from typing import Any

import msgspec

from outboxd import __version__, disk
from outboxd.agent.opening import open_offline_configured
from outboxd.api.status import OutboxStatus, status_json
from outboxd.cli.rows import ListedPage, Params
from outboxd.clock import Clock
from outboxd.config.sections import Config
from outboxd.delivery.next_hop import NextHop
from outboxd.errors import EventError, NotPermitted, OutboxLocked, Unavailable
from outboxd.outbox.bulk import BulkChange
from outboxd.outbox.engine import Engine
from outboxd.outbox.filters import read_filter
from outboxd.outbox.listing import read_page
from outboxd.outbox.model import Counts, Damage, DestinationHold, EntryChange, State
from outboxd.outbox.shapes import attempts_json, entry_json
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.status import DestinationState, DestinationStatus, Through

NOT_RUNNING = "no agent is running"


class FileQueue:
    """The outbox as its file has it."""

    running = False

    def __init__(self, config: Config) -> None:
        """Opens it; raises Unavailable where there is none or someone has it."""
        self._config = config
        self._opened = ExitStack()
        self._engine: Engine | None = None
        if not config.outbox.url and not _exists(config.outbox.path):
            return
        try:
            self._engine = self._opened.enter_context(open_offline_configured(config))
        except OutboxLocked as error:
            raise Unavailable(
                error.message,
                "an agent or another command has it; if it is the agent, give it time to open"
                " its socket, or name that with --socket",
            ) from None
        if isinstance(self._engine, SqliteEngine) and self._engine.put_back:
            print(f"outboxd: {self._engine.put_back}", file=sys.stderr)

    def close(self) -> None:
        self._opened.close()

    def status(self) -> dict[str, Any]:
        """The shape of `GET /v1/status`, as far as a file can tell."""
        engine = self._engine
        hold = engine.destination_hold() if engine else None
        return status_json(
            version=__version__,
            host=gethostname(),
            socket_path=self._config.intake.socket,
            now=Clock().wall_ms(),
            destination=DestinationStatus(
                endpoint=self._config.komodor.endpoint,
                state=DestinationState.HELD if hold else DestinationState.UNTRIED,
                reason=f"{hold.reason} (by {hold.by})" if hold else NOT_RUNNING,
                since_at=hold.since_at if hold else 0,
                next_probe_at=None,
                permits=0,
                in_flight=0,
            ),
            outbox=_outbox_status(engine),
            accepting=False,
            refusal=NOT_RUNNING,
            free_bytes=None if self._config.outbox.url else free_bytes(self._config.outbox.path),
        ) | {"agent": {"running": False}}

    def activity(self) -> dict[str, Any] | None:
        """A file knows of no activity."""
        return None

    def page(self, params: Params, cursor: str | None, limit: int) -> ListedPage:
        """Entries that match, newest first."""
        if self._engine is None:
            return ListedPage([], None)
        page = read_page(self._engine, read_filter(params), cursor, limit)
        return ListedPage([_raw(entry_json(entry)) for entry in page.entries], page.next)

    def get(self, id: str) -> msgspec.Raw:
        """One entry with its attempts; raises UnknownId."""
        engine = self._open()
        entry = engine.get(id)
        return _raw(
            {
                **entry_json(entry),
                "attempts": attempts_json(entry),
                "sentBody": msgspec.Raw(
                    # A file does not know of a gateway: this is what Komodor itself would get.
                    NextHop().shown_body(
                        entry,
                        engine.clock.wall_ms(),
                        self._config.delivery.stamp,
                        self._config.delivery.late_after_s,
                        gethostname(),
                    )
                ),
            }
        )

    def through(self, id: str) -> Through:
        """What became of an entry behind a gateway, which only an agent can ask."""
        return Through(None, NOT_RUNNING)

    def change(self, change: EntryChange, id: str) -> None:
        """Do it to one entry; raises UnknownId, EventError for what was delivered."""
        engine = self._open()
        with engine.transaction():
            if engine.change(change, id).state == State.DELIVERED:
                raise EventError(f"{id} was delivered, it is no dead letter")

    def change_dead(self, change: EntryChange, params: Params) -> int:
        """Retry or drop all dead letters that match; how many."""
        engine = self._open()
        bulk = BulkChange(change, read_filter(params))
        while not bulk.is_done:
            with engine.transaction():
                step = bulk.step(engine)
            bulk.committed(step)
        return bulk.changed

    def copy(self) -> Iterator[bytes]:
        """The outbox's file, whole, in parts; raises Unavailable where there is none."""
        engine = self._open()
        if not isinstance(engine, SqliteEngine):
            raise Unavailable(
                f"the outbox is on PostgreSQL ({engine.path}), and no file of this host's",
                "copy it with pg_dump, or as that server is copied",
            )
        copy = engine.begin_copy()
        offset = 0
        while offset < copy.size_bytes:
            chunk = copy.read(offset)
            offset += len(chunk)
            yield chunk
        engine.end_copy(copy)

    def hold(self, id: str | None, reason: str | None) -> None:
        engine = self._open()
        with engine.transaction():
            if id is not None:
                engine.change(EntryChange.HOLD, id)
            else:
                engine.set_destination_hold(
                    DestinationHold(reason or "no reason given", _by(), engine.clock.wall_ms())
                )

    def release(self, id: str | None) -> dict[str, Any]:
        engine = self._open()
        hold = engine.destination_hold()
        with engine.transaction():
            if id is not None:
                engine.change(EntryChange.RELEASE, id)
            else:
                engine.set_destination_hold(None)
        was = {"state": "held", "reason": f"held by {hold.by}"} if hold else {"state": "untried"}
        return {"state": "untried", "was": was}

    def _open(self) -> Engine:
        if self._engine is None:
            raise Unavailable(
                f"no agent is running, and there is no outbox at {self._config.outbox.place}",
                "start one with `outboxd run`, or name its configuration with -c",
            )
        return self._engine


def free_bytes(path: str) -> int | None:
    """Free disk where the outbox is or would be, in bytes; None: it cannot be told."""
    try:
        return disk.free_bytes(path)
    except OSError:
        return None


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


def _outbox_status(engine: Engine | None) -> OutboxStatus:
    if engine is None:
        return OutboxStatus(Counts(0, 0, 0, 0), None, None, 0, Damage(0, 0))
    return OutboxStatus(
        engine.counts(),
        engine.oldest_pending_at(),
        engine.last_dead_at(),
        engine.sizes().stored,
        engine.damage(),
    )
