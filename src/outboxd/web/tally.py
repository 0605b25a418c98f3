"""Counts over very many entries, kept up to date a block at a time.

It is given rows and asked for counts, and opens nothing. A long answer leaves
the loop to others every few milliseconds. A million entries take some 16 MB:
each has a row of three numbers, and what they have in common (type, severity,
state, scope …) stands once (`groups`). So any filter is answered from memory,
and a change costs one block.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from operator import attrgetter
from typing import NamedTuple

from outboxd.outbox.model import EntryFilter, IndexRow
from outboxd.web.groups import DIMENSIONS, Groups
from outboxd.web.pace import Pace, Slices

BLOCK_ROWS = 256  # an entry that changes costs a look at its block
# Kinds of entries are told apart up to so many bytes; more are counted as 'other'.
GROUPS_BYTES_MAX = 32 * 1024 * 1024
VALUES_MAX = 200  # of one filter, in an answer

SEVERITIES = ("information", "warning", "error")
_LEFT_OUT = len(SEVERITIES)  # instead of a severity's place, where a filter wants no such entry

# For each block, a bit for each place (seq modulo BLOCK_ROWS) of an entry that matches a text.
TextMatches = Mapping[int, int]


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


_FIRST_AT, _LAST_AT = attrgetter("first_at"), attrgetter("last_at")


class _Block:
    """Some neighbouring entries: a column a field."""

    __slots__ = ("first_at", "groups", "in_order", "last_at", "places", "times")

    def __init__(self, places: Sequence[int], groups: Sequence[int], times: Sequence[int]) -> None:
        # Most have no gap, and then no column is needed.
        self.places: Sequence[int] = range(places[0], places[-1] + 1)
        if len(self.places) != len(places):
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
        self._groups = self._new_groups()
        self._totals: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._totals.total()

    @property
    def blocks(self) -> Collection[int]:
        """The numbers of the blocks that hold entries."""
        return self._blocks.keys()

    @property
    def limited(self) -> bool:
        """Whether there were more groups than are told apart."""
        return self._groups.limited

    async def span(self) -> tuple[int, int] | None:
        """When the first and the last of the entries were received."""
        slices = Slices(self._pace)
        blocks, ends = iter(list(self._blocks.values())), set[int]()
        while some := list(islice(blocks, BLOCK_ROWS)):
            await slices.rest()
            ends |= {min(map(_FIRST_AT, some)), max(map(_LAST_AT, some))}
        return (min(ends), max(ends)) if ends else None

    def put(self, number: int, rows: Sequence[IndexRow]) -> None:
        """Replace a block by what it holds now; without rows it is forgotten."""
        old = self._blocks.pop(number, None)
        if old is not None:
            self._totals.subtract(old.groups)
        if not rows:
            return
        base = number * BLOCK_ROWS
        groups = [self._groups.number_of(row) for row in rows]
        block = _Block([row.seq - base for row in rows], groups, [row.received_at for row in rows])
        self._blocks[number] = block
        self._totals.update(block.groups)

    def forget_unused(self) -> bool:
        """Start afresh where most groups stand empty; True: every block must be put again."""
        if not self.limited:
            return False
        used = sum(1 for count in self._totals.values() if count > 0)
        if used > len(self._groups) // 2:
            return False
        self._blocks = {}  # who counts goes on with those that are of the old groups
        self._groups = self._new_groups()
        self._totals = Counter()
        return True

    async def facets(self, where: EntryFilter, matches: TextMatches | None = None) -> Facets:
        """Count every value of every filter; a filter's own choice does not narrow itself."""
        slices = Slices(self._pace)
        groups = self._groups
        totals = await self._count(where.since, where.until, matches, slices)
        counted: list[Counter[int]] = [Counter() for _ in DIMENSIONS]
        columns = list(zip(groups.columns, counted, strict=True))
        wanted = _wanted(where)
        active = _active(wanted, groups)
        matched = 0
        for kind, count in totals.items():
            await slices.rest()
            if count <= 0:
                continue
            misses = [index for index, column, fitting in active if not fitting[column[kind]]]
            if not misses:
                matched += count
                for column, counter in columns:
                    counter[column[kind]] += count
            elif len(misses) == 1:
                column, counter = columns[misses[0]]
                counter[column[kind]] += count
        shown, distinct = {}, {}
        for index, name in enumerate(DIMENSIONS):
            values: Counter[str] = Counter()
            for place, count in counted[index].items():
                await slices.rest()
                for value in groups.sets[place]:
                    values[value] += count
            shown[name] = await _most_frequent(values, wanted[index], slices)
            distinct[name] = len(values)
        return Facets(matched, len(self), groups.limited, shown, distinct)

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
        severity_of = _Severities(_wanted(where), self._groups)
        counts = [[0] * buckets for _ in SEVERITIES]

        def add(at: int, groups: Iterable[int]) -> None:
            bucket = (at - since) // step_ms
            severities = bytes(map(severity_of.__getitem__, groups))
            for severity, of_severity in enumerate(counts):
                of_severity[bucket] += severities.count(severity)

        blocks = self._blocks
        for number in list(blocks):
            await slices.rest()
            block = blocks.get(number)
            if block is None or block.last_at < since or block.first_at >= until:
                continue
            if matches is not None:
                chosen = matches.get(number, 0)
                for at, group in _rows_at(block, chosen):
                    if since <= at < until:
                        add(at, (group,))
                continue
            _add_block(block, since, until, step_ms, add)
        return TimeHistogram(since, step_ms, dict(zip(SEVERITIES, counts, strict=True)))

    def _new_groups(self) -> Groups:
        # Nothing of it may lead back here: the collector leaves alone what the start has
        # made, and a circle of such would never go.
        return Groups(self._groups_bytes_max, partial(self._pace.limit_met, "names"))

    async def _count(
        self, since: int | None, until: int | None, matches: TextMatches | None, slices: Slices
    ) -> Mapping[int, int]:
        """How many entries of each group there are between two moments."""
        if since is None and until is None and matches is None:
            return dict(self._totals)
        low = since if since is not None else -(2**62)
        high = until if until is not None else 2**62
        totals: Counter[int] = Counter()
        blocks = self._blocks
        for number in list(blocks):
            await slices.rest()
            block = blocks.get(number)
            if block is None or block.last_at < low or block.first_at >= high:
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


class _Fitting(dict[int, bool]):
    """Which values of one dimension a filter leaves; each is looked at when it is asked
    for first."""

    def __init__(self, choice: _Choice, sets: Sequence[tuple[str, ...]]) -> None:
        self._choice = choice
        self._sets = sets

    def __missing__(self, place: int) -> bool:
        found = self[place] = self._choice.fits(self._sets[place])
        return found


class _Severities(dict[int, int]):
    """The severity's place of each kind that a filter leaves, _LEFT_OUT for the others;
    each is looked at when it is asked for first."""

    def __init__(self, wanted: Sequence[_Choice], groups: Groups) -> None:
        self._active = _active(wanted, groups)
        self._groups = groups

    def __missing__(self, kind: int) -> int:
        is_left = all(fitting[column[kind]] for _, column, fitting in self._active)
        severity = self._groups.sets[self._groups.columns[1][kind]][0]
        found = self[kind] = SEVERITIES.index(severity) if is_left else _LEFT_OUT
        return found


def _active(wanted: Sequence[_Choice], groups: Groups) -> list[tuple[int, array[int], _Fitting]]:
    """The dimensions of which something is wanted, each with its column."""
    return [
        (index, groups.columns[index], _Fitting(choice, groups.sets))
        for index, choice in enumerate(wanted)
        if choice.is_made
    ]


def _add_block(
    block: _Block,
    since: int,
    until: int,
    step_ms: int,
    add: Callable[[int, Iterable[int]], None],
) -> None:
    """Give a block's entries to `add` in as few calls as its times allow."""
    first, last = block.first_at, block.last_at
    if first >= since and last < until and (first - since) // step_ms == (last - since) // step_ms:
        add(first, block.groups)
        return
    if not block.in_order:
        for at, group in zip(block.times, block.groups, strict=True):
            if since <= at < until:
                add(at, (group,))
        return
    start = bisect_left(block.times, since)
    end = bisect_left(block.times, until)
    while start < end:
        at = block.times[start]
        edge = at - (at - since) % step_ms + step_ms
        stop = bisect_left(block.times, edge, start, end)
        add(at, block.groups[start:stop])
        start = stop


def _rows_at(block: _Block, mask: int) -> Iterable[tuple[int, int]]:
    """Time and group of the entries whose bits are set."""
    if not mask:
        return ()
    rows = zip(block.places, block.times, block.groups, strict=True)
    return ((at, group) for place, at, group in rows if mask >> place & 1)


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


async def _most_frequent(
    counter: Counter[str], choice: _Choice, slices: Slices
) -> list[tuple[str, int]]:
    """The values to show: the most frequent, and whatever is chosen, be it at 0."""
    items, shown = iter(counter.items()), list[tuple[str, int]]()
    while some := list(islice(items, VALUES_MAX)):
        await slices.rest()
        shown = sorted(shown + some, key=lambda item: (-item[1], item[0]))[:VALUES_MAX]
    missing = sorted((choice.wanted | choice.unwanted) - {value for value, _ in shown})
    return shown + [(value, counter.get(value, 0)) for value in missing]
