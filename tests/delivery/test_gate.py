"""The gate as a whole: what one event's refusals do to the others, and do not."""

from __future__ import annotations

import pytest

from outboxd.delivery.backoff import Backoff
from outboxd.delivery.gate import Effect, Gate
from outboxd.delivery.outcome import Meaning
from outboxd.outbox.model import Outcome

DELIVERED = Meaning(Outcome.DELIVERED, 201)
FORBIDDEN = Meaning(Outcome.HOLD, 403, "403")
REJECTED = Meaning(Outcome.REJECTED, 400, "400")


def told(wait_s: float | None) -> Meaning:
    return Meaning(Outcome.THROTTLED, 429, "429", retry_after_s=wait_s)


class Asked:
    """A gate, and a clock that goes on as far as the next request needs."""

    def __init__(self) -> None:
        self.gate = Gate(Backoff(1.0, 300.0), 20.0, 16, 0, 0.0)
        self.now_s = 0.0

    def answered(self, seq: int, meaning: Meaning) -> Effect:
        start_s = self.gate.next_start_s(self.now_s, other=True)
        assert start_s is not None
        self.now_s = max(self.now_s, start_s)
        permit = self.gate.begin(seq, self.now_s)
        self.now_s += 0.05
        return self.gate.ended(permit, meaning, self.now_s, 0.5)

    def in_a_row(self, seqs: range, pause_s: float = 0.0) -> float:
        """So many are delivered; how long that takes."""
        began_s = self.now_s
        for seq in seqs:
            self.answered(seq, DELIVERED)
            self.now_s += pause_s
        return self.now_s - began_s


def test_two_that_wait_for_a_second_opinion_both_wait_as_they_were_told():
    asked = Asked()
    asked.answered(1, FORBIDDEN)
    asked.answered(2, told(5.0))
    until_s = asked.now_s + 5.0
    effect = asked.answered(3, DELIVERED)
    assert asked.now_s >= until_s  # as told, for all
    assert dict(effect.resting).keys() == {1, 2}
    assert dict(effect.resting)[2] == pytest.approx(until_s)


@pytest.mark.parametrize("wait_s", [None, 5.0])
def test_an_event_that_is_throttled_by_itself_slows_nobody_down_for_longer_than_it_is_in_doubt(
    wait_s,
):
    asked = Asked()
    usual_s = asked.in_a_row(range(100, 120), pause_s=0.5)
    for _ in range(3):
        asked.answered(1, told(wait_s))
    asked.in_a_row(range(200, 201))
    asked.answered(1, told(wait_s))  # once more, while others pass: its own fault
    assert asked.in_a_row(range(300, 320), pause_s=0.5) == pytest.approx(usual_s)


def test_a_destination_that_throttles_whoever_comes_is_asked_more_slowly():
    asked = Asked()
    usual_s = asked.in_a_row(range(100, 120), pause_s=0.1)
    for seq in (1, 2, 3):
        asked.answered(seq, told(None))
        asked.in_a_row(range(seq, seq + 1))
    assert asked.in_a_row(range(300, 320), pause_s=0.1) > 1.5 * usual_s


def test_an_event_that_is_throttled_for_ever_is_asked_ever_more_seldom():
    asked = Asked()
    asked.answered(1, told(5.0))
    asked.in_a_row(range(100, 101))
    rests_s = []
    for other in range(101, 120):
        rests_s.append(asked.answered(1, told(5.0)).rests_s)
        asked.in_a_row(range(other, other + 1))
    assert rests_s[0] == 5.0
    assert rests_s == sorted(rests_s)
    assert rests_s[-1] == 150.0  # half of backoff_max: the random number here is 0.5


def test_a_delivery_refutes_the_brake_though_a_release_came_while_it_was_under_way():
    """Found on a busy machine: the next bad one held everything for another probe's time."""
    asked = Asked()
    effects = [asked.answered(seq, REJECTED) for seq in range(10)]
    assert [effect.is_final for effect in effects] == [True] * 9 + [False]
    asked.now_s += 1.0
    good = asked.gate.begin(10, asked.now_s)
    assert asked.gate.release(asked.now_s + 0.01)
    asked.now_s += 0.02
    asked.gate.ended(good, DELIVERED, asked.now_s, 0.5)
    assert asked.answered(0, REJECTED).is_final  # others were delivered: it is the event
    assert asked.gate.flowing


def test_a_delivery_of_before_the_brake_refutes_nothing():
    asked = Asked()
    asked.answered(99, DELIVERED)
    early = asked.gate.begin(98, asked.now_s)
    for seq in range(10):
        asked.answered(seq, REJECTED)
    asked.gate.ended(early, DELIVERED, asked.now_s, 0.5)
    assert not asked.answered(10, REJECTED).is_final
