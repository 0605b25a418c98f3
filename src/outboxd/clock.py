"""One clock for everything, so that tests can hold it still.

Elapsed time comes from the monotonic clock, stored time from the wall clock,
both from here. Nothing else in outboxd reads a clock.
"""

from __future__ import annotations

import time


class Clock:
    """The system's clocks."""

    def monotonic_s(self) -> float:
        """Seconds that only ever grow; of no meaning outside this process."""
        return time.monotonic()

    def since_boot_s(self) -> float:
        """As `monotonic_s`, with the time in which the host was suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        """Milliseconds since 1970 (UTC); may jump either way."""
        return time.time_ns() // 1_000_000


class CorrectedClock(Clock):
    """The system's clocks, with the wall clock as another one has it: that of a database
    which hosts share, so that it does no harm if one of theirs is wrong."""

    _NOTICED_MS = 1000  # less is the way to the other clock and back

    def __init__(self) -> None:
        self._ahead_ms = 0  # of the host's own clock

    def wall_ms(self) -> int:
        """Milliseconds since 1970 (UTC) by the other clock."""
        return super().wall_ms() + self._ahead_ms

    def correct(self, true_ms: int) -> None:
        """What the other clock shows now. From any thread."""
        if abs(true_ms - self.wall_ms()) >= self._NOTICED_MS:
            self._ahead_ms = true_ms - super().wall_ms()


class FakeClock(Clock):
    """A clock that moves only when a test says so."""

    def __init__(self, wall_ms: int = 1_750_000_000_000, monotonic_s: float = 1000.0) -> None:
        self._wall_ms = wall_ms
        self._monotonic_s = monotonic_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def since_boot_s(self) -> float:
        return self._monotonic_s

    def wall_ms(self) -> int:
        return self._wall_ms

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._monotonic_s += seconds
        self._wall_ms += round(seconds * 1000)

    def jump(self, seconds: float) -> None:
        """Set the wall clock alone, as an operator or NTP does."""
        self._wall_ms += round(seconds * 1000)
