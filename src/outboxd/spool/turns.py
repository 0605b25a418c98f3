"""Whose file is taken next: the owners take turns, whatever number of files each has.

Pure. A user with a hundred thousand files has one in each round, as everybody
else has; among one owner's files the order is that of their names within a
scan. It never holds more than so many names: the rest a later scan finds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

NAMES_MAX = 65_536  # of all owners together
OWNER_NAMES_MAX = 16_384


class OwnerTurns:
    """Names by the uid of their owner, each at most once."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[str]] = {}
        self._names: set[str] = set()
        self.overflowed = False  # there are more in `new/` than it holds

    def __len__(self) -> int:
        return len(self._names)

    def add(self, found: Mapping[int, Iterable[str]]) -> None:
        """Put them behind their owners' others."""
        for owner, names in found.items():
            queue = self._queues.setdefault(owner, deque())
            for name in names:
                if name in self._names:
                    continue
                if len(queue) >= OWNER_NAMES_MAX or len(self._names) >= NAMES_MAX:
                    self.overflowed = True
                    break
                queue.append(name)
                self._names.add(name)
            if not queue:
                del self._queues[owner]

    def take(self, count: int) -> list[tuple[int, str]]:
        """At most `count` names with their owners, one of each owner in turn."""
        taken: list[tuple[int, str]] = []
        while self._queues and len(taken) < count:
            owner, queue = next(iter(self._queues.items()))
            taken.append((owner, queue.popleft()))
            # To the end of the round.
            del self._queues[owner]
            if queue:
                self._queues[owner] = queue
        self._names.difference_update(name for _, name in taken)
        return taken

    def put_back(self, taken: Iterable[tuple[int, str]]) -> None:
        """Those that were not looked at after all; before their owners' others."""
        for owner, name in reversed(list(taken)):
            if name not in self._names:
                self._queues.setdefault(owner, deque()).appendleft(name)
                self._names.add(name)

    def clear(self) -> None:
        """A scan will find them again."""
        self._queues.clear()
        self._names.clear()
        self.overflowed = False


def find(by_owner: dict[int, list[str]], owner: int, name: str) -> None:
    """Add a name that a scan has found. Of each owner's no more are held than twice what
    `share` leaves, whatever number of files there is, and however long their names are."""
    names = by_owner.setdefault(owner, [])
    names.append(name)
    if len(names) >= 2 * OWNER_NAMES_MAX:
        names.sort()
        del names[OWNER_NAMES_MAX:]


def share(by_owner: dict[int, list[str]]) -> dict[int, list[str]]:
    """Of what a scan found, as much as `OwnerTurns` holds: the first names of each owner."""
    shared = {owner: sorted(names)[:OWNER_NAMES_MAX] for owner, names in by_owner.items()}
    while sum(map(len, shared.values())) > NAMES_MAX:
        largest = max(shared, key=lambda owner: len(shared[owner]))
        shared[largest] = shared[largest][: len(shared[largest]) // 2]
    return shared
