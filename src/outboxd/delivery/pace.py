"""How many requests may be under way, and how many may start in a second.

Both adapt on evidence alone, and neither knows more of an event than its number.
The permits (`Limiter`) bound what one destination bears at a time; the rate
(`Rate`) what it takes in a second, which permits cannot find: against a quick
server one request in flight may already be too many a second, and each refusal
stalls the whole destination for as long as Retry-After says.

Pure: the time is an argument. It never sleeps.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

CEILING = 256  # with `concurrency_max = 0`: what one endpoint can bear of one agent
# So many that hang, or are of entries set aside, are beside what is permitted.
ASIDE_MAX = 16
_RATIO = 0.75
_RAMP = 1.5
_LATENCY_WEIGHT = 0.1  # of the newest answer in the moving average
_FLOOR_DRIFT = 0.02  # a round: a lasting change of latency becomes the new floor
_LATENCY_FACTOR = 2.0
_LATENCY_SLACK_S = 0.05  # differences below this are noise, whatever their ratio
# The learned ceiling. Each was tried against the model servers of
# tests/delivery/test_drain_model.py: at least 0.9 of what is taken, and at most
# one in fifty refused.
_DEPTH = 0.05  # it starts this much below its plateau, and the cubic rises from there
_MARGIN = 0.96  # the plateau lies below the estimate: windows of a second are not ours
_PLATEAU_FIRST_S = 10.0  # time to reach the plateau, doubled when an estimate holds
_PLATEAU_MAX_S = 60.0  # so that a higher limit is found within some minutes
_MATURE_S = 10.0  # a rate that was kept up so long is itself the estimate
_FORGET_S = 600.0  # without a throttle and without need of the ceiling: quotas change

# A first estimate from less than a second of sending may be far too low: it
# climbs by such steps, each kept for longer than a second's window can hide.
_EXPLORE_AFTER_S = 3.0
_EXPLORE_STEP_S = 1.5
_EXPLORE_FACTOR = 1.4

_BURST_S = 0.05  # what a late wake-up of the event loop may make up for
_BOUND_S = 0.05  # a token taken so soon after it was ready was waited for
_RATE_MIN = 0.2  # a request every five seconds: enough to see that more is taken
_ESTIMATE_MIN = 2.0  # of a first estimate: one event in the last second says little
_WINDOW_S = 1.0  # most limits count by the second
# Of so many throttled one after the other what they taught may be taken back; of
# those before it stays.
_SIGNS_MAX = 8
_UNBOUNDED = 1 << 30
_ROUNDING = 1e-9  # of a token, lost in floating point


class Limiter:
    """The permits of one destination.

    Additive increase, multiplicative decrease: one permit more for a round of
    answers in which the limit was reached and all was well; a ratio less on
    pushback or when answers take far longer than they did. After a start and after
    an outage the rounds grow by half each until the first sign of pressure, since
    nothing is known then and a backlog waits (doubling refused too many at a slow
    endpoint). The wait for a permit never counts as latency.
    """

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


class _Sign(NamedTuple):
    """What one pushback taught, as long as it may be its events' own fault."""

    by: set[int]  # the entries (seqs) that were throttled together
    accepted_lately: int  # in the second before
    accepted_rate: float  # the mean since the throttle before, waits included
    active_s: float  # for so long was the rate of that time in use


class Rate:
    """A token bucket with two bounds: the operator's `rate_max`, and one that is learned
    from answers that throttle.

    The learned ceiling falls to a little below what was accepted, stays there for
    long, and then probes upward the faster the longer nothing objects (the cubic of
    TCP's congestion control). What turns out to be the fault of one event says
    nothing about the rate: what its refusals taught is then taken back.
    """

    def __init__(self, rate_max: int) -> None:
        self.configure(rate_max)
        self._tokens = 1.0
        self._filled_s: float | None = None
        self._serial = 0
        self._ceiling: _Ceiling | None = None
        self._fresh_serial = 0  # requests below were sent before the last throttle counted
        self._accepted_s: deque[float] = deque()  # the moments of the last second
        self._accepted = 0  # since the last throttle
        self._throttled_s = 0.0
        self._began_s: float | None = None  # the first request since the last throttle
        self._signs: list[_Sign] = []  # those in doubt, in their order
        self._before: _Ceiling | None = None  # as it was before the first of them

    def configure(self, rate_max: int) -> None:
        """The operator's bound in requests a second; 0: none."""
        self._rate_max = float(rate_max) if rate_max > 0 else None

    def forget(self) -> None:
        """Nothing is known any more of what the destination takes."""
        self._ceiling = None
        self._signs.clear()
        self._accepted_s.clear()
        self._fresh_serial = self._serial

    def per_second(self) -> float | None:
        """The present bound; None if there is none."""
        learned = None if self._ceiling is None else self._ceiling.rate()
        if self._rate_max is None:
            return learned
        return self._rate_max if learned is None else min(learned, self._rate_max)

    def available(self, now_s: float) -> int:
        """How many requests may start together now."""
        rate = self.per_second()
        if rate is None:
            return _UNBOUNDED
        return max(0, int(min(self._tokens_at(now_s, rate), self._burst(rate)) + _ROUNDING))

    def ready_s(self, now_s: float, count: int = 1) -> float:
        """When `count` requests may start together, or as many of them as are worth
        waiting for: `now_s` or later."""
        rate = self.per_second()
        if rate is None:
            return now_s
        burst = self._burst(rate)
        # Half of what can be saved up: the rest is what a late wake-up makes up for.
        wanted = min(count, max(1, int(burst / 2)))
        missing = wanted - min(self._tokens_at(now_s, rate), burst)
        return now_s if missing <= _ROUNDING else now_s + missing / rate

    def take(self, now_s: float) -> int:
        """A request starts; the number returned comes back if it is throttled."""
        rate = self.per_second()
        if rate is not None:
            tokens = self._tokens_at(now_s, rate)
            burst = self._burst(rate)
            bound = tokens < burst + 1.0 + rate * _BOUND_S
            # Requests claimed together may overdraw it; the debt is paid in full.
            self._tokens = min(tokens, burst) - 1.0
            self._learn_from_use(now_s, bound)
        self._filled_s = now_s
        if self._began_s is None:
            self._began_s = now_s
        self._serial += 1
        return self._serial - 1

    def accepted(self, by: int, now_s: float) -> None:
        """The destination took a request for this entry (seq)."""
        self._accepted += 1
        self._accepted_s.append(now_s)
        while now_s - self._accepted_s[0] > _WINDOW_S:
            self._accepted_s.popleft()
        if self._signs and any(by in sign.by for sign in self._signs):
            self._signs.clear()  # it was throttled and passes now: so it was the pace

    def throttled(self, serial: int, by: int, now_s: float) -> None:
        """The destination says, to a request for this entry (seq), that it is too much."""
        is_fresh = serial >= self._fresh_serial  # else sent before we slowed down
        if is_fresh:
            self._fresh_serial = self._serial
        # Into what the same second has left goes a probe, and until one is accepted no
        # more than probes do: that is no pace.
        probed = now_s - self._throttled_s < _WINDOW_S or not self._accepted
        if not is_fresh or (self._ceiling is not None and probed):
            if self._signs:
                self._signs[-1].by.add(by)  # the same pushback once more
            return
        while self._accepted_s and now_s - self._accepted_s[0] > _WINDOW_S:
            self._accepted_s.popleft()
        sign = _Sign(
            {by},
            len(self._accepted_s),
            self._accepted / max(now_s - self._throttled_s, 1e-3),
            0.0 if self._began_s is None else now_s - self._began_s,
        )
        self._remember(sign)
        self._ceiling = _lowered(self._ceiling, sign)
        self._throttled_s = now_s
        self._accepted = 0
        self._began_s = None
        self._tokens = min(self._tokens, 1.0)

    def was_own_fault(self, by: int) -> None:
        """This entry (seq) is refused while others pass: the pace becomes what it would
        be without its refusals, unless it is higher already."""
        for sign in self._signs:
            sign.by.discard(by)
        signs = [sign for sign in self._signs if sign.by]
        if len(signs) == len(self._signs):
            return
        self._signs = signs
        without = self._before
        for sign in signs:
            without = _lowered(without, sign)
        if self._ceiling is not None and (without is None or without.rate() > self._ceiling.rate()):
            self._ceiling = without

    def _remember(self, sign: _Sign) -> None:
        """It may be taken back; of one entry as a whole, however often it is throttled."""
        if any(sign.by <= other.by for other in self._signs):
            return
        if not self._signs:
            self._before = self._ceiling
        self._signs.append(sign)
        if len(self._signs) > _SIGNS_MAX:
            self._before = _lowered(self._before, self._signs.pop(0))

    def _tokens_at(self, now_s: float, rate: float) -> float:
        elapsed_s = 0.0 if self._filled_s is None else max(0.0, now_s - self._filled_s)
        return self._tokens + elapsed_s * rate

    def _burst(self, rate: float) -> float:
        return max(1.0, rate * _BURST_S)

    def _learn_from_use(self, now_s: float, bound: bool) -> None:
        if self._ceiling is None:
            return
        if bound and self._began_s is not None and self._filled_s is not None:
            self._ceiling.used(min(now_s - self._filled_s, 1.0 + 1.0 / self._ceiling.rate()))
        elif not bound and now_s - self._throttled_s > _FORGET_S:
            self._ceiling = None


class _Ceiling:
    """The learned bound: an estimate, and how far the time has grown past it."""

    def __init__(
        self,
        estimate: float,
        *,
        explores: bool = False,
        trusted: bool = False,
        plateau_s: float = _PLATEAU_FIRST_S,
    ) -> None:
        self._plateau = max(estimate, _ESTIMATE_MIN if explores else _RATE_MIN) * _MARGIN
        self._plateau_s = plateau_s
        # A first estimate from less than a second of sending may be far too
        # low; then the bound climbs by steps until the next throttle.
        self._explores = explores
        self._steps = 0
        self._trusted = trusted  # a rate near this one has been kept up for long
        self._used_s = 0.0  # for so long has the bound been what we waited for

    def rate(self) -> float:
        if self._explores:
            return self._plateau * (1 - _DEPTH) * _EXPLORE_FACTOR**self._steps
        offset = self._used_s / self._plateau_s - 1
        return self._plateau * (1 + _DEPTH * offset**3)

    def used(self, seconds: float) -> None:
        self._used_s += seconds
        step_s = _EXPLORE_AFTER_S if self._steps == 0 else _EXPLORE_STEP_S
        if self._explores and self._used_s >= step_s:
            self._steps += 1
            self._used_s = 0.0

    def lowered(self, accepted_rate: float, active_s: float) -> _Ceiling:
        """The ceiling after a throttle at the present rate, which was in use for
        `active_s`; `accepted_rate` is the mean since the last one, waits included."""
        rate = self.rate()
        near = 0.85 < rate / self._plateau < 1.15
        if self._explores and self._steps > 0:
            # Between the last step and this. One step only: the first estimate
            # was good, and the answer lies close above it.
            back = 1.3 if self._steps == 1 else 1.2
            return _Ceiling(rate / back, plateau_s=_PLATEAU_FIRST_S / 2)
        if active_s >= _MATURE_S:
            if near:
                longer_s = min(self._plateau_s * 2, _PLATEAU_MAX_S)
                return _Ceiling(rate, trusted=True, plateau_s=longer_s)
            # Far above the plateau it rose fast, and so went past what is taken.
            return _Ceiling(rate * 0.95, trusted=True)
        if self._trusted and near:
            return _Ceiling(rate * 0.98, trusted=active_s > 2.0, plateau_s=self._plateau_s)
        # Soon: the rate is too high and the mean, with the wait in it, too low.
        low = min(max(accepted_rate, rate * 0.25), rate)
        return _Ceiling((low * rate) ** 0.5, plateau_s=self._plateau_s)


def _lowered(ceiling: _Ceiling | None, sign: _Sign) -> _Ceiling | None:
    """The ceiling after a throttle; None where it teaches nothing."""
    if ceiling is not None:
        return ceiling.lowered(sign.accepted_rate, sign.active_s)
    if not sign.accepted_lately:
        return None
    # What one second took is right for a server that counts by the second, if we
    # sent at full pace all that time; one that allows short bursts takes more or
    # less than that. So it is tried out.
    return _Ceiling(float(sign.accepted_lately), explores=True)
