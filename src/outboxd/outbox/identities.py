"""By what an event is known again: its producer's key, or its body. Pure."""

from __future__ import annotations

import hashlib

# How identities are written. A producer's key is its alone: another's is no
# duplicate of it. From before entries had a producer there are keys without one,
# which count for everybody until their window ends.
KEY, OLD_KEY, REPEAT = "p:", "k:", "r:"


def key_identities(producer: str, dedup_key: str) -> list[str]:
    """The producer's own one, then that of a version which did not tell producers apart."""
    old = OLD_KEY + dedup_key
    return [f"{KEY}{producer}\n{dedup_key}", old] if producer else [old]


def repeat_identity(producer: str, body: bytes) -> str:
    """The identity of an event for `repeat_window`: equal bodies of one producer."""
    return (
        REPEAT + hashlib.sha256(f"{producer}\n".encode() + body if producer else body).hexdigest()
    )
