"""The timeline page served for real: an outbox or a sandbox in a thread, and Chromium.

The browser's driver has an event loop of its own, so the servers run in another
thread, and a test asks them to do things through `Site.call`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import urllib.request
from collections.abc import Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from support.waiting import PATIENCE_S

from outboxd.api.context import ApiContext
from outboxd.api.control import ControlRoutes
from outboxd.api.peer import require_operator
from outboxd.api.routes import ReadingRoutes
from outboxd.api.session_routes import SessionRoutes
from outboxd.api.sessions import Sessions
from outboxd.clock import Clock
from outboxd.event.scope import Inventory
from outboxd.intake.admission import Admission
from outboxd.observe.metrics import Metrics
from outboxd.outbox.model import Attempt, Incoming, Receipt, Settlement
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.copying import copied
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.sandbox.correlation import Correlation
from outboxd.sandbox.server import Sandbox, SandboxServer
from outboxd.serve.guards import browser_guard
from outboxd.serve.server import HttpServer
from outboxd.serve.table import RouteTable
from outboxd.status import DestinationStatus, GatewayStatus, RefusedUsers
from outboxd.web.activity import Activity
from outboxd.web.outbox_source import OutboxSource
from outboxd.web.page import web_routes

T = TypeVar("T")

CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# An expectation of the driver's own waits 5 s: too short for a browser on a busy machine.
expect.set_options(timeout=PATIENCE_S * 1000)


def incoming(
    event_type: str = "Nightly backup",
    summary: str = "done",
    severity: str = "information",
    *,
    scope: dict[str, list[str]] | None = None,
    details: dict[str, Any] | None = None,
    received_at: int | None = None,
    occurred_at: int | None = None,
    producer: str = "uid:0",
) -> Incoming:
    """An event as the door hands it to the outbox."""
    event: dict[str, Any] = {"eventType": event_type, "summary": summary, "severity": severity}
    if scope:
        event["scope"] = scope
    if details:
        event["details"] = details
    return Incoming(
        body=json.dumps(event).encode(),
        event_type=event_type,
        severity=severity,
        scope=json.dumps(scope) if scope else "",
        source="socket",
        received_at=Clock().wall_ms() if received_at is None else received_at,
        occurred_at=occurred_at,
        producer=producer,
    )


def delivered(seq: int, at: int, duration_ms: int = 85) -> Settlement:
    """The settlement of an attempt that went well."""
    return Settlement(seq, "delivered", Attempt(at, duration_ms, "delivered", 201, None))


def dead(seq: int, at: int, error: str = "summary must be shorter") -> Settlement:
    """The settlement of an event that Komodor refused."""
    attempt = Attempt(at, 31, "rejected", 400, error)
    return Settlement(seq, "dead", attempt, dead_reason="rejected")


class FakeDestination:
    """A destination that stands as a test says."""

    def __init__(self) -> None:
        self.now = DestinationStatus("https://komodor.test/events", "ok", None, 0, None, 8, 0)

    def status(self) -> DestinationStatus:
        return self.now

    async def hold(self, reason: str, by: str) -> None:
        self.now = self.now._replace(state="held", reason=f"{reason} (by {by})")

    async def release(self, by: str) -> None:
        self.now = self.now._replace(state="ok", reason=None)

    def wake(self) -> None:
        """Nothing is delivered here."""


class Site:
    """A loop in a thread, with a server on loopback."""

    url: str

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class AgentSite(Site):
    """The agent's page over an outbox of its own; nothing is delivered by itself."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self._has_left = False
        self.destination = FakeDestination()
        self.gateway: GatewayStatus | None = None
        self.refused = RefusedUsers()
        self.call(self._start())

    def accept(self, *items: Incoming) -> list[Receipt]:
        """Keep events."""

        async def work() -> list[Receipt]:
            return await self.outbox.accept(items)

        return self.call(work())

    def settle(self, *settlements: Settlement) -> None:
        """Write outcomes."""
        self.call(self.outbox.exchange(settlements, ()))

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database itself."""

        async def work() -> list[tuple[Any, ...]]:
            return await self.outbox.read(
                lambda engine: engine.connection.execute(sql, values).fetchall()
            )

        return self.call(work())

    def told(self, **changes: Any) -> None:
        """Another version runs, or at another socket."""
        self.context = self.reading._context = self.context._replace(**changes)

    def leave(self) -> None:
        """Answer nobody any more. The port stays taken, so that no server of another test
        answers there."""
        if not self._has_left:
            self._has_left = True
            self.call(self._leave())

    def close(self) -> None:
        self.leave()
        self.call(self.outbox.stop())
        super().close()
        self._port.close()

    async def _start(self) -> None:
        engine = SqliteEngine(self.path)
        self.outbox = await Outbox.start(engine)
        self.activity = Activity(self.outbox, self.destination, Clock())
        self.activity.sample()
        self.admission = Admission(self.outbox, lambda: 10**10, Clock(), 0, 1)
        context = ApiContext(
            outbox=self.outbox,
            intake=self.admission,
            destination=self.destination,
            metrics=Metrics("1.2.3", Clock()),
            clock=Clock(),
            version="1.2.3",
            host="web-1.example",
            socket_path="/run/outboxd/outboxd.sock",
            sent_body=lambda entry: entry.body,
            unhealthy=lambda: None,
            ready=lambda: True,
            reads_others=lambda: True,
            copied=lambda: copied(self.outbox, engine),
            gateway=lambda: self.gateway,
            refused=lambda: self.refused,
        )
        self.context = context
        self.source = OutboxSource(self.outbox, self.activity, lambda: self.context.status())
        self.reading = ReadingRoutes(context, self.source.page)
        self.sessions = Sessions(Clock().monotonic_s)
        acting = SessionRoutes(
            self.sessions, lambda: self.url, lambda request: str(require_operator(request))
        )
        control = ControlRoutes(context, self.sessions.require_session).routes()
        table = RouteTable(
            [*self.reading.routes(), *control, *acting.page_routes(), *web_routes(self.source)]
        )
        self.server = HttpServer(table, name="page", guards=[browser_guard()])
        self._port = socket.socket()  # bound, and never listens
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        listening = socket.create_server(self._port.getsockname())
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        await self.server.start(listening)

    async def _leave(self) -> None:
        await self.source.close()
        await self.server.stop(1.0)


class SandboxSite(Site):
    """The sandbox's page, with the inventory of the documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.call(self._start())

    def receive(self, *events: dict[str, Any]) -> None:
        """Hand events to the sandbox as a sender would."""

        for event in events:
            request = urllib.request.Request(
                f"{self.url}/mgmt/v1/events", json.dumps(event).encode(), {"x-api-key": "k"}
            )
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                assert answer.status == 201, answer.read()

    def close(self) -> None:
        self.call(self._stop())
        super().close()

    async def _start(self) -> None:
        self.sandbox = Sandbox(Correlation(Inventory.example()))
        self._server = SandboxServer(self.sandbox)
        self.url = await self._server.start("127.0.0.1", 0)

    async def _stop(self) -> None:
        await self._server.stop()


@pytest.fixture(scope="session")
def event() -> Any:
    """Makes an event as the door hands it to the outbox."""
    return incoming


@pytest.fixture(scope="session")
def settled() -> Any:
    """Makes settlements: `settled.delivered(seq, at)`, `settled.dead(seq, at)`."""
    return SimpleNamespace(delivered=delivered, dead=dead)


@pytest.fixture(scope="session")
def agent_site_of() -> type[AgentSite]:
    """Serves the outbox at a path."""
    return AgentSite


@pytest.fixture
def agent_site(tmp_path) -> Iterator[AgentSite]:
    site = AgentSite(str(tmp_path / "outbox.db"))
    yield site
    site.close()


@pytest.fixture
def sandbox_site() -> Iterator[SandboxSite]:
    site = SandboxSite()
    yield site
    site.close()


@pytest.fixture(scope="module")
def _chromium() -> Iterator[Browser]:
    # No longer than a module: the driver's loop runs in this very thread, and
    # while it does no other test could start one.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=CHROMIUM_ARGUMENTS,
            timeout=PATIENCE_S * 1000,
        )
        yield browser
        browser.close()


@pytest.fixture
def chromium(need, request: pytest.FixtureRequest) -> Browser:
    """A real Chromium, or the test is skipped."""
    need("chromium")
    browser: Browser = request.getfixturevalue("_chromium")
    return browser


@pytest.fixture
def new_context(chromium: Browser) -> Iterator[Any]:
    """Makes a browser's context that waits as long as all else here, and closes it behind."""
    contexts: list[BrowserContext] = []

    def made(**options: Any) -> BrowserContext:
        context = chromium.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_S * 1000)
        return context

    yield made
    for context in contexts:
        context.close()


class Faults(list[str]):
    """What the browser complained of: errors of scripts, of the policy, of fetching."""

    def watch(self, page: Page, expected: Sequence[str] = ()) -> None:
        """`expected`: words of what a test means to happen."""

        def told(text: str) -> None:
            if not any(words in text for words in expected):
                self.append(text)

        page.on("pageerror", lambda error: told(str(error)))
        page.on("console", lambda line: told(line.text) if line.type == "error" else None)


@pytest.fixture
def open_page(new_context: Any) -> Iterator[Any]:
    """Opens a page; at the end the browser must have had nothing to complain of."""
    contexts, faults = [], Faults()

    def opened(
        url: str,
        size: Sequence[int] = (1440, 900),
        scheme: str = "light",
        faults_of: Sequence[str] = (),
        **options: Any,
    ) -> Page:
        context = new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="UTC",
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        faults.watch(page, faults_of)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
