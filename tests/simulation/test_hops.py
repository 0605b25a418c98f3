"""Seeded histories of a fleet behind a gateway; and that mistakes put in on purpose are found."""

from __future__ import annotations

from collections import Counter

import pytest
from simulation.checks import Broken
from simulation.hops import Fleet
from support import seeds

from outboxd.delivery import next_hop
from outboxd.delivery.in_flight import InFlight
from outboxd.event.hop import Hop
from outboxd.outbox.sqlite import accepting
from outboxd.outbox.sqlite.engine import SqliteEngine

SEEDS, SEEDS_FULL = 30, 1_000


def played(seed: int) -> Fleet:
    fleet = Fleet(seed)
    try:
        fleet.play()
    except Broken as problem:
        again = f"OUTBOXD_SEED={seed} pytest tests/simulation/test_hops.py"
        raise Broken(f"seed {seed}: {problem}; play it again: {again}") from problem
    return fleet


@pytest.mark.timeout(1200)
def test_behind_a_gateway_nothing_is_lost_doubled_unmarked_or_told_a_wrong_delay(full):
    seen: Counter[str] = Counter()
    for seed in seeds.histories(SEEDS_FULL if full else SEEDS):
        fleet = played(seed)
        arrived = Counter(s.name for s in fleet.last.sent if s.arrived_at_s is not None)
        marked = [s for s in fleet.last.sent if s.body["details"].get("possibleDuplicate")]
        links = [node.link for node in fleet.nodes]
        seen["events"] += len(fleet.given)
        seen["twice"] += sum(count > 1 for count in arrived.values())
        seen["marked"] += len(marked)
        seen["forgotten"] += any(
            "possibleDuplicate" in s.body.get("hop", {}) for link in links for s in link.sent
        )
        seen["doubtful"] += any(s.is_doubtful for link in links[:2] for s in link.sent)
        seen["two gateways"] += len(fleet.gateways) == 2
    print(seen)
    if seeds.given() is None:
        assert {"twice", "marked", "forgotten", "doubtful", "two gateways"} <= (+seen).keys()


def _without(member, value):
    def patch(patched):
        further = next_hop.further

        def lying(before: Hop, **told):
            return further(before, **told)._replace(**{member: value(told)})

        patched.setattr(next_hop, "further", lying)

    return patch


def play_all() -> None:
    for seed in range(SEEDS):
        played(seed)


def _doubting_all(patched):
    """Whatever is sent again is marked, a refused connection, too."""
    end = InFlight._end

    def doubting(self, request, meaning, effect, now_s):
        end(self, request, meaning._replace(may_have_arrived=True), effect, now_s)

    patched.setattr(InFlight, "_end", doubting)


MISTAKES = {
    "a gateway forgets every key": lambda patched: patched.setattr(
        accepting, "_known", lambda connection, keys, now: {}
    ),
    "each hop begins the age anew": _without("age_ms", lambda told: 0),
    "the host's doubt is not told": _without("possible_duplicate", lambda told: False),
    "every doubt is told to a gateway": _without("possible_duplicate", lambda told: True),
    "when the answer was lost is forgotten": lambda patched: patched.setattr(
        InFlight, "_doubt", lambda self, request: None
    ),
    "attempts of the host are forgotten": _without("attempts", lambda told: 0),
    "a crash in flight is forgotten": lambda patched: patched.setattr(
        SqliteEngine, "recover_sending", lambda self: 0
    ),
    "a refused connection is a doubt": _doubting_all,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake, monkeypatch):
    MISTAKES[mistake](monkeypatch)
    with pytest.raises(Broken):
        play_all()
