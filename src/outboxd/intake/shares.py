"""How much of the backlog one producer may have: a pure decision.

While there is plenty of room nobody is asked to share. Once the outbox is half
full, no producer may have more than its part of half of it, so that one user of a
host cannot keep the others' events out. The other half stays for whoever is below
its part, and for the operators: root and the agent's own user, who could drop
everything anyway.
"""

from __future__ import annotations

from collections.abc import Collection

# Tokens and the like are an operator's to give out: one alone need not share.
_USER = "uid:"


class Shares:
    """Decides for each producer; `operators` are the names that need not share."""

    def __init__(self, operators: Collection[str]) -> None:
        self._operators = frozenset(operators)

    def room(
        self, producer: str, own: int, waiting: Collection[str], pending: int, events_max: int
    ) -> int | None:
        """How many more events of a producer may be kept; None where it has no limit
        of its own. `own` of it and `pending` of all are there, or on their way;
        `waiting` are the producers of whom anything is."""
        if not producer or producer in self._operators:
            return None
        sharing = {name for name in waiting if name and name not in self._operators}
        sharing.add(producer)
        if len(sharing) == 1 and not producer.startswith(_USER):
            return None
        share = max(1, events_max // 2 // len(sharing))
        until_half_full = events_max // 2 - pending
        return max(0, until_half_full, share - own)
