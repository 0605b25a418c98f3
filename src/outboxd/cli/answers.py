"""What an agent answers a command, read with the shape that it must have.

Whoever listens on the socket's path is taken for an agent: it may be another
program, another version, or somebody who has taken the path. So nothing is read
without an end, in bytes or in time, and what has another shape is told as that
and never ends a command as a defect of its own. It decides nothing else.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import Any, TypeVar

import msgspec

from outboxd.errors import Unavailable

ANSWER_BYTES_MAX = 64 << 20  # a page of a listing has 1 MiB of events, and what is told of them

_T = TypeVar("_T")


def read(body: bytes, shape: type[_T], socket_path: str) -> _T:
    """An answer of this shape; raises Unavailable for any other."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise no_agent(socket_path, error) from None


def read_object(body: bytes, shape: type[Any], socket_path: str) -> dict[str, Any]:
    """An answer with every key that it came with, once it is known to have this shape."""
    read(body, shape, socket_path)
    return read(body, dict[str, Any], socket_path)


def no_agent(socket_path: str, why: object) -> Unavailable:
    """What listens there does not speak as an agent of this version does."""
    return Unavailable(
        f"what answers at {socket_path} is no agent that this command understands ({why})",
        "name the agent's socket with --socket or -c; if outboxd was upgraded, restart its agent",
    )


class BoundedSocket(socket.socket):
    """A Unix socket from which no more is read than there may be, nor longer.

    `expect_answer` begins an answer; without it each read by itself has the socket's
    timeout, and there is no end of them.
    """

    _ends_s = math.inf
    _bytes_left = math.inf

    def expect_answer(self, seconds: float) -> None:
        """The answer that comes next may take so long, and have ANSWER_BYTES_MAX."""
        self._ends_s, self._bytes_left = monotonic() + seconds, ANSWER_BYTES_MAX

    def expect_parts(self, seconds: float) -> None:
        """What comes next has no end that is known, and each of its parts takes so long at most."""
        self._ends_s = self._bytes_left = math.inf
        self.settimeout(seconds)

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        """As every socket's; raises TimeoutError, or OSError for too many bytes."""
        if self._ends_s < math.inf:
            left_s = self._ends_s - monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            self.settimeout(left_s)
        count = super().recv_into(*arguments, **named)
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise OSError("its answer has no end")
        return count


class _Destination(msgspec.Struct, rename="camel"):
    endpoint: str
    state: str
    in_flight: int
    permits: int
    reason: str | None = None
    since: datetime | None = None
    next_probe_at: datetime | None = None


class _Outbox(msgspec.Struct, rename="camel"):
    pending: int
    delivered: int
    dead: int
    held: int
    bytes: int
    oldest_pending_at: datetime | None = None
    salvaged: int = 0
    lost_to_damage: int = 0


class _Intake(msgspec.Struct):
    accepting: bool
    reason: str | None = None


class _Disk(msgspec.Struct, rename="camel"):
    free_bytes: int | None


class Status(msgspec.Struct):
    """`GET /v1/status`, as far as a command cannot do without it."""

    version: str
    destination: _Destination
    outbox: _Outbox
    intake: _Intake
    disk: _Disk


class Activity(msgspec.Struct):
    """`GET /v1/activity`."""

    at: list[int]
    pending: list[int]
    rate: list[float]


class Finding(msgspec.Struct, rename="camel"):
    """One of `GET /v1/check`."""

    level: str
    name: str
    told: str
    hint: str | None
    exit_code: int


class Findings(msgspec.Struct):
    """`GET /v1/check`."""

    findings: list[Finding]


class Reloaded(msgspec.Struct, rename="camel"):
    """`POST /v1/reload`."""

    needs_restart: list[str]


class _Was(msgspec.Struct):
    state: str
    reason: str | None = None


class Released(msgspec.Struct):
    """`POST /v1/release` of the destination."""

    state: str
    was: _Was


class Listing(msgspec.Struct):
    """`GET /v1/events`."""

    events: Sequence[msgspec.Raw]
    next: str | None = None


class Through(msgspec.Struct):
    """`GET /v1/events/{id}/through`."""

    state: str | None
    reason: str | None


class Changed(msgspec.Struct):
    """`POST /v1/dead-letters/{change}`."""

    changed: int


class PageLink(msgspec.Struct):
    """`POST /v1/page-link`."""

    url: str
