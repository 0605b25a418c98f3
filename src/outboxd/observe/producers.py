"""What the operator is told of those who hand in: counted and logged by name.

A line for each name and reason at most once a minute, with how many events it was
since the last one: who is refused, throttled or has a wrong clock is seen, and
nobody can fill the log. Of a token all of it, of a user of this host what was refused,
in lines of a name of their own: the log lets ten of each name through in a minute, so
that no user keeps a token's out. No token, and nothing of an event, is ever in a line.
"""

from __future__ import annotations

from typing import Protocol

from outboxd.clock import Clock
from outboxd.observe.callers import CallerBook
from outboxd.observe.logs import get_logger
from outboxd.units import format_duration

OF_TOKENS = "token:"  # how the names of such producers begin
OF_USERS = "uid:"
TOLD_EVERY_S = 60.0
KINDS_MAX = 1000  # more names and reasons than that are counted and not told

_EVENTS = {"rate": "producer.throttled"}
_HINTS = {
    "rate": "its token's --rate is the limit; what it sends is taken again after Retry-After",
    "not_allowed": "its token may not say that: see `outboxd token list`",
}
_USER_HINTS = {
    "full": "others have room; see which of its programs hands so much in",
    "disk_short": "make room on the outbox's disk",
    "no_right": "only root and the agent's own user may act",
}


class ProducerMetrics(Protocol):
    """What is counted by name."""

    def token_accepted(self, name: str, count: int) -> None: ...

    def token_refused(self, name: str, reason: str, count: int) -> None: ...

    def token_clock_wrong(self, name: str) -> None: ...

    def user_refused(self, name: str, reason: str, count: int) -> None: ...


class ProducerObserver:
    """Told by the door."""

    def __init__(
        self,
        metrics: ProducerMetrics,
        clock: Clock,
        callers: CallerBook,
        *,
        has_tokens: bool = True,
    ) -> None:
        """`has_tokens`: whether anybody may hand in over TCP."""
        self.follows_events = has_tokens
        self._metrics = metrics
        self._clock = clock
        self._callers = callers
        self._log = get_logger("gateway")
        self._of_tokens = _Lines()
        self._of_users = _Lines()

    def accepted(self, producer: str, count: int) -> None:
        """So many of its events were kept."""
        if producer.startswith(OF_TOKENS):
            name = producer.removeprefix(OF_TOKENS)
            self._metrics.token_accepted(name, count)
            self._callers.accepted(name, count, self._clock.wall_ms())

    def refused(self, producer: str, reason: str, count: int, told: str) -> None:
        """So many of its events were not kept; `told`: what it was answered."""
        if producer.startswith(OF_USERS):
            self._user_refused(producer, reason, count, told)
        if not producer.startswith(OF_TOKENS):
            return
        name = producer.removeprefix(OF_TOKENS)
        self._metrics.token_refused(name, reason, count)
        self._callers.refused(name, reason, count, told, self._clock.wall_ms())
        due = self._of_tokens.due(name, reason, count, self._clock.monotonic_s())
        if due:
            self._log.warning(
                _EVENTS.get(reason, "producer.refused"),
                producer=name,
                reason=reason,
                count=due,
                error=told,
                hint=_HINTS.get(reason, "its own log or dead letters have the event"),
            )

    def clock_wrong(self, producer: str, host: str, ahead_ms: int) -> None:
        """An event shows that its host's clock is ahead of ours, or (below 0) behind."""
        if not producer.startswith(OF_TOKENS):
            return
        name = producer.removeprefix(OF_TOKENS)
        self._metrics.token_clock_wrong(name)
        self._callers.clock_wrong(name, host, ahead_ms, self._clock.wall_ms())
        due = self._of_tokens.due(name, "clock", 1, self._clock.monotonic_s())
        if due:
            self._log.warning(
                "producer.clock_wrong",
                producer=name,
                host=host or None,
                count=due,
                off=format_duration(abs(ahead_ms) / 1000),
                direction="ahead" if ahead_ms > 0 else "behind",
                hint="delays are right all the same, occurredAt is not: "
                "`timedatectl set-ntp true` there, or on this gateway",
            )

    def _user_refused(self, producer: str, reason: str, count: int, told: str) -> None:
        """So many events of a user of this host were not kept, or requests to act refused."""
        self._metrics.user_refused(producer.removeprefix(OF_USERS), reason, count)
        self._callers.user_refused(producer, reason, count, told, self._clock.wall_ms())
        due = self._of_users.due(producer, reason, count, self._clock.monotonic_s())
        if due:
            self._log.warning(
                "user.refused",
                producer=producer,
                reason=reason,
                count=due,
                error=told,
                hint=_USER_HINTS.get(reason, "the program that handed it in was told the same"),
            )


class _Lines:
    """Which lines are due, and what was not told since the last of a kind."""

    def __init__(self) -> None:
        self._untold: dict[tuple[str, str], int] = {}  # events since the last line
        self._told_s: dict[tuple[str, str], float] = {}

    def due(self, name: str, reason: str, count: int, now_s: float) -> int:
        """How many there were since the last line, where one is due; else 0."""
        kind = (name, reason)
        if kind not in self._told_s and len(self._told_s) >= KINDS_MAX:
            return 0
        untold = self._untold.pop(kind, 0) + count
        if now_s - self._told_s.get(kind, float("-inf")) < TOLD_EVERY_S:
            self._untold[kind] = untold
            return 0
        self._told_s[kind] = now_s
        return untold
