"""An entry as JSON, in the shape that programs rely on.

Names in camel case as in Komodor's API, times RFC 3339 in UTC with
milliseconds. Keys may be added, none renamed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from outboxd.outbox.model import Entry
from outboxd.times import rfc3339


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry as `GET /v1/events` lists it.

    `scope` and `details` are the producer's with the defaults filled in, as
    Komodor gets them; numbers in `details` keep their text.
    """
    body = msgspec.json.decode(entry.body, type=dict[str, msgspec.Raw])
    pending = entry.state == "pending"
    return {
        "id": entry.id,
        "shortId": entry.short_id,
        "state": entry.state,
        "held": entry.held,
        "eventType": entry.event_type,
        "summary": body["summary"],
        "severity": entry.severity,
        "scope": msgspec.Raw(entry.scope.encode() or b"{}"),
        "details": body.get("details", msgspec.Raw(b"{}")),
        "occurredAt": _time(entry.occurred_at),
        "receivedAt": rfc3339(entry.received_at),
        "dueAt": rfc3339(entry.due_at or entry.received_at) if pending else None,
        "deliveredAt": _time(entry.ended_at) if entry.state == "delivered" else None,
        "diedAt": _time(entry.ended_at) if entry.state == "dead" else None,
        "expiresAt": _time(entry.expires_at),
        "source": entry.source,
        "producer": entry.producer or None,
        "hop": None if entry.hop is None else msgspec.Raw(entry.hop.encode()),
        "dedupKey": entry.dedup_key,
        "repeats": entry.repeats,
        "lastOccurredAt": _time(entry.last_occurred_at),
        "attemptCount": entry.attempt_count,
        "possibleDuplicate": entry.possible_duplicate,
        "lastOutcome": entry.last_outcome,
        "lastStatus": entry.last_status,
        "lastError": entry.last_error,
        "deadReason": entry.dead_reason,
    }


def attempts_json(entry: Entry) -> list[dict[str, Any]]:
    """The newest attempts of an entry, oldest first."""
    return [
        {
            "at": rfc3339(at),
            "durationMs": duration_ms,
            "outcome": outcome,
            "status": status,
            "error": error,
        }
        for at, duration_ms, outcome, status, error in msgspec.json.decode(entry.attempts)
    ]


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)
