"""One clock for everything, so that tests can hold it still.

Elapsed time comes from the monotonic clock, stored time from the wall clock,
both from here, and what was made of a wall clock that was set. Nothing else in
outboxd reads a clock.
"""

from __future__ import annotations

import time

STEP_MIN_MS = 2000  # less is a clock that is slewed, and a moment between two readings


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
    """The system's clocks, with the wall clock of a database that hosts share: so it does
    no harm if one of theirs is wrong, or is set while the agent runs."""

    _NOTICED_MS = 1000  # less is the way to the other clock and back

    def __init__(self) -> None:
        self._base: tuple[int, float] | None = None  # what it showed, and since boot then

    def wall_ms(self) -> int:
        """Milliseconds since 1970 (UTC) by the other clock; by the host's before it was heard."""
        base = self._base
        if base is None:
            return super().wall_ms()
        shown_ms, at_s = base
        return shown_ms + round((self.since_boot_s() - at_s) * 1000)

    def correct(self, shown_ms: int) -> None:
        """What the other clock shows now. From any thread."""
        if self._base is None or abs(shown_ms - self.wall_ms()) >= self._NOTICED_MS:
            self._base = shown_ms, self.since_boot_s()


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


class WindowClock:
    """What time it is for the window in which keys are remembered, if the clock was set forward.

    A window is a time that passes: a clock that jumps by a week must not end it, or an
    event whose answer was lost is taken for a new one. So keys are looked up by a time
    that stays behind by what the clock was set forward, until a whole window has really
    passed since: then all keys from before are old enough. (After a step back they are
    remembered for longer, which does no harm.) It never changes what is stored, and
    forgets its lag with the process.
    """

    __slots__ = ("_clock", "_lag_ms", "_lags_until_ms", "_offset_ms", "window_ms")

    def __init__(self, clock: Clock, window_ms: int) -> None:
        self.window_ms = window_ms
        self._clock = clock
        self._offset_ms = clock.wall_ms() - self._elapsed_ms()
        self._lag_ms = 0
        self._lags_until_ms = 0

    def now_ms(self) -> int:
        """Milliseconds since 1970 (UTC); what expires after it is remembered."""
        wall_ms, elapsed_ms = self._clock.wall_ms(), self._elapsed_ms()
        step_ms = wall_ms - elapsed_ms - self._offset_ms
        self._offset_ms += step_ms
        if elapsed_ms >= self._lags_until_ms:
            self._lag_ms = 0  # before a step that came since adds to it
        if step_ms >= STEP_MIN_MS:
            self._lag_ms += step_ms
            self._lags_until_ms = elapsed_ms + self.window_ms
        elif step_ms <= -STEP_MIN_MS:
            self._lag_ms = max(0, self._lag_ms + step_ms)
        return wall_ms - (self._lag_ms if elapsed_ms < self._lags_until_ms else 0)

    def _elapsed_ms(self) -> int:
        return round(self._clock.since_boot_s() * 1000)
