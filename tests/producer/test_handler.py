"""The logging handler: a record is stored when the call that logged it returns."""

from __future__ import annotations

import logging
import logging.config
import os
import sys
import threading
from types import SimpleNamespace

import pytest
from support.waiting import PATIENCE_S

from outboxd import OutboxdHandler
from outboxd.errors import EventError
from outboxd.producer import handler as handler_module


@pytest.fixture
def logger(place):
    place.agent_was_here()
    found = logging.Logger("billing.charge", logging.DEBUG)
    yield found
    for each in list(found.handlers):
        found.removeHandler(each)
        each.close()


def add(logger, place, **options):
    handler = OutboxdHandler(config=place.config, **options)
    logger.addHandler(handler)
    return handler


@pytest.fixture
def patient(monkeypatch):
    """The handler gives no answer up that is only late, and no time passes for it."""
    monkeypatch.setattr(handler_module, "CONNECT_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(handler_module, "ANSWER_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(handler_module, "monotonic", lambda: 1000.0)


def summaries(place):
    return [event["summary"] for event in place.spooled()]


def test_records_at_or_above_the_level_become_events(place, logger):
    add(logger, place, level=logging.WARNING, services=["billing"], details={"team": "a"})
    logger.info("too low")
    logger.warning("card %s declined", 42)
    logger.error("first line\nsecond line")
    warning, error = place.spooled()
    assert (warning["eventType"], warning["summary"]) == ("log WARNING", "card 42 declined")
    assert (warning["severity"], warning["scope"]) == ("warning", {"servicesNames": ["billing"]})
    assert warning["details"]["logger"] == "billing.charge"
    assert warning["details"]["team"] == "a"
    assert warning["details"]["process"] == os.getpid()
    assert warning["occurredAt"].endswith("Z")
    assert (error["severity"], error["summary"]) == ("error", "first line")
    assert error["details"]["message"] == "first line\nsecond line"


def test_details_of_any_kind_are_kept_and_go_before_the_records_own(place, logger):
    add(logger, place, details={"nested": {"share": 0.5, "none": None}, "logger": "mine"})
    logger.error("x")
    details = place.spooled()[0]["details"]
    assert (details["nested"], details["logger"]) == ({"share": 0.5, "none": None}, "mine")


@pytest.mark.parametrize("options", [{"clusters": [1]}, {"details": {"a": "\0"}}])
def test_what_no_event_may_have_is_said_when_the_handler_is_made(place, options):
    with pytest.raises(EventError):
        OutboxdHandler(config=place.config, **options)


def test_an_exception_is_in_the_details(place, logger):
    add(logger, place)
    try:
        raise ValueError("deep \0 \ud800 inside")
    except ValueError:
        logger.exception("it failed")
    details = place.spooled()[0]["details"]
    assert details["exception"] == "ValueError"
    assert "ValueError: deep \ufffd ? inside" in details["traceback"]


@pytest.mark.parametrize(
    ("level", "severity"),
    [(10, "information"), (20, "information"), (30, "warning"), (40, "error"), (50, "error")],
)
def test_each_level_has_its_severity(place, logger, level, severity):
    add(logger, place, level=0)
    logger.log(level, "")
    (event,) = place.spooled()
    assert (event["severity"], event["summary"]) == (severity, "(empty message)")


def test_an_agent_that_hangs_is_not_waited_for(place, agent, logger):
    agent.behaviour = "hang"
    add(logger, place)
    logger.error("at once")
    assert summaries(place) == ["at once"]
    assert agent.heads == []


@pytest.mark.usefixtures("patient")
def test_where_no_agent_reads_the_spool_records_go_over_the_socket(place, agent):
    logger = logging.Logger("in a container")
    add(logger, place)
    logger.error("over the socket")
    assert [event["summary"] for event in agent.events] == ["over the socket"]
    agent.behaviour = "close"
    logger.error("kept for later")  # makes a spool that nobody may ever read
    agent.behaviour = "answer"
    logger.error("not asked so soon again")
    assert summaries(place) == ["kept for later", "not asked so soon again"]


@pytest.mark.usefixtures("patient")
def test_after_a_rest_the_socket_is_asked_again(place, agent, monkeypatch):
    agent.behaviour = "close"
    logger = logging.Logger("in a container")
    add(logger, place)
    logger.error("kept for later")
    agent.behaviour = "answer"
    monkeypatch.setattr(handler_module, "monotonic", lambda: 1e9)
    logger.error("over the socket")
    assert summaries(place) == ["kept for later"]
    assert agent.events[-1]["summary"] == "over the socket"


@pytest.mark.usefixtures("patient")
def test_a_socket_that_is_named_goes_first(place, agent, logger):
    add(logger, place, socket=place.socket)
    logger.error("over the socket")
    assert [event["summary"] for event in agent.events] == ["over the socket"]


@pytest.mark.usefixtures("patient")
def test_who_may_not_write_into_the_spool_hands_in_over_the_socket(place, agent, logger):
    (place.spool / "tmp").rmdir()
    (place.spool / "tmp").write_text("no directory")
    add(logger, place)
    logger.error("over the socket")
    assert [event["summary"] for event in agent.events] == ["over the socket"]


def test_what_cannot_be_stored_is_counted_and_told_each_time_it_doubles(place, logger, capsys):
    place.spool.rename(place.spool.with_name("elsewhere"))
    place.spool.write_text("a file in its place")
    handler = add(logger, place)
    for number in range(1, 6):
        logger.error("lost")
        assert handler.dropped == number
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" could")[0] for line in told] == [
        "outboxd: 1 log record",
        "outboxd: 2 log records",
        "outboxd: 4 log records",
    ]
    assert all(str(place.spool) in line for line in told)


@pytest.mark.usefixtures("patient")
def test_the_next_event_that_can_be_stored_tells_how_many_were_not(place, logger, capsys):
    handler = add(logger, place, records_per_minute_max=2)
    for number in range(5):
        logger.error("number %d", number)
    assert handler.dropped == 3
    assert "more than 2 came within a minute" in capsys.readouterr().err
    handler._records_per_minute_max = 100
    logger.error("a quiet one")
    logger.error("another")
    dropped = [event for event in place.spooled() if event["eventType"] == "log records dropped"]
    assert [event["details"]["dropped"] for event in dropped] == [3]
    assert summaries(place)[:2] == ["number 0", "number 1"]


@pytest.mark.parametrize(
    ("short", "command"), [({"f_bavail": 2}, "df -h"), ({"f_favail": 2}, "df -i")]
)
def test_a_short_disk_is_left_to_the_others(place, logger, monkeypatch, capsys, short, command):
    disk = {"f_bavail": 10**9, "f_blocks": 10**9, "f_frsize": 4096, "f_files": 10**9}
    disk = SimpleNamespace(**{**disk, "f_favail": 10**9, **short})
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    handler = add(logger, place)
    logger.error("one more")
    assert handler.dropped == 1
    assert command in capsys.readouterr().err


def test_a_stderr_that_is_closed_or_missing_does_not_reach_the_program(place, logger, monkeypatch):
    handler = add(logger, place, records_per_minute_max=0)
    closed = open(os.devnull, "w")  # noqa: SIM115
    closed.close()
    for stderr in (closed, None):
        monkeypatch.setattr(sys, "stderr", stderr)
        logger.error("x")
        logger.error("y")
    assert handler.dropped == 4


def test_a_slip_in_the_call_does_not_cost_the_record(place, logger):
    add(logger, place, event_type="%(nosuch)s")
    logger.error("%d items", "no number")
    (event,) = place.spooled()
    assert event["eventType"] == "log ERROR"
    assert event["summary"].startswith("%d items (its arguments do not fit: TypeError")


class Chatty:
    def __init__(self, logger, times):
        self.logger, self.times = logger, times

    def __str__(self):
        if self.times > 0:
            self.times -= 1
            self.logger.error("from within: %s", self)
        return "done"


class NotShown:
    def __repr__(self):
        raise RuntimeError("not now")


@pytest.mark.parametrize(
    "said",
    [
        {"msg": "from another program", "levelno": logging.ERROR, "levelname": "ERROR"},
        {"msg": "x", "levelno": logging.ERROR, "created": float("nan")},
        {"msg": "x", "levelno": logging.ERROR, "created": 1e300},
        {"msg": "x", "levelno": logging.ERROR, "created": None, "process": None},
        {"msg": NotShown(), "levelno": logging.ERROR},
        {"msg": NotShown(), "levelno": logging.ERROR, "args": (1,)},
    ],
)
def test_a_record_made_elsewhere_is_kept_whatever_it_does_not_say(place, logger, said):
    handler = add(logger, place)
    logger.handle(logging.makeLogRecord(said))
    assert handler.dropped == 0
    assert len(place.spooled()) == 1


def test_what_is_logged_from_within_is_kept_too(place, logger):
    add(logger, place)
    logger.error("from outside: %s", Chatty(logger, 3))
    assert sorted(summaries(place)) == ["from outside: done", *["from within: done"] * 3]


def test_what_logs_without_end_is_ended_counted_and_told(place, logger, capsys):
    handler = add(logger, place)
    logger.error("from outside: %s", Chatty(logger, 10**9))
    assert handler.dropped == 1
    assert "logs again, without end" in capsys.readouterr().err
    told = [event for event in place.spooled() if event["eventType"] == "log records dropped"]
    assert len(told) == 1


@pytest.mark.usefixtures("patient")
def test_threads_lose_none_and_count_right(place, logger, capsys):
    handler = add(logger, place, records_per_minute_max=150)
    threads = [
        threading.Thread(target=lambda: [logger.error("x") for _ in range(50)]) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (summaries(place).count("x"), handler.dropped) == (150, 100)


def test_it_can_be_configured_by_its_public_name(place, logger):
    configuration = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"outboxd": {"class": "outboxd.OutboxdHandler", "config": place.config}},
        "loggers": {"configured": {"handlers": ["outboxd"]}},
    }
    logging.config.dictConfig(configuration)
    try:
        logging.getLogger("configured").error("by a dict")
        logging.config.dictConfig(configuration)
        logging.getLogger("configured").error("by another")
    finally:
        logging.getLogger("configured").handlers.clear()
    assert summaries(place) == ["by a dict", "by another"]
