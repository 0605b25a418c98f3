"""A web page somewhere cannot use a browser on this host to ask the agent or the sandbox.

By a name of its own that leads here (DNS rebinding), by requests across sites, or
by having an answer taken for a script, a style or a picture.
"""

from __future__ import annotations

import http.client
import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from support.agent import ENVIRON
from support.outside import Agent
from support.ports import free_port
from support.waiting import PATIENCE_S

NO_GUARD = """
import outboxd.serve.guards as guards
guards.browser_guard = lambda *names, **more: lambda request: None
"""
NO_HEADERS = """
import outboxd.serve.answers as heads
heads._COMMON = ""
"""
SECRET = "said-to-no-other-site"

OF_BOTH = ("/", "/v1/events", "/v1/events/x", "/v1/status", "/v1/facets", "/v1/histogram")
PATHS = {
    "agent": (
        *OF_BOTH,
        *("/v1/export", "/v1/stream", "/v1/activity", "/metrics", "/healthz", "/readyz"),
        *("/static/page.js", "/favicon.ico", "/v1/session", "/v1/hold", "/nowhere"),
    ),
    "sandbox": (
        *OF_BOTH,
        *("/mgmt/v1/events", "/mgmt/v1/apikey/validate", "/sandbox/faults", "/sandbox/reset"),
        *("/sandbox/summary", "/sandbox/inventory", "/v1/inventory", "/v1/stream", "/nowhere"),
    ),
}
NAMES = (
    *("evil.example", "evil.example:8098", "127.0.0.1.evil.example", "localhost.evil.example"),
    *("localhost:80.evil.example", "127.0.0.1:80:80", "[::1]x", "[::1]:x"),
    *("127.0.0.1@evil.example", "[::1].evil.example", "xn--localhost", "", "0x7f000001.evil", "."),
)
# What a browser says of a request that another site's page has it make.
ACROSS: tuple[dict[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Origin": "http://localhost:1"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "http://127.0.0.1.evil.example"},
)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


def ask(port: int, method: str, path: str, host: str | None, **headers: str) -> Answer:
    """One request; of a stream that does not end only its head is read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.putrequest(method, path, skip_host=True)
        if host is not None:
            connection.putheader("Host", host)
        for name, value in {**headers, "Content-Length": "0"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        is_endless = "event-stream" in named.get("content-type", "")
        return Answer(answer.status, named, "" if is_endless else answer.read().decode("latin-1"))
    finally:
        connection.close()


@contextmanager
def served(kind: str, directory, patch: str = "") -> Iterator[int]:
    """The port of an agent's page, or of a sandbox."""
    (directory / "sitecustomize.py").write_text(patch)
    environ = {"PYTHONPATH": str(directory)} if patch else {}
    if kind == "sandbox":
        words = ["sandbox", "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(
            [sys.executable, "-m", "outboxd", *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**ENVIRON, **environ},
        )
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)
        return
    port = free_port()
    listen = {"http": {"listen": f"127.0.0.1:{port}"}}
    agent = Agent(directory, "http://127.0.0.1:9/", extra=listen, environ=environ)
    agent.start()
    try:
        agent.accept(SECRET)
        yield port
    finally:
        agent.kill()


def answered_across(kind: str, port: int) -> list[str]:
    """What another site's page is answered, but for the way to the page itself."""
    found = []
    methods = itertools.cycle(["GET", "POST", "GET", "HEAD", "POST"])  # each with each, in time
    for path in PATHS[kind]:
        for name, method in zip(NAMES, methods, strict=False):
            if ask(port, method, path, name).status not in (400, 421):
                found.append(f"{method} {path} as {name!r}")
        for headers, method in zip(ACROSS, methods, strict=False):
            if ask(port, method, path, f"127.0.0.1:{port}", **headers).status != 403:
                found.append(f"{method} {path} {headers}")
    return found


def without_headers(kind: str, port: int) -> list[str]:
    """Each answer that a browser could take for something else than it is."""
    own = f"127.0.0.1:{port}"
    requests = [
        *((method, path, own) for method in ("GET", "POST") for path in PATHS[kind]),
        *(("BREW", "/", "localhost"), ("GET", "/" + "x" * 40_000, "localhost"), ("GET", "/", None)),
        *(("GET", "/", "evil.example"), ("GET", "/v1/events?limit=x", "localhost")),
        *(("GET", "/v1/events?cursor=%FF", "localhost"), ("GET", "*", "localhost")),
    ]  # fmt: skip
    found = []
    for request in requests:
        headers = ask(port, *request).headers
        if headers.get("x-content-type-options") != "nosniff":
            found.append(f"{request[:2]}: nosniff")
        if headers.get("cross-origin-resource-policy") != "same-origin":
            found.append(f"{request[:2]}: CORP")
        if "access-control-allow-origin" in headers:
            found.append(f"{request[:2]}: CORS")
    return found


@pytest.mark.parametrize("kind", ["agent", "sandbox"])
def test_another_sites_page_is_answered_nothing(kind, tmp_path):
    with served(kind, tmp_path) as port:
        assert answered_across(kind, port) == []
        assert without_headers(kind, port) == []
        own = ask(port, "GET", "/v1/events", f"localhost:{port}", **{"Sec-Fetch-Site": "none"})
        assert own.status == 200
        assert kind == "sandbox" or SECRET in own.text


@pytest.mark.parametrize("kind", ["agent", "sandbox"])
def test_without_the_guard_it_is_seen(only_full, kind, tmp_path):
    with served(kind, tmp_path, NO_GUARD + NO_HEADERS) as port:
        assert len(answered_across(kind, port)) > 50
        assert len(without_headers(kind, port)) > 20


def test_the_sockets_answers_say_what_they_are(tmp_path):
    """A proxy may put the socket before a browser."""
    agent = Agent(tmp_path, "http://127.0.0.1:9/")
    agent.start()
    try:
        for path in ("/v1/events", "/nowhere", "/v1/status", "/v1/events?limit=x", "/metrics"):
            connection = agent.connection()
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            assert answer.headers["X-Content-Type-Options"] == "nosniff", path
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin", path
    finally:
        agent.kill()
