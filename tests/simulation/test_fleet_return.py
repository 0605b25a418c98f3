"""A fleet that comes back at once neither stampedes nor starves anybody."""

from __future__ import annotations

import pytest
from simulation.checks import Broken
from simulation.fleet import Overflowing, Queueing, Throttling, ThrottlingBare, play_return

from outboxd.delivery.backoff import Backoff

EVENTS, EVENTS_FULL = 20, 60  # of each agent


@pytest.mark.parametrize("kind", [Throttling, ThrottlingBare, Queueing, Overflowing])
def test_fifty_agents_come_back_at_once_and_share_what_there_is(kind, full):
    if kind in (ThrottlingBare, Overflowing) and not full:
        pytest.skip("the full figures: --full")
    for seed in range(2 if full else 1):
        play_return(seed, kind, EVENTS_FULL if full else EVENTS)


def test_without_jitter_they_come_in_step_and_the_check_finds_it(monkeypatch):
    monkeypatch.setattr(Backoff, "delay_s", lambda self, failures, random: self.bound_s(failures))
    with pytest.raises(Broken, match="four fifths"):
        play_return(0, Queueing, EVENTS)
