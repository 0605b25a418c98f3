"""What time it is for the window in which keys are remembered, if the clock was set forward.

A window is a time that passes: a clock that jumps by a week must not end it, or an event
whose answer was lost is taken for a new one. So keys are looked up by a time that stays
behind by what the clock was set forward, until a whole window has really passed since:
then all keys from before are old enough. (After a step back they are remembered for
longer, which does no harm.) It never changes what is stored, and forgets its lag with the
process.
"""

from __future__ import annotations

from outboxd.clock import Clock

_STEP_MIN_MS = 2000  # less is a clock that is slewed, and a moment between two readings


class WindowClock:
    """Watches the wall clock against the one that is never set, whenever it is asked."""

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
        if step_ms >= _STEP_MIN_MS:
            self._lag_ms += step_ms
            self._lags_until_ms = elapsed_ms + self.window_ms
        elif step_ms <= -_STEP_MIN_MS:
            self._lag_ms = max(0, self._lag_ms + step_ms)
        if elapsed_ms >= self._lags_until_ms:
            self._lag_ms = 0
        return wall_ms - self._lag_ms

    def _elapsed_ms(self) -> int:
        return round(self._clock.since_boot_s() * 1000)
