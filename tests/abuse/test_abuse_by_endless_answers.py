"""An endpoint that answers without an end stops no intake, and is read no further than a little."""

from __future__ import annotations

import runpy
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.agent import GONE
from support.ports import free_port

pytestmark = pytest.mark.alone

ATTACKS = {
    name: function
    for name, function in runpy.run_path(
        str(Path(__file__).with_name("attacks_by_the_endpoint.py"))
    ).items()
    if callable(function) and function.__module__ == "<run_path>" and not name.startswith("_")
}
READ_TO_THE_END = """
import outboxd.delivery.exchange as exchange
exchange.ANSWER_BYTES_MAX = exchange.BEFORE_STATUS_BYTES_MAX = 1 << 60
exchange.INTERIM_MAX = 1 << 60
"""
DELIVERY = {"backoff_initial": "10ms", "backoff_max": "20ms", "attempts_max": 0}


@contextmanager
def sending(attacked, patch: str = ""):
    """An agent whose endpoint is the attacker's, and that sends all the time."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}/mgmt/v1/events"
    with attacked(patch, endpoint=endpoint, delivery=DELIVERY) as abuse:
        yield abuse, str(port)


@pytest.fixture(scope="module")
def sender(attacked):
    with sending(attacked) as sender:
        yield sender


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_answer_without_end_stops_no_intake(sender, name):
    abuse, port = sender
    report = abuse.attack(ATTACKS[name], target=port, seconds=1.5, users=(None,))
    print(name, report)
    assert report.faults() == []


def test_without_the_limit_it_is_seen(attacked):
    with sending(attacked, READ_TO_THE_END) as (abuse, port):
        try:
            attack = ATTACKS["interim_answers"]
            report = abuse.attack(attack, target=port, seconds=3.0, users=(None,))
        except GONE:
            return  # it answers nobody any more
        print(report)
        assert report.faults() != []
