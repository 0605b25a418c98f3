"""A server on a Unix socket or on loopback, on the event loop that the agent uses."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import uvloop
from support.waiting import PATIENCE_S

from outboxd.serve.answers import Response, Streamed
from outboxd.serve.request import read_body
from outboxd.serve.server import HttpServer
from outboxd.serve.sockets import bind_unix
from outboxd.serve.table import Route, RouteTable


class Seen:
    """What the handlers were asked, and the limits that were met."""

    def __init__(self):
        self.bodies = []
        self.limits = []
        self.cancelled = 0
        self.waiting = asyncio.Event()

    def limit_met(self, limit):
        self.limits.append(limit)


def routes(seen):
    async def echo(request, _):
        body = await read_body(request, 1 << 20)
        seen.bodies.append(body)
        return Response(body, 201)

    async def show_size(request, _):
        return Response(b"%d bytes" % len(await read_body(request, 1 << 20)), 201)

    async def show(request, id):
        return Response(f"{request.method} {id} {list(request.query)}".encode())

    async def large(_, __):
        return Response(b"x" * (8 << 20))

    async def endless(_, __):
        async def parts():
            while True:
                yield b"y" * 65536
                await asyncio.sleep(0)

        return Streamed(parts())

    async def wait(_, __):
        seen.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.cancelled += 1
            raise

    return [
        Route("POST", "/echo", echo),
        Route("POST", "/show-size", show_size),
        Route("GET", "/show/{id}", show),
        Route("GET", "/large", large),
        Route("GET", "/endless", endless),
        Route("GET", "/wait", wait),
    ]


class Site(SimpleNamespace):
    async def open(self):
        if self.port is not None:
            return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.client_tls)
        return await asyncio.open_unix_connection(str(self.path))

    async def raw(self, data, timeout_s=PATIENCE_S):
        """Write bytes, read until the server closes."""
        reader, writer = await self.open()
        try:
            for piece in data if isinstance(data, list) else [data]:
                writer.write(piece)
                await asyncio.sleep(0)
            async with asyncio.timeout(timeout_s):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def serving(path, *, tcp=False, client_tls=None, **options):
    seen = Seen()
    server = HttpServer(RouteTable(routes(seen)), metrics=seen, **options)
    site = Site(seen=seen, server=server, path=path / "s", port=None, client_tls=client_tls)
    if tcp:
        listening = socket.create_server(("127.0.0.1", 0))
        site.port = listening.getsockname()[1]
    else:
        listening = bind_unix(str(site.path), 0o600).socket
    await server.start(listening)
    try:
        yield site
    finally:
        await server.stop(0.2)


@pytest.fixture
def serve(tmp_path):
    """`run(main)` with `async with serve(**options) as site:` in it."""

    def start(**options):
        return serving(tmp_path, **options)

    return start


@pytest.fixture
def run():
    """Runs a coroutine as the agent would."""

    def runner(main):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            return loop.run(main())

    return runner
