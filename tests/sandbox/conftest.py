"""A sandbox as a process, and a plain HTTP client for it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from support.waiting import PATIENCE_S

GOOD = {"eventType": "deploy", "summary": "v2 is out"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class SandboxProcess:
    """`outboxd sandbox` on a free port."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "outboxd", "sandbox", "--listen", "127.0.0.1:0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), self.process.communicate()
        self.url = line.split()[-1]
        self.port = urlsplit(self.url).port

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str | None = "any",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            keyed = {} if key is None else {"x-api-key": key}
            connection.request(method, path, sent, {**keyed, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers), answer.read())
        finally:
            connection.close()

    def post(self, event: Any = None, **options: Any) -> Answer:
        return self.ask("POST", "/mgmt/v1/events", GOOD if event is None else event, **options)

    def faults(self, **wanted: Any) -> Answer:
        return self.ask("POST", "/sandbox/faults", wanted)

    def events(self, query: str = "") -> list[dict[str, Any]]:
        return self.ask("GET", f"/v1/events{query}").json["events"]

    def stop(self) -> tuple[int, str]:
        self.process.terminate()
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors


@pytest.fixture(scope="session")
def start_sandbox():
    """A context manager: a sandbox with options of its own, ended behind it."""

    @contextmanager
    def start(*options: str) -> Iterator[SandboxProcess]:
        sandbox = SandboxProcess(*options)
        try:
            yield sandbox
        finally:
            sandbox.stop()

    return start


@pytest.fixture(scope="session")
def shared_sandbox(start_sandbox):
    with start_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared_sandbox):
    """The shared one, as if just started."""
    shared_sandbox.ask("POST", "/sandbox/reset")
    return shared_sandbox
