"""The reading routes: events, status, health, metrics.

Served on the Unix socket and, where configured, on the loopback listener.
Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from outboxd.api.context import ApiContext
from outboxd.api.peer import readable
from outboxd.api.status import without_words
from outboxd.errors import OutboxdError, no_entry
from outboxd.outbox.filters import LIMIT_MAX, read_filter, read_listing
from outboxd.outbox.model import Entry, EntryFilter, State
from outboxd.outbox.shapes import attempts_json, entry_json
from outboxd.serve.answers import Refusal, Response, Streamed, refusal_body, reply
from outboxd.serve.request import Request
from outboxd.serve.table import Route
from outboxd.status import Through

# Each holds a page of a megabyte, and some of the writer's time.
LISTINGS_AT_ONCE = 4
LISTINGS_WAITING_MAX = 16
ASKED_AT_ONCE = 8  # of the gateway, what became of an event
_ENCODED_AT_ONCE = 20  # entries, before others get their turn on the loop

_encode = msgspec.json.Encoder().encode


class ListedEntries(Protocol):
    """A page of a listing."""

    @property
    def entries(self) -> Sequence[Entry]: ...

    @property
    def next(self) -> str | None: ...


# (filter, cursor, limit, given_up): a page; `given_up` is asked while it is looked for.
PageOf = Callable[[EntryFilter, str | None, int, Callable[[], bool]], Awaitable[ListedEntries]]


class ReadingRoutes:
    """`GET /v1/…`, `/healthz`, `/readyz`, `/metrics`."""

    def __init__(self, context: ApiContext, page: PageOf | None = None) -> None:
        """`page` finds the pages of listings; without it the outbox does."""
        self._context = context
        self._page = page or context.outbox.page
        self._is_of_page = page is not None
        self._asking = 0
        self._turn = asyncio.Semaphore(LISTINGS_AT_ONCE)
        self._waiting = 0

    def routes(self) -> list[Route]:
        """For every listener."""
        return [
            Route("GET", "/v1/events", self.list_events),
            Route("GET", "/v1/events/{id}", self.show_event),
            Route("GET", "/v1/export", self.export),
            Route("GET", "/v1/status", self.show_status),
            Route("GET", "/healthz", self.health),
            Route("GET", "/readyz", self.readiness),
            Route("GET", "/metrics", self.metrics),
        ]

    def socket_routes(self) -> list[Route]:
        """For the Unix socket alone: it makes the agent ask its destination."""
        return [Route("GET", "/v1/events/{id}/through", self.show_through)]

    async def list_events(self, request: Request, _: str) -> Response:
        """A page of entries, newest first."""
        wanted = read_listing(request.query)
        whose = self._whose(request)
        where = wanted.where._replace(owners=whose)
        if self._waiting >= LISTINGS_WAITING_MAX:
            hint = "try again in a moment"
            told = "too many listings at once"
            raise Refusal(503, told, None, hint, {"Retry-After": "1"}, limit="listings")
        self._waiting += 1
        try:
            async with self._turn:
                page = await self._page(where, wanted.cursor, wanted.limit, lambda: request.is_gone)
                events = []
                for start in range(0, len(page.entries), _ENCODED_AT_ONCE):
                    some = page.entries[start : start + _ENCODED_AT_ONCE]
                    events += [msgspec.Raw(_encode(entry_json(entry))) for entry in some]
                    await asyncio.sleep(0)
                if page.next is not None and len(events) < wanted.limit:
                    self._context.metrics.limit_met("page")
        finally:
            self._waiting -= 1
        return reply(200, _encode({"events": events, "next": page.next}) + b"\n")

    async def export(self, request: Request, _: str) -> Streamed:
        """All entries that match, newest first, an entry a line."""
        whose = self._whose(request)
        where = read_filter(request.query)._replace(owners=whose)

        async def pages() -> AsyncIterator[bytes]:
            cursor: str | None = None
            while not request.is_gone:
                async with self._turn:
                    page = await self._context.outbox.page(
                        where, cursor, LIMIT_MAX, lambda: request.is_gone
                    )
                part = b"".join([_encode(entry_json(e)) + b"\n" for e in page.entries])
                cursor = page.next
                del page  # what waits to be read holds one copy, which is counted
                if part:
                    yield part
                if cursor is None:
                    return

        name = f"outboxd-{self._context.host}.jsonl"
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        }
        return Streamed(pages(), content_type="application/x-ndjson", headers=headers)

    async def show_event(self, request: Request, id: str) -> Response:
        """An entry with its attempts and what is or would be sent."""
        return reply(200, _encode(self.whole(await self._readable(request, id))) + b"\n")

    async def show_through(self, request: Request, id: str) -> Response:
        """What became of a delivered entry behind a gateway: its state there."""
        entry = await self._readable(request, id)
        found = Through(None, f"it is {entry.state} here")
        if entry.state == State.DELIVERED:
            if self._asking >= ASKED_AT_ONCE:
                hint = "try again in a moment"
                told = "too many ask at once"
                raise Refusal(503, told, None, hint, {"Retry-After": "1"}, limit="listings")
            self._asking += 1
            try:
                found = await self._context.destination.ask_through(entry.id)
            finally:
                self._asking -= 1
        return reply(200, _encode(found._asdict()) + b"\n")

    async def _readable(self, request: Request, id: str) -> Entry:
        """The entry; raises UnknownId also where it is not the caller's to see."""
        entry = await self._context.outbox.get(id)
        whose = self._whose(request)
        if whose and entry.producer not in whose:
            raise no_entry(id)
        return entry

    def _whose(self, request: Request) -> tuple[str, ...]:
        """Whose entries are shown, () for everybody's: the page's listener shows all of
        them to whoever can reach it, be it by a Unix socket."""
        return () if self._is_of_page else readable(request, self._context.reads_others())

    def whole(self, entry: Entry) -> dict[str, Any]:
        """The entry's long form."""
        shown = entry_json(entry)
        shown["attempts"] = attempts_json(entry)
        shown["cursor"] = str(entry.seq + 1)  # of the listing that begins with it
        shown["destinationIsGateway"] = self._context.destination.status().is_gateway
        shown["sentBody"] = msgspec.Raw(self._context.sent_body(entry))
        return shown

    async def show_status(self, request: Request, _: str) -> Response:
        """How everything stands."""
        outbox = self._context.outbox
        if outbox.counts.pending or outbox.counts.dead:
            # Kept in memory for the metrics, which may be some seconds behind.
            with suppress(OutboxdError):
                await outbox.refresh()
        status = self._context.status()
        if self._whose(request):
            without_words(status)
        return reply(200, _encode(status) + b"\n")

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
