"""What the routes are given: the parts of the agent that they show."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from outboxd.api.status import OutboxStatus, status_json
from outboxd.clock import Clock
from outboxd.outbox.model import UNBOUNDED, Entry
from outboxd.outbox.outbox import Outbox
from outboxd.status import Deliverer, Destination, GatewayStatus, RefusedUsers


class IntakeView(Protocol):
    """How the intake stands; `intake.admission` has it."""

    drain_rate: float | None
    free_disk_bytes: int

    def state(self) -> tuple[bool, str | None]: ...


class ApiMetrics(Protocol):
    """What the routes count, and what `/metrics` prints."""

    content_type: str

    def render(self) -> bytes: ...

    def operator(self, action: str, count: int = 1) -> None: ...

    def limit_met(self, limit: str) -> None: ...


class ApiContext(NamedTuple):
    """All that the routes may touch."""

    outbox: Outbox
    intake: IntakeView
    destination: Destination
    metrics: ApiMetrics
    clock: Clock
    version: str
    host: str
    socket_path: str  # where commands reach this agent
    # What is or would be sent: stamps are delivery's matter.
    sent_body: Callable[[Entry], bytes]
    # Why the agent makes no progress; None while it does.
    unhealthy: Callable[[], str | None]
    # Whether intake is open.
    ready: Callable[[], bool]
    # Whether whoever may use the socket reads everybody's entries.
    reads_others: Callable[[], bool]
    # A consistent copy of the outbox's file: its size in bytes, and its parts.
    copied: Callable[[], Awaitable[tuple[int, AsyncIterator[bytes]]]]
    # How it stands as a gateway; None: it is none.
    gateway: Callable[[], GatewayStatus | None] = lambda: None
    # Who delivers; None where nobody else could.
    deliverer: Callable[[], Deliverer | None] = lambda: None
    # Which users of this host were refused.
    refused: Callable[[], RefusedUsers] = RefusedUsers

    def status(self) -> dict[str, Any]:
        """The shape of `GET /v1/status`."""
        outbox, state = self.outbox, self.intake.state()
        free_bytes = self.intake.free_disk_bytes
        return status_json(
            version=self.version,
            host=self.host,
            socket_path=self.socket_path,
            now=self.clock.wall_ms(),
            destination=self.destination.status(),
            outbox=OutboxStatus(
                outbox.counts,
                outbox.oldest_pending_at,
                outbox.last_dead_at,
                outbox.sizes().stored,
                outbox.damage,
            ),
            accepting=state[0],
            refusal=state[1],
            free_bytes=None if free_bytes >= UNBOUNDED else free_bytes,
            drain_rate=self.intake.drain_rate,
            unhealthy=self.unhealthy(),
            gateway=self.gateway(),
            deliverer=self.deliverer(),
            refused=self.refused(),
        )
