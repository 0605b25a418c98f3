"""The one door by which events come in: check, fill in, commit, then receipt.

Socket, batch, spool and the agent's own report pass here, so that each is
checked and answered alike. It must never answer before the outbox has
committed, and never keep anything of what it refuses.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from json import dumps
from time import perf_counter
from typing import NamedTuple, Protocol, TypeVar

from outboxd.clock import Clock
from outboxd.errors import DiskShort, EventError, EventTooLarge, OutboxFull, Refused
from outboxd.event.hop import read_hop_text
from outboxd.event.komodor import (
    NO_SCOPE_WARNING,
    Defaults,
    checked_dedup_key,
    parse,
    scope_text,
    wire_body,
)
from outboxd.event.strictjson import Unexplained
from outboxd.intake import plain_event
from outboxd.intake.admission import Admission
from outboxd.intake.host_clocks import ahead_ms
from outboxd.intake.producer import NotAllowed, Producer, ProducerWatch
from outboxd.intake.syntax import check_syntax
from outboxd.intake.turns import Turns
from outboxd.outbox.model import Incoming, Receipt, SpoolMark
from outboxd.outbox.outbox import Outbox

_T = TypeVar("_T")

# What is wrong with an event, as a status of HTTP and the metric's label.
_REFUSED_AS: tuple[tuple[type[EventError], int, str], ...] = (
    (EventTooLarge, 413, "too_large"),
    (NotAllowed, 422, "not_allowed"),
    (EventError, 400, "invalid"),
)

# Up to this size an event is read on the loop: that takes a fraction of a millisecond,
# whatever it holds. To say why it is none can take a hundred times as long.
PLAIN_BYTES = 4 * 1024
_LOOK_EVERY = 16  # lines
SLICE_S = 0.004  # of lines of a batch, between which the loop serves others
EXPLAINED_MAX = 100  # faults of one batch that are told in full
FAULTS_MAX = 10_000  # of one batch; no line behind them is looked at

# What an agent adds to an event that it hands on: `hop`, `occurredAt`, `ttlSeconds`,
# and its own [defaults].
HOP_BYTES_MAX = 8 * 1024

# A default detail with this value says who handed the event in, such as "uid:1000".
PRODUCER_PLACEHOLDER = "$producer"

# The end of what a 64-bit column and a four-digit year can hold.
_LATEST_AT = 253_402_300_799_000

UNEXPLAINED = dumps(
    {
        "error": "not an event: it is no strict JSON object",
        "field": None,
        "hint": f"{EXPLAINED_MAX} faults of a batch are told in full; send this line by itself",
    }
).encode()
NOT_JUDGED = dumps(
    {
        "error": f"not looked at: {FAULTS_MAX} lines of this batch before it are no events",
        "field": None,
        "hint": "write one event on each line; send the good lines again without the others",
        "retry": True,
    }
).encode()


class IntakeMetrics(Protocol):
    """What the door counts."""

    def accepted(self, source: str, count: int) -> None: ...

    def duplicates(self, count: int) -> None: ...

    def repeats(self, count: int) -> None: ...

    def refused(self, reason: str, count: int) -> None: ...

    def limit_met(self, limit: str) -> None: ...


class IntakeAnswer(NamedTuple):
    """A status of HTTP and its JSON."""

    status: int
    body: bytes
    retry_after_s: int | None = None


class Prepared(NamedTuple):
    """An event that is valid, and what its receipt must warn of."""

    incoming: Incoming
    warnings: list[str]


class BatchFaults:
    """How many lines of one batch were no events so far."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Portion(NamedTuple):
    """Events of one spool file, to be committed with how far they go."""

    key: str  # of the spool's progress
    items: Sequence[Incoming]
    line_numbers: Sequence[int]  # of the items
    lines_done: int  # once all of them are taken


class Kept(NamedTuple):
    """How far a portion was taken, and why no further (None: all of it)."""

    lines_done: int
    refusal: Refused | None


class Intake:
    """Takes events one by one or a portion of lines at a time."""

    def __init__(
        self,
        outbox: Outbox,
        admission: Admission,
        metrics: IntakeMetrics,
        clock: Clock,
        *,
        defaults: Defaults,
        event_type_max: int,
        event_bytes_max: int,
        ttl_s: float = 0.0,
    ) -> None:
        self.admission = admission
        self.metrics = metrics
        self._outbox = outbox
        self._clock = clock
        self._turns = Turns(lambda: metrics.limit_met("turn"))
        # Told of events that are refused for lack of room, and how many they are.
        self.on_refused: Callable[[Refused, int], None] = lambda refusal, count: None
        self.watch: ProducerWatch | None = None
        self.configure(defaults, event_type_max, event_bytes_max, ttl_s)

    def configure(
        self, defaults: Defaults, event_type_max: int, event_bytes_max: int, ttl_s: float
    ) -> None:
        """Settings that may change while running."""
        self._defaults = defaults
        self.event_type_max = event_type_max
        self._names_producer = PRODUCER_PLACEHOLDER in defaults.details.values()
        self.event_bytes_max = event_bytes_max
        self._ttl_s = ttl_s  # 0: events wait for ever

    def prepare(
        self,
        data: bytes,
        source: str,
        producer: Producer,
        header_key: str | None = None,
        explain: bool = True,
    ) -> Prepared:
        """Check and fill in; raises EventError (NotAllowed where the producer may not
        say it), and keeps nothing. Without `explain` a text that is no JSON is told
        at once and without a reason (Unexplained)."""
        bytes_max = self.bytes_max(producer)
        event = plain_event.read(data, self.event_type_max, bytes_max)
        if event is None:
            event = parse(data, self.event_type_max, bytes_max, explain, producer.is_agent)
        producer.admit(event)
        key = event.dedup_key
        if header_key is not None:
            key = _agreed_key(header_key, key)
        defaults = self._defaults_of(producer)
        scope = scope_text(event, defaults)
        warnings = event.warnings
        if not scope:
            warnings = [*warnings, NO_SCOPE_WARNING]
        received_at = self._clock.wall_ms()
        ttl_s = event.ttl_s or self._ttl_s
        return Prepared(
            Incoming(
                wire_body(event, defaults, scope),
                event.event_type,
                event.severity,
                scope,
                source,
                received_at,
                event.occurred_at,
                min(received_at + round(ttl_s * 1000), _LATEST_AT) if ttl_s else None,
                key,
                producer=producer.name,
                hop=event.hop,
            ),
            warnings,
        )

    def bytes_max(self, producer: Producer) -> int:
        """How large an event of this producer may be: an agent adds its own to what
        was as large as may be."""
        return self.event_bytes_max + (HOP_BYTES_MAX if producer.is_agent else 0)

    def _defaults_of(self, producer: Producer) -> Defaults:
        """The defaults, with the producer's name where a detail asks for it."""
        if not self._names_producer:
            return self._defaults
        details = {
            key: producer.name if value == PRODUCER_PLACEHOLDER else value
            for key, value in self._defaults.details.items()
        }
        own = self._defaults
        return Defaults(own.clusters, own.namespaces, own.services, details)

    async def take(
        self, data: bytes, source: str, producer: Producer, header_key: str | None = None
    ) -> IntakeAnswer:
        """One event, with the answer of the HTTP contract.

        Raises:
            SyncFailed: no answer may be given.
        """
        try:
            incoming, warnings = await self._judge(data, source, producer, header_key)
            (receipt,) = await self.keep([incoming])
        except (EventError, Refused) as error:
            return self.refuse(error, producer)
        return IntakeAnswer(
            201 if receipt.status == "accepted" else 200, receipt_json(receipt, warnings)
        )

    async def state_of_key(self, producer: Producer, dedup_key: str) -> str | None:
        """The state of the event that the producer handed in with this key; None where
        it is not known, or no longer."""
        return await self._outbox.read(lambda engine: engine.state_of_key(producer.name, dedup_key))

    async def _judge(
        self, data: bytes, source: str, producer: Producer, header_key: str | None
    ) -> Prepared:
        """As `prepare`; what takes long is done beside the loop, in the producer's turn."""
        if len(data) <= PLAIN_BYTES:
            try:
                return self.prepare(data, source, producer, header_key, explain=False)
            except Unexplained:
                pass
        return await self.in_turn(
            producer, partial(self._prepare_long, data, source, producer, header_key)
        )

    async def prepare_apart(self, data: bytes, source: str, producer: Producer) -> Prepared:
        """As `prepare`, of what is long: beside the loop, in the producer's turn."""
        return await self.in_turn(producer, partial(self._prepare_long, data, source, producer))

    async def in_turn(self, producer: Producer, work: Callable[[], _T]) -> _T:
        """What takes long, beside the loop: one piece at a time for each producer."""
        async with self._turns.of(producer.name):
            return await asyncio.to_thread(work)

    def _prepare_long(
        self, data: bytes, source: str, producer: Producer, header_key: str | None = None
    ) -> Prepared:
        """As `prepare`, at a price that is bounded whatever the text holds."""
        if PLAIN_BYTES < len(data) <= self.bytes_max(producer):
            check_syntax(data)
        return self.prepare(data, source, producer, header_key)

    def refuse(
        self, error: EventError | Refused, producer: Producer, count: int = 1
    ) -> IntakeAnswer:
        """The answer that says why `count` events were not kept; it is counted."""
        if isinstance(error, Refused):
            self.refused(error, count, producer)
            status = 507 if isinstance(error, DiskShort) else 503
            return IntakeAnswer(status, refusal_json(error), error.retry_after_s)
        for kind, status, reason in _REFUSED_AS:
            if isinstance(error, kind):
                self.count_refused(producer, reason, count, error.message)
                return IntakeAnswer(status, error_json(error))
        raise AssertionError("every EventError has its status")

    def refused(self, refusal: Refused, count: int, producer: Producer | None = None) -> None:
        """So many events find no room now: counted, and told to whoever logs it."""
        reason = refusal_reason(refusal)
        if producer is None:
            self.metrics.refused(reason, count)
        else:
            self.count_refused(producer, reason, count, refusal.message)
        self.on_refused(refusal, count)

    def count_refused(self, producer: Producer, reason: str, count: int, told: str) -> None:
        """So many of a producer's events were not kept, for a reason of the metrics'."""
        self.metrics.refused(reason, count)
        if self.watch is not None:
            self.watch.refused(producer.name, reason, count, told)

    async def keep(self, items: Sequence[Incoming]) -> list[Receipt]:
        """Commit all of `items` or none; the receipts in the same order.

        Raises:
            OutboxFull, DiskShort: none was kept.
            SyncFailed: unknown; the agent stops.
        """
        count, producer = len(items), items[0].producer
        granted = self.admission.reserve(count, producer)
        if granted < count:
            self.admission.release(granted, 0, producer)
            raise OutboxFull(
                f"the outbox has room for {granted} of these {count} events",
                "send fewer at once, or later",
            )
        return await self._keep_reserved(items)

    async def _keep_reserved(
        self, items: Sequence[Incoming], marks: Sequence[SpoolMark] = ()
    ) -> list[Receipt]:
        """Commit what the admission has made room for."""
        accepted = kept = 0
        try:
            receipts = await self._outbox.accept(items, *marks)
            for receipt in receipts:
                kept += receipt.status == "accepted"
            accepted = kept
        except DiskShort:
            self.admission.commit_failed()
            raise
        finally:
            for producer, count in Counter(item.producer for item in items).items():
                self.admission.release(count, accepted, producer)
                accepted = 0  # counted once
        if kept:
            self.metrics.accepted(items[0].source, kept)
            if self.watch is not None and self.watch.follows_events:
                _tell_watch(self.watch, items, receipts)
        if kept < len(items):
            repeats = sum(receipt.repeated for receipt in receipts)
            self.metrics.repeats(repeats)
            self.metrics.duplicates(len(items) - kept - repeats)
        return receipts

    async def keep_portions(self, portions: Sequence[Portion]) -> list[Kept]:
        """Commit portions of spool files, sharing commits; for each how far it
        was taken. Where there is room for a part of one, that part is taken.

        Raises:
            SyncFailed: unknown; the agent stops.
        """
        answers = [Kept(portion.lines_done, None) for portion in portions]
        items: list[Incoming] = []
        marks: list[SpoolMark] = []
        marked: list[int] = []  # the places of those that the commit is for
        for place, portion in enumerate(portions):
            wanted = len(portion.items)
            if not wanted:
                continue
            try:
                granted = self.admission.reserve(wanted, portion.items[0].producer)
            except Refused as error:
                answers[place] = Kept(0, error)
                continue
            if granted < wanted:
                full = OutboxFull("the outbox filled up in the middle of the file")
                answers[place] = Kept(portion.line_numbers[granted - 1], full)
            items += portion.items[:granted]
            marks.append(SpoolMark(portion.key, answers[place].lines_done))
            marked.append(place)
        if items:
            try:
                await self._keep_reserved(items, marks)
            except DiskShort as error:
                for place in marked:
                    answers[place] = Kept(0, error)
        return answers

    async def take_lines(
        self, lines: Sequence[bytes | None], source: str, producer: Producer, faults: BatchFaults
    ) -> list[bytes]:
        """A portion of a batch: for each line its result as JSON. A line of None
        was longer than an event may be. `faults` counts over the whole batch.

        Lines that find the outbox full are answered with `"retry": true`, and
        so are those behind them.
        """
        results: list[bytes] = []
        good: list[Prepared] = []
        places: list[int] = []
        async with self._turns.of(producer.name):
            slice_ends_s = perf_counter() + SLICE_S
            for number, line in enumerate(lines):
                if number % _LOOK_EVERY == 0 and perf_counter() >= slice_ends_s:
                    await asyncio.sleep(0)
                    slice_ends_s = perf_counter() + SLICE_S
                if faults.count >= FAULTS_MAX:
                    results.append(NOT_JUDGED)
                    continue
                if line is not None and len(line) <= PLAIN_BYTES:
                    # Nearly every line: good, and without a step aside.
                    try:
                        good.append(self.prepare_line(line, source, producer, explain=False))
                    except EventError:
                        pass  # judged once more, to be told
                    else:
                        places.append(len(results))
                        results.append(b"")
                        continue
                judged = await self._judge_line(line, source, producer, faults)
                if isinstance(judged, bytes):
                    results.append(judged)
                else:
                    places.append(len(results))
                    results.append(b"")
                    good.append(judged)
        if len(good) < len(lines):
            faulty, told = len(lines) - len(good), "lines of a batch are no events, or not allowed"
            self.count_refused(producer, "invalid", faulty, told)
        done = 0
        try:
            while done < len(good):
                granted = self.admission.reserve(len(good) - done, producer.name)
                portion = good[done : done + granted]
                items = [prepared.incoming for prepared in portion]
                receipts = await self._keep_reserved(items)
                for receipt, prepared in zip(receipts, portion, strict=True):
                    results[places[done]] = receipt_json(receipt, prepared.warnings)
                    done += 1
        except Refused as error:
            self.refused(error, len(good) - done, producer)
            refused = refusal_json(error)
            for place in places[done:]:
                results[place] = refused
        return results

    async def _judge_line(
        self, line: bytes | None, source: str, producer: Producer, faults: BatchFaults
    ) -> Prepared | bytes:
        """The event, or the result that says why it is none."""
        explain = faults.count < EXPLAINED_MAX
        try:
            if line is None or len(line) <= PLAIN_BYTES:
                return self.prepare_line(line, source, producer, explain)
            return await asyncio.to_thread(self._prepare_long, line, source, producer)
        except Unexplained:
            faults.count += 1
            return UNEXPLAINED
        except EventError as error:
            faults.count += 1
            return error_json(error)

    def prepare_line(
        self, line: bytes | None, source: str, producer: Producer, explain: bool = True
    ) -> Prepared:
        """As `prepare`, for a line of a batch or of a spool file."""
        if line is None:
            raise EventTooLarge(
                f"the line is longer than the {self.event_bytes_max} bytes of an event",
                None,
                "shorten its details, or raise [intake] event_bytes_max",
            )
        if not line or line.isspace():
            raise EventError("the line is empty", None, "write one event on each line")
        return self.prepare(line, source, producer, explain=explain)


def _tell_watch(
    watch: ProducerWatch, items: Sequence[Incoming], receipts: Sequence[Receipt]
) -> None:
    """What was kept, by its producer; and whose clock is wrong."""
    kept = Counter(
        item.producer
        for item, receipt in zip(items, receipts, strict=True)
        if receipt.status == "accepted"
    )
    for name, count in kept.items():
        watch.accepted(name, count)
    for item in items:
        ahead = None if item.occurred_at is None else ahead_ms(item)
        if ahead is not None:
            host = "" if item.hop is None else read_hop_text(item.hop).host
            watch.clock_wrong(item.producer, host, ahead)


def receipt_json(receipt: Receipt, warnings: Sequence[str]) -> bytes:
    """The receipt. Ids and states are ours and need no escaping."""
    told = dumps(warnings) if warnings else "[]"
    if receipt.status == "accepted":
        text = f'{{"id": "{receipt.id}", "status": "accepted", "warnings": {told}}}'
    else:
        text = (
            f'{{"id": "{receipt.id}", "status": "duplicate", '
            f'"state": "{receipt.state}", "warnings": {told}}}'
        )
    return text.encode()


def error_json(error: EventError) -> bytes:
    """What is wrong with an event, and where."""
    return dumps({"error": error.message, "field": error.field, "hint": error.hint}).encode()


def refusal_json(error: Refused) -> bytes:
    """The event may be good; the agent cannot take it now."""
    told = {"error": error.message, "field": None, "hint": error.hint, "retry": True}
    return dumps(told).encode()


def refusal_reason(error: Refused) -> str:
    """The label of the metric."""
    return "disk_short" if isinstance(error, DiskShort) else "full"


def _agreed_key(header_key: str, body_key: str | None) -> str:
    field = "Idempotency-Key"
    try:
        header_key.encode()
    except UnicodeEncodeError:
        raise EventError(
            "the header Idempotency-Key is not UTF-8", field, "use ASCII, such as a UUID"
        ) from None
    key = checked_dedup_key(header_key, field)
    if body_key is not None and body_key != key:
        raise EventError(
            "the header Idempotency-Key and the field dedupKey differ",
            "$.dedupKey",
            "give one of them, or the same in both",
        )
    return key
