"""What a token allows its producer to say, and how fast."""

from __future__ import annotations

import json

import pytest

from outboxd.event.komodor import parse
from outboxd.gateway.authority import TokenBucket, fill_in, objection
from outboxd.gateway.tokens import ProducerLimits


def event(**scope):
    return parse(json.dumps({"eventType": "t", "summary": "s", "scope": scope}).encode())


def told(limits, **scope):
    given = event(**scope)
    fill_in(given, limits)
    return objection(given, limits), given.scope


def test_without_limits_everything_is_allowed():
    assert told(ProducerLimits()) == (None, {})
    assert told(ProducerLimits(), clusters=["a"], namespaces=["n"])[0] is None


def test_an_event_that_names_no_cluster_gets_the_tokens():
    assert told(ProducerLimits(clusters=("a", "b"))) == (None, {"clusters": ["a", "b"]})
    limits = ProducerLimits(clusters=("a",), namespaces=("n",))
    assert told(limits, servicesNames=["s"]) == (
        None,
        {"clusters": ["a"], "namespaces": ["n"], "servicesNames": ["s"]},
    )


@pytest.mark.parametrize(
    ("scope", "field"),
    [
        ({"clusters": ["b"]}, "$.scope.clusters[0]"),
        ({"clusters": ["a", "A"]}, "$.scope.clusters[1]"),
        ({"clusters": ["a"], "namespaces": ["m"]}, "$.scope.namespaces[0]"),
    ],
)
def test_a_scope_outside_the_tokens_own_is_refused_with_its_place(scope, field):
    refused, _ = told(ProducerLimits(clusters=("a",), namespaces=("n",)), **scope)
    assert refused is not None
    assert refused[1] == field
    assert refused[2].startswith("it may name ")


def test_a_required_scope_may_be_any():
    limits = ProducerLimits(require_scope=True)
    assert told(limits)[0] is not None
    assert told(limits, servicesNames=["s"])[0] is None


def test_a_rate_lets_one_seconds_events_through_and_then_says_when():
    pace = TokenBucket(10, 100.0)
    assert [pace.take(1, 100.0) for _ in range(10)] == [0.0] * 10
    assert pace.take(1, 100.0) == pytest.approx(0.1)
    assert pace.take(1, 100.05) == pytest.approx(0.05)
    assert pace.take(1, 100.11) == 0.0


def test_in_the_long_run_a_rate_is_kept_whatever_the_sizes():
    pace, now_s, taken = TokenBucket(5, 0.0), 0.0, 0
    for step in range(2000):
        now_s += 0.05
        count = (1, 3, 40)[step % 3]
        taken += count if pace.take(count, now_s) == 0.0 else 0
    assert taken <= 5 * now_s + 5 + 40
    assert taken >= 5 * now_s * 0.9


def test_a_rate_below_one_lets_an_event_through_at_a_time():
    pace = TokenBucket(0.5, 0.0)
    assert pace.take(1, 0.0) == 0.0
    assert pace.take(1, 0.0) == pytest.approx(2.0)
    assert pace.take(1, 2.0) == 0.0
