"""What goes through a proxy, and what `check` asks: httpx, as it is meant to be used.

The only module that imports httpx, and itself imported only where it is needed:
an agent without a proxy never loads it. It never follows a redirect, keeps no
cookie, and never asks the environment: which proxy there is, is decided before.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple

import httpx

from outboxd.delivery import faults
from outboxd.delivery.exchange import ANSWER_BYTES_MAX, KEEPALIVE_S, REST_S
from outboxd.delivery.outcome import BODY_START_BYTES, Answer, Fault, decoded
from outboxd.errors import ConfigError

# What httpcore says where a SOCKS proxy wants other credentials, or any.
_SOCKS_CREDENTIALS = ("Invalid username/password", "Requested ")


class Proxied:
    """Requests through one proxy.

    Args:
        proxy: its URL, credentials in it
        context: for TLS with the endpoint, and with a proxy whose URL is https
        connect_timeout_s: for name, connection, proxy and TLS together
        request_timeout_s: for all of an exchange
    """

    def __init__(
        self,
        proxy: str,
        context: ssl.SSLContext | None,
        connect_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self._proxy = proxy
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._context = context
        self._client = _Client(proxy, context)
        self._closing: set[asyncio.Task[None]] = set()

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """One exchange; always an Answer."""
        client, progress = self._client, _Progress()
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self._request_timeout_s
        response: httpx.Response | None = None
        start, complete = bytearray(), False
        client.in_flight += 1
        try:
            async with asyncio.timeout(self._connect_timeout_s) as limit:
                # Until the request itself leaves it is connecting that takes time.
                progress.leaving = lambda: limit.reschedule(ends_s)
                async with client.stream(method, url, headers, body, progress.trace) as response:
                    # The status is known; what happens to the body cannot change it.
                    limit.reschedule(min(ends_s, loop.time() + REST_S))
                    complete = await _read(response, start)
        except Exception as error:  # whatever it is: had the request left?
            if response is None:
                return _failed(error, progress)
        finally:
            client.in_flight -= 1
            self._close_if_unused(client)
            if response is None and progress.stream is not None:
                # httpcore leaves it open where a SOCKS proxy refuses.
                with suppress(Exception):
                    await progress.stream.aclose()
        return _answer(response, bytes(start), complete)

    def drop_idle(self) -> None:
        """Let the next requests have new connections."""
        self.renew(self._context)

    def renew(self, context: ssl.SSLContext | None) -> None:
        """Fresh connections from now on; those in use end with their request."""
        self._context = context
        old, self._client = self._client, _Client(self._proxy, context)
        self._close_if_unused(old)

    async def close(self) -> None:
        """End all connections."""
        await self._client.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _close_if_unused(self, client: _Client) -> None:
        if client is not self._client and not client.in_flight:
            task = asyncio.get_running_loop().create_task(client.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class _Client:
    """Connections that are renewed together."""

    def __init__(self, proxy: str, context: ssl.SSLContext | None) -> None:
        self._client = httpx.AsyncClient(**_options(proxy, context), timeout=None)
        self.in_flight = 0
        self.close = self._client.aclose

    def stream(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, trace: Any
    ) -> AbstractAsyncContextManager[httpx.Response]:
        return self._client.stream(
            method, url, headers=headers, content=body, extensions={"trace": trace}
        )


class Asked(NamedTuple):
    """What came of `ask`."""

    answer: Answer
    connected_s: float | None  # how long until the request could leave; None: it never did
    tls: str | None = None  # its version
    certificate: Mapping[str, Any] = {}  # as ssl.SSLSocket.getpeercert has it


def ask(
    method: str,
    url: str,
    headers: Mapping[str, str],
    proxy: str | None,
    context: ssl.SSLContext | None,
    timeout_s: float,
) -> Asked:
    """One request on a connection of its own, for a command; it waits.

    `timeout_s` is for each step. The body is read as far as an Answer has it.

    Raises:
        ConfigError: the proxy's URL cannot be used.
    """
    progress = _Progress()
    start = b""
    try:
        with httpx.Client(**_options(proxy, context), timeout=timeout_s) as client:
            more = {"trace": progress.told}
            with client.stream(method, url, headers=headers, extensions=more) as response:
                stream = response.extensions["network_stream"]
                tls = stream.get_extra_info("ssl_object")
                for chunk in response.iter_raw():
                    start += chunk
                    if len(start) >= BODY_START_BYTES:
                        break
    except (httpx.HTTPError, OSError, AssertionError) as error:
        if progress.stream is not None:
            progress.stream.close()
        return Asked(_failed(error, progress, through_proxy=proxy is not None), progress.left_s)
    answer = _answer(response, start[:BODY_START_BYTES], True)
    if tls is None:
        return Asked(answer, progress.left_s)
    return Asked(answer, progress.left_s, tls.version(), tls.getpeercert() or {})


class _Progress:
    """How far a request has come, as httpcore's trace tells it."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self.left_s: float | None = None  # after so long the request itself left
        self.reached_proxy = False
        self.stream: Any = None  # httpcore's, of the connection with the proxy
        self.leaving: Callable[[], None] = lambda: None

    def told(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            self.reached_proxy = True
            self.stream = info["return_value"]
        leaves = event == "http11.send_request_headers.started" and self.left_s is None
        if leaves and info["request"].method != b"CONNECT":  # that one is for the proxy
            self.left_s = time.monotonic() - self._began_s
            self.leaving()

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        self.told(event, info)


def _options(proxy: str | None, context: ssl.SSLContext | None) -> dict[str, Any]:
    """How every client of ours is made.

    Raises:
        ConfigError: the proxy's URL cannot be used.
    """
    via = None
    if proxy is not None:
        try:
            via = httpx.Proxy(proxy, ssl_context=context if proxy[:6] == "https:" else None)
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"the proxy's URL cannot be used: {error}",
                'it must be like "http://user:password@proxy.example:3128"',
            ) from error
    return {
        "proxy": via,
        "verify": context or False,  # False: plain http alone
        "trust_env": False,
        "limits": httpx.Limits(keepalive_expiry=KEEPALIVE_S),  # the permits are the limit
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    }


async def _read(response: httpx.Response, start: bytearray) -> bool:
    """Reads the body and keeps its start; whether it came to its end."""
    read_bytes = 0
    async for chunk in response.aiter_raw():
        start += chunk[: BODY_START_BYTES - len(start)]
        read_bytes += len(chunk)
        if read_bytes > ANSWER_BYTES_MAX:
            return False
    return True


def _answer(response: httpx.Response, start: bytes, complete: bool) -> Answer:
    body, readable = decoded(start, response.headers.get("content-encoding", ""))
    return Answer(
        response.status_code,
        dict(response.headers),
        body,
        complete=complete,
        readable=readable,
    )


def _failed(error: Exception, progress: _Progress, through_proxy: bool = True) -> Answer:
    """An exchange without a status."""
    chain = tuple(faults.causes(error))
    text = faults.said(chain)
    timed_out = any(isinstance(each, TimeoutError) for each in chain)
    if isinstance(error, httpx.ProxyError):
        credentials = text.startswith(("407", *_SOCKS_CREDENTIALS))
        return _fault(Fault.PROXY_AUTH if credentials else Fault.PROXY, text)
    if progress.left_s is None:
        fault, text = faults.connecting(error)
        if through_proxy and not (progress.reached_proxy or timed_out):
            fault = Fault.PROXY
        return _fault(fault, text)
    if timed_out:
        return _fault(Fault.TIMEOUT, "", sent=True)
    fault, text, sent = faults.lost(error, True)
    if fault is Fault.LOST and isinstance(error, httpx.ProtocolError):
        # httpcore's words for a connection that ended before a whole answer.
        fault = Fault.LOST if "disconnected" in str(error) else Fault.GARBAGE
    return _fault(fault, text, sent)


def _fault(fault: Fault, text: str, sent: bool = False) -> Answer:
    return Answer(fault=fault, fault_text=text, sent=sent)
