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


class Gateway(NamedTuple):
    """What a gateway says of itself."""

    dedup_s: float = 604_800.0  # how long it knows an entry's id again
    event_type_max: int = 60  # characters
    event_bytes_max: int = 256 * 1024


class DestinationStatus(NamedTuple):
    """The destination at one moment; times in ms since 1970 (UTC)."""

    endpoint: str
    state: str
    reason: str | None
    since_at: int
    next_probe_at: int | None
    permits: int
    in_flight: int
    # Whether it is a gateway, which sends on; None as long as nobody has said.
    is_gateway: bool | None = None
    gateway: Gateway | None = None  # what it says of itself


class Through(NamedTuple):
    """What became of a delivered entry behind the destination."""

    state: str | None  # as the gateway has it, or "unknown" to it; None: it could not be asked
    reason: str | None = None  # why not


class Destination(Protocol):
    """What the API may ask of the delivery side."""

    def status(self) -> DestinationStatus: ...

    async def hold(self, reason: str, by: str) -> None: ...

    async def release(self, by: str) -> None: ...

    async def ask_through(self, id: str) -> Through:
        """What became of an entry that it took. Makes no second event, whoever answers."""

    def wake(self) -> None:
        """Something became sendable: look again."""
