"""Counts over very many entries, kept up to date a block at a time.

Pure: it is given rows and asked for counts, and never opens, waits or reads a
clock. A million entries take some 16 MB: each has a row of three numbers, and
what they have in common (type, severity, state, scope) stands once as a group.
So any filter is answered from memory, and a change costs one block.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from outboxd.outbox.model import EntryFilter

BLOCK_ROWS = 1024
GROUPS_MAX = 100_000  # more kinds of entries than this are counted as 'other'
VALUES_MAX = 200  # of one filter, in an answer
_YIELD_EVERY = 24  # blocks, before others get their turn on the loop

SEVERITIES = ("information", "warning", "error")
DIMENSIONS = ("type", "severity", "state", "held", "cluster", "namespace", "service")

# seq, received_at, event_type, severity, state, held, scope
Row = tuple[int, int, str, str, str, int, str]
# For each block, the places (seq modulo BLOCK_ROWS) of the entries that match a text.
TextMatches = Mapping[int, Collection[int]]
_Key = tuple[str, str, str, int, str]
_Values = tuple[tuple[str, ...], ...]


class Facets(NamedTuple):
    """What each value of each filter would leave, were the others as they are."""

    matched: int
    total: int
    limited: bool  # there are more kinds of entries than are told apart
    values: dict[str, list[tuple[str, int]]]  # by dimension, most frequent first
    distinct: dict[str, int]

    def to_json(self) -> dict[str, object]:
        return {
            "matched": self.matched,
            "total": self.total,
            "limited": self.limited,
            "facets": {
                name: {
                    "distinct": self.distinct[name],
                    "values": [{"value": value, "count": count} for value, count in values],
                }
                for name, values in self.values.items()
            },
        }


class Histogram(NamedTuple):
    """Events by time and severity; bucket i begins at `since + i * step_ms`."""

    since: int
    step_ms: int
    counts: dict[str, list[int]]

    def to_json(self) -> dict[str, object]:
        buckets = len(self.counts[SEVERITIES[0]])
        return {
            "since": self.since,
            "until": self.since + buckets * self.step_ms,
            "stepMs": self.step_ms,
            "counts": self.counts,
        }


class _Block:
    """Some neighbouring entries: a column a field."""

    __slots__ = ("counts", "first_at", "groups", "in_order", "last_at", "places", "times")

    def __init__(self, places: Sequence[int], groups: Sequence[int], times: Sequence[int]) -> None:
        self.places = array("H", places)
        self.groups = array("I", groups)
        self.times = array("q", times)
        self.counts = Counter(groups)
        self.first_at = min(times)
        self.last_at = max(times)
        # The clock may have been set back in the middle of a block.
        self.in_order = all(a <= b for a, b in pairwise(times))


class Tally:
    """Groups of like entries, and which entry is of which group."""

    def __init__(self, groups_max: int = GROUPS_MAX) -> None:
        self._groups_max = groups_max
        self._blocks: dict[int, _Block] = {}
        self._clear_groups()

    def __len__(self) -> int:
        return self._totals.total()

    @property
    def blocks(self) -> Collection[int]:
        """The numbers of the blocks that hold entries."""
        return self._blocks.keys()

    @property
    def limited(self) -> bool:
        """Whether there were more groups than are told apart."""
        return self._limited

    @property
    def span(self) -> tuple[int, int] | None:
        """When the first and the last of the entries were received."""
        if not self._blocks:
            return None
        blocks = self._blocks.values()
        return min(b.first_at for b in blocks), max(b.last_at for b in blocks)

    def put(self, number: int, rows: Sequence[Row]) -> None:
        """Replace a block by what it holds now; without rows it is forgotten."""
        old = self._blocks.pop(number, None)
        if old is not None:
            self._totals.subtract(old.counts)
        if not rows:
            return
        ids, base = self._ids, number * BLOCK_ROWS
        groups = [
            group if (group := ids.get(row[2:])) is not None else self._learn(row[2:])
            for row in rows
        ]
        block = _Block([row[0] - base for row in rows], groups, [row[1] for row in rows])
        self._blocks[number] = block
        self._totals.update(block.counts)

    def forget_unused(self) -> bool:
        """Start afresh where most groups stand empty; True: every block must be put again."""
        used = sum(1 for count in self._totals.values() if count > 0)
        if not self._limited or used > self._groups_max // 2:
            return False
        self._blocks.clear()
        self._clear_groups()
        return True

    async def facets(self, where: EntryFilter, matches: TextMatches | None = None) -> Facets:
        """Count every value of every filter; a filter's own choice does not narrow itself."""
        totals = await self._count(where.since, where.until, matches)
        counted: dict[str, Counter[str]] = {name: Counter() for name in DIMENSIONS}
        wanted = _wanted(where)
        matched = 0
        for group, count in totals.items():
            if count <= 0:
                continue
            values = self._values[group]
            misses = [
                index
                for index, choice in enumerate(wanted)
                if choice and choice.isdisjoint(values[index])
            ]
            if not misses:
                matched += count
                for name, own in zip(DIMENSIONS, values, strict=True):
                    for value in own:
                        counted[name][value] += count
            elif len(misses) == 1:
                for value in values[misses[0]]:
                    counted[DIMENSIONS[misses[0]]][value] += count
        return Facets(
            matched=matched,
            total=len(self),
            limited=self._limited,
            values={
                name: _most_frequent(counter, wanted[index])
                for index, (name, counter) in enumerate(counted.items())
            },
            distinct={name: len(counter) for name, counter in counted.items()},
        )

    async def histogram(
        self,
        where: EntryFilter,
        since: int,
        until: int,
        step_ms: int,
        matches: TextMatches | None = None,
    ) -> Histogram:
        """Count by time and severity from `since`, which the first bucket begins at."""
        buckets = max(1, -(-(until - since) // step_ms))
        severity_of = self._matching_groups(where)
        counts = [[0] * buckets for _ in SEVERITIES]

        def add(at: int, groups: Iterable[tuple[int, int]]) -> None:
            bucket = (at - since) // step_ms
            for group, count in groups:
                severity = severity_of.get(group)
                if severity is not None:
                    counts[severity][bucket] += count

        for index, (number, block) in enumerate(list(self._blocks.items())):
            if index % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            if block.last_at < since or block.first_at >= until:
                continue
            if matches is not None:
                chosen = matches.get(number, ())
                for at, group in _rows_at(block, chosen):
                    if since <= at < until:
                        add(at, ((group, 1),))
                continue
            _add_block(block, since, until, step_ms, add)
        return Histogram(since, step_ms, dict(zip(SEVERITIES, counts, strict=True)))

    def _clear_groups(self) -> None:
        self._ids: dict[_Key, int] = {}
        self._values: list[_Values] = []
        self._totals: Counter[int] = Counter()
        self._limited = False

    def _learn(self, key: _Key) -> int:
        """The number of a group not met before."""
        if len(self._ids) >= self._groups_max:
            # Severity and state stay exact; type and scope are too many to tell.
            self._limited = True
            key = ("", key[1], key[2], key[3], "")
            if key in self._ids:
                return self._ids[key]
        group = self._ids[key] = len(self._values)
        self._values.append(_values(key))
        return group

    async def _count(
        self, since: int | None, until: int | None, matches: TextMatches | None
    ) -> Mapping[int, int]:
        """How many entries of each group there are between two moments."""
        if since is None and until is None and matches is None:
            return dict(self._totals)
        low = since if since is not None else -(2**62)
        high = until if until is not None else 2**62
        totals: Counter[int] = Counter()
        for index, (number, block) in enumerate(list(self._blocks.items())):
            if index % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            if block.last_at < low or block.first_at >= high:
                continue
            if matches is not None:
                rows = _rows_at(block, matches.get(number, ()))
                totals.update(group for at, group in rows if low <= at < high)
            elif block.first_at >= low and block.last_at < high:
                totals.update(block.counts)
            elif block.in_order:
                start, end = bisect_left(block.times, low), bisect_left(block.times, high)
                totals.update(block.groups[start:end])
            else:
                rows_all = zip(block.times, block.groups, strict=True)
                totals.update(group for at, group in rows_all if low <= at < high)
        return totals

    def _matching_groups(self, where: EntryFilter) -> dict[int, int]:
        """The groups that the filter leaves, each with its severity's place."""
        wanted = _wanted(where)
        return {
            group: SEVERITIES.index(values[1][0])
            for group, values in enumerate(self._values)
            if not any(
                choice and choice.isdisjoint(own)
                for choice, own in zip(wanted, values, strict=True)
            )
        }


def _add_block(
    block: _Block,
    since: int,
    until: int,
    step_ms: int,
    add: Callable[[int, Iterable[tuple[int, int]]], None],
) -> None:
    """Give a block's entries to `add` in as few calls as its times allow."""
    first, last = block.first_at, block.last_at
    if first >= since and last < until and (first - since) // step_ms == (last - since) // step_ms:
        add(first, block.counts.items())
        return
    if not block.in_order:
        for at, group in zip(block.times, block.groups, strict=True):
            if since <= at < until:
                add(at, ((group, 1),))
        return
    start = bisect_left(block.times, since)
    end = bisect_left(block.times, until)
    while start < end:
        at = block.times[start]
        edge = at - (at - since) % step_ms + step_ms
        stop = bisect_left(block.times, edge, start, end)
        add(at, Counter(block.groups[start:stop]).items())
        start = stop


def _rows_at(block: _Block, places: Collection[int]) -> Iterable[tuple[int, int]]:
    """Time and group of the entries at these places."""
    if not places:
        return ()
    chosen = set(places)
    rows = zip(block.places, block.times, block.groups, strict=True)
    return ((at, group) for place, at, group in rows if place in chosen)


def _values(key: _Key) -> _Values:
    """A group's values in the order of DIMENSIONS; none where it names none."""
    event_type, severity, state, held, scope = key
    named = json.loads(scope) if scope else {}
    return (
        (event_type,) if event_type else (),
        (severity,),
        (state,),
        ("true" if held else "false",),
        *(
            tuple(dict.fromkeys(named.get(field, ())))
            for field in ("clusters", "namespaces", "servicesNames")
        ),
    )


def _wanted(where: EntryFilter) -> tuple[frozenset[str], ...]:
    """The filter's choices in the order of DIMENSIONS."""
    held = {None: frozenset[str](), True: frozenset({"true"}), False: frozenset({"false"})}
    return (
        frozenset(where.event_types),
        frozenset(where.severities),
        frozenset(where.states),
        held[where.held],
        frozenset(where.clusters),
        frozenset(where.namespaces),
        frozenset(where.services),
    )


def _most_frequent(counter: Counter[str], chosen: frozenset[str]) -> list[tuple[str, int]]:
    """The values to show: the most frequent, and whatever is chosen, be it at 0."""
    shown = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:VALUES_MAX]
    missing = sorted(chosen - {value for value, _ in shown})
    return shown + [(value, counter.get(value, 0)) for value in missing]
