"""The two routes by which events come in over the Unix socket.

Reads the body within its limits and hands it to the door. Never mounted on a
TCP listener.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

from aiohttp.web import BaseRequest, Response, StreamResponse
from multidict import istr

from outboxd.errors import DiskShort
from outboxd.intake.intake import Answer, Intake, IntakeMetrics, refusal_json, refusal_reason
from outboxd.intake.lines import PORTION_BYTES, PORTION_LINES, LineCutter
from outboxd.intake.results import Results
from outboxd.outbox.model import Source
from outboxd.serve.body import STALL_S, body_parts, read_body
from outboxd.serve.table import JSON_HEADERS, Refusal, Route, refusal_body

BATCH_BYTES_MAX = 64 * 1024 * 1024

_IDEMPOTENCY_KEY = istr("Idempotency-Key")
_BATCH_HINT = "send it in several batches"


class RequestMetrics(IntakeMetrics, Protocol):
    """What these routes count beside the door."""

    def intake_request(self, duration_s: float) -> None: ...


class IntakeRoutes:
    """`POST /mgmt/v1/events` and `POST /v1/events/batch`."""

    def __init__(self, door: Intake, metrics: RequestMetrics, stall_s: float = STALL_S) -> None:
        self._door = door
        self._metrics = metrics
        self._stall_s = stall_s

    def routes(self) -> list[Route]:
        """For the table of the Unix socket alone."""
        return [
            Route("POST", "/mgmt/v1/events", self.take_event),
            Route("POST", "/v1/events/batch", self.take_batch),
        ]

    async def take_event(self, request: BaseRequest, _: str) -> Response:
        """One event; the receipt comes after the commit."""
        started = perf_counter()
        key = request.headers.get(_IDEMPOTENCY_KEY)
        if key is not None and len(set(request.headers.getall(_IDEMPOTENCY_KEY))) > 1:
            hint = "give it once"
            raise Refusal(400, "there are several Idempotency-Key headers", "Idempotency-Key", hint)
        try:
            data = await read_body(request, self._door.event_bytes_max, self._stall_s)
        except Refusal as refusal:
            if refusal.status in (408, 413):
                self._metrics.refused("too_large" if refusal.status == 413 else "stalled", 1)
            raise
        answer = await self._door.take(data, Source.SOCKET, key)
        self._metrics.intake_request(perf_counter() - started)
        return _response(answer)

    async def take_batch(self, request: BaseRequest, _: str) -> StreamResponse:
        """JSON Lines, in portions; a result a line, in the same order."""
        started = perf_counter()
        if _IDEMPOTENCY_KEY in request.headers:
            raise Refusal(
                400,
                "Idempotency-Key cannot hold for a whole batch",
                "Idempotency-Key",
                "give each line its own dedupKey",
            )
        refused = self._door.admission.refusal()
        if refused is not None:
            self._metrics.refused(refusal_reason(refused), 1)
            status = 507 if isinstance(refused, DiskShort) else 503
            return _response(Answer(status, refusal_json(refused), refused.retry_after_s))
        results, complete = await self._read_lines(request)
        self._metrics.intake_request(perf_counter() - started)
        return await self._send(request, results, complete)

    async def _read_lines(self, request: BaseRequest) -> tuple[Results, bool]:
        """Take lines as they come; False where the body went over its limit."""
        results = Results()
        cutter = LineCutter(self._door.event_bytes_max)
        portion: list[bytes | None] = []
        portion_bytes = received_bytes = 0
        async for data in body_parts(request, BATCH_BYTES_MAX, self._stall_s, _BATCH_HINT):
            received_bytes += len(data)
            if received_bytes > BATCH_BYTES_MAX:
                portion += cutter.feed(data[: BATCH_BYTES_MAX - received_bytes])
                break
            portion += cutter.feed(data)
            portion_bytes += len(data)
            if len(portion) >= PORTION_LINES or portion_bytes >= PORTION_BYTES:
                await self._take_portions(portion, results)
                portion_bytes = 0
        complete = received_bytes <= BATCH_BYTES_MAX
        if complete:
            portion += cutter.end()
        await self._take_portions(portion, results)
        if not complete:
            # The lines before were kept, so this cannot be a 413.
            message = f"the batch is larger than {BATCH_BYTES_MAX} bytes: this line and all " + (
                "behind it were not taken"
            )
            results.add([refusal_body(message, None, _BATCH_HINT)[:-1] + b', "retry": true}'])
        return results, complete

    async def _take_portions(self, lines: list[bytes | None], results: Results) -> None:
        """Empty `lines` into the outbox, so many at a time."""
        for start in range(0, len(lines), PORTION_LINES):
            portion = lines[start : start + PORTION_LINES]
            results.add(await self._door.take_lines(portion, Source.BATCH))
        lines.clear()

    async def _send(self, request: BaseRequest, results: Results, complete: bool) -> StreamResponse:
        response = StreamResponse(headers=JSON_HEADERS)
        response.content_length = results.length
        if not complete:
            response.headers["Connection"] = "close"
            response.force_close()
        await response.prepare(request)
        try:
            for block in results.blocks():
                async with asyncio.timeout(self._stall_s):
                    await response.write(block)
            await response.write_eof()
        except TimeoutError:
            # A caller that does not read its answer does not keep ours in memory.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError from None
        return response


def _response(answer: Answer) -> Response:
    if answer.retry_after_s is None:
        return Response(status=answer.status, body=answer.body, headers=JSON_HEADERS)
    headers = {**JSON_HEADERS, "Retry-After": str(answer.retry_after_s)}
    return Response(status=answer.status, body=answer.body, headers=headers)
