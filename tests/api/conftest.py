"""The routes over a real outbox on a real Unix socket; the destination is scripted."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from support.waiting import PATIENCE_S

from outboxd.api.context import ApiContext
from outboxd.api.control import ControlRoutes
from outboxd.api.peer import require_operator
from outboxd.api.routes import ReadingRoutes
from outboxd.api.session_routes import SessionRoutes
from outboxd.api.sessions import Sessions
from outboxd.clock import FakeClock
from outboxd.event.komodor import parse, scope_text, wire_body
from outboxd.intake.admission import Admission
from outboxd.observe.metrics import Metrics
from outboxd.outbox.model import Incoming
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.copying import copied
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.serve.guards import browser_guard
from outboxd.serve.server import HttpServer
from outboxd.serve.sockets import bind_tcp, bind_unix, remove
from outboxd.serve.table import RouteTable
from outboxd.status import DestinationStatus


class ScriptedDestination:
    """Does what it is told and remembers it."""

    def __init__(self):
        self.calls = []
        self.state = "ok"

    def status(self):
        at = 1_750_000_000_000
        return DestinationStatus("https://x/e", self.state, None, at, None, 16, 2)

    async def hold(self, reason, by):
        self.calls.append(("hold", reason))
        self.state = "held"

    async def release(self, by):
        self.calls.append(("release",))
        self.state = "ok"

    def wake(self):
        self.calls.append(("wake",))


class Agent(SimpleNamespace):
    async def accept(self, summary="s", source="socket", key=None, by="", **fields):
        data = json.dumps({"eventType": "backup", "summary": summary, **fields}).encode()
        event = parse(data)
        self.clock.advance(1)
        item = Incoming(
            wire_body(event),
            event.event_type,
            event.severity,
            scope_text(event),
            source,
            self.clock.wall_ms(),
            dedup_key=key,
            producer=by,
        )
        (receipt,) = await self.outbox.accept([item])
        return receipt.id

    async def request(self, method, target, body=b"", host="localhost", port=None):
        if port is None:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        try:
            told = json.loads(body) if body else None
        except ValueError:
            told = body.decode()
        return int(head.split()[1]), told

    async def get(self, target):
        status, told = await self.request("GET", target)
        assert status == 200, told
        return told

    async def summaries(self, query=""):
        return [event["summary"] for event in (await self.get(f"/v1/events{query}"))["events"]]


@asynccontextmanager
async def running(path, tcp=False):
    clock = FakeClock()
    engine = SqliteEngine(str(path / "outbox.db"), clock)
    outbox = await Outbox.start(engine)
    metrics = Metrics("1.2.3", clock)
    admission = Admission(outbox, lambda: 123456789, clock, 0, 1)
    agent = Agent(
        outbox=outbox,
        clock=clock,
        metrics=metrics,
        destination=ScriptedDestination(),
        unhealthy=None,
        is_ready=True,
        reads_others=False,
        socket=path / "s",
    )
    context = ApiContext(
        outbox=outbox,
        intake=admission,
        destination=agent.destination,
        metrics=metrics,
        clock=clock,
        version="1.2.3",
        host="web-1.example",
        socket_path="/run/outboxd/outboxd.sock",
        sent_body=lambda entry: entry.body,
        unhealthy=lambda: agent.unhealthy,
        ready=lambda: agent.is_ready,
        reads_others=lambda: agent.reads_others,
        copied=lambda: copied(outbox, engine),
    )
    reading = ReadingRoutes(context).routes()
    sessions = Sessions(clock.monotonic_s)
    acting = SessionRoutes(
        sessions,
        lambda: f"http://127.0.0.1:{agent.port}",
        lambda request: str(require_operator(request)),
    )
    control = ControlRoutes(context, lambda request: str(require_operator(request)))
    on_page = ControlRoutes(context, sessions.require_session)
    server = HttpServer(
        RouteTable([*reading, *control.routes(), *control.socket_routes(), *acting.socket_routes()])
    )
    bound = bind_unix(str(agent.socket), 0o666)
    await server.start(bound.socket)
    servers = [server]
    if tcp:
        listening = bind_tcp("127.0.0.1:0")
        agent.port = listening.socket.getsockname()[1]
        guarded = HttpServer(
            RouteTable([*reading, *on_page.routes(), *acting.page_routes()]),
            name="page",
            guards=[browser_guard(["127.0.0.1"])],
        )
        await guarded.start(listening.socket)
        servers.append(guarded)
    try:
        yield agent
    finally:
        for one in servers:
            await one.stop()
        remove(bound)
        await outbox.stop()


@pytest.fixture
def agent(tmp_path):
    """`async with agent() as running:`."""

    def start(**settings):
        return running(tmp_path, **settings)

    return start
