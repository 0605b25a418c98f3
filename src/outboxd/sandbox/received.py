"""What the sandbox received, in the order of arrival.

Kept in memory alone and bounded both ways: the newest events stay, the oldest
are forgotten and counted. Bodies are kept as they came, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec

from outboxd.sandbox.validation import ReceivedEvent
from outboxd.times import rfc3339

T = TypeVar("T")

NOTHING = msgspec.Raw(b"null")
EMPTY = msgspec.Raw(b"{}")

KEPT_MAX = 200_000
KEPT_BYTES_MAX = 256 * 1024 * 1024


class Record(NamedTuple):
    """One event that was answered 201 (or whose answer was lost on purpose)."""

    arrival: int  # 1 for the first
    id: str
    received_at: int
    idempotency_key: str | None
    user_agent: str | None
    event: ReceivedEvent
    body: bytes


class Received:
    """The events that came, newest kept longest."""

    def __init__(self, kept_max: int = KEPT_MAX, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept_max = kept_max
        self._bytes_max = bytes_max
        self.clear()

    def clear(self) -> None:
        """Forget everything, counts included."""
        self.count = 0  # all that ever came
        self.repeated = 0  # of these, with an Idempotency-Key that had come before
        self._records: list[Record] = []
        self._bytes = 0
        self._by_id: dict[str, Record] = {}
        self._arrivals_by_key: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def distinct(self) -> int:
        """How many different events came, as their Idempotency-Keys tell."""
        return self.count - self.repeated

    def add(
        self,
        id: str,
        received_at: int,
        idempotency_key: str | None,
        user_agent: str | None,
        event: ReceivedEvent,
        body: bytes,
    ) -> Record:
        """Keep one more."""
        self.count += 1
        record = Record(self.count, id, received_at, idempotency_key, user_agent, event, body)
        self._records.append(record)
        self._bytes += len(body)
        self._by_id[id] = record
        if idempotency_key is not None:
            arrivals = self._arrivals_by_key.setdefault(idempotency_key, [])
            arrivals.append(record.arrival)
            self.repeated += len(arrivals) > 1
        if len(self._records) > self._kept_max * 1.1 or self._bytes > self._bytes_max * 1.1:
            self._forget()
        return record

    def find(self, id: str) -> Record | None:
        """The record with this id; the sender's Idempotency-Key will do as well."""
        record = self._by_id.get(id)
        if record is None and id in self._arrivals_by_key:
            record = self._at(self._arrivals_by_key[id][0])
        return record

    def arrivals(self, record: Record) -> list[int]:
        """Every arrival with the same Idempotency-Key: more than one is a duplicate."""
        if record.idempotency_key is None:
            return [record.arrival]
        return list(self._arrivals_by_key[record.idempotency_key])

    def newest_first(self, before: int | None = None) -> Iterator[Record]:
        """Records from the newest, or from just before an arrival, to the oldest."""
        if not self._records:
            return
        index = len(self._records) - 1
        if before is not None:
            index = min(index, before - self._records[0].arrival - 1)
        records = self._records  # forgetting replaces the list and leaves this one alone
        while index >= 0:
            yield records[index]
            index -= 1

    def _at(self, arrival: int) -> Record | None:
        index = arrival - self._records[0].arrival if self._records else -1
        return self._records[index] if index >= 0 else None

    def _forget(self) -> None:
        """Cut back to the limits; done seldom, so that each event pays little."""
        cut = max(0, len(self._records) - self._kept_max)
        kept_bytes = self._bytes - sum(len(record.body) for record in self._records[:cut])
        while kept_bytes > self._bytes_max:
            kept_bytes -= len(self._records[cut].body)
            cut += 1
        forgotten, self._records = self._records[:cut], self._records[cut:]
        self._bytes = kept_bytes
        for record in forgotten:
            del self._by_id[record.id]
            if record.idempotency_key is not None:
                arrivals = self._arrivals_by_key[record.idempotency_key]
                arrivals.remove(record.arrival)
                if not arrivals:
                    del self._arrivals_by_key[record.idempotency_key]


def entry_json(record: Record, correlated: bytes) -> dict[str, Any]:
    """A record in the shape that the agent gives its entries, for msgspec to encode.

    Scope and details are spliced in as they came, so that no number is rounded.
    """
    content = _content(record.body)
    stamps = _stamps(content.details)
    received_at = rfc3339(record.received_at)
    return {
        "id": record.id,
        "state": "delivered",
        "held": False,
        "eventType": record.event.event_type,
        "summary": record.event.summary,
        "severity": record.event.severity,
        "scope": _given(content.scope),
        "details": _given(content.details),
        "occurredAt": _stamp(stamps, "occurredAt", str),
        "receivedAt": received_at,
        "dueAt": None,
        "deliveredAt": received_at,
        "source": None,
        "dedupKey": None,
        "repeats": _stamp(stamps, "repeats", int) or 0,
        "attemptCount": _stamp(stamps, "deliveryAttempts", int) or 1,
        "lastOutcome": "delivered",
        "lastStatus": 201,
        "lastError": None,
        "deadReason": None,
        "possibleDuplicate": _stamp(stamps, "possibleDuplicate", bool) or False,
        "arrival": record.arrival,
        "idempotencyKey": record.idempotency_key,
        "userAgent": record.user_agent,
        "correlatedServices": msgspec.Raw(correlated),
    }


def _given(raw: msgspec.Raw) -> msgspec.Raw:
    return EMPTY if bytes(raw) == b"null" else raw


class _Content(msgspec.Struct):
    scope: msgspec.Raw = NOTHING
    details: msgspec.Raw = NOTHING


_content = msgspec.json.Decoder(_Content).decode
_stamps = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


def _stamp(stamps: dict[str, msgspec.Raw] | None, key: str, kind: type[T]) -> T | None:
    """A stamp of the agent in the details, if it is there in the form it has."""
    if not stamps or key not in stamps:
        return None
    try:
        return msgspec.json.decode(stamps[key], type=kind)
    except msgspec.DecodeError:
        return None  # the producer's own key of that name, in a form of its own
