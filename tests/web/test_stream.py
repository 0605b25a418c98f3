"""Server-sent events over real HTTP: what is told, when, and to how many."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import time
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from support.waiting import PATIENCE_S

from outboxd.web import outbox_source, stream


def listen(site) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(site.url).netloc, timeout=PATIENCE_S)
    connection.request("GET", "/v1/stream")
    return connection, connection.getresponse()


def next_message(answer: http.client.HTTPResponse) -> dict[str, Any]:
    while line := answer.readline():
        if line.startswith(b"data: "):
            return json.loads(line[6:])
    raise EOFError("the stream ended")


def test_a_listener_hears_how_things_stand_and_of_each_change(agent_site, event) -> None:
    connection, answer = listen(agent_site)
    with closing(connection):
        assert answer.headers["Content-Type"] == "text/event-stream"
        first = next_message(answer)
        assert first["status"]["outbox"]["pending"] == 0
        assert first["status"]["destination"]["state"] == "ok"
        agent_site.accept(event(), event())
        second = next_message(answer)
        assert second["status"]["outbox"]["pending"] == 2
        assert second["revision"] != first["revision"]
        agent_site.destination.now = agent_site.destination.now._replace(state="backingOff")
        assert next_message(answer)["status"]["destination"]["state"] == "backingOff"


def test_the_sandbox_tells_of_what_comes_and_of_its_faults(sandbox_site) -> None:
    connection, answer = listen(sandbox_site)
    with closing(connection):
        assert next_message(answer)["status"]["received"] == 0
        sandbox_site.receive({"eventType": "deploy", "summary": "one"})
        assert next_message(answer)["status"]["received"] == 1
        sandbox_site.sandbox.change_faults({"outage": True})
        assert next_message(answer)["status"]["faults"]["outage"] is True


def test_a_silent_stream_gives_signs_of_life(agent_site, monkeypatch) -> None:
    monkeypatch.setattr(stream, "SILENCE_MAX_S", 0.05)
    connection, answer = listen(agent_site)
    with closing(connection):
        next_message(answer)
        while not (line := answer.readline()).startswith(b"event: alive"):
            assert line, "the stream ended"


def test_closing_the_source_ends_the_streams(agent_site) -> None:
    connection, answer = listen(agent_site)
    with closing(connection):
        next_message(answer)
        agent_site.call(agent_site.source.close())
        while answer.readline():
            pass  # what was on its way, until the end


def test_more_listeners_than_there_is_room_for_are_told_to_ask(agent_site, monkeypatch) -> None:
    monkeypatch.setattr(stream, "LISTENERS_MAX", 1)
    connection, answer = listen(agent_site)
    with closing(connection):
        next_message(answer)
        other, refused = listen(agent_site)
        with closing(other):
            assert refused.status == 503
            assert refused.headers["Retry-After"]


def test_a_listener_that_reads_nothing_is_let_go_and_its_place_is_free(
    agent_site, monkeypatch
) -> None:
    monkeypatch.setattr(stream, "LISTENERS_MAX", 1)
    monkeypatch.setattr(stream, "INTERVAL_MIN_S", 0.0)
    monkeypatch.setattr(outbox_source, "LOOK_S", 0.001)
    agent_site.server.stall_s = 0.2
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", urlsplit(agent_site.url).port))
        unread.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        ends_at_s = time.monotonic() + PATIENCE_S
        for number in itertools.count():
            # Each message is large, and soon there is no more room on the way.
            reason = f"{number}" + "x" * 500_000
            agent_site.destination.now = agent_site.destination.now._replace(reason=reason)
            if number == 0:
                unread.recv(1)
            connection, answer = listen(agent_site)
            with closing(connection):
                if answer.status == 200:
                    break
            assert time.monotonic() < ends_at_s, "its place is still taken"
    assert number > 0, "the place was taken at first"
