"""A real outbox, door, server and spool in a temporary directory, on demand."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest
from support.waiting import PATIENCE_S

from outboxd.clock import Clock
from outboxd.event.komodor import Defaults
from outboxd.intake.admission import Admission
from outboxd.intake.http import IntakeRoutes
from outboxd.intake.intake import Intake
from outboxd.observe.metrics import Metrics
from outboxd.outbox.model import EntryChange, EntryFilter
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.serve.server import HttpServer
from outboxd.serve.sockets import bind_unix, remove
from outboxd.serve.table import RouteTable
from outboxd.spool.reader import SpoolReader
from outboxd.spool.waiting import SpoolWaits

# Short enough for a test to wait for, long enough to be told apart.
QUICK = SpoolWaits(
    rescan_s=30.0,
    grow_s=0.3,
    link_s=0.5,
    look_again_s=0.02,
    refused_min_s=0.05,
    refused_max_s=0.05,
    trouble_s=0.1,
)


class Parts(SimpleNamespace):
    """The running parts, and short ways to use them."""

    async def entries(self):
        page = await self.outbox.page(EntryFilter(), None, 1000)
        return list(reversed(page.entries))

    async def first_entries(self, count):
        """The oldest ones of however many there are."""
        every, cursor = [], None
        while True:
            page = await self.outbox.page(EntryFilter(), cursor, 1000)
            every += page.entries
            cursor = page.next
            if cursor is None:
                return every[::-1][:count]

    async def drop(self, id):
        return await self.outbox.change(lambda engine: engine.change(EntryChange.DROP, id))

    async def summaries(self):
        return [json.loads(entry.body)["summary"] for entry in await self.entries()]

    def put(self, name, content, age_s=10.0):
        """Write in `tmp/` and rename into `new/`, as a producer does."""
        data = content if isinstance(content, bytes) else content.encode()
        path = self.spool / "tmp" / "being-written"
        path.write_bytes(data)
        stamp = self.clock.wall_ms() / 1000 - age_s
        os.utime(path, (stamp, stamp))
        os.rename(path, self.spool / "new" / name)
        return self.spool / "new" / name

    def new(self):
        return sorted(os.listdir(self.spool / "new"))

    def rejected(self):
        return sorted(os.listdir(self.spool / "rejected"))

    def reason(self, name):
        return (self.spool / "rejected" / f"{name}.error").read_text()

    async def until(self, condition, timeout_s=PATIENCE_S):
        """Wait for something that happens on the disk or in the outbox."""
        async with asyncio.timeout(timeout_s):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.005)

    async def emptied(self, timeout_s=PATIENCE_S):
        """Until nothing waits any more; for so long not one of many may be taken meanwhile."""
        while waiting := self.new():
            await self.until(lambda waiting=waiting: self.new() != waiting, timeout_s)
        await self.until(lambda: self.reader.idle)

    async def request(self, method, target, body=b"", headers=()):
        """One request on a connection of its own: status, headers, JSON."""
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        if body:
            head += f"Content-Length: {len(body)}\r\n"
        for name, value in dict(headers).items():
            head += f"{name}: {value}\r\n"
        answer = await self.raw(head.encode() + b"\r\n" + body)
        return parse_answer(answer)

    async def post(self, event, target="/mgmt/v1/events", **headers):
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("POST", target, body, named)

    async def raw(self, data, *, half_close=False, timeout_s=PATIENCE_S):
        """Write bytes, read until the server closes."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(data)
            if half_close:
                writer.write_eof()
            async with asyncio.timeout(timeout_s):
                return await reader.read()
        finally:
            writer.close()


def parse_answer(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    status = int(lines[0].split()[1])
    if headers.get("transfer-encoding") == "chunked":
        body = unchunk(body)
    return status, headers, json.loads(body) if body else None


def unchunk(body):
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return whole


@asynccontextmanager
async def running(path, *, serve=True, spool=True, **settings):
    clock = settings.pop("clock", None) or Clock()
    free = {"bytes": settings.pop("free_bytes", 1 << 40)}
    events_max = settings.pop("events_max", 0)
    pace = settings.pop("pace", QUICK)
    stall_s = settings.pop("stall_s", 10.0)
    outbox = await Outbox.start(SqliteEngine(str(path / "outbox.db"), clock))
    metrics = Metrics("test", clock)
    admission = Admission(
        outbox,
        lambda: free["bytes"],
        clock,
        events_max,
        64 << 20,
        settings.pop("shares", None),
    )
    door = Intake(
        outbox,
        admission,
        metrics,
        clock,
        defaults=settings.pop("defaults", None) or Defaults([], [], [], {}),
        event_type_max=settings.pop("event_type_max", 60),
        event_bytes_max=settings.pop("event_bytes_max", 256 * 1024),
        ttl_s=settings.pop("ttl_s", 0.0),
    )
    assert not settings, settings
    parts = Parts(
        outbox=outbox,
        metrics=metrics,
        admission=admission,
        door=door,
        clock=clock,
        free=free,
        socket=path / "s",
        spool=path / "spool",
        path=path,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(outbox.stop)
        if serve:
            routes = IntakeRoutes(door, metrics).routes()
            parts.server = HttpServer(RouteTable(routes), stall_s=stall_s)
            bound = bind_unix(str(parts.socket), 0o660)
            await parts.server.start(bound.socket)
            stack.callback(remove, bound)
            stack.push_async_callback(parts.server.stop)
        if spool:
            parts.reader = SpoolReader(str(parts.spool), door, outbox, metrics, clock, pace)
            await parts.reader.start()
            stack.push_async_callback(parts.reader.stop)
        yield parts


@pytest.fixture
def intake(tmp_path):
    """`async with intake(**settings) as parts:`; may be entered again (a restart)."""

    def start(**settings):
        return running(tmp_path, **settings)

    return start


@pytest.fixture
def event():
    """Makes a valid event as a dict."""

    def make(summary="backup done", **fields):
        fields.setdefault("scope", {"clusters": ["prod"]})
        return {"eventType": "backup", "summary": summary, **fields}

    return make


@pytest.fixture
def line(event):
    """Makes a valid event as one line of JSON."""

    def make(summary="backup done", **fields):
        return json.dumps(event(summary, **fields))

    return make
