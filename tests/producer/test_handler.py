"""The logging handler: records become events, and the program never waits."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest

from outboxd.producer import handler as handler_module
from outboxd.producer.handler import OutboxdHandler


@pytest.fixture
def logger():
    found = logging.Logger("billing.charge", logging.DEBUG)
    yield found
    for each in list(found.handlers):
        found.removeHandler(each)
        each.close()


def add(logger, place, **options):
    handler = OutboxdHandler(config=place.config, **options)
    logger.addHandler(handler)
    return handler


def test_records_at_or_above_the_level_become_events(place, agent, logger):
    handler = add(logger, place, level=logging.WARNING, services=["billing"], details={"team": "a"})
    logger.info("too low")
    logger.warning("card %s declined", 42)
    logger.error("first line\nsecond line")
    assert handler.wait(10)
    warning, error = agent.events
    assert (warning["eventType"], warning["summary"]) == ("log WARNING", "card 42 declined")
    assert (warning["severity"], warning["scope"]) == ("warning", {"servicesNames": ["billing"]})
    assert warning["details"]["logger"] == "billing.charge"
    assert warning["details"]["team"] == "a"
    assert warning["details"]["process"] == os.getpid()
    assert warning["occurredAt"].endswith("Z")
    assert (error["severity"], error["summary"]) == ("error", "first line")
    assert error["details"]["message"] == "first line\nsecond line"


def test_an_exception_is_in_the_details(place, agent, logger):
    handler = add(logger, place)
    try:
        raise ValueError("deep \0 \ud800 inside")
    except ValueError:
        logger.exception("it failed")
    assert handler.wait(10)
    details = agent.events[0]["details"]
    assert details["exception"] == "ValueError"
    assert "ValueError: deep \ufffd ? inside" in details["traceback"]


@pytest.mark.parametrize(
    ("level", "severity"),
    [(10, "information"), (20, "information"), (30, "warning"), (40, "error"), (50, "error")],
)
def test_each_level_has_its_severity(place, agent, logger, level, severity):
    handler = add(logger, place, level=0)
    logger.log(level, "")
    assert handler.wait(10)
    assert agent.events[0]["severity"] == severity
    assert agent.events[0]["summary"] == "(empty message)"


def test_without_an_agent_they_go_into_the_spool(place, logger):
    handler = add(logger, place)
    logger.error("down")
    assert handler.wait(10)
    assert place.spooled()[0]["summary"] == "down"


def test_a_full_queue_drops_and_tells_how_many(place, agent, logger, monkeypatch, capsys):
    entered, go = threading.Event(), threading.Event()
    real = handler_module.hand_in

    def slow(*words, **options):
        entered.set()
        assert go.wait(10)
        return real(*words, **options)

    monkeypatch.setattr(handler_module, "hand_in", slow)
    handler = add(logger, place, queue_max=2)
    logger.error("in hand")
    assert entered.wait(10)
    for number in range(5):
        logger.error("number %d", number)  # none of these waits
    assert handler.dropped == 3
    assert capsys.readouterr().err.count("log records are dropped") == 1
    go.set()
    assert handler.wait(10)
    told = [event for event in agent.events if event["eventType"] == "log records dropped"]
    assert [event["details"]["dropped"] for event in told] == [3]


def test_what_cannot_be_stored_is_counted_and_breaks_nothing(place, logger, capsys):
    place.spool.write_text("a file in its place")
    handler = add(logger, place)
    logger.error("lost")
    logger.error("lost too")
    assert handler.wait(10)
    assert handler.dropped == 2
    assert capsys.readouterr().err.count("log records are dropped") == 1


def test_a_record_that_cannot_be_formatted_does_not_reach_the_program(place, logger, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = add(logger, place)
    logger.error("%d", "not a number")
    assert handler.wait(10)


def test_what_is_logged_while_handing_in_is_not_handed_in(place, agent, logger, monkeypatch):
    real = handler_module.hand_in

    def chatty(*words, **options):
        logger.error("from within")
        return real(*words, **options)

    monkeypatch.setattr(handler_module, "hand_in", chatty)
    handler = add(logger, place)
    logger.error("from outside")
    assert handler.wait(10)
    assert [event["summary"] for event in agent.events] == ["from outside"]


PROGRAM = """
import logging, os, sys
from outboxd.producer.handler import OutboxdHandler
handler = OutboxdHandler(config=sys.argv[1])
logging.getLogger().addHandler(handler)
logging.error("from the parent")
if len(sys.argv) > 2:
    pid = os.fork()
    logging.error("from the child" if pid == 0 else "after the fork")
    if pid:
        os.waitpid(pid, 0)
"""


def test_a_program_that_ends_at_once_loses_none(place, agent):
    subprocess.run([sys.executable, "-c", PROGRAM, place.config], check=True, timeout=30)
    assert [event["summary"] for event in agent.events] == ["from the parent"]


def test_a_forked_child_hands_in_its_own_and_only_that(place, agent):
    subprocess.run([sys.executable, "-c", PROGRAM, place.config, "fork"], check=True, timeout=30)
    summaries = sorted(event["summary"] for event in agent.events)
    assert summaries == ["after the fork", "from the child", "from the parent"]


def test_a_program_that_ends_leaves_what_a_hanging_agent_did_not_take_in_the_spool(place, agent):
    agent.behaviour = "hang"
    program = PROGRAM + "for number in range(20): logging.error(str(number))"
    subprocess.run([sys.executable, "-c", program, place.config], check=True, timeout=20)
    summaries = {event["summary"] for event in place.spooled()}
    assert summaries == {"from the parent", *map(str, range(20))}
