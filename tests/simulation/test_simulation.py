"""Thousands of seeded histories; and that mistakes put in on purpose are found.

A failing seed says how to play it again: OUTBOXD_SEED=N pytest tests/simulation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from simulation import network
from simulation.checks import Broken
from simulation.history import World, play
from simulation.virtual_loop import BusyLoop, Deadlock
from support import seeds

from outboxd.delivery import in_flight, sender
from outboxd.delivery.backoff import Backoff
from outboxd.delivery.breaker import Breaker
from outboxd.delivery.evidence import Delivered, Evidence, RefusalEvidence
from outboxd.delivery.facts import OutageEnded, SettlingFailed
from outboxd.delivery.outcome import Meaning
from outboxd.delivery.pace import Limiter, Rate
from outboxd.outbox.model import Outcome
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.writer import Claim

SEEDS, SEEDS_FULL = 210, 5000


def played(seed: int) -> World:
    """One history; a failure names its seed."""
    try:
        return play(seed)
    except Exception as error:
        pytest.fail(
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"play it again: OUTBOXD_SEED={seed} pytest tests/simulation/test_simulation.py"
        )


@pytest.mark.timeout(1200)
def test_in_no_history_is_anything_lost_doubled_unmarked_or_asked_too_often(full):
    seen: Counter[str] = Counter()
    for seed in seeds.histories(SEEDS_FULL if full else SEEDS):
        seen.update(trouble_of(played(seed)))
    if seeds.given() is None:
        assert {what for what in EVERY_TROUBLE if not seen[what]} == set()


EVERY_TROUBLE = {
    *(*network.OUTAGES, *network.HOLDS, *network.THROTTLES, *network.CALM, *network.REJECTS),
    *("marked", "crashed or stopped", "crashed in flight", "spent", "disk full"),
    *("outage ended", "duplicate", "exhausted", "rejected", "expired"),
}


def trouble_of(world: World) -> Iterator[str]:
    """What a history had in it: the weathers, and what happened."""
    checks, requests = world.checks, world.network.requests
    arrived = Counter(request.id for request in requests if request.arrived)
    happened = {
        "marked": any(request.marked for request in requests),
        "crashed or stopped": checks.agents > 1,
        "crashed in flight": bool(checks.cut_off),
        "spent": bool(checks.spent),
        "disk full": any(isinstance(fact, SettlingFailed) for fact in checks.facts),
        "outage ended": any(isinstance(fact, OutageEnded) for fact in checks.facts),
        "duplicate": max(arrived.values(), default=0) > 1,
    }
    yield from (what for what, has_happened in happened.items() if has_happened)
    yield from {request.weather for request in requests}
    yield from (reason for _, reason in world.entries if reason)


def test_the_same_seed_takes_the_same_course():
    def course(seed: int) -> list[tuple[object, ...]]:
        return [
            (r.name, r.marked, r.began_s, r.ended_s, r.weather, r.arrived)
            for r in play(seed).network.requests
        ]

    for seed in range(10):
        assert course(seed) == course(seed)


# --- mistakes on purpose ---------------------------------------------------------

_decide = in_flight.decide


def _deciding(change):
    def decide(answer, now_ms, cap_s):
        return change(answer, _decide(answer, now_ms, cap_s))

    return lambda patch: patch.setattr(in_flight, "decide", decide)


def _follow_redirects(answer, meaning):
    # Whoever follows one finds some page that says 200.
    redirected = answer.status in (301, 302, 307, 308)
    return Meaning(Outcome.DELIVERED, 200) if redirected else meaning


def _reject_key_errors(answer, meaning):
    return meaning._replace(outcome=Outcome.REJECTED) if answer.status in (401, 403) else meaning


def _believe_portals(answer, meaning):
    return Meaning(Outcome.DELIVERED, 200) if answer.status == 200 else meaning


def _never_mark(answer, meaning):
    return meaning._replace(may_have_arrived=False)


def _grow_unreached(patch):
    new_round = Limiter._new_round

    def new(self):
        new_round(self)
        self._reached = True

    patch.setattr(Limiter, "_new_round", new)


def _ignore_retry_after(patch):
    throttled = Breaker.throttled
    patch.setattr(
        Breaker,
        "throttled",
        lambda self, ticket, wait_s, *rest: throttled(self, ticket, 0.0, *rest),
    )


MISTAKES = {
    "attempts are spent in an outage": lambda patch: patch.setattr(
        Evidence, "refused", lambda self, seq, **how: RefusalEvidence(True, True, 1, False, 1, True)
    ),
    "poisoned events are never blamed": lambda patch: patch.setattr(
        Evidence, "delivered", lambda self, seq: Delivered(None, ())
    ),
    "a redirect is followed": _deciding(_follow_redirects),
    "a key error makes a dead letter": _deciding(_reject_key_errors),
    "a captive portal is believed": _deciding(_believe_portals),
    "a lost answer is not marked": _deciding(_never_mark),
    "the limiter grows without reaching its limit": _grow_unreached,
    "an outage is asked without a pause": lambda patch: patch.setattr(
        Backoff, "delay_s", lambda self, failures, random: 0.0
    ),
    "the sender spins while it waits": lambda patch: patch.setattr(
        sender.Sender, "_next_start_s", lambda self, now_s: now_s
    ),
    "Retry-After is ignored": _ignore_retry_after,
    "rate_max is ignored": lambda patch: patch.setattr(Rate, "available", lambda self, now_s: 99),
    "a crash in flight is forgotten": lambda patch: patch.setattr(
        SqliteEngine, "recover_sending", lambda self: 0
    ),
    "what is claimed as it comes in is not written down": lambda patch: patch.setattr(
        Claim, "apply", lambda self, engine: self.look(engine)
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_simulation_finds(mistake, monkeypatch):
    MISTAKES[mistake](monkeypatch)
    with pytest.raises((Broken, BusyLoop, Deadlock)):
        _play_all()


def _play_all() -> None:
    for seed in range(SEEDS):
        play(seed)
