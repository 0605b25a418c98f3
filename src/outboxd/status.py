"""What the parts of the agent tell each other of the destination.

Types alone: delivery fills them, the API and the commands show them, and so
neither has to import the other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol


class DestinationState(StrEnum):
    """How the destination stands."""

    UNTRIED = "untried"  # no answer yet since the start; leaves with the first
    OK = "ok"  # the last answers were good
    BACKING_OFF = "backingOff"  # unavailable; one probe at a time until one succeeds
    THROTTLED = "throttled"  # waits as long as the answer told
    HELD = "held"  # by the operator, or by an answer that only a person can mend


class DestinationStatus(NamedTuple):
    """The destination at one moment; times in ms since 1970 (UTC)."""

    endpoint: str
    state: str
    reason: str | None
    since_at: int
    next_probe_at: int | None
    permits: int
    in_flight: int


class Destination(Protocol):
    """What the API may ask of the delivery side."""

    def status(self) -> DestinationStatus: ...

    async def hold(self, reason: str, by: str) -> None: ...

    async def release(self, by: str) -> None: ...

    def wake(self) -> None:
        """Something became sendable: look again."""
