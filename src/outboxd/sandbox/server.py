"""The sandbox's HTTP server: Komodor's two calls, a list of what came, and faults.

Two layers. `Sandbox` holds the state and answers; `serve` puts it on a TCP
port. The call that a drain makes thousands of times a second is answered
before aiohttp's router; everything else is an ordinary `web.Application`, to
which the timeline page's routes are added. It must never be the slow part of
a benchmark, and never answers 201 for an event that it does not list.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uuid_utils
from aiohttp import web

from outboxd.clock import Clock
from outboxd.errors import UsageError
from outboxd.sandbox import faults as faulty
from outboxd.sandbox import listing
from outboxd.sandbox.correlation import Correlation
from outboxd.sandbox.received import Received, Record, entry_json
from outboxd.sandbox.source import SandboxSource
from outboxd.sandbox.validation import InvalidEvent, validate
from outboxd.web import queries
from outboxd.web.page import mount, web_routes

EVENTS_PATH = "/mgmt/v1/events"
VALIDATE_PATH = "/mgmt/v1/apikey/validate"
# Far above what the agent sends, so that its own limit is what a test meets.
BODY_BYTES_MAX = 4 * 1024 * 1024
LIMIT = 100
LIMIT_MAX = 1000

_encode = msgspec.json.encode
_JSON = "application/json"


class Sandbox:
    """All that the stand-in knows."""

    def __init__(
        self,
        correlation: Correlation,
        api_key: str | None = None,
        faults: faulty.Faults | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.correlation = correlation
        self.api_key = api_key
        self.first_faults = faults or faulty.Faults()
        self.faults = self.first_faults
        self.received = Received()
        self.clock = clock or Clock()
        self.calls_by_status: dict[str, int] = {}  # "reset" where no answer was sent
        self._chance = chance
        self._rate_limit = faulty.RateLimit()

    async def call(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one of Komodor's two calls, or misbehave as told."""
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
            return self._reset(request)
        if verdict.status is None:
            response = await self._handle(request)
        else:
            response = _refusal(verdict)
        if verdict.delay_s:
            # After the event was taken: a caller that gives up meanwhile has
            # sent it all the same, as it may have with a real server.
            await asyncio.sleep(verdict.delay_s)
        if verdict.lose_answer:
            return self._reset(request)
        if skew_s:
            response.headers["Date"] = email.utils.formatdate(
                self.clock.wall_ms() / 1000 + skew_s, usegmt=True
            )
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

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        key = request.headers.get("x-api-key", "")
        if not key or (self.api_key is not None and key != self.api_key):
            return _answer(401, {"statusCode": 401, "message": "Unauthorized"})
        if request.method == "GET":
            return _answer(200, {"valid": True})
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _answer(413, {"statusCode": 413, "message": "request entity too large"})
        try:
            event = validate(body)
        except InvalidEvent as error:
            return _answer(
                400, {"statusCode": 400, "message": error.messages, "error": "Bad Request"}
            )
        id = str(uuid_utils.uuid7())
        headers = request.headers
        self.received.add(
            id,
            self.clock.wall_ms(),
            headers.get("Idempotency-Key"),
            headers.get("User-Agent"),
            event,
            body,
        )
        correlated = self.correlation.encoded(event)
        text = b'{"id":"%s","correlatedServices":%s}' % (id.encode(), correlated)
        return web.Response(status=201, body=text, content_type=_JSON)

    def _reset(self, request: web.BaseRequest) -> web.Response:
        """End the connection with a RST, so that nobody takes it for an answer."""
        self._count("reset")
        transport = request.transport
        if transport is not None:
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return web.Response(status=500)  # goes nowhere: the connection is gone

    def _count(self, status: str) -> None:
        self.calls_by_status[status] = self.calls_by_status.get(status, 0) + 1


SANDBOX = web.AppKey("sandbox", Sandbox)


def build_app(sandbox: Sandbox) -> web.Application:
    """Everything but the fast path."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[SANDBOX] = sandbox
    app.router.add_post(EVENTS_PATH, sandbox.call)
    app.router.add_get(VALIDATE_PATH, sandbox.call)
    app.router.add_get("/v1/events", _get_events)
    app.router.add_get("/v1/events/{id}", _get_event)
    app.router.add_get("/sandbox/faults", _get_faults)
    app.router.add_post("/sandbox/faults", _post_faults)
    app.router.add_post("/sandbox/reset", _post_reset)
    app.router.add_get("/sandbox/summary", _get_summary)
    app.router.add_get("/sandbox/inventory", _get_inventory)
    app.router.add_get("/healthz", _get_health)
    source = SandboxSource(sandbox)
    mount(app, web_routes(source))

    async def end_streams(_: web.Application) -> None:
        await source.close()

    app.on_shutdown.append(end_streams)
    return app


async def serve(sandbox: Sandbox, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Listen until SIGTERM or SIGINT; `announce` is told the URL once it listens."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        build_app(sandbox), access_log=None, shutdown_timeout=0.5, keepalive_timeout=300
    )
    await runner.setup()
    _add_fast_path(runner, sandbox)
    site = web.TCPSite(runner, host, port, backlog=1024)
    try:
        await site.start()
        announce(_url(runner.addresses[0]))
        await stop.wait()
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "choose another address with --listen; port 0 takes any free one",
        ) from None
    finally:
        await runner.cleanup()


def _add_fast_path(runner: web.AppRunner, sandbox: Sandbox) -> None:
    """Answer the one frequent call before the router sees it."""
    server = runner.server
    assert server is not None, "the runner is set up"
    routed: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = server.request_handler

    async def front(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST" and request.rel_url.raw_path == EVENTS_PATH:
            return await sandbox.call(request)
        return await routed(request)

    server.request_handler = front


def _url(address: Any) -> str:
    host, port = address[0], address[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _answer(status: int, content: Any) -> web.Response:
    return web.Response(status=status, body=_encode(content), content_type=_JSON)


def _refusal(verdict: faulty.Verdict) -> web.Response:
    """The answer of a server, or of something before it, that does not work."""
    if verdict.html:
        page = "<!doctype html><title>Welcome</title><p>Please log in to use this network."
        return web.Response(text=page, content_type="text/html")
    assert verdict.status is not None, "a verdict without a status is no refusal"
    response = _answer(verdict.status, {"statusCode": verdict.status, "message": "sandbox fault"})
    if verdict.retry_after is not None:
        response.headers["Retry-After"] = verdict.retry_after
    return response


async def _get_events(request: web.Request) -> web.Response:
    sandbox = request.app[SANDBOX]
    try:
        queries.check_names(request.query, "limit", "cursor")
        where = queries.entry_filter(request.query)
        limit = queries.whole_number(request.query, "limit", LIMIT, LIMIT_MAX)
        cursor = queries.text_of(request.query, "cursor")
        records, following = await listing.page(sandbox.received, where, cursor, limit)
    except queries.BadQuery as error:
        return _answer(400, {"error": error.message, "field": error.field, "hint": error.hint})
    except ValueError as error:
        return _answer(400, {"error": str(error), "field": "cursor", "hint": None})
    entries = [sandbox.entry_json(record) for record in records]
    return _answer(200, {"events": entries, "next": following})


async def _get_event(request: web.Request) -> web.Response:
    sandbox = request.app[SANDBOX]
    record = sandbox.received.find(request.match_info["id"])
    if record is None:
        return _answer(404, {"error": "no event with this id", "field": None, "hint": None})
    entry = sandbox.entry_json(record)
    entry["attempts"] = []
    entry["sentBody"] = msgspec.Raw(record.body)
    entry["arrivals"] = sandbox.received.arrivals(record)
    return _answer(200, entry)


async def _get_faults(request: web.Request) -> web.Response:
    return _answer(200, request.app[SANDBOX].faults.to_json())


async def _post_faults(request: web.Request) -> web.Response:
    sandbox = request.app[SANDBOX]
    try:
        sandbox.change_faults(msgspec.json.decode(await request.read() or b"{}"))
    except (faulty.BadFaults, msgspec.DecodeError) as error:
        return _answer(400, {"error": str(error), "field": None, "hint": None})
    return _answer(200, sandbox.faults.to_json())


async def _post_reset(request: web.Request) -> web.Response:
    request.app[SANDBOX].reset()
    return _answer(200, request.app[SANDBOX].summary())


async def _get_summary(request: web.Request) -> web.Response:
    return _answer(200, request.app[SANDBOX].summary())


async def _get_inventory(request: web.Request) -> web.Response:
    return _answer(200, request.app[SANDBOX].correlation.inventory_json())


async def _get_health(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")
