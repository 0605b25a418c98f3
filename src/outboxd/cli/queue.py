"""The queue that the commands look into: the agent's, else the outbox's file.

One place decides which of the two, so that every command behaves alike: while
an agent runs it is asked over its socket, and the file is opened only when
nothing listens there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from outboxd.cli.agent import AgentQueue, AgentUnreachable
from outboxd.cli.rows import ListedPage, Params, read_entry
from outboxd.config.load import load_client
from outboxd.config.sections import Config
from outboxd.errors import ConfigError, EventError, UnknownId
from outboxd.outbox.filters import may_begin_an_id
from outboxd.outbox.model import EntryChange
from outboxd.producer.command_line import Arguments
from outboxd.status import Through

ID_CHARACTERS = 36
PREFIX_ENTRIES_MAX = 5  # shown where several begin alike


class Queue(Protocol):
    """What a command may ask, of an agent and of a file alike."""

    running: bool  # whether an agent runs

    def status(self) -> dict[str, Any]: ...

    def activity(self) -> dict[str, Any] | None: ...

    def page(self, params: Params, cursor: str | None, limit: int) -> ListedPage: ...

    def get(self, id: str) -> msgspec.Raw: ...

    def through(self, id: str) -> Through: ...

    def change(self, change: EntryChange, id: str) -> None: ...

    def change_dead(self, change: EntryChange, params: Params) -> int: ...

    def copy(self) -> Iterator[bytes]: ...

    def hold(self, id: str | None, reason: str | None) -> None: ...

    def release(self, id: str | None) -> dict[str, Any]: ...

    def close(self) -> None: ...


@contextmanager
def open_queue(arguments: Arguments, longest_s: float = math.inf) -> Iterator[Queue]:
    """The queue that the command line, the environment and the configuration name; an agent's
    answer is waited for no longer than `longest_s`."""
    queue = connect(arguments, client_config(arguments), longest_s)
    try:
        yield queue
    finally:
        queue.close()


def connect(arguments: Arguments, config: Config, longest_s: float = math.inf) -> Queue:
    """The agent's queue, or the file's where no agent runs."""
    try:
        return AgentQueue(socket_path(arguments, config), longest_s)
    except AgentUnreachable:
        if _means_an_agent(arguments):
            raise
    from outboxd.cli.offline import FileQueue

    return FileQueue(config)


def client_config(arguments: Arguments) -> Config:
    """The configuration, read as a client reads it."""
    try:
        return load_client(arguments.config)
    except ConfigError:
        if not _means_an_agent(arguments):
            raise
    # That agent can be asked whatever is wrong with the host's file, and by a user without
    # a home; the places in this one are not looked at.
    beside = os.path.dirname(os.path.abspath(arguments.socket))
    return load_client(os.devnull, {"STATE_DIRECTORY": beside, "RUNTIME_DIRECTORY": beside})


def _means_an_agent(arguments: Arguments) -> bool:
    """Whoever names a socket alone means that agent; the default configuration's outbox may
    be quite another's."""
    return bool(arguments.socket) and not (arguments.config or os.environ.get("OUTBOXD_CONFIG"))


def socket_path(arguments: Arguments, config: Config) -> str:
    """Where the agent listens."""
    return arguments.socket or config.intake.socket


def resolve_id(queue: Queue, id: str) -> str:
    """The whole id for its beginning; raises UnknownId, or EventError where it fits several."""
    id = id.strip().lower()
    if len(id) >= ID_CHARACTERS or not may_begin_an_id(id):
        return id
    page = queue.page([("id", id)], None, PREFIX_ENTRIES_MAX)
    found = [read_entry(entry) for entry in page.entries]
    if len(found) > 1:
        some = ", ".join(entry.short_id for entry in found)
        raise EventError(f"several ids begin with {id!r}", None, f"give more of it: {some}")
    if not found:
        raise UnknownId(
            f"there is no entry whose id begins with {id!r}", "`outboxd events` lists them"
        )
    return found[0].id


def pending_id(queue: Queue, id: str, done: str) -> str:
    """The whole id of an entry that still waits; what does not cannot be held or released."""
    entry = read_entry(queue.get(resolve_id(queue, id)))
    if entry.state != "pending":
        raise EventError(
            f"{entry.id} is {entry.state}", None, f"only what is pending can be {done}"
        )
    return entry.id
