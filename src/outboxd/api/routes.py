"""The reading routes: events, status, health, metrics.

Served on the Unix socket and, where configured, on the loopback listener.
Nothing here changes anything.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from outboxd.api.context import ApiContext
from outboxd.api.filters import parse_listing
from outboxd.errors import OutboxdError
from outboxd.outbox.model import Entry
from outboxd.outbox.shapes import attempts_json, entry_json
from outboxd.serve.answers import Refusal, Response, refusal_body, reply
from outboxd.serve.request import Request
from outboxd.serve.table import Route
from outboxd.times import rfc3339

_encode = msgspec.json.Encoder().encode


class ReadingRoutes:
    """`GET /v1/…`, `/healthz`, `/readyz`, `/metrics`."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        """For every listener."""
        return [
            Route("GET", "/v1/events", self.list_events),
            Route("GET", "/v1/events/{id}", self.show_event),
            Route("GET", "/v1/status", self.show_status),
            Route("GET", "/healthz", self.health),
            Route("GET", "/readyz", self.readiness),
            Route("GET", "/metrics", self.metrics),
        ]

    async def list_events(self, request: Request, _: str) -> Response:
        """A page of entries, newest first."""
        where, cursor, limit = parse_listing(request.query)
        try:
            page = await self._context.outbox.page(where, cursor, limit)
        except ValueError:
            hint = "use the `next` of the page before, as it is"
            raise Refusal(400, "the cursor is none of ours", "cursor", hint) from None
        events = [entry_json(entry) for entry in page.entries]
        return reply(200, _encode({"events": events, "next": page.next}) + b"\n")

    async def show_event(self, _: Request, id: str) -> Response:
        """An entry with its attempts and what is or would be sent."""
        entry = await self._context.outbox.get(id)
        return reply(200, _encode(self.whole(entry)) + b"\n")

    def whole(self, entry: Entry) -> dict[str, Any]:
        """The entry's long form."""
        shown = entry_json(entry)
        shown["attempts"] = attempts_json(entry)
        shown["sentBody"] = msgspec.Raw(self._context.sent_body(entry))
        return shown

    async def show_status(self, _: Request, __: str) -> Response:
        """How everything stands."""
        outbox = self._context.outbox
        if outbox.counts.pending:
            # Kept in memory for the metrics, which may be some seconds behind.
            with suppress(OutboxdError):
                await outbox.refresh()
        return reply(200, _encode(status_json(self._context)) + b"\n")

    async def health(self, _: Request, __: str) -> Response:
        """200 while the agent makes progress."""
        reason = self._context.unhealthy()
        if reason is None:
            return reply(200, b'{"status": "ok"}\n')
        return reply(503, refusal_body(reason, None, "see the agent's log; restart it"))

    async def readiness(self, _: Request, __: str) -> Response:
        """200 as soon as intake is open, whatever the destination does."""
        if self._context.ready():
            return reply(200, b'{"status": "ready"}\n')
        return reply(503, refusal_body("intake is not open", None, "wait a little"))

    async def metrics(self, _: Request, __: str) -> Response:
        """For Prometheus."""
        metrics = self._context.metrics
        return Response(metrics.render(), content_type=metrics.content_type)


def status_json(context: ApiContext) -> dict[str, Any]:
    """The shape of `GET /v1/status`."""
    outbox = context.outbox
    counts, damage = outbox.counts, outbox.damage
    destination = context.destination.status()
    accepting, reason = context.intake.state()
    rate = context.intake.drain_rate
    return {
        "version": context.version,
        "destination": {
            "endpoint": destination.endpoint,
            "state": destination.state,
            "reason": destination.reason,
            "since": rfc3339(destination.since_at),
            "nextProbeAt": _time(destination.next_probe_at),
            "permits": destination.permits,
            "inFlight": destination.in_flight,
        },
        "outbox": {
            "pending": counts.pending,
            "delivered": counts.delivered,
            "dead": counts.dead,
            "held": counts.held,
            "oldestPendingAt": _time(outbox.oldest_pending_at if counts.pending else None),
            "bytes": outbox.sizes().stored,
            "salvaged": damage.salvaged,
            "lostToDamage": damage.lost,
        },
        "intake": {"accepting": accepting, "reason": reason},
        "disk": {"freeBytes": context.intake.free_disk_bytes},
        "rate": {
            "drainPerSecond": None if rate is None else round(rate, 3),
            "drainSeconds": round(counts.pending / rate) if rate else None,
        },
        "now": rfc3339(context.clock.wall_ms()),
    }


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)
