"""The pure parts of the intake: lines, results, admission."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.clock import FakeClock
from outboxd.errors import DiskShort, OutboxFull
from outboxd.intake.admission import Admission
from outboxd.intake.lines import LineCutter
from outboxd.intake.results import BLOCK_BYTES, Results
from outboxd.outbox.model import Counts


@given(st.lists(st.binary(max_size=30)), st.integers(1, 20))
def test_lines_are_the_same_however_the_bytes_arrive(pieces, limit):
    whole = b"".join(pieces)
    thrown = bytearray()
    cutter = LineCutter(limit, thrown.extend)
    lines = [line for piece in pieces for line in cutter.feed(piece)] + cutter.end()
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    too_long = [line for line in expected if len(line) > limit + 1]
    assert lines == [None if line in too_long else line for line in expected]
    assert bytes(thrown) == b"".join(line + b"\n" for line in too_long)


def test_a_long_answer_is_the_same_after_it_was_packed():
    results = Results()
    one = json.dumps({"status": "accepted", "warnings": ["x" * 100]}).encode()
    for _ in range(200):
        results.add([one] * 100)
    blocks = list(results.blocks())
    assert len(blocks) > 2
    assert sum(map(len, blocks)) == results.length
    assert json.loads(b"".join(blocks)) == {"results": [json.loads(one)] * 20_000}
    assert sum(len(packed) for packed in results._packed) < BLOCK_BYTES


def test_an_empty_answer_is_valid():
    assert json.loads(b"".join(Results().blocks())) == {"results": []}


class World:
    def __init__(self, events_max=100, pending=0, free=1000, disk_free_min=500):
        self.clock = FakeClock()
        self.pending, self.free = pending, free
        self.admission = Admission(
            self,
            lambda: self.free,
            self.clock,
            events_max,
            disk_free_min,
        )

    @property
    def counts(self) -> Counts:
        return Counts(self.pending, 0, 0, 0)


def test_it_refuses_at_the_high_watermark_and_accepts_at_the_low_one():
    world = World(pending=99)
    assert world.admission.state().accepting
    for pending, accepting in ((100, False), (99, False), (91, False), (90, True), (99, True)):
        world.pending = pending
        assert world.admission.state().accepting is accepting, pending


def test_zero_means_no_limit():
    world = World(events_max=0, pending=10**9)
    assert world.admission.reserve(10) == 10


def test_only_what_there_is_room_for_is_granted():
    world = World(pending=95)
    assert world.admission.reserve(10) == 5
    with pytest.raises(OutboxFull) as caught:
        world.admission.reserve(1)
    assert caught.value.retry_after_s == 1
    world.admission.release(5, 0)
    assert world.admission.reserve(1) == 1


@pytest.mark.parametrize(("drained", "seconds"), [(0, 300), (1, 10), (5, 2), (10, 1), (100, 1)])
def test_retry_after_is_the_estimated_time_until_the_low_watermark(drained, seconds):
    world = World(events_max=1000, pending=1000 + drained)
    world.clock.advance(1)
    world.pending = 1000
    with pytest.raises(OutboxFull):
        world.admission.reserve(1)
    world.pending = 910
    with pytest.raises(OutboxFull) as caught:
        world.admission.reserve(1)
    assert caught.value.retry_after_s == seconds


def test_the_disk_is_asked_at_most_once_a_second():
    world = World(free=3 << 29, disk_free_min=2 << 30)
    with pytest.raises(DiskShort, match=r"1\.5GiB are free, 2GiB must stay free") as caught:
        world.admission.reserve(1)
    assert 1 <= caught.value.retry_after_s <= 300
    world.free = 3 << 30
    with pytest.raises(DiskShort):
        world.admission.reserve(1)
    world.clock.advance(1)
    assert world.admission.reserve(1) == 1


def test_a_failed_commit_closes_the_door_for_a_second():
    world = World()
    world.admission.commit_failed()
    assert not world.admission.state().accepting
    world.clock.advance(1)
    assert world.admission.state().accepting


def test_the_drain_rate_counts_what_came_in_meanwhile():
    world = World(events_max=0)
    world.clock.advance(1)
    granted = world.admission.reserve(10)
    world.admission.release(granted, 10)
    world.pending = 4
    world.clock.advance(1)
    world.admission.reserve(1)
    assert 0 < world.admission.drain_rate <= 6


def test_many_same_results_cost_as_much_as_one_and_stand_in_their_place():
    results = Results()
    results.add_same(b'{"a": 1}', 3)
    results.add([b'{"b": 2}'])
    results.add_same(b'{"a": 1}', 100_000)
    results.add_same(b'{"a": 1}', 100_000)
    results.add([b'{"c": 3}'])
    whole = b"".join(results.blocks())
    assert len(whole) == results.length
    told = json.loads(whole)["results"]
    assert told == [*[{"a": 1}] * 3, {"b": 2}, *[{"a": 1}] * 200_000, {"c": 3}]
