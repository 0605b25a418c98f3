"""Whether a producer may say what it says: its token's limits, held against an event.

Pure: times come in as arguments. A refusal is 422 or 429 and never 401, 403 or
404, by which a sending agent would hold everything that it has.
"""

from __future__ import annotations

from collections.abc import Callable

from outboxd.event.komodor import Event
from outboxd.gateway.tokens import ProducerLimits
from outboxd.intake.producer import NotAllowed, Producer


def fill_in(event: Event, limits: ProducerLimits) -> None:
    """What the token adds where the event names none, before `[defaults]` do.

    An event without clusters would reach every cluster, so a token that is limited
    to some names them for it.
    """
    for field, allowed in (("clusters", limits.clusters), ("namespaces", limits.namespaces)):
        if allowed and not event.scope.get(field):
            event.scope = {**event.scope, field: list(allowed)}


def objection(event: Event, limits: ProducerLimits) -> tuple[str, str, str] | None:
    """Why the token does not allow this event: what is wrong, the field, what to do;
    None where it does. Call it after `fill_in`."""
    if limits.require_scope and not event.scope:
        hint = "name a cluster, a namespace or a service"
        return "the event has no scope, and this token requires one", "$.scope", hint
    for field, allowed in (("clusters", limits.clusters), ("namespaces", limits.namespaces)):
        for place, name in enumerate(event.scope.get(field, ()) if allowed else ()):
            if name not in allowed:
                return (
                    f"this token is not allowed to name {name[:80]!r} in {field}",
                    f"$.scope.{field}[{place}]",
                    f"it may name {', '.join(allowed)[:500]}",
                )
    return None


class TokenBucket:
    """A producer's rate: a bucket of one second's events, or of one.

    Never sleeps; the time is an argument.
    """

    def __init__(self, rate: float, now_s: float) -> None:
        self._rate = rate  # events a second, above 0
        self._size = max(1.0, rate)
        self._left = self._size
        self._at_s = now_s

    def take(self, count: int, now_s: float) -> float:
        """Take `count` events out of the bucket: 0.0 where it holds them, else the
        seconds after which it will, and nothing is taken.

        More than the bucket ever holds are let through when it is full, and are
        paid back afterwards, so that no batch is refused for ever.
        """
        self._left = min(self._size, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        needed = min(float(count), self._size)
        if self._left >= needed:
            self._left -= count
            return 0.0
        return (needed - self._left) / self._rate


class GatewayProducer(Producer):
    """A producer that is known by a token, a certificate or a signature."""

    __slots__ = ("_limits", "_monotonic_s", "_pace")

    is_agent = True

    def __init__(self, name: str, limits: ProducerLimits, monotonic_s: Callable[[], float]) -> None:
        super().__init__(f"token:{name}")
        self._limits = limits
        self._monotonic_s = monotonic_s
        self._pace = TokenBucket(limits.rate, monotonic_s()) if limits.rate else None

    def admit(self, event: Event) -> None:
        fill_in(event, self._limits)
        refused = objection(event, self._limits)
        if refused is not None:
            raise NotAllowed(*refused)

    def wait_s(self, count: int) -> float:
        return 0.0 if self._pace is None else self._pace.take(count, self._monotonic_s())
