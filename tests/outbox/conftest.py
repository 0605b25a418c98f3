"""Events, outboxes on real files, and what the outbox's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

from outboxd.clock import FakeClock
from outboxd.outbox.model import Attempt, Incoming, Settlement
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.rescue import diagnosis, recovery

BODY = (
    b'{"eventType":"deploy","summary":"release 12","severity":"information",'
    b'"scope":{"clusters":["a"]},"details":{"n":1.10}}'
)


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start looks and salvages for some time and leaves the rest for later: that time is
    not over on a busy machine, but where a test says so."""
    monkeypatch.setattr(recovery, "FOREGROUND_S", PATIENCE_S)
    monkeypatch.setattr(diagnosis, "_PART_CHECK_S", PATIENCE_S)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "outbox.db")


@pytest.fixture
def engine(path: str, clock: FakeClock) -> Iterator[SqliteEngine]:
    engine = SqliteEngine(path, clock)
    yield engine
    engine.close()


@pytest.fixture
def event():
    """Makes events that differ in what is given."""

    def make(
        summary: str = "release 12",
        *,
        key: str | None = None,
        source: str = "socket",
        at: int = 1_750_000_000_000,
        event_type: str = "deploy",
        severity: str = "information",
        scope: str = '{"clusters":["a"]}',
        expires_at: int | None = None,
        occurred_at: int | None = None,
    ) -> Incoming:
        body = BODY.replace(b"release 12", summary.encode())
        return Incoming(body, event_type, severity, scope, source, at, occurred_at, expires_at, key)

    return make


@pytest.fixture
def delivered():
    """A settlement of a good answer."""

    def make(seq: int) -> Settlement:
        attempt = Attempt(1_750_000_000_500, 12, "delivered", 201, None)
        return Settlement(seq, "delivered", attempt)

    return make
