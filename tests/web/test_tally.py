"""The tally answers as a plain look at every row would."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from functools import lru_cache

import pytest

from outboxd.outbox.model import UNLISTED, EntryFilter
from outboxd.outbox.model import IndexRow as Row
from outboxd.web import tally as tally_room
from outboxd.web.tally import BLOCK_ROWS, DIMENSIONS, VALUES_MAX, Tally

TYPES = ("backup", "deploy", "cron")
STATES = ("pending", "delivered", "dead")
SEVERITIES = ("information", "warning", "error")

FILTERS = [
    EntryFilter(),
    EntryFilter(event_types=("backup",)),
    EntryFilter(event_types=("backup", "cron"), severities=("error",)),
    EntryFilter(states=("pending", "dead")),
    EntryFilter(held=True),
    EntryFilter(held=False, clusters=("A",)),
    EntryFilter(clusters=("A", "B"), namespaces=("n1",), services=("s1", "s2")),
    EntryFilter(services=("no such service",)),
    EntryFilter(since=4000, until=9000),
    EntryFilter(event_types=("deploy",), since=5_000),
    EntryFilter(dead_reasons=("rejected",), last_statuses=(422,)),
    EntryFilter(sources=("spool",), excluded=(("type", "cron"), ("cluster", "A"))),
    EntryFilter(producers=("token:web",), excluded=(("producer", "uid:0"),)),
    EntryFilter(excluded=(("producer", "token:web"),)),
    EntryFilter(event_types=("cron",), excluded=(("type", "cron"), ("status", "422"))),
]


@lru_cache
def some_rows(count: int, seed: int, in_order: bool = True) -> list[Row]:
    chance = random.Random(seed)
    at, rows = 1000, []
    for seq in range(1, count + 1):
        at += chance.randrange(5) if in_order else chance.randrange(-50, 60)
        fields = ("clusters", "ABC"), ("namespaces", ("n1", "n2")), ("servicesNames", ("s1", "s2"))
        scope = {
            name: chance.sample(list(values), chance.randrange(1, 3))
            for name, values in fields
            if chance.random() < 0.6
        }
        state = chance.choice(STATES)
        rows.append(
            Row(
                seq,
                at,
                chance.choice(TYPES),
                chance.choice(SEVERITIES),
                state,
                int(state == "pending" and chance.random() < 0.3),
                json.dumps(scope) if scope else "",
                "rejected" if state == "dead" else None,
                chance.choice((None, 201, 422)),
                chance.choice(("socket", "spool")),
                chance.choice(("uid:0", "token:web", "")),
            )
        )
    return rows


def plain_row(seq: int, event_type: str, scope: str = "") -> Row:
    return Row(seq, seq, event_type, "error", "delivered", 0, scope, None, 201, "socket", "uid:0")


def put_all(tally: Tally, rows: list[Row]) -> None:
    blocks: dict[int, list[Row]] = {}
    for row in rows:
        blocks.setdefault(row[0] // BLOCK_ROWS, []).append(row)
    for number, own in blocks.items():
        tally.put(number, own)


@lru_cache(None)
def values_of(row: Row) -> dict[str, tuple[str, ...]]:
    scope = json.loads(row[6]) if row[6] else {}
    return {
        "type": (row[2],),
        "severity": (row[3],),
        "state": (row[4],),
        "held": ("true" if row[5] else "false",),
        "cluster": tuple(scope.get("clusters", ())),
        "namespace": tuple(scope.get("namespaces", ())),
        "service": tuple(scope.get("servicesNames", ())),
        "reason": (row.dead_reason,) if row.dead_reason else (),
        "status": (str(row.last_status),) if row.last_status else (),
        "source": (row.source,),
        "producer": (row.producer,) if row.producer else (),
    }


def fits(row: Row, where: EntryFilter, but: str | None = None) -> bool:
    wanted = {
        "type": where.event_types,
        "severity": where.severities,
        "state": where.states,
        "held": () if where.held is None else (str(where.held).lower(),),
        "cluster": where.clusters,
        "namespace": where.namespaces,
        "service": where.services,
        "reason": where.dead_reasons,
        "status": tuple(map(str, where.last_statuses)),
        "source": where.sources,
        "producer": where.producers,
    }
    unwanted = {name: {v for n, v in where.excluded if n == name} for name in wanted}
    own = values_of(row)
    return (where.since is None or row[1] >= where.since) and (
        (where.until is None or row[1] < where.until)
        and all(
            name == but
            or (
                (not choice or set(choice) & set(own[name])) and not unwanted[name] & set(own[name])
            )
            for name, choice in wanted.items()
        )
    )


@pytest.mark.parametrize("where", FILTERS, ids=range(len(FILTERS)))
@pytest.mark.parametrize("in_order", [True, False])
def test_facets_count_what_each_value_would_leave(where: EntryFilter, in_order: bool) -> None:
    rows = some_rows(2 * BLOCK_ROWS, seed=1, in_order=in_order)
    tally = Tally()
    put_all(tally, rows)
    facets = asyncio.run(tally.facets(where))
    assert facets.matched == sum(fits(row, where) for row in rows)
    assert facets.total == len(rows)
    for name in DIMENSIONS:
        expected = Counter(
            value for row in rows if fits(row, where, but=name) for value in values_of(row)[name]
        )
        shown = {value: count for value, count in facets.values[name] if count}
        assert shown == dict(expected), name
        assert facets.distinct[name] == len(expected)


@pytest.mark.parametrize("where", FILTERS, ids=range(len(FILTERS)))
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("step_ms", [7, 1000, 100_000])
def test_a_histogram_counts_by_time_and_severity(where, in_order: bool, step_ms: int) -> None:
    rows = some_rows(2 * BLOCK_ROWS, seed=2, in_order=in_order)
    tally = Tally()
    put_all(tally, rows)
    since, until = 2000, 9000
    found = asyncio.run(tally.histogram(where, since, until, step_ms))
    plain = where._replace(since=since, until=until)
    expected = {severity: [0] * (-(-(until - since) // step_ms)) for severity in SEVERITIES}
    for row in rows:
        if fits(row, plain):
            expected[row[3]][(row[1] - since) // step_ms] += 1
    assert found.counts == expected


def test_a_text_narrows_counts_and_histogram() -> None:
    rows = some_rows(2 * BLOCK_ROWS, seed=3)
    chosen = {row[0] for row in rows if row[0] % 7 == 0}
    places: dict[int, int] = {}
    for seq in chosen:
        places[seq // BLOCK_ROWS] = places.get(seq // BLOCK_ROWS, 0) | 1 << seq % BLOCK_ROWS
    tally = Tally()
    put_all(tally, rows)
    where = EntryFilter(severities=("error",))
    expected = [row for row in rows if row[0] in chosen and fits(row, where)]
    assert asyncio.run(tally.facets(where, places)).matched == len(expected)
    found = asyncio.run(tally.histogram(where, 0, 100_000, 1000, places))
    assert sum(found.counts["error"]) == len(expected)


def test_a_block_that_is_put_again_replaces_what_was_known_of_it() -> None:
    rows = some_rows(BLOCK_ROWS - 1, seed=4)
    tally = Tally()
    tally.put(0, rows)
    settled = [row._replace(state="delivered", held=0, dead_reason=None) for row in rows]
    tally.put(0, settled)
    facets = asyncio.run(tally.facets(EntryFilter()))
    assert facets.values["state"] == [("delivered", len(rows))]
    tally.put(0, ())
    assert len(tally) == 0
    assert asyncio.run(tally.span()) is None


def test_too_many_kinds_of_events_are_counted_together_and_said_so() -> None:
    tally = Tally(groups_bytes_max=10 * 850)
    rows = [plain_row(seq, f"type {seq}") for seq in range(1, BLOCK_ROWS)]
    tally.put(0, rows)
    facets = asyncio.run(tally.facets(EntryFilter(severities=("error",))))
    assert facets.matched == len(rows)
    assert facets.limited
    assert 5 < facets.distinct["type"] < 15
    assert not tally.forget_unused(), "all of them are in use"
    tally.put(0, rows[:3])
    assert tally.forget_unused()
    tally.put(0, rows[:3])
    assert not tally.limited


@pytest.mark.long
def test_a_kind_takes_few_bytes_and_few_objects_of_its_own() -> None:
    """The interpreter keeps a mebibyte for each object that lives on among them."""
    import tracemalloc

    rows = [
        plain_row(
            seq,
            f"type {seq % 40}",
            json.dumps({"clusters": [f"c{seq % 50}"], "servicesNames": [f"s{seq % 601}"]}),
        )
        for seq in range(20_000)
    ]
    tally = Tally()
    tracemalloc.start()
    put_all(tally, rows)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(rows) < 500
    facets = asyncio.run(tally.facets(EntryFilter(event_types=("type 1",))))
    assert facets.matched == len(rows) // 40
    assert facets.distinct["service"] == 500


def test_what_is_chosen_is_listed_though_nothing_is_left_of_it() -> None:
    tally = Tally()
    tally.put(0, [plain_row(1, "backup")])
    facets = asyncio.run(tally.facets(EntryFilter(event_types=("gone",))))
    assert ("gone", 0) in facets.values["type"]
    assert ("backup", 1) in facets.values["type"]


def test_the_bytes_of_what_is_told_apart_are_bounded() -> None:
    """Few events with very many or very long names: the input chooses the bytes, not the rows."""
    import tracemalloc

    rows = [
        plain_row(seq, "x" * 60, json.dumps({"clusters": [f"{seq}-c{n}" for n in range(400)]}))
        for seq in range(1, BLOCK_ROWS)
    ]
    tally = Tally(groups_bytes_max=1_000_000)
    tracemalloc.start()
    tally.put(0, rows)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 3_000_000
    facets = asyncio.run(tally.facets(EntryFilter()))
    assert facets.limited
    assert facets.matched == len(rows)
    assert len(json.dumps(facets.to_json())) < 200_000


def test_a_scope_too_long_to_be_listed_is_counted_without_its_names() -> None:
    tally = Tally()
    tally.put(0, [plain_row(1, "deploy", UNLISTED)])
    facets = asyncio.run(tally.facets(EntryFilter()))
    assert facets.limited
    assert facets.values["type"] == [("deploy", 1)]
    assert facets.values["cluster"] == []


def test_a_long_answer_leaves_the_loop_to_others() -> None:
    rows = [plain_row(seq, f"type {seq}") for seq in range(1, 20 * BLOCK_ROWS)]
    tally = Tally()
    put_all(tally, rows)

    async def main() -> int:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(others())
        await tally.facets(EntryFilter(event_types=("type 1",)))
        task.cancel()
        return turns

    assert asyncio.run(main()) > 5


def test_the_most_frequent_values_are_shown_whatever_their_order() -> None:
    counts = {f"type {number}": 1 + number * 7919 % 13 for number in range(3 * VALUES_MAX)}
    types = [name for name, count in counts.items() for _ in range(count)]
    random.Random(5).shuffle(types)
    tally = Tally()
    put_all(tally, [plain_row(seq, name) for seq, name in enumerate(types, 1)])
    facets = asyncio.run(tally.facets(EntryFilter()))
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    assert facets.values["type"] == by_count[:VALUES_MAX]
    assert facets.distinct["type"] == len(counts)


PIECE_MAX = 2 * max(BLOCK_ROWS, VALUES_MAX)


def of_a_piece(function):
    """A builtin that goes through all that it is given, and may not be given much."""

    def bounded(*given, **named):
        if len(given) > 1:
            return function(*given, **named)
        items = list(given[0])
        assert len(items) <= PIECE_MAX, f"{function.__name__} of {len(items)} at once"
        return function(items, **named)

    return bounded


def test_nothing_is_gone_through_in_one_piece(monkeypatch) -> None:
    """What a builtin does no rest interrupts: so it is given few at a time."""
    count = 3 * PIECE_MAX
    tally = Tally()
    for number in range(count):
        tally.put(number, [plain_row(number * BLOCK_ROWS + 1, f"type {number}")])
    for function in (min, max, sum, sorted):
        monkeypatch.setattr(tally_room, function.__name__, of_a_piece(function), raising=False)

    async def main() -> None:
        first_at, last_at = await tally.span() or (0, 0)
        assert (first_at, last_at) == (1, (count - 1) * BLOCK_ROWS + 1)
        assert (await tally.facets(EntryFilter())).distinct["type"] == count
        histogram = await tally.histogram(EntryFilter(), first_at, last_at + 1, BLOCK_ROWS)
        assert sum(histogram.counts["error"]) == count

    asyncio.run(main())
    with pytest.raises(AssertionError, match="at once"):
        tally_room.sorted(range(count))
