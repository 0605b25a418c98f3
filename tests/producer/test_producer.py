"""`from outboxd import emit`: what a Python program gets, and what it is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta, timezone

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.waiting import PATIENCE_S

from outboxd import emit
from outboxd.errors import EventError, EventTooLarge, OutboxdError
from outboxd.event.komodor import build, parse
from outboxd.producer import Stored
from outboxd.producer.hand_in import compose, hand_in
from outboxd.producer.settings import load
from outboxd.producer.socket import NoAgent, NoAnswer, post
from outboxd.producer.spool import NotStored


def test_a_program_gets_the_receipt(place, agent):
    stored = emit(
        "deploy",
        "v2",
        severity="warning",
        clusters=["a"],
        namespaces="n",
        services=("s",),
        details={"nested": {"list": [1, 2.5, None, True]}, "big": 10**30},
        dedup_key="k",
        occurred_at=datetime(2026, 11, 22, 0, 31, 36, 500_000, timezone(timedelta(hours=1))),
        ttl_s=60,
        config=place.config,
    )
    assert isinstance(stored, Stored)
    assert (stored.where, stored.status, stored.id) == (
        "agent",
        "accepted",
        "0192f0c1-0000-7000-8000-000000000001",
    )
    assert agent.events[0]["details"] == {
        "nested": {"list": [1, 2.5, None, True]},
        "big": 10**30,
    }
    assert agent.events[0]["scope"]["namespaces"] == ["n"]
    assert agent.events[0]["occurredAt"] == "2026-11-21T23:31:36.500Z"


def test_without_an_agent_it_is_in_the_spool(place):
    stored = emit("t", "s", config=place.config)
    assert (stored.where, stored.status, stored.id) == ("spool", "spooled", None)
    assert (place.spool / "new" / str(stored.spool_name)).exists()
    assert "no agent answers" in str(stored.reason)
    assert "spool" in repr(stored)


def test_spooled_names_sort_by_time_and_never_meet(place):
    names = [str(emit("t", "s", config=place.config).spool_name) for _ in range(50)]
    assert len(set(names)) == 50
    assert [name[:17] for name in names] == sorted(name[:17] for name in names)


def test_a_spooled_event_is_one_line(place):
    config = load(place.config)
    hand_in(b'{\r\n"eventType":"t",\n"summary":"s","details":{\n"k":\r\n"v\\n"}}', config)
    (file,) = (place.spool / "new").iterdir()
    assert file.read_text().count("\n") == 1
    assert place.spooled()[0]["details"] == {"k": "v\n"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"event_type": ""}, EventError),
        ({"severity": "loud"}, EventError),
        ({"occurred_at": datetime(2026, 1, 1)}, EventError),
        ({"ttl_s": -1}, EventError),
        ({"details": {"k": object()}}, EventError),
        ({"details": {"k": float("nan")}}, EventError),
        ({"details": {"k": "\ud800"}}, EventError),
        ({"details": {"k": "x" * 300_000}}, EventTooLarge),
    ],
)
def test_what_is_wrong_is_raised_and_not_kept(place, options, error):
    words = {"event_type": "t", "summary": "s", "config": place.config, **options}
    with pytest.raises(error) as raised:
        emit(words.pop("event_type"), words.pop("summary"), **words)
    assert isinstance(raised.value, OutboxdError)
    assert place.spooled() == []


def test_a_wrong_configuration_is_told_once_and_the_events_are_kept(place, capsys):
    with open(place.config, "a") as file:
        file.write("nonsense")
    for _ in range(2):
        assert emit("t", "s", config=place.config).where == "spool"
    assert len(place.spooled()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("outboxd: warning: ")
    assert "not TOML" in line


def test_a_spool_without_room_for_it_says_so(place):
    place.spool.write_text("a file in its place")
    with pytest.raises(NotStored) as raised:
        emit("t", "s", config=place.config)
    assert raised.value.exit_code == 75
    assert raised.value.hint


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no second file system")
def test_parts_of_the_spool_on_two_file_systems_are_told_as_such(place):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(place.spool.parent).st_dev:
            pytest.skip("/dev/shm is no second file system")
        (place.spool / "new").mkdir(parents=True)
        (place.spool / "tmp").symlink_to(elsewhere)
        with pytest.raises(NotStored) as raised:
            emit("t", "s", config=place.config)
        assert "on one file system" in str(raised.value.hint)
        assert os.listdir(elsewhere) == []


def test_a_part_of_the_spool_that_is_missing_is_made(place):
    (place.spool / "new").mkdir(parents=True)
    emit("t", "s", config=place.config)
    assert len(place.spooled()) == 1


def test_many_at_once_make_a_missing_spool_together(place):
    program = (
        "import sys, time; from outboxd import emit;"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()));"
        "emit('t', 's', config=sys.argv[1])"
    )
    start_at = str(time.time() + 1)
    processes = [
        subprocess.Popen([sys.executable, "-c", program, place.config, start_at]) for _ in range(8)
    ]
    assert [process.wait(PATIENCE_S) for process in processes] == [0] * 8
    assert len(place.spooled()) == 8


def test_a_spool_that_is_a_dangling_link_is_refused(place):
    place.spool.symlink_to("/no/such/directory/at/all")
    with pytest.raises(NotStored):
        emit("t", "s", config=place.config)


def test_a_rename_that_fails_leaves_nothing_behind(place):
    (place.spool / "tmp").mkdir(parents=True)
    (place.spool / "new").symlink_to("/no/such/directory")
    with pytest.raises(NotStored):
        emit("t", "s", config=place.config)
    assert list((place.spool / "tmp").iterdir()) == []


def test_an_agent_that_hangs_ends_in_the_spool_with_the_same_key(place, agent):
    agent.behaviour = "hang"
    config = load(place.config)
    stored = hand_in(build("t", "s"), config, answer_timeout_s=1.0)
    assert stored.where == "spool"
    assert place.spooled()[0]["dedupKey"] == agent.wait_for(1)[0]["dedupKey"]


def test_a_queue_of_connections_that_is_full_is_waited_for_but_not_for_ever(place):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.socket))
        listener.listen(0)
        others = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(str(place.socket))
        with pytest.raises(NoAgent, match="took no connection"):
            post(str(place.socket), "/", b"{}", connect_timeout_s=0.2)
        for other in others:
            other.close()


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 C\r\ncontent-LENGTH: 2\r\n\r\n{}",
            (201, b"{}"),
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}rest", (200, b"{}")),
        (b"HTTP/1.1 503\r\nContent-Length:0\r\n\r\n", (503, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", None),
        (b"HTTP/1.1 twohundred\r\n\r\n", None),
        (b"x" * 100_000, None),
        (b"\r\n\r\n", None),
    ],
)
def test_odd_answers_are_read_or_count_as_none(place, agent, raw, answer):
    agent.behaviour = raw
    if answer is None:
        with pytest.raises(NoAnswer):
            post(str(place.socket), "/", b"{}")
    else:
        assert post(str(place.socket), "/", b"{}") == answer


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@pytest.mark.timeout(900)
def test_what_is_composed_is_the_event_that_was_given(full, seed):
    @hypothesis.seed(seed)
    @settings(
        max_examples=2_000 if full else 100,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        TEXT.filter(lambda text: len(text) <= 60),
        TEXT,
        st.dictionaries(TEXT, JSON, max_size=3),
        st.lists(TEXT, max_size=2),
        st.none() | st.integers(0, 250_000_000_000_000),
        st.none() | st.floats(0.001, 1e9),
    )
    def check(event_type, summary, details, names, occurred_at, ttl_s):
        data = build(
            event_type, summary, "error", names, names, names, details, "k", occurred_at, ttl_s
        )
        first = parse(data)
        second = parse(compose(first))
        for field in ("event_type", "summary", "severity", "scope", "dedup_key"):
            assert getattr(first, field) == getattr(second, field)
        assert (second.occurred_at, second.ttl_s) == (occurred_at, ttl_s)
        assert first.details == second.details
        assert compose(second).count(b"\n") == 0

    check()


def test_utc_datetimes_are_taken(place, agent):
    emit("t", "s", occurred_at=datetime(2026, 1, 2, tzinfo=UTC), config=place.config)
    assert agent.events[0]["occurredAt"] == "2026-01-02T00:00:00.000Z"
