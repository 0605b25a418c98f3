"""Blame: an event's own fault is told from the destination's."""

from __future__ import annotations

from outboxd.delivery.blame import Blame


def test_one_that_failed_while_another_was_delivered_is_to_blame():
    blame = Blame()
    begun = blame.begun()
    blame.delivered(2)
    assert blame.failed(1, begun)


def test_with_nothing_delivered_meanwhile_nobody_is():
    blame = Blame()
    blame.delivered(2)
    assert not blame.failed(1, blame.begun())
    assert not blame.failed(1, blame.begun())


def test_one_that_fails_alone_each_time_is_to_blame_when_others_got_through_in_between():
    blame = Blame()
    assert not blame.failed(1, blame.begun())
    for other in range(2, 10):
        blame.delivered(other)
        assert blame.failed(1, blame.begun())
        assert not blame.failed(1, blame.begun())


def test_a_delivery_lets_only_one_of_many_be_blamed():
    blame = Blame()
    begun = blame.begun()
    blame.delivered(99)
    assert [blame.failed(seq, begun) for seq in range(16)] == [True] + [False] * 15


def test_of_several_poisoned_events_each_gets_its_turn():
    blame = Blame()
    spent = dict.fromkeys(range(3), 0)
    for other in range(10, 40):
        # The one that was blamed waits for its own backoff, the others go first.
        for seq in sorted(spent, key=lambda seq: spent[seq]):
            spent[seq] += blame.failed(seq, blame.begun())
        blame.delivered(other)
    assert all(count >= 8 for count in spent.values())


def test_only_so_many_are_remembered():
    blame = Blame()
    for seq in range(5000):
        blame.failed(seq, blame.begun())
    blame.delivered(9999)
    assert not blame.failed(0, blame.begun())
    blame.delivered(9998)
    assert blame.failed(4999, blame.begun())
