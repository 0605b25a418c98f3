"""The routes that change entries, hold the destination, or copy the outbox.

For root and the agent's own user, on the Unix socket; on the page's listener for
a browser that one of them has let in (`sessions`). Each change is logged with who
asked for it; nothing is changed silently.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from outboxd.api.context import ApiContext
from outboxd.logger import get_logger
from outboxd.outbox.bulk import BulkChange
from outboxd.outbox.filters import read_order
from outboxd.outbox.model import Entry, EntryChange, State
from outboxd.outbox.shapes import entry_json
from outboxd.serve.answers import Refusal, Response, Streamed, reply
from outboxd.serve.request import Request, read_body
from outboxd.serve.table import Route
from outboxd.status import DestinationStatus
from outboxd.times import rfc3339

BODY_BYTES_MAX = 16 * 1024

_log = get_logger()
_encode = msgspec.json.Encoder().encode


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of hold and release."""

    id: str | None = None
    reason: str | None = None


class ControlRoutes:
    """`POST /v1/hold`, `/v1/release`, `/v1/events/{id}/retry`, `…/drop`, and the same
    two of many: `/v1/dead-letters/retry`, `…/drop`."""

    def __init__(self, context: ApiContext, authorize: Callable[[Request], str]) -> None:
        """`authorize` says for whom a request acts, or raises Refusal 403."""
        self._context = context
        self._require_operator = authorize

    def routes(self) -> list[Route]:
        """For the Unix socket, and for the page's listener."""
        return [
            Route("POST", "/v1/hold", self.hold),
            Route("POST", "/v1/release", self.release),
            Route("POST", "/v1/events/{id}/retry", self.retry),
            Route("POST", "/v1/events/{id}/drop", self.drop),
            Route("POST", "/v1/dead-letters/retry", self.retry_dead),
            Route("POST", "/v1/dead-letters/drop", self.drop_dead),
        ]

    def socket_routes(self) -> list[Route]:
        """For the Unix socket alone."""
        return [
            Route("GET", "/v1/backup", self.backup),
        ]

    async def hold(self, request: Request, _: str) -> Response:
        """Hold the destination, or one entry."""
        by = self._require_operator(request)
        order = await _order(request)
        if order.id is not None:
            _require(await self._context.outbox.get(order.id), "held", State.PENDING)
            return await self._change(EntryChange.HOLD, order.id, by)
        before = self._context.destination.status()
        await self._context.destination.hold(order.reason or "no reason given", by)
        return self._destination_changed("hold", by, before)

    async def release(self, request: Request, _: str) -> Response:
        """End every wait of the destination, or let go of one entry."""
        by = self._require_operator(request)
        order = await _order(request)
        if order.id is not None:
            _require(await self._context.outbox.get(order.id), "released", State.PENDING)
            return await self._change(EntryChange.RELEASE, order.id, by)
        before = self._context.destination.status()
        await self._context.destination.release(by)
        return self._destination_changed("release", by, before)

    async def retry(self, request: Request, id: str) -> Response:
        """A dead letter becomes pending again."""
        by = self._require_operator(request)
        _require(await self._context.outbox.get(id), "retried", State.PENDING, State.DEAD)
        return await self._change(EntryChange.RETRY, id, by)

    async def drop(self, request: Request, id: str) -> Response:
        """Remove an entry for good; the answer has it as it was."""
        by = self._require_operator(request)
        _require(await self._context.outbox.get(id), "dropped", State.PENDING, State.DEAD)
        return await self._change(EntryChange.DROP, id, by)

    async def retry_dead(self, request: Request, _: str) -> Response:
        """All dead letters that match the filters become pending again."""
        return await self._change_dead(EntryChange.RETRY, request)

    async def drop_dead(self, request: Request, _: str) -> Response:
        """Remove all dead letters that match the filters, for good."""
        return await self._change_dead(EntryChange.DROP, request)

    async def backup(self, request: Request, _: str) -> Streamed:
        """A consistent copy of the outbox, as the file that it is: `outboxd backup`."""
        by = self._require_operator(request)
        size_bytes, parts = await self._context.copied()
        _log.info("outbox.copied", bytes=size_bytes, by=by)
        return Streamed(parts, size_bytes, content_type="application/octet-stream", close=True)

    async def _change_dead(self, action: EntryChange, request: Request) -> Response:
        by = self._require_operator(request)
        where = read_order(request.query, await read_body(request, BODY_BYTES_MAX))
        bulk, outbox = BulkChange(action, where), self._context.outbox
        try:
            while not (bulk.is_done or request.is_gone):
                bulk.committed(await outbox.change(bulk.step))
                self._context.destination.wake()
        finally:  # what was done counts, whatever ended it
            self._context.metrics.operator(action, bulk.changed)
            named = {name: value for name, value in where._asdict().items() if value}
            for name in named.keys() & {"since", "until"}:
                named[name] = rfc3339(named[name])
            _log.warning("entries.changed", action=action, count=bulk.changed, by=by, **named)
        return reply(200, _encode({"changed": bulk.changed}) + b"\n")

    async def _change(self, action: EntryChange, id: str, by: str) -> Response:
        entry = await self._context.outbox.change(lambda engine: engine.change(action, id))
        self._context.metrics.operator(action)
        _log.warning("entry.changed", action=action, id=entry.id, type=entry.event_type, by=by)
        # What was read ahead may be held now, or gone.
        self._context.destination.wake()
        return reply(200, _encode(entry_json(entry)) + b"\n")

    def _destination_changed(self, action: str, by: str, before: DestinationStatus) -> Response:
        self._context.metrics.operator(action)
        _log.warning("destination.changed", action=action, by=by)
        status = self._context.destination.status()
        was = {"state": before.state, "reason": before.reason}
        now = {"state": status.state, "reason": status.reason, "was": was}
        return reply(200, _encode(now) + b"\n")


def _require(entry: Entry, done: str, *states: State) -> None:
    """What does not wait any more cannot be held, and what arrived not be undone."""
    if entry.state not in states:
        allowed = " or ".join(states)
        raise Refusal(
            409, f"the entry is {entry.state}", "id", f"only what is {allowed} can be {done}"
        )


async def _order(request: Request) -> _Order:
    body = await read_body(request, BODY_BYTES_MAX)
    if not body.strip():
        return _Order()
    try:
        return msgspec.json.decode(body, type=_Order)
    except msgspec.DecodeError as error:
        reason, _, path = str(error).partition(" - at `")
        hint = '{} for the destination, {"id": "…"} for one entry'
        raise Refusal(400, reason, path.rstrip("`") or None, hint) from None
