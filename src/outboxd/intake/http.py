"""The two routes by which events come in over the Unix socket.

Reads the body within its limits and hands it to the door. Never mounted on a
TCP listener.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from math import ceil
from time import perf_counter
from typing import Protocol

from outboxd.event.hop import ASKED, OFFER, STATE, UNKNOWN
from outboxd.intake.intake import (
    FAULTS_MAX,
    NOT_JUDGED,
    BatchFaults,
    Intake,
    IntakeAnswer,
    IntakeMetrics,
)
from outboxd.intake.lines import PORTION_LINES, LineCutter
from outboxd.intake.producer import Producer, user
from outboxd.intake.results import Results
from outboxd.outbox.model import Source
from outboxd.serve.answers import ClientGone, Refusal, Response, Streamed, refusal_body, reply
from outboxd.serve.request import EVENT_HINT, Request, body_parts, read_body
from outboxd.serve.table import Route

EVENTS_PATH, BATCH_PATH = "/mgmt/v1/events", "/v1/events/batch"
BATCH_BYTES_MAX = 64 * 1024 * 1024
# Taken at once: less than a spool file's portion, because hundreds may come at a time.
PORTION_BYTES = 256 * 1024

_IDEMPOTENCY_KEY = "idempotency-key"
_TOO_FAST = "more events than this producer's rate allows"
_SLOWER = "they are taken again after Retry-After; `--rate` of its token is the limit"
_TOO_FAST_LINE = refusal_body(_TOO_FAST, None, _SLOWER)[:-1] + b', "retry": true}'
_BATCH_HINT = "send it in several batches"


class RequestMetrics(IntakeMetrics, Protocol):
    """What these routes count beside the door."""

    def intake_request(self, duration_s: float) -> None: ...


class IntakeRoutes:
    """`POST /mgmt/v1/events` and `POST /v1/events/batch`."""

    def __init__(self, door: Intake, metrics: RequestMetrics) -> None:
        self._door = door
        self._metrics = metrics

    def routes(self) -> list[Route]:
        """For the table of the Unix socket alone."""
        return [
            Route("POST", EVENTS_PATH, self.take_event),
            Route("POST", BATCH_PATH, self.take_batch),
        ]

    async def take_event(self, request: Request, _: str) -> Response:
        """One event; the receipt comes after the commit."""
        started = perf_counter()
        key = request.header(_IDEMPOTENCY_KEY)
        if key is not None and len(set(request.header_values(_IDEMPOTENCY_KEY))) > 1:
            hint = "give it once"
            raise Refusal(400, "there are several Idempotency-Key headers", "Idempotency-Key", hint)
        producer = producer_of(request)
        offer = request.header(OFFER.lower()) if producer.is_agent else None
        if offer == ASKED:
            return await self._tell(request, producer, key)
        offers_hop = offer is not None
        if not offers_hop:
            check_rate(self._door, producer, 1)
        data = await read_event(request, self._door, producer)
        if offers_hop:
            # An agent that did not know yet whom it speaks with. It sends the event again,
            # without the stamps that only the last one on the way may add.
            raise Refusal(425, "this is a gateway: the event's hop is wanted", OFFER)
        answer = await self._door.take(data, Source.SOCKET, producer, key)
        self._metrics.intake_request(perf_counter() - started)
        return response_of(answer)

    async def _tell(self, request: Request, producer: Producer, key: str | None) -> Response:
        """An agent asks what became of an event that it handed in. Nothing is taken."""
        check_rate(self._door, producer, 1)
        await read_body(request, self._door.bytes_max(producer))
        state = None
        if key is not None and key.isascii():
            state = await self._door.state_of_key(producer, key)
        state = state or UNKNOWN
        return reply(200, b'{"state": "%s"}\n' % state.encode(), {STATE: state})

    async def take_batch(self, request: Request, _: str) -> Response | Streamed:
        """JSON Lines, in portions; a result a line, in the same order."""
        started = perf_counter()
        if request.header(_IDEMPOTENCY_KEY) is not None:
            raise Refusal(
                400,
                "Idempotency-Key cannot hold for a whole batch",
                "Idempotency-Key",
                "give each line its own dedupKey",
            )
        producer = producer_of(request)
        refused = self._door.admission.refusal()
        if refused is not None:
            return response_of(self._door.refuse(refused, producer))
        check_rate(self._door, producer, 0)
        results, complete = await self._read_lines(request, producer)
        self._metrics.intake_request(perf_counter() - started)
        if results.is_one_fault and _is_form(request):
            raise Refusal(
                400,
                "the batch is one line, and that is no event; nothing was kept",
                None,
                "with curl use --data-binary @FILE: -d @FILE takes the line ends out",
            )
        return Streamed(_sent(results), results.length, close=not complete)

    async def _read_lines(self, request: Request, producer: Producer) -> tuple[Results, bool]:
        """Take lines as they come; False where the body went over its limit."""
        results = Results()
        cutter = LineCutter(self._door.event_bytes_max)
        portion: list[bytes | None] = []
        portion_bytes = received_bytes = 0
        faults = BatchFaults()

        async def take() -> None:
            nonlocal portion_bytes
            await self._take_portions(request, portion, results, producer, faults)
            request.body.consumed(portion_bytes - cutter.pending_bytes)
            portion_bytes = cutter.pending_bytes

        async for data in body_parts(request, BATCH_BYTES_MAX, _BATCH_HINT):
            received_bytes += len(data)
            if received_bytes > BATCH_BYTES_MAX:
                portion += cutter.feed(data[: BATCH_BYTES_MAX - received_bytes])
                break
            portion += cutter.feed(data)
            portion_bytes += len(data)
            if len(portion) >= PORTION_LINES or portion_bytes >= PORTION_BYTES:
                await take()
        complete = received_bytes <= BATCH_BYTES_MAX
        if complete:
            portion += cutter.end()
        await take()
        if not complete:
            # The lines before were kept, so this cannot be a 413.
            message = f"the batch is larger than {BATCH_BYTES_MAX} bytes: this line and all " + (
                "behind it were not taken"
            )
            results.add([refusal_body(message, None, _BATCH_HINT)[:-1] + b', "retry": true}'])
        return results, complete

    async def _take_portions(
        self,
        request: Request,
        lines: list[bytes | None],
        results: Results,
        producer: Producer,
        faults: BatchFaults,
    ) -> None:
        """Empty `lines` into the outbox, so many at a time."""
        if faults.count >= FAULTS_MAX:
            told = "lines of a batch behind too many that are no events"
            self._door.count_refused(producer, "invalid", len(lines), told)
            results.add_same(NOT_JUDGED, len(lines))
            lines.clear()
            return
        for start in range(0, len(lines), PORTION_LINES):
            if request.is_gone:
                raise ClientGone("nobody waits for the results of this batch")
            portion = lines[start : start + PORTION_LINES]
            if producer.wait_s(len(portion)) > 0:
                self._door.count_refused(producer, "rate", len(portion), _TOO_FAST)
                results.add_same(_TOO_FAST_LINE, len(portion))
                continue
            results.add(await self._door.take_lines(portion, Source.BATCH, producer, faults))
        lines.clear()


def producer_of(request: Request) -> Producer:
    """Who sent it: whom a guard found it to be from, else the user at the other end."""
    if request.identity is not None:
        assert isinstance(request.identity, Producer), "guards find producers"
        return request.identity
    assert request.peer is not None, "without a peer a guard has to say who it is from"
    return user(request.peer.user_id)


async def read_event(
    request: Request,
    door: Intake,
    producer: Producer,
    bytes_max: int | None = None,
    hint: str = EVENT_HINT,
) -> bytes:
    """The body of one event, or of what holds some; raises what `read_body` does, counted."""
    try:
        return await read_body(request, bytes_max or door.bytes_max(producer), hint)
    except Refusal as refusal:
        if refusal.status in (408, 413):
            reason = "too_large" if refusal.status == 413 else "stalled"
            door.count_refused(producer, reason, 1, f"its body: {refusal}")
        raise


def check_rate(door: Intake, producer: Producer, count: int, status: int = 429) -> None:
    """Raises Refusal where the producer's rate does not allow so many events now
    (0: where it has used up more than it had). Another `status` is for senders that
    try again on no 429."""
    wait_s = producer.wait_s(count)
    if wait_s > 0:
        door.count_refused(producer, "rate", max(1, count), _TOO_FAST)
        raise Refusal(status, _TOO_FAST, None, _SLOWER, {"Retry-After": str(ceil(wait_s))})


def _is_form(request: Request) -> bool:
    """Whether it is said to be a form: what curl's `-d` says, if it is told nothing else."""
    return (request.header("content-type") or "").startswith("application/x-www-form-urlencoded")


async def _sent(results: Results) -> AsyncIterator[bytes]:
    for block in results.blocks():
        yield block


def response_of(answer: IntakeAnswer) -> Response:
    """The intake's answer as the server's."""
    if answer.retry_after_s is None:
        return Response(answer.body, answer.status)
    return Response(answer.body, answer.status, headers={"Retry-After": str(answer.retry_after_s)})
