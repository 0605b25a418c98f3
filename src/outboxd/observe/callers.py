"""Who came to a gateway, and which users of this host were refused: for `/v1/status`.

In memory, since the start, and bounded: by the names that are remembered, by the
hosts of each, by addresses. Pure: the time is an argument. Nothing of an event but
what its refusal was told, and no token, ever gets in here.
"""

from __future__ import annotations

from collections import OrderedDict

from outboxd.status import (
    Callers,
    ProducerSeen,
    RefusedEvents,
    RefusedUsers,
    StrangerSeen,
    UserRefused,
    WrongClock,
)

NAMES_MAX = 1_000  # remembered; whoever came longest ago gives way
NAMES_SHOWN = 100
HOSTS_MAX = 10  # of one name, whose clock is wrong
STRANGERS_MAX = 50
TOLD_MAX = 200  # characters
CLOCK_FORGOTTEN_MS = 3_600_000  # as long as the alert rule looks back

_Refusals = dict[str, RefusedEvents]  # by reason


class CallerBook:
    """Filled by the observer of producers and by the gatekeeper; read by the API."""

    def __init__(self) -> None:
        self._producers: OrderedDict[str, _Producer] = OrderedDict()  # the last to come last
        self._users: OrderedDict[str, _Refusals] = OrderedDict()
        self._strangers: OrderedDict[str, StrangerSeen] = OrderedDict()
        self._unauthenticated = 0

    def accepted(self, name: str, count: int, now: int) -> None:
        """So many of its events were kept."""
        producer = self._came(name)
        producer.accepted += count
        producer.accepted_at = now

    def refused(self, name: str, reason: str, count: int, told: str, now: int) -> None:
        """So many of its events were not kept; `told`: what it was answered."""
        _add(self._came(name).refused, reason, count, told, now)

    def user_refused(self, producer: str, reason: str, count: int, told: str, now: int) -> None:
        """So many events, or requests to act, of a user of this host were refused."""
        refused = self._users.pop(producer, None)
        if refused is None:
            refused = {}
            if len(self._users) >= NAMES_MAX:
                self._users.popitem(last=False)
        self._users[producer] = refused
        _add(refused, reason, count, told, now)

    def clock_wrong(self, name: str, host: str, ahead_ms: int, now: int) -> None:
        """An event shows how far the clock of its host is ahead."""
        clocks = self._came(name).clocks
        clocks.pop(host, None)
        if len(clocks) >= HOSTS_MAX:
            clocks.popitem(last=False)
        clocks[host] = WrongClock(host, ahead_ms, now)

    def stranger(self, peer: str, reason: str, now: int) -> None:
        """A request came of which nobody knows who sent it."""
        self._unauthenticated += 1
        before = self._strangers.pop(peer, None)
        if len(self._strangers) >= STRANGERS_MAX:
            self._strangers.popitem(last=False)
        count = before.requests + 1 if before else 1
        self._strangers[peer] = StrangerSeen(peer, reason, count, now)

    def seen(self, now: int) -> Callers:
        """All of it, as it stands."""
        names = list(reversed(self._producers))
        return Callers(
            tuple(self._producers[name].seen(name, now) for name in names[:NAMES_SHOWN]),
            max(0, len(names) - NAMES_SHOWN),
            tuple(reversed(self._strangers.values())),
            self._unauthenticated,
        )

    def refused_users(self) -> RefusedUsers:
        """Who of this host was refused, and why."""
        producers = list(reversed(self._users))
        return RefusedUsers(
            tuple(
                UserRefused(each, _latest(self._users[each])) for each in producers[:NAMES_SHOWN]
            ),
            max(0, len(producers) - NAMES_SHOWN),
        )

    def _came(self, name: str) -> _Producer:
        producer = self._producers.get(name)
        if producer is None:
            if len(self._producers) >= NAMES_MAX:
                self._producers.popitem(last=False)
            producer = self._producers[name] = _Producer()
        else:
            self._producers.move_to_end(name)
        return producer


class _Producer:
    """What became of one name's events."""

    __slots__ = ("accepted", "accepted_at", "clocks", "refused")

    def __init__(self) -> None:
        self.accepted = 0
        self.accepted_at: int | None = None
        self.refused: _Refusals = {}
        self.clocks: OrderedDict[str, WrongClock] = OrderedDict()

    def seen(self, name: str, now: int) -> ProducerSeen:
        clocks = (c for c in reversed(self.clocks.values()) if now - c.at < CLOCK_FORGOTTEN_MS)
        refused = _latest(self.refused)
        return ProducerSeen(name, self.accepted, self.accepted_at, refused, tuple(clocks))


def _add(refused: _Refusals, reason: str, count: int, told: str, now: int) -> None:
    before = refused.get(reason)
    total = count + (before.events if before else 0)
    refused[reason] = RefusedEvents(reason, total, now, told[:TOLD_MAX])


def _latest(refused: _Refusals) -> tuple[RefusedEvents, ...]:
    return tuple(sorted(refused.values(), key=lambda one: -one.at))
