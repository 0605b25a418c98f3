"""What the sandbox keeps is bounded, and what it forgets is forgotten wholly."""

from __future__ import annotations

from outboxd.sandbox.received import Received
from outboxd.sandbox.validation import validate

BODY = b'{"eventType": "a", "summary": "b"}'


def add(received, number, key=None, body=BODY):
    return received.add(f"id-{number}", number, key, None, validate(body), body)


def test_the_newest_stay_and_the_oldest_are_forgotten():
    received = Received(kept_max=100)
    for number in range(1, 251):
        add(received, number, key=f"key-{number}")
    assert received.count == 250
    assert 100 <= len(received) <= 110
    assert next(received.newest_first()).arrival == 250
    assert received.find("id-1") is None
    assert received.find("key-1") is None
    assert received.find("key-250").arrival == 250


def test_large_bodies_are_bounded_by_their_bytes():
    received = Received(bytes_max=10_000)
    large = b'{"eventType": "a", "summary": "%s"}' % (b"x" * 1000)
    for number in range(50):
        add(received, number, body=large)
    assert len(received) <= 11


def test_a_listing_goes_on_where_it_ended_though_the_oldest_were_forgotten_meanwhile():
    received = Received(kept_max=10)
    for number in range(10):
        add(received, number)
    walk = received.newest_first()
    assert next(walk).arrival == 10
    for number in range(10, 40):
        add(received, number)
    assert [record.arrival for record in walk] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert [record.arrival for record in received.newest_first(before=3)] == []


def test_repetitions_are_counted_once_each():
    received = Received()
    for number, key in enumerate(["a", "a", None, None, "b", "a"]):
        add(received, number, key)
    assert (received.count, received.distinct, received.repeated) == (6, 4, 2)
