"""Who is connected to a listener, and which connection gives way to a new one.

A full listener still takes newcomers: whoever does nothing makes room for them, so
that nobody is kept out by connections that were opened and left. It never chooses
one with a request under way, unless its peer leaves it standing; it only decides,
and ends none itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from outboxd.budgets import ListenerLimits

if TYPE_CHECKING:
    from outboxd.serve.connection import PeerConnection

# One that was opened so lately gives way to no other of its own peer: of a flood the
# newcomers are refused, which is cheaper. A head has so long to come before its
# connection counts as one that does nothing.
_SETTLED_S = 1.0
_LOOKS_MAX = 16  # at those that wait longest; a head may just be coming on the first ones


class Connections:
    """All of a listener's connections, each with who answers for it (`holder`)."""

    def __init__(self, limits: ListenerLimits) -> None:
        self._limits = limits
        self._waiting = _Waiting()  # those that have no request in hand
        self._holders: dict[Hashable, _Holding] = {}

    def __bool__(self) -> bool:
        return bool(self._holders)

    def __iter__(self) -> Iterator[PeerConnection]:
        """All that there are now; they may end meanwhile."""
        everybody = [one for holding in self._holders.values() for one in holding.all]
        return iter(everybody)

    def add(self, connection: PeerConnection) -> None:
        """It came, and has its place in the budget."""
        self._holders.setdefault(connection.holder, _Holding()).all[connection] = None
        self.waits(connection)

    def discard(self, connection: PeerConnection) -> None:
        """It ended: its place is free. A second time changes nothing."""
        holding = self._holders.get(connection.holder)
        if holding is None or connection not in holding.all:
            return
        self.works(connection)
        del holding.all[connection]
        if not holding.all:
            del self._holders[connection.holder]
        self._limits.connections.give(connection.holder)

    def waits(self, connection: PeerConnection) -> None:
        """It has no request in hand: the last of those that may give way."""
        self._waiting.add(connection)
        self._holders[connection.holder].waiting.add(connection)

    def works(self, connection: PeerConnection) -> None:
        """A request of it has come."""
        self._waiting.discard(connection)
        self._holders[connection.holder].waiting.discard(connection)

    def giving_way_to(self, newcomer: Hashable) -> PeerConnection | None:
        """Whose place a newcomer gets that the budget has none for; None: it is refused.

        Of a holder that has its share already, its own. Else whoever has waited longest
        without saying who it is; then one of the holder that has most, so that nobody
        lives at others' cost; then whoever has waited longest. Where all are at work:
        one whose peer drags, of somebody unknown or of the holder that has most.
        """
        budget = self._limits.connections
        if budget.held(newcomer) >= budget.share:
            return self._holders[newcomer].waiting.longest(_SETTLED_S)
        stranger = next(iter(self._waiting.strangers), None)
        if stranger is not None:
            return stranger
        largest = self._holders.get(budget.displaced_by(newcomer))
        unfair = None if largest is None else largest.waiting.longest()
        return unfair or self._waiting.longest() or self._dragging(largest)

    def _dragging(self, largest: _Holding | None) -> PeerConnection | None:
        strangers = (one for one in self if one.is_stranger)
        known = () if largest is None else largest.all
        return next((one for all in (strangers, known) for one in all if one.is_dragging), None)


class _Waiting:
    """Connections without a request in hand, those that have waited longest first."""

    __slots__ = ("known", "strangers")

    def __init__(self) -> None:
        self.strangers: dict[PeerConnection, None] = {}
        self.known: dict[PeerConnection, None] = {}

    def add(self, connection: PeerConnection) -> None:
        (self.strangers if connection.is_stranger else self.known)[connection] = None

    def discard(self, connection: PeerConnection) -> None:
        if self.known.pop(connection, self) is self:
            self.strangers.pop(connection, None)

    def longest(self, at_least_s: float = 0.0) -> PeerConnection | None:
        """Who has waited longest, and so long; strangers first."""
        for waiting in (self.strangers, self.known):
            for one, _ in zip(waiting, range(_LOOKS_MAX), strict=False):
                if one.has_waited(at_least_s, _SETTLED_S):
                    return one
        return None


class _Holding:
    """What one holder has."""

    __slots__ = ("all", "waiting")

    def __init__(self) -> None:
        self.all: dict[PeerConnection, None] = {}
        self.waiting = _Waiting()
