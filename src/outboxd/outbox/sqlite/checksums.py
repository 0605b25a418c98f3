"""What proves that a row is the one that was written.

SQLite checks the frames of its log, but not the pages of its file, and its
integrity check does not see a flipped bit inside a value. So each row carries
CRC-32 sums of its own. Pure functions.
"""

from __future__ import annotations

from zlib import crc32


def body_crc(seq: int, body: bytes) -> int:
    """Covers `bodies.body` and which entry it belongs to."""
    return crc32(body, seq & 0xFFFFFFFF)


def head_crc(
    seq: int,
    id: str,
    received_at: int,
    occurred_at: int | None,
    expires_at: int | None,
    event_type: str,
    severity: str,
    scope: str,
    source: str,
    dedup_key: str | None,
    producer: str,
    hop: str | None,
) -> int:
    """Covers what never changes in an entry. Without a producer or a hop it is as it
    was before entries had one."""
    by = f"|{producer}" if producer else ""
    if hop is not None:
        by = f"|{producer}|{hop}"
    return crc32(
        f"{seq}|{id}|{received_at}|{occurred_at}|{expires_at}|{event_type}|{severity}|"
        f"{scope}|{source}|{dedup_key}{by}".encode()
    )


def state_crc(
    seq: int,
    state: str,
    held: int,
    due_at: int,
    ended_at: int | None,
    repeats: int,
    last_occurred_at: int | None,
    attempt_count: int,
    spent: int,
    possible_duplicate: int,
    dead_reason: str | None,
    attempts: str,
) -> int:
    """Covers what a settlement or the operator changes in an entry."""
    return crc32(
        f"{state}|{held}|{due_at}|{ended_at}|{repeats}|{last_occurred_at}|"
        f"{attempt_count}|{spent}|{possible_duplicate}|{dead_reason}|{attempts}".encode(),
        seq & 0xFFFFFFFF,
    )


# What `state_crc` covers in an entry that has just come in.
_FRESH = b"pending|0|0|None|0|None|0|0|0|None|[]"


def fresh_state_crc(seq: int) -> int:
    """`state_crc` of an entry that has just come in and is not held."""
    return crc32(_FRESH, seq & 0xFFFFFFFF)


def text_crc(*parts: object) -> int:
    """Covers the small rows: dedup keys and meta."""
    return crc32("|".join(map(str, parts)).encode())
