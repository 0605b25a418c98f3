"""Drains a backlog against model servers that throttle, in virtual time.

The gate (breaker, evidence, permits and pace) is the real one; only the network
and the time are scripted. What was throttled is sent again when its own wait is
over, as the sender does.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count

import pytest

from outboxd.delivery.backoff import Backoff
from outboxd.delivery.gate import Gate
from outboxd.delivery.outcome import Meaning
from outboxd.outbox.model import Outcome


class FixedWindow:
    def __init__(self, per_second: float) -> None:
        self.per_second, self.window, self.count = per_second, -1, 0

    def takes(self, now_s: float) -> bool:
        if math.floor(now_s) != self.window:
            self.window, self.count = math.floor(now_s), 0
        self.count += 1
        return self.count <= self.per_second


class SlidingWindow:
    def __init__(self, per_second: float) -> None:
        self.per_second, self.moments = per_second, deque()

    def takes(self, now_s: float) -> bool:
        while self.moments and now_s - self.moments[0] >= 1.0:
            self.moments.popleft()
        if len(self.moments) >= self.per_second:
            return False
        self.moments.append(now_s)
        return True


class TokenBucket:
    def __init__(self, per_second: float, burst_s: float) -> None:
        self.per_second, self.burst = per_second, max(1.0, per_second * burst_s)
        self.tokens, self.at = self.burst, 0.0

    def takes(self, now_s: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now_s - self.at) * self.per_second)
        self.at = now_s
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass
class Drain:
    """One run: what was accepted and refused, and when."""

    server: object
    retry_after_s: float | None = 1.0
    latency_s: float = 0.005
    late_wake_s: float = 0.001
    concurrency_max: int = 16
    seed: int = 1
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> Drain:
        draw = random.Random(self.seed)
        start_s = 100.3
        gate = Gate(Backoff(1.0, 300.0), 300.0, self.concurrency_max, 0, start_s)
        backlog = count()
        waiting: list[tuple[float, int]] = []  # those that were throttled, and until when
        # When, a serial, then who and the permit; and whether it was taken, on the way back.
        flying: list[tuple[float, int, int, object, bool | None]] = []
        serial = count()
        now_s = start_s
        while now_s < start_s + seconds:
            wake_s = start_s + seconds
            while gate.start_at_most(now_s):
                is_due = waiting and waiting[0][0] <= now_s and gate.flowing
                seq = heapq.heappop(waiting)[1] if is_due else next(backlog)
                there_s = now_s + self.latency_s * draw.uniform(0.3, 0.5)
                heapq.heappush(flying, (there_s, next(serial), seq, gate.begin(seq, now_s), None))
            start_again_s = gate.next_start_s(now_s, other=True)
            if start_again_s is not None and start_again_s > now_s:
                # A timer of the event loop never rings early, often late.
                wake_s = min(wake_s, start_again_s + draw.random() * self.late_wake_s)
            if not flying or flying[0][0] > wake_s:
                now_s = max(wake_s, now_s)
                continue
            now_s, _, seq, permit, taken = heapq.heappop(flying)
            if taken is None:
                back_s = now_s + self.latency_s * draw.uniform(0.4, 0.8)
                heapq.heappush(
                    flying, (back_s, next(serial), seq, permit, self.server.takes(now_s))
                )
                continue
            meaning = Meaning(Outcome.DELIVERED, 201) if taken else self._throttled()
            effect = gate.ended(permit, meaning, now_s, draw.random())
            if taken:
                self.accepted_s.append(now_s - start_s)
            else:
                self.refused_s.append(now_s - start_s)
                heapq.heappush(waiting, (now_s + (effect.rests_s or 0.0), seq))
        return self

    def _throttled(self) -> Meaning:
        return Meaning(Outcome.THROTTLED, 429, "429", retry_after_s=self.retry_after_s)

    def settled_rate(self, after_s: float, until_s: float) -> float:
        return sum(after_s <= at < until_s for at in self.accepted_s) / (until_s - after_s)

    def refused_share(self, after_s: float = 0.0) -> float:
        refused = sum(at >= after_s for at in self.refused_s)
        return refused / max(1, refused + sum(at >= after_s for at in self.accepted_s))


SERVERS = {
    "fixed window": FixedWindow,
    "sliding window": SlidingWindow,
    "bucket of a second": lambda rate: TokenBucket(rate, 1.0),
    "bucket of a tenth of a second": lambda rate: TokenBucket(rate, 0.1),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("per_second", [20, 100])
@pytest.mark.parametrize("retry_after_s", [1.0, None])
def test_a_drain_settles_within_a_tenth_below_what_is_taken(server, per_second, retry_after_s):
    drain = Drain(SERVERS[server](per_second), retry_after_s).run(90.0)
    assert 0.9 <= drain.settled_rate(40.0, 90.0) / per_second <= 1.02
    assert drain.refused_share() < 0.02
    assert drain.refused_share(after_s=40.0) < 0.005


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("per_second", [50, 1000])
@pytest.mark.parametrize("latency_s", [0.001, 0.06])
def test_the_full_figures_of_the_drain(server, per_second, latency_s, full):
    if not full:
        pytest.skip("the full figures: --full")
    model = SERVERS[server](per_second)
    drain = Drain(model, 1.0, latency_s, concurrency_max=256, seed=2).run(90.0)
    assert 0.9 <= drain.settled_rate(40.0, 90.0) / per_second <= 1.02
    assert drain.refused_share() < 0.02


def test_a_slow_server_that_takes_few_is_found_too():
    drain = Drain(FixedWindow(20), 1.0, latency_s=0.4).run(180.0)
    assert drain.settled_rate(60.0, 180.0) >= 18
    assert drain.refused_share() < 0.02


class Changing:
    """Takes fewer from one moment on, or more."""

    def __init__(self, first, then, at_s: float) -> None:
        self.first, self.then, self.at_s = first, then, at_s

    def takes(self, now_s: float) -> bool:
        return (self.first if now_s < self.at_s else self.then).takes(now_s)


def test_when_less_is_taken_than_before_the_drain_slows_down():
    model = Changing(FixedWindow(100), FixedWindow(25), at_s=160.0)
    drain = Drain(model).run(160.0)
    assert drain.settled_rate(110.0, 160.0) >= 0.9 * 25
    assert drain.refused_share(after_s=60.0) < 0.02


def test_when_more_is_taken_than_before_the_drain_finds_out():
    model = Changing(TokenBucket(20, 1.0), TokenBucket(100, 1.0), at_s=160.0)
    drain = Drain(model).run(400.0)
    assert drain.settled_rate(350.0, 400.0) >= 0.9 * 100


def test_without_a_throttle_nothing_is_held_back():
    class Takes:
        def takes(self, now_s: float) -> bool:
            return True

    drain = Drain(Takes(), latency_s=0.01).run(5.0)
    # 16 permits at 10 ms (0.7 to 1.3 of it): some 1,600 a second once they are reached.
    assert drain.settled_rate(1.0, 5.0) > 1400
    assert drain.refused_s == []
