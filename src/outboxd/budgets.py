"""Budgets: how much of anything one holder, and all together, may have at a time.

A holder is whoever is asked to share: a user of this host (the uid of a
socket's peer, of a file's owner), or the address of a TCP peer. What is counted
is the caller's matter: connections, bytes in memory, listings under way, files.
Pure: counts what it is told, decides, and never waits, reads a clock or logs.
The numbers stand here as well, so that they can be read side by side.
"""

from __future__ import annotations

from math import inf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

KIB, MIB = 1024, 1024 * 1024

# Descriptors that no listener may use: the outbox and its log, the spool, logs,
# the connections to the destination, and some to look into it all with.
DESCRIPTORS_KEPT_BACK = 256


class Budget:
    """`total` units, of which no single holder has more than `share`."""

    __slots__ = ("_held", "share", "total", "used")

    def __init__(self, total: int, share: int | None = None) -> None:
        self.total = total
        self.share = total if share is None else min(share, total)
        self.used = 0
        self._held: dict[Hashable, int] = {}

    def take(self, holder: Hashable, count: int = 1) -> bool:
        """Count `count` units for the holder, or change nothing and answer False."""
        held = self._held.get(holder, 0) + count
        if held > self.share or self.used + count > self.total:
            return False
        self._held[holder] = held
        self.used += count
        return True

    def give(self, holder: Hashable, count: int = 1) -> None:
        """Give back what was taken."""
        left = self._held.get(holder, 0) - count
        assert left >= 0, f"{holder!r} gives back {-left} more than it took"
        self.used -= count
        if left:
            self._held[holder] = left
        else:
            self._held.pop(holder, None)

    def held(self, holder: Hashable) -> int:
        """How much the holder has."""
        return self._held.get(holder, 0)

    def displaced_by(self, newcomer: Hashable) -> Hashable | None:
        """Whose unit may be taken away so that `newcomer` gets one.

        Its own, where it has its share already; else that of whoever has most,
        if that is at least two more than the newcomer has (so that two equals
        do not take turns in throwing each other out). None: the newcomer is
        refused.
        """
        own = self._held.get(newcomer, 0)
        if own >= self.share:
            return newcomer
        largest = max(self._held, key=self._held.__getitem__, default=None)
        if largest is None:
            return None
        if largest == newcomer or self._held[largest] >= own + 2:
            return largest
        return None


class Patience:
    """The time that a peer has to move bytes, paid for by those that it moves.

    `stall_s` seconds of standing still use it up; so does a drip below
    `bytes_per_s`. It never grows beyond `stall_s`, so nothing can be saved.
    """

    __slots__ = ("_bytes_per_s", "_stall_s", "left_s")

    def __init__(self, stall_s: float, bytes_per_s: float) -> None:
        self._stall_s = stall_s
        self._bytes_per_s = bytes_per_s
        self.left_s = stall_s

    def moved(self, waited_s: float, count: int) -> bool:
        """Count a wait and the bytes that ended it; False once the patience is at an end."""
        self.left_s = min(self._stall_s, self.left_s - waited_s + count / self._bytes_per_s)
        return self.left_s > 0


class Credit:
    """What each holder may spend: `saved_max` at once, and `per_s` more each second.

    Whoever owes nothing is not remembered, so that it holds no more than those that
    have spent lately.
    """

    __slots__ = ("_debts", "per_s", "saved_max")

    REMEMBERED_MAX = 1024

    def __init__(self, saved_max: int, per_s: float) -> None:
        self.saved_max = saved_max
        self.per_s = per_s
        self._debts: dict[Hashable, tuple[float, float]] = {}  # how much, and when

    def has(self, holder: Hashable, now_s: float) -> bool:
        """Whether a whole unit is left."""
        return self._owed(holder, now_s) + 1 <= self.saved_max

    def spend(self, holder: Hashable, now_s: float) -> None:
        """One unit; never more than there is to spend, however long it goes on."""
        self._debts[holder] = (min(self.saved_max, self._owed(holder, now_s) + 1), now_s)
        if len(self._debts) > self.REMEMBERED_MAX:
            self._debts = {h: d for h, d in self._debts.items() if self._owed(h, now_s) > 0}

    def _owed(self, holder: Hashable, now_s: float) -> float:
        found = self._debts.get(holder)
        return 0.0 if found is None else max(0.0, found[0] - (now_s - found[1]) * self.per_s)


class ListenerLimits:
    """What one listener may use, and one peer of it. `fit` keeps it within the process's means."""

    __slots__ = ("bytes", "connections")

    def __init__(
        self,
        connections: int,
        connections_per_peer: int,
        bytes: int = 48 * MIB,
        bytes_per_peer: int = 32 * MIB,
    ) -> None:
        self.connections = Budget(connections, connections_per_peer)
        # Of requests that are not answered yet and answers that are not read
        # yet, beyond `serve.connection.FREE_BYTES` for each connection.
        self.bytes = Budget(bytes, bytes_per_peer)

    def fit(self, descriptors: float, part: float = 1.0) -> ListenerLimits:
        """Stay within a part of the descriptors that are not kept back."""
        free = descriptors - min(DESCRIPTORS_KEPT_BACK, descriptors / 2)
        if free < inf:
            wanted = self.connections
            total = max(4, min(wanted.total, int(free * part)))
            share = max(2, min(wanted.share, total * wanted.share // wanted.total))
            self.connections = Budget(total, share)
        return self


def socket_limits() -> ListenerLimits:
    """The agent's Unix socket; a peer is a user. Half of it is left for the others."""
    return ListenerLimits(connections=1024, connections_per_peer=512)


def abandoned_connections() -> Credit:
    """Connections to the socket that a user may open and leave before an answer.

    A program that is ended in the middle leaves one, a look whether somebody listens
    another, a script that does not wait for its receipt one each time. Beyond it the
    user's connections are refused before they cost anything: else the queue of those
    that wait to be accepted is always full, for everybody. Whoever waits for an answer
    is held back by that.
    """
    return Credit(saved_max=128, per_s=50.0)


def page_limits() -> ListenerLimits:
    """The page's port; a peer is an address, and on loopback all users share one."""
    return ListenerLimits(connections=128, connections_per_peer=96)


def gateway_limits(connections: int, connections_per_peer: int) -> ListenerLimits:
    """The TCP listener; a peer is an address, behind which there may be many hosts."""
    return ListenerLimits(
        connections, connections_per_peer, bytes=96 * MIB, bytes_per_peer=24 * MIB
    )


def sandbox_limits() -> ListenerLimits:
    """The sandbox serves one agent at a time, as fast as it can."""
    return ListenerLimits(4096, 4096, bytes=256 * MIB, bytes_per_peer=256 * MIB)
