"""One request, one answer: the only module that imports httpx.

It sends, and says what came of it in our own words (`Answer`). It never
retries, never follows a redirect, never waits longer than it was told, and
never decides what an answer means.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from contextlib import suppress
from typing import Any, Protocol, cast
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from multidict import CIMultiDict

from outboxd import __version__
from outboxd.clock import Clock
from outboxd.delivery.connections import (
    Exchange,
    Resolver,
    Tls,
    current_exchange,
    new_session,
    proxy_for,
)
from outboxd.delivery.faults import fault_of
from outboxd.delivery.outcome import BODY_START_BYTES, Answer, Fault
from outboxd.errors import ConfigError

USER_AGENT = f"outboxd/{__version__}"
_BODY_READ_BYTES = 64 * 1024  # more of an answer than this closes its connection
_BODY_READ_S = 5.0  # once the status is known the rest is worth no longer wait
_REDACTED = b"[api key]"


class Settings(Protocol):
    """What the transport reads of `[komodor]`."""

    endpoint: str
    proxy: str
    ca_file: str
    client_cert: str
    client_key: str
    connect_timeout_s: float
    request_timeout_s: float


class Transport:
    """The way to one endpoint. Make it in the running loop, close it there."""

    def __init__(self, settings: Settings, key: str | None, clock: Clock | None = None) -> None:
        self._endpoint = settings.endpoint
        self._request_timeout_s = settings.request_timeout_s
        # The pool's wait, names, connection, proxy and TLS: all of it within one limit.
        self._extensions = {"timeout": {"pool": settings.connect_timeout_s}}
        self._clock = clock or Clock()
        self._proxy = _proxy(proxy_for(settings.endpoint, settings.proxy))
        self._tls = Tls(settings.ca_file, settings.client_cert, settings.client_key)
        self._tls_stamp = self._tls.stamp()
        self._context = self._tls.context()
        self._resolver = Resolver()
        self._pool = self._new_pool()
        self._closing: set[asyncio.Task[None]] = set()
        self.set_key(key)

    def set_key(self, key: str | None) -> None:
        """The API key of every request from now on."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # an answer is read by people, in logs
        }
        if key:
            headers["x-api-key"] = key
        self._headers = headers
        self._key = key.encode() if key else None

    async def send(self, id: str, body: bytes) -> Answer:
        """One POST of an event; always an Answer, within `request_timeout`."""
        headers = CIMultiDict(self._headers)
        headers["Idempotency-Key"] = id
        return await self._exchange("POST", self._endpoint, headers, body)

    async def validate(self) -> Answer:
        """Asks whether the key is good."""
        return await self._exchange(
            "GET", validate_url(self._endpoint), CIMultiDict(self._headers), b""
        )

    def refresh(self) -> None:
        """Forget connections and addresses: the next request looks afresh.

        Requests under way go on. Called by itself after every fault: a laptop
        that changed networks must not wait for dead connections to time out.
        """
        self._retire(self._pool)
        if self._tls.stamp() != self._tls_stamp:
            self._reload_tls()
        self._pool = self._new_pool()

    async def close(self) -> None:
        """Ends all connections, those under way too."""
        self._pool.retired = True
        await self._pool.session.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _exchange(
        self, method: str, url: str, headers: CIMultiDict[str], body: bytes
    ) -> Answer:
        began_s = self._clock.monotonic_s()
        pool = self._pool
        pool.in_flight += 1
        exchange = Exchange()
        current_exchange.set(exchange)
        try:
            request = _Prepared(method, url, headers, body, self._extensions)
            answer = await self._answer_to(request, pool)
        except Exception as error:  # whatever it is: had the request left?
            fault, text, sent = fault_of(error, exchange.connected)
            answer = Answer(fault=fault, fault_text=self._described(fault, text), sent=sent)
            if pool is self._pool:
                self.refresh()
        finally:
            pool.in_flight -= 1
            if pool.retired:
                self._retire(pool)
        return answer._replace(duration_ms=round((self._clock.monotonic_s() - began_s) * 1000))

    async def _answer_to(self, request: _Prepared, pool: _Pool) -> Answer:
        response: httpx.Response | None = None
        start = bytearray()
        complete = False
        try:
            async with asyncio.timeout(self._request_timeout_s) as limit:
                response = await pool.transport.handle_async_request(request)
                # The status is known; what happens to the body cannot change it.
                body_until_s = asyncio.get_running_loop().time() + _BODY_READ_S
                limit.reschedule(min(limit.when() or body_until_s, body_until_s))
                complete = await _read_start(response, start)
        except (TimeoutError, aiohttp.ClientError, httpx.HTTPError, OSError):
            if response is None:
                raise
        if not complete:
            await _end(response)
        return Answer(
            response.status_code, response.headers, self._redacted(bytes(start)), complete=complete
        )

    def _redacted(self, body_start: bytes) -> bytes:
        """An answer may echo the request; the key must not reach a log by that way."""
        if self._key and self._key in body_start:
            return body_start.replace(self._key, _REDACTED)
        return body_start

    def _described(self, fault: Fault, text: str) -> str:
        if self._key:
            text = text.replace(self._key.decode(), _REDACTED.decode())
        proxy_host = self._proxy.url.host if self._proxy else None
        if fault in (Fault.PROXY, Fault.PROXY_AUTH):
            where = proxy_host
        elif fault in (Fault.DNS, Fault.CONNECT, Fault.CONNECT_TIMEOUT):
            where = proxy_host or urlsplit(self._endpoint).hostname
        else:
            where = None
        return ": ".join(part for part in (where, text) if part)

    def _new_pool(self) -> _Pool:
        return _Pool(new_session(self._context, self._resolver), self._context, self._proxy)

    def _retire(self, pool: _Pool) -> None:
        """Closes the pool once nothing is in flight on it."""
        pool.retired = True
        if pool.in_flight == 0 and not pool.session.closed:
            task = asyncio.get_running_loop().create_task(pool.session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _reload_tls(self) -> None:
        """The files changed. Half-written ones do not take away what works."""
        with suppress(ConfigError):
            self._context = self._tls.context()
            self._tls_stamp = self._tls.stamp()


def validate_url(endpoint: str) -> str:
    """Where Komodor says whether a key is good, beside the endpoint for events."""
    parts = urlsplit(endpoint)
    base = parts.path.rstrip("/").rpartition("/")[0]
    return urlunsplit((parts.scheme, parts.netloc, f"{base}/apikey/validate", "", ""))


class _Pool:
    """Connections that are renewed together."""

    __slots__ = ("in_flight", "retired", "session", "transport")

    def __init__(
        self, session: aiohttp.ClientSession, context: ssl.SSLContext, proxy: httpx.Proxy | None
    ) -> None:
        self.session = session
        self.transport = AiohttpTransport(verify=context, client=session, proxy=proxy)
        self.in_flight = 0
        self.retired = False


class _Prepared(httpx.Request):
    """A request whose parts are ready as the transport reads them.

    httpx.Request parses its URL, encodes its content and normalises its headers
    anew each time: a third of the cost of a whole exchange.
    """

    def __init__(
        self,
        method: str,
        url: str,
        headers: CIMultiDict[str],
        body: bytes,
        extensions: dict[str, Any],
    ) -> None:
        self.method = method
        self.url = cast(httpx.URL, url)
        self.headers = cast(httpx.Headers, headers)
        self.extensions = extensions
        self._content = body


async def _read_start(response: httpx.Response, start: bytearray) -> bool:
    """Reads the body and keeps its start; whether it came to its end."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    read_bytes = 0
    async for chunk in response.stream:
        if len(start) < BODY_START_BYTES:
            start += chunk[: BODY_START_BYTES - len(start)]
        read_bytes += len(chunk)
        if read_bytes > _BODY_READ_BYTES:
            return False
    return True


async def _end(response: httpx.Response) -> None:
    """Gives the connection back, which closes it where the body was not read."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    with suppress(aiohttp.ClientError, httpx.HTTPError, OSError):
        await response.stream.aclose()


def _proxy(url: str | None) -> httpx.Proxy | None:
    if url is None:
        return None
    try:
        proxy = httpx.Proxy(url)
        if proxy.auth is None:
            return proxy
        # aiohttp takes credentials in no other form without a warning; it turns
        # this into Proxy-Authorization, for the proxy alone.
        credentials = b64encode(":".join(proxy.auth).encode()).decode()
        return httpx.Proxy(proxy.url, headers={"Authorization": f"Basic {credentials}"})
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"the proxy's URL cannot be used: {error}",
            "[komodor] proxy, or http_proxy and https_proxy in the environment, "
            'must be like "http://user:password@proxy.example:3128"',
        ) from error
