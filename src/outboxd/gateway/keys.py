"""Dedup keys made of what a sender says, which may be of any length.

Pure. A key that were only cut would be the same as another with the same start,
and the event behind it would be lost as a duplicate.
"""

from __future__ import annotations

import hashlib

from outboxd.event.komodor import DEDUP_KEY_MAX


def fitting_key(text: str) -> str:
    """The text as a dedup key: as it is where it fits, else its start and its SHA-256."""
    if len(text) <= DEDUP_KEY_MAX:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[: DEDUP_KEY_MAX - len(digest) - 1]}…{digest}"
