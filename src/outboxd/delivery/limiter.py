"""How many requests may be in flight: permits that adapt on evidence alone.

Additive increase, multiplicative decrease: one permit more for a round of
answers in which the limit was reached and all was well; a ratio less on
pushback or when answers take far longer than they did. After a start and after
an outage the rounds grow by half each until the first sign of pressure, since
nothing is known then and a backlog waits (doubling refused too many at a slow
endpoint). It never counts the wait for a permit as latency, and it knows
neither clock nor event.
"""

from __future__ import annotations

CEILING = 256  # with `concurrency_max = 0`: what one endpoint can bear of one agent
# So many that hang, or are of entries set aside, are beside what is permitted.
ASIDE_MAX = 16
_RATIO = 0.75
_RAMP = 1.5
_LATENCY_WEIGHT = 0.1  # of the newest answer in the moving average
_FLOOR_DRIFT = 0.02  # a round: a lasting change of latency becomes the new floor
_LATENCY_FACTOR = 2.0
_LATENCY_SLACK_S = 0.05  # differences below this are noise, whatever their ratio


class Limiter:
    """The permits of one destination."""

    def __init__(self, concurrency_max: int) -> None:
        self.permits = 1
        self.in_flight = 0  # all of them
        self.configure(concurrency_max)
        self._serial = 0
        self._fresh_serial = 0  # requests below began before the last decrease
        self._restart_serial = 0  # requests below began before the last restart
        self._left_over = 0  # of those in flight, the ones from before the last restart
        self._answers = 0  # in this round
        self._reached = False
        self._healthy = True
        self._ramps = True  # no sign of pressure since the start or an outage
        self._latency_s: float | None = None
        self._floor_s: float | None = None

    def configure(self, concurrency_max: int) -> None:
        """The highest number of permits; 0: no limit of the operator's."""
        self._max = min(concurrency_max, CEILING) if concurrency_max > 0 else CEILING
        self.permits = min(self.permits, self._max)

    @property
    def latency_s(self) -> float | None:
        """How long answers have taken lately; None: not known."""
        return self._latency_s

    def free(self, aside: int = 0) -> int:
        """How many requests may start now; so many of those in flight are beside the
        permits (they hang, or are of entries that wait by themselves)."""
        counted = self.in_flight - max(self._left_over, aside)
        return max(0, min(self.permits - counted, self.room(aside)))

    def room(self, aside: int = 0) -> int:
        """How many could start if permits did not count: a probe needs one."""
        return max(0, self._max - self.in_flight + min(aside, ASIDE_MAX))

    def started(self) -> int:
        """A request starts; the number returned comes back with its end."""
        self.in_flight += 1
        if self._counted() >= self.permits:
            self._reached = True
        self._serial += 1
        return self._serial - 1

    def succeeded(self, serial: int, latency_s: float) -> None:
        """An answer that says that all is well, and how long it took."""
        self._end(serial)
        self._observe(latency_s)
        if serial < self._fresh_serial:
            return  # sent under the old limit: no evidence for the new one
        self._answers += 1
        if self._answers >= self.permits:
            self._end_round()

    def pushed_back(self, serial: int) -> None:
        """The destination says that it is too much."""
        self._end(serial)
        self._healthy = False
        # The others of the same round trip were sent under the old limit and
        # say the same once more.
        if serial >= self._fresh_serial:
            self._decrease()

    def failed(self, serial: int) -> None:
        """No answer, or none that says anything about load; or given up by us."""
        self._end(serial)
        self._healthy = self._ramps = False

    def ignored(self, serial: int) -> None:
        """A refusal that was the event's own fault: it says nothing of load."""
        self._end(serial)

    def restart(self) -> None:
        """An outage ended: begin again with one, since the whole fleet comes back.

        What hangs from before must not stall those that come now.
        """
        self.permits = 1
        self._ramps = True
        self._restart_serial = self._serial
        self._left_over = self.in_flight
        self._latency_s = None
        self._fresh_serial = self._serial
        self._new_round()

    def _counted(self) -> int:
        """Those in flight that a permit is needed for."""
        return self.in_flight - self._left_over

    def _end(self, serial: int) -> None:
        assert self.in_flight > 0, "a request ended that had not started"
        self.in_flight -= 1
        if serial < self._restart_serial:
            self._left_over -= 1

    def _observe(self, latency_s: float) -> None:
        if self._latency_s is None:
            self._latency_s = latency_s
        self._latency_s += _LATENCY_WEIGHT * (latency_s - self._latency_s)
        if self._floor_s is None or latency_s < self._floor_s:
            self._floor_s = latency_s

    def _end_round(self) -> None:
        assert self._latency_s is not None
        assert self._floor_s is not None
        if self._latency_s > self._floor_s * _LATENCY_FACTOR + _LATENCY_SLACK_S:
            self._decrease()
        elif self._healthy and self._reached:
            step = max(1, int(self.permits * (_RAMP - 1))) if self._ramps else 1
            self.permits = min(self.permits + step, self._max)
        self._floor_s += _FLOOR_DRIFT * (self._latency_s - self._floor_s)
        self._new_round()

    def _decrease(self) -> None:
        self._ramps = False
        self.permits = max(1, int(self.permits * _RATIO))
        self._fresh_serial = self._serial
        self._new_round()
        self._reached = False  # those in flight were sent under the old limit

    def _new_round(self) -> None:
        self._answers = 0
        self._reached = self._counted() >= self.permits
        self._healthy = True
