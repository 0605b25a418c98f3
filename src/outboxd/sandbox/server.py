"""The sandbox's HTTP server: Komodor's two calls, a list of what came, and faults.

`Sandbox` holds the state and answers Komodor's calls; `Routes` are the rest,
and the timeline page's. All of them are served as the agent's own are. It must
never be the slow part of a benchmark, and never answers 201 for an event that
it does not list.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import random
import signal
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import uuid_utils

from outboxd.budgets import sandbox_limits
from outboxd.clock import Clock
from outboxd.errors import UsageError
from outboxd.outbox.filters import read_listing
from outboxd.sandbox import faults as faulty
from outboxd.sandbox import listing
from outboxd.sandbox.correlation import Correlation
from outboxd.sandbox.received import Received, Record, entry_json
from outboxd.sandbox.source import SandboxSource
from outboxd.sandbox.validation import InvalidEvent, validate
from outboxd.serve.acceptor import BACKLOG
from outboxd.serve.answers import EndWithoutAnswer, Refusal, Response
from outboxd.serve.guards import browser_guard
from outboxd.serve.request import Request, read_body
from outboxd.serve.server import HttpServer
from outboxd.serve.table import Route, RouteTable
from outboxd.web.page import web_routes

EVENTS_PATH = "/mgmt/v1/events"
VALIDATE_PATH = "/mgmt/v1/apikey/validate"
# Far above what the agent sends, so that its own limit is what a test meets.
BODY_BYTES_MAX = 4 * 1024 * 1024

KEEPALIVE_S = 300.0  # longer than a sender keeps a connection that it does not use

_encode = msgspec.json.encode


class Sandbox:
    """All that the stand-in knows."""

    def __init__(
        self,
        correlation: Correlation,
        api_key: str | None = None,
        faults: faulty.InjectedFaults | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.correlation = correlation
        self.api_key = api_key
        self.first_faults = faults or faulty.InjectedFaults()
        self.faults = self.first_faults
        self.received = Received()
        self.clock = clock or Clock()
        self.calls_by_status: dict[str, int] = {}  # "reset" where no answer was sent
        self._chance = chance
        self._rate_limit = faulty.RateLimit()

    async def call(self, request: Request, _: str) -> Response:
        """Answer one of Komodor's two calls, or misbehave as told (NoAnswer)."""
        if self.faults.quiet:
            response = await self._handle(request)
            self._count(str(response.status))
            return response
        verdict = faulty.judge(
            self.faults,
            self._chance(),
            self._rate_limit.admits(self.faults.rate_limit, self.clock.monotonic_s()),
        )
        skew_s = self.faults.date_skew_seconds
        self.faults = faulty.spent(self.faults)
        if verdict.reset:
            raise self._reset()
        if verdict.status is None:
            response = await self._handle(request)
        else:
            response = _refusal(verdict)
        if verdict.delay_s:
            # After the event was taken: a caller that gives up meanwhile has
            # sent it all the same, as it may have with a real server.
            await asyncio.sleep(verdict.delay_s)
        if verdict.lose_answer:
            raise self._reset()
        if skew_s:
            date = email.utils.formatdate(self.clock.wall_ms() / 1000 + skew_s, usegmt=True)
            response.headers = {**(response.headers or {}), "Date": date}
        self._count(str(response.status))
        return response

    def change_faults(self, wanted: Any) -> None:
        """Merge what is wanted into the present faults; raises BadFaults."""
        self.faults = faulty.changed(self.faults, wanted)

    def reset(self) -> None:
        """As just started: nothing received, the first faults."""
        self.received.clear()
        self.calls_by_status.clear()
        self.faults = self.first_faults

    def entry_json(self, record: Record) -> dict[str, Any]:
        """A received event in the agent's shape, with the services it is correlated to."""
        return entry_json(record, self.correlation.encoded(record.event))

    def summary(self) -> dict[str, Any]:
        """What came so far, in figures."""
        received = self.received
        return {
            "received": received.count,
            "distinct": received.distinct,
            "repeated": received.repeated,
            "kept": len(received),
            "calls": self.calls_by_status,
        }

    async def _handle(self, request: Request) -> Response:
        key = request.header("x-api-key") or ""
        if not key or (self.api_key is not None and key != self.api_key):
            return _answer(401, {"statusCode": 401, "message": "Unauthorized"})
        if request.method == "GET":
            return _answer(200, {"valid": True})
        try:
            body = await read_body(request, BODY_BYTES_MAX)
        except Refusal as refusal:
            told = {"statusCode": refusal.status, "message": str(refusal)}
            return Response(_encode(told), refusal.status, close=True)
        try:
            event = validate(body)
        except InvalidEvent as error:
            return _answer(
                400, {"statusCode": 400, "message": error.messages, "error": "Bad Request"}
            )
        id = str(uuid_utils.uuid7())
        self.received.add(
            id,
            self.clock.wall_ms(),
            request.header("idempotency-key"),
            request.header("user-agent"),
            event,
            body,
        )
        correlated = self.correlation.encoded(event)
        text = b'{"id":"%s","correlatedServices":%s}' % (id.encode(), correlated)
        return Response(text, 201)

    def _reset(self) -> EndWithoutAnswer:
        self._count("reset")
        return EndWithoutAnswer(reset=True)

    def _count(self, status: str) -> None:
        self.calls_by_status[status] = self.calls_by_status.get(status, 0) + 1


class Routes:
    """What the sandbox serves beside the page."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        return [
            Route("POST", EVENTS_PATH, self._sandbox.call),
            Route("GET", VALIDATE_PATH, self._sandbox.call),
            Route("GET", "/v1/events", self.list_events),
            Route("GET", "/v1/events/{id}", self.show_event),
            Route("GET", "/sandbox/faults", self.show_faults),
            Route("POST", "/sandbox/faults", self.change_faults),
            Route("POST", "/sandbox/reset", self.reset),
            Route("GET", "/v1/status", self.show_status),
            Route("GET", "/sandbox/summary", self.show_summary),
            Route("GET", "/sandbox/inventory", self.show_inventory),
            Route("GET", "/healthz", self.health),
        ]

    async def list_events(self, request: Request, _: str) -> Response:
        sandbox = self._sandbox
        where, cursor, limit = read_listing(request.query)
        records, following = await listing.page(sandbox.received, where, cursor, limit)
        entries = [sandbox.entry_json(record) for record in records]
        return _answer(200, {"events": entries, "next": following})

    async def show_event(self, _: Request, id: str) -> Response:
        sandbox = self._sandbox
        record = sandbox.received.find(id)
        if record is None:
            raise Refusal(404, "no event with this id")
        entry = sandbox.entry_json(record)
        entry["attempts"] = []
        entry["sentBody"] = msgspec.Raw(record.body)
        entry["arrivals"] = sandbox.received.arrivals(record)
        return _answer(200, entry)

    async def show_status(self, _: Request, __: str) -> Response:
        """What the page's head shows, for a page that cannot listen."""
        summary = self._sandbox.summary()
        return _answer(200, {**summary, "faults": self._sandbox.faults.to_json()})

    async def show_faults(self, _: Request, __: str) -> Response:
        return _answer(200, self._sandbox.faults.to_json())

    async def change_faults(self, request: Request, _: str) -> Response:
        body = await read_body(request, BODY_BYTES_MAX)
        try:
            self._sandbox.change_faults(msgspec.json.decode(body or b"{}"))
        except (faulty.BadFaults, msgspec.DecodeError) as error:
            raise Refusal(400, str(error)) from None
        return _answer(200, self._sandbox.faults.to_json())

    async def reset(self, _: Request, __: str) -> Response:
        self._sandbox.reset()
        return _answer(200, self._sandbox.summary())

    async def show_summary(self, _: Request, __: str) -> Response:
        return _answer(200, self._sandbox.summary())

    async def show_inventory(self, _: Request, __: str) -> Response:
        return _answer(200, self._sandbox.correlation.inventory_json())

    async def health(self, _: Request, __: str) -> Response:
        return Response(b"ok\n", content_type="text/plain; charset=utf-8")


class SandboxServer:
    """The sandbox on a TCP port."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._source = SandboxSource(sandbox)
        self._server: HttpServer | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; the URL. Raises UsageError where that is not possible."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listening = socket.create_server(found[4][:2], family=found[0], backlog=BACKLOG)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "choose another address with --listen; port 0 takes any free one",
            ) from None
        address = listening.getsockname()
        # On loopback a foreign name means a browser that was led here. Elsewhere
        # others know this host by names of their own.
        is_exposed = not ipaddress.ip_address(address[0]).is_loopback
        self._server = HttpServer(
            RouteTable([*Routes(self._sandbox).routes(), *web_routes(self._source)]),
            name="sandbox",
            guards=[browser_guard([host], any_host=is_exposed)],
            limits=sandbox_limits(),
            clock=self._sandbox.clock,
            keepalive_s=KEEPALIVE_S,
        )
        await self._server.start(listening)
        return _url(address)

    async def stop(self) -> None:
        """End the streams, then the server, which would wait for them."""
        await self._source.close()
        if self._server is not None:
            await self._server.stop(0.5)


async def serve(sandbox: Sandbox, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Listen until SIGTERM or SIGINT; `announce` is told the URL once it listens."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = SandboxServer(sandbox)
    announce(await server.start(host, port))
    await stop.wait()
    await server.stop()


def _url(address: Any) -> str:
    host, port = address[0], address[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _answer(status: int, content: Any) -> Response:
    return Response(_encode(content), status)


def _refusal(verdict: faulty.CallHandling) -> Response:
    """The answer of a server, or of something before it, that does not work."""
    if verdict.html:
        page = b"<!doctype html><title>Welcome</title><p>Please log in to use this network."
        return Response(page, content_type="text/html; charset=utf-8")
    assert verdict.status is not None, "a verdict without a status is no refusal"
    headers = {} if verdict.retry_after is None else {"Retry-After": verdict.retry_after}
    told = {"statusCode": verdict.status, "message": "sandbox fault"}
    return Response(_encode(told), verdict.status, headers=headers)
