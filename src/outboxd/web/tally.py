"""Counts over very many entries, kept up to date a block at a time.

It is given rows and asked for counts, and opens nothing. A long answer leaves
the loop to others every few milliseconds. A million entries take some 16 MB:
each has a row of three numbers, and what they have in common (type, severity,
state, scope …) stands once as a group. So any filter is answered from memory,
and a change costs one block.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from outboxd.outbox.model import UNLISTED, EntryFilter, IndexRow
from outboxd.web.pace import Pace, Slices

BLOCK_ROWS = 256  # an entry that changes costs a look at its block
# Kinds of entries are told apart up to so many bytes; more are counted as 'other'.
GROUPS_BYTES_MAX = 32 * 1024 * 1024
VALUES_MAX = 200  # of one filter, in an answer
VALUE_CHARACTERS_MAX = 1000  # of one value; longer ones cannot be filters
# What Python takes for a group, for a value of one, and for a value not met before.
_GROUP_BYTES, _NAME_BYTES, _TEXT_BYTES = 700, 8, 150

SEVERITIES = ("information", "warning", "error")
DIMENSIONS = (
    *("type", "severity", "state", "held", "cluster", "namespace", "service"),
    *("reason", "status", "source", "producer"),
)

# For each block, a bit for each place (seq modulo BLOCK_ROWS) of an entry that matches a text.
TextMatches = Mapping[int, int]
_Key = tuple[Any, ...]  # an IndexRow from its event_type on
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


class TimeHistogram(NamedTuple):
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

    __slots__ = ("first_at", "groups", "in_order", "last_at", "places", "times")

    def __init__(self, places: Sequence[int], groups: Sequence[int], times: Sequence[int]) -> None:
        self.places = array("H", places)
        self.groups = array("I", groups)
        self.times = array("q", times)
        self.first_at = min(times)
        self.last_at = max(times)
        # The clock may have been set back in the middle of a block.
        self.in_order = all(a <= b for a, b in pairwise(times))


class Tally:
    """Groups of like entries, and which entry is of which group."""

    def __init__(self, pace: Pace | None = None, groups_bytes_max: int = GROUPS_BYTES_MAX) -> None:
        self._pace = pace or Pace()
        self._groups_bytes_max = groups_bytes_max
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

    def put(self, number: int, rows: Sequence[IndexRow]) -> None:
        """Replace a block by what it holds now; without rows it is forgotten."""
        old = self._blocks.pop(number, None)
        if old is not None:
            self._totals.subtract(old.groups)
        if not rows:
            return
        base = number * BLOCK_ROWS
        groups = [self._group(row) for row in rows]
        block = _Block([row.seq - base for row in rows], groups, [row.received_at for row in rows])
        self._blocks[number] = block
        self._totals.update(block.groups)

    def forget_unused(self) -> bool:
        """Start afresh where most groups stand empty; True: every block must be put again."""
        used = sum(1 for count in self._totals.values() if count > 0)
        if not self._limited or used > len(self._values) // 2:
            return False
        self._blocks.clear()
        self._clear_groups()
        return True

    async def facets(self, where: EntryFilter, matches: TextMatches | None = None) -> Facets:
        """Count every value of every filter; a filter's own choice does not narrow itself."""
        slices = Slices(self._pace)
        all_values = self._values
        totals = await self._count(where.since, where.until, matches, slices)
        counted: dict[str, Counter[str]] = {name: Counter() for name in DIMENSIONS}
        wanted = _wanted(where)
        active = [(index, choice) for index, choice in enumerate(wanted) if choice.is_made]
        matched = 0
        for group, count in totals.items():
            await slices.rest()
            if count <= 0:
                continue
            values = all_values[group]
            misses = [index for index, choice in active if not choice.fits(values[index])]
            if not misses:
                matched += count
                for name, own in zip(DIMENSIONS, values, strict=True):
                    for value in own:
                        counted[name][value] += count
            elif len(misses) == 1:
                for value in values[misses[0]]:
                    counted[DIMENSIONS[misses[0]]][value] += count
        shown = {}
        for index, (name, counter) in enumerate(counted.items()):
            await slices.rest()
            shown[name] = _most_frequent(counter, wanted[index])
        return Facets(
            matched=matched,
            total=len(self),
            limited=self._limited,
            values=shown,
            distinct={name: len(counter) for name, counter in counted.items()},
        )

    async def histogram(
        self,
        where: EntryFilter,
        since: int,
        until: int,
        step_ms: int,
        matches: TextMatches | None = None,
    ) -> TimeHistogram:
        """Count by time and severity from `since`, which the first bucket begins at."""
        buckets = max(1, -(-(until - since) // step_ms))
        slices = Slices(self._pace)
        severity_of = _Severities(_wanted(where), self._values)
        counts = [[0] * buckets for _ in SEVERITIES]

        def add(at: int, groups: Iterable[tuple[int, int]]) -> None:
            bucket = (at - since) // step_ms
            for group, count in groups:
                severity = severity_of[group]
                if severity >= 0:
                    counts[severity][bucket] += count

        for number, block in list(self._blocks.items()):
            await slices.rest()
            if block.last_at < since or block.first_at >= until:
                continue
            if matches is not None:
                chosen = matches.get(number, 0)
                for at, group in _rows_at(block, chosen):
                    if since <= at < until:
                        add(at, ((group, 1),))
                continue
            _add_block(block, since, until, step_ms, add)
        return TimeHistogram(since, step_ms, dict(zip(SEVERITIES, counts, strict=True)))

    def _clear_groups(self) -> None:
        self._ids: dict[_Key, int] = {}
        self._texts: dict[str, str] = {}  # each value once
        self._bytes = 0
        self._values: list[_Values] = []
        self._totals: Counter[int] = Counter()
        self._limited = False

    def _group(self, row: IndexRow) -> int:
        """The number of the group that a row belongs to."""
        key = row[2:]
        group = self._ids.get(key)
        return self._learn(key) if group is None else group

    def _learn(self, key: _Key) -> int:
        """The number of a group not met before."""
        if key[4] == UNLISTED or self._bytes >= self._groups_bytes_max:
            # Severity and state stay exact; the rest is too much to tell.
            self._limited = True
            self._pace.limit_met("names")
            is_full = self._bytes >= self._groups_bytes_max
            key = ("" if is_full else key[0], *key[1:4], "", *key[5:])
            if key in self._ids:
                return self._ids[key]
        values = tuple(
            tuple(self._texts.setdefault(value, value) for value in own) for own in _values(key)
        )
        names = sum(map(len, values))
        self._bytes += _GROUP_BYTES + len(key[4]) + names * _NAME_BYTES
        self._bytes += sum(_TEXT_BYTES + len(v) for own in values[4:7] for v in own)
        group = self._ids[key] = len(self._values)
        self._values.append(values)
        return group

    async def _count(
        self, since: int | None, until: int | None, matches: TextMatches | None, slices: Slices
    ) -> Mapping[int, int]:
        """How many entries of each group there are between two moments."""
        if since is None and until is None and matches is None:
            return dict(self._totals)
        low = since if since is not None else -(2**62)
        high = until if until is not None else 2**62
        totals: Counter[int] = Counter()
        for number, block in list(self._blocks.items()):
            await slices.rest()
            if block.last_at < low or block.first_at >= high:
                continue
            if matches is not None:
                rows = _rows_at(block, matches.get(number, 0))
                totals.update(group for at, group in rows if low <= at < high)
            elif block.first_at >= low and block.last_at < high:
                totals.update(block.groups)
            elif block.in_order:
                start, end = bisect_left(block.times, low), bisect_left(block.times, high)
                totals.update(block.groups[start:end])
            else:
                rows_all = zip(block.times, block.groups, strict=True)
                totals.update(group for at, group in rows_all if low <= at < high)
        return totals


class _Choice(NamedTuple):
    """What a filter wants of one dimension."""

    wanted: frozenset[str]
    unwanted: frozenset[str]

    @property
    def is_made(self) -> bool:
        return bool(self.wanted or self.unwanted)

    def fits(self, values: tuple[str, ...]) -> bool:
        return not (
            (self.wanted and self.wanted.isdisjoint(values))
            or (self.unwanted and not self.unwanted.isdisjoint(values))
        )


class _Severities(dict[int, int]):
    """The severity's place of each group that a filter leaves, -1 for the others; each
    group is looked at when it is asked for first."""

    def __init__(self, wanted: Sequence[_Choice], values: Sequence[_Values]) -> None:
        self._active = [(index, one) for index, one in enumerate(wanted) if one.is_made]
        self._values = values

    def __missing__(self, group: int) -> int:
        values = self._values[group]
        is_left = all(choice.fits(values[index]) for index, choice in self._active)
        found = self[group] = SEVERITIES.index(values[1][0]) if is_left else -1
        return found


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
        add(first, Counter(block.groups).items())
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


def _rows_at(block: _Block, mask: int) -> Iterable[tuple[int, int]]:
    """Time and group of the entries whose bits are set."""
    if not mask:
        return ()
    rows = zip(block.places, block.times, block.groups, strict=True)
    return ((at, group) for place, at, group in rows if mask >> place & 1)


def _values(key: _Key) -> _Values:
    """A group's values in the order of DIMENSIONS; none where it names none."""
    event_type, severity, state, held, scope, reason, status, source, producer = key
    named = json.loads(scope) if scope else {}
    return (
        (event_type[:VALUE_CHARACTERS_MAX],) if event_type else (),
        (severity,),
        (state,),
        ("true" if held else "false",),
        *(
            tuple(dict.fromkeys(name[:VALUE_CHARACTERS_MAX] for name in named.get(field, ())))
            for field in ("clusters", "namespaces", "servicesNames")
        ),
        (reason,) if reason else (),
        (str(status),) if status is not None else (),
        (source,),
        (producer,) if producer else (),
    )


def _wanted(where: EntryFilter) -> tuple[_Choice, ...]:
    """The filter's choices in the order of DIMENSIONS."""
    held = {None: (), True: ("true",), False: ("false",)}
    wanted: tuple[Iterable[str], ...] = (
        where.event_types,
        where.severities,
        where.states,
        held[where.held],
        where.clusters,
        where.namespaces,
        where.services,
        where.dead_reasons,
        map(str, where.last_statuses),
        where.sources,
        where.producers,
    )
    return tuple(
        _Choice(frozenset(own), frozenset(v for n, v in where.excluded if n == name))
        for name, own in zip(DIMENSIONS, wanted, strict=True)
    )


def _most_frequent(counter: Counter[str], choice: _Choice) -> list[tuple[str, int]]:
    """The values to show: the most frequent, and whatever is chosen, be it at 0."""
    least = sorted(counter.values(), reverse=True)[:VALUES_MAX][-1:] or [0]
    frequent = [item for item in counter.items() if item[1] >= least[0]]
    shown = sorted(frequent, key=lambda item: (-item[1], item[0]))[:VALUES_MAX]
    missing = sorted((choice.wanted | choice.unwanted) - {value for value, _ in shown})
    return shown + [(value, counter.get(value, 0)) for value in missing]
