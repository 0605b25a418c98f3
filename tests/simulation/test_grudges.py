"""A bad event stops nobody, a bad destination costs nothing; and without the rules it would."""

from __future__ import annotations

import math

import pytest
from simulation.checks import Broken
from simulation.grudges import STREAMS, play_grudges, play_hangs, play_stream, play_wrong_key

from outboxd.delivery import evidence, gate
from outboxd.delivery.breaker import Breaker
from outboxd.delivery.evidence import Delivered, Evidence
from outboxd.delivery.pace import Rate

SEEDS, SEEDS_FULL = 36, 1500


def play_all(play, seeds: int) -> None:
    for seed in range(seeds):
        try:
            play(seed)
        except Broken as problem:
            raise Broken(f"{play.__name__}({seed}): {problem}") from problem


@pytest.mark.timeout(600)
@pytest.mark.parametrize("play", [play_grudges, play_wrong_key])
def test_a_bad_event_stops_nobody_and_a_bad_destination_costs_nothing(play, full):
    play_all(play, SEEDS_FULL if full else SEEDS)


def test_a_stream_of_bad_events_leaves_nobody_behind(full):
    play_all(play_stream, 2 * len(STREAMS) if full else 6)


def _always_doubt(patch):
    must_hold = Breaker.must_hold

    def doubting(self, *arguments, **how):
        return must_hold(self, *arguments, **{**how, "doubt": True})

    patch.setattr(Breaker, "must_hold", doubting)


RULES_OFF = {
    "the same entry is the probe again": (
        play_grudges,
        lambda patch: patch.setattr(Evidence, "refused_before", lambda self: []),
    ),
    "nobody is ever to blame": (
        play_grudges,
        lambda patch: patch.setattr(Evidence, "delivered", lambda self, seq: Delivered(None, ())),
    ),
    "a request that hangs has no company": (
        play_hangs,
        lambda patch: patch.setattr(gate, "HANGS_AFTER_MIN_S", math.inf),
    ),
    "an arrival waits for the probe": (
        play_grudges,
        lambda patch: patch.setattr(Breaker, "must_hold", _without_doubt(Breaker.must_hold)),
    ),
    "what one event's throttling taught is never taken back": (
        play_stream,
        lambda patch: patch.setattr(Rate, "was_own_fault", lambda self, by: None),
    ),
    "everybody is a second opinion": (play_wrong_key, _always_doubt),
    "there is no brake": (
        play_wrong_key,
        lambda patch: patch.setattr(evidence, "BRAKE_AFTER", math.inf),
    ),
}


def _without_doubt(must_hold):
    return lambda self, *arguments, **how: must_hold(self, *arguments, **{**how, "doubt": False})


def test_one_event_a_second_and_every_tenth_hangs_and_nobody_waits_for_that():
    play_all(play_hangs, 3)


@pytest.mark.parametrize("rule", RULES_OFF)
def test_without_the_rule_the_check_finds(rule, monkeypatch):
    play, switch_off = RULES_OFF[rule]
    switch_off(monkeypatch)
    with pytest.raises(Broken):
        play_all(play, SEEDS)
