"""Files of `new/` that are not to be looked at for a while, and why.

Pure but for the clock it is given. It must never keep a file waiting for ever:
each entry has its time, and whatever is not remembered the rescan finds.
"""

from __future__ import annotations

from typing import NamedTuple

from outboxd.clock import Clock
from outboxd.spool.files import FileIdentity, Look

WAITING_MAX = 100_000


class SpoolWaits(NamedTuple):
    """How long things wait, in seconds."""

    rescan_s: float = 30.0  # for what inotify misses
    grow_s: float = 2.0  # what does not parse may still be growing
    link_s: float = 10.0  # a second name may be a delivery in progress
    look_again_s: float = 0.1
    refused_min_s: float = 0.5  # while the intake refuses
    refused_max_s: float = 10.0
    share_s: float = 2.0  # while one owner has its share of the outbox, for that one alone
    trouble_s: float = 5.0  # after an error of the system


class _Waiting(NamedTuple):
    named_s: float  # when something by this name began to wait
    since_s: float  # when this very file did, unchanged
    until_s: float
    identity: FileIdentity | None
    reason: str


class WaitingRoom:
    """Who waits until when."""

    def __init__(self, clock: Clock, pace: SpoolWaits) -> None:
        self._clock = clock
        self._pace = pace
        self._names: dict[str, _Waiting] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(self, look: Look, wait_s: float, reason: str) -> bool:
        """Wait from now on; whether that is news."""
        now_s = self._clock.monotonic_s()
        before = self._names.get(look.name)
        if before is None and len(self._names) >= WAITING_MAX:
            return False  # the rescan will find it again
        since_s = before.since_s if before and before.identity == look.identity else now_s
        named_s = before.named_s if before else now_s
        self._names[look.name] = _Waiting(named_s, since_s, now_s + wait_s, look.identity, reason)
        return before is None or before.reason != reason

    def remove(self, name: str) -> None:
        """It waits no more."""
        self._names.pop(name, None)

    def resting(self) -> frozenset[str]:
        """Those whose time has not come."""
        now_s = self._clock.monotonic_s()
        return frozenset(name for name, each in self._names.items() if each.until_s > now_s)

    def due(self) -> list[str]:
        """Those whose time has come."""
        now_s = self._clock.monotonic_s()
        return [name for name, waiting in self._names.items() if waiting.until_s <= now_s]

    def next_s(self) -> float:
        """When the next one's time comes, on the monotonic clock."""
        return min((waiting.until_s for waiting in self._names.values()), default=1e18)

    def waits_since_s(self, look: Look) -> float:
        """For how long it has stood there unchanged, as far as was seen."""
        before = self._names.get(look.name)
        if before is None or before.identity != look.identity:
            return 0.0
        return self._clock.monotonic_s() - before.since_s

    def named_since_s(self, name: str) -> float:
        """For how long something by this name has waited, changed or not."""
        before = self._names.get(name)
        return 0.0 if before is None else self._clock.monotonic_s() - before.named_s

    def look_again_s(self, look: Look) -> float:
        """Soon at first, then less and less often."""
        return max(self._pace.look_again_s, self.waits_since_s(look) / 2)

    def is_young(self, look: Look) -> bool:
        """Whether it was written less than `grow_s` ago, by the wall clock or,
        where that clock jumped, since it was first seen so."""
        assert look.identity is not None
        age_s = self._clock.wall_ms() / 1000 - look.identity.changed_ns / 1e9
        return age_s < self._pace.grow_s and self.waits_since_s(look) < self._pace.grow_s
