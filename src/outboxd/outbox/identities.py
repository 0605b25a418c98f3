"""By what an event is known again, and for how long: its producer's key, or its body. Pure."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

# How identities are written. A producer's key is its alone: another's is no
# duplicate of it. From before entries had a producer there are keys without one,
# which count for everybody until their window ends.
KEY, OLD_KEY, REPEAT = "p:", "k:", "r:"


class Windows(NamedTuple):
    """How long identities are remembered, in ms; `repeat_ms` 0: repeats are events."""

    key_ms: int
    repeat_ms: int
    has_old_keys: bool  # there may be keys without their producer, from an old file


class Now(NamedTuple):
    """The moment of an acceptance, in ms since 1970."""

    wall_ms: int
    keys_ms: int  # by it keys are remembered; see `clock.WindowClock`


def key_identities(producer: str, dedup_key: str) -> list[str]:
    """The producer's own one, then that of a version which did not tell producers apart."""
    old = OLD_KEY + dedup_key
    return [f"{KEY}{producer}\n{dedup_key}", old] if producer else [old]


def repeat_identity(producer: str, body: bytes) -> str:
    """The identity of an event for `repeat_window`: equal bodies of one producer."""
    return (
        REPEAT + hashlib.sha256(f"{producer}\n".encode() + body if producer else body).hexdigest()
    )
