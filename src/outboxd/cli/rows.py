"""Entries as the commands get them, from the agent or from the file.

Each is kept as the JSON text that it came as, so that what `--json` prints has
every key and every digit; `ListedEntry` is what people are shown of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from outboxd.text import harmless_json

NOTHING = msgspec.Raw(b"null")

Params = Sequence[tuple[str, str]]  # filters as the query of GET /v1/events has them


class ListedPage(NamedTuple):
    """A page of a listing."""

    entries: list[msgspec.Raw]
    next: str | None


class AttemptRow(msgspec.Struct, rename="camel"):
    """One HTTP exchange."""

    at: str
    duration_ms: int | float = 0
    outcome: str = ""
    status: int | None = None
    error: str | None = None


class HopRow(msgspec.Struct, rename="camel"):
    """The way of an entry through other agents, before it came here."""

    age_ms: int = 0
    attempts: int = 0
    host: str = ""


class ListedEntry(msgspec.Struct, rename="camel"):
    """An entry, read."""

    id: str
    state: str
    event_type: str
    summary: str
    received_at: str
    short_id: str = ""
    severity: str = "information"
    held: bool = False
    scope: dict[str, list[str]] | None = None
    details: msgspec.Raw = NOTHING
    occurred_at: str | None = None
    due_at: str | None = None
    delivered_at: str | None = None
    source: str | None = None
    producer: str | None = None
    hop: HopRow | None = None
    destination_is_gateway: bool | None = None
    dedup_key: str | None = None
    repeats: int = 0
    attempt_count: int = 0
    last_outcome: str | None = None
    last_status: int | None = None
    last_error: str | None = None
    dead_reason: str | None = None
    possible_duplicate: bool = False
    attempts: list[AttemptRow] = []
    sent_body: msgspec.Raw = NOTHING


read_entry = msgspec.json.Decoder(ListedEntry).decode


def one_line(content: bytes | msgspec.Raw) -> str:
    """JSON on a line of its own that drives no terminal; numbers keep their text."""
    # A producer's own line breaks stand between the tokens of its details.
    return harmless_json(msgspec.json.format(bytes(content), indent=-1).decode())
