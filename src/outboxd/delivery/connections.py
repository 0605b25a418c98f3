"""How connections are made: names, TLS, proxies, and a pool that can be renewed.

aiohttp's side of the transport. It never sends a request and decides nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import urllib.request
from contextlib import suppress
from contextvars import ContextVar
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from outboxd.errors import ConfigError

_KEEPALIVE_S = 15.0  # below every server's own limit, so that seldom a stale one is used
_DNS_CACHE_S = 60
_LOOKUPS_MAX = 4  # of lookups that hang; each holds a thread until the system gives up


class Exchange:
    """What the connector tells the transport about one request."""

    __slots__ = ("connected",)

    def __init__(self) -> None:
        self.connected = False


current_exchange: ContextVar[Exchange] = ContextVar("current_exchange")


class Tls(NamedTuple):
    """The files that TLS depends on; empty for the system's own."""

    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Changes whenever one of the files does."""
        return tuple(_file_stamp(path) for path in self)

    def context(self) -> ssl.SSLContext:
        """A fresh context from the files as they are now; ConfigError if they are no use."""
        try:
            if self.ca_file:
                context = ssl.create_default_context(cafile=self.ca_file)
            else:
                context = _system_context()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"[komodor] ca_file = {self.ca_file!r} cannot be used: {error}",
                "it must be a readable PEM file with the authorities to trust",
            ) from error
        if self.client_cert:
            try:
                context.load_cert_chain(self.client_cert, self.client_key or None, _no_password)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"[komodor] client_cert = {self.client_cert!r} with client_key = "
                    f"{self.client_key!r} cannot be used: {error}",
                    "they must be a readable PEM certificate and its key, without a password",
                ) from error
        return context


def proxy_for(endpoint: str, configured: str) -> str | None:
    """The proxy's URL: the setting, else what the usual environment variables say."""
    if configured:
        return configured
    parts = urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def new_session(context: ssl.SSLContext, resolver: AbstractResolver) -> aiohttp.ClientSession:
    """A session with a pool of its own and nothing that remembers or retries."""
    connector = _Connector(
        ssl=context,
        resolver=resolver,
        limit=0,  # the permits are the limit
        keepalive_timeout=_KEEPALIVE_S,
        ttl_dns_cache=_DNS_CACHE_S,
    )
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    )


class Resolver(AbstractResolver):
    """getaddrinfo in threads of its own.

    A lookup that hangs holds its thread for as long as the system pleases. In
    asyncio's shared pool a few of them would stall everything else that needs
    a thread, and would delay the exit.
    """

    def __init__(self) -> None:
        self._running = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if self._running >= _LOOKUPS_MAX:
            raise OSError(None, f"{self._running} lookups before this one still hang")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(found: list[ResolveResult], error: OSError | None) -> None:
            self._running -= 1
            if future.done():
                return
            if error is None:
                future.set_result(found)
            else:
                future.set_exception(error)

        def work() -> None:
            found, error = _look_up(host, port, family)
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(settle, found, error)

        self._running += 1
        threading.Thread(target=work, name="outboxd-lookup", daemon=True).start()
        return await future

    async def close(self) -> None:
        """Nothing to close: the threads end by themselves."""


class _Connector(aiohttp.TCPConnector):
    """Tells the exchange when it got a connection: from then on bytes may leave."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        current_exchange.get().connected = True
        return connection


def _look_up(
    host: str, port: int, family: socket.AddressFamily
) -> tuple[list[ResolveResult], OSError | None]:
    try:
        infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    except OSError as error:
        return [], error
    except UnicodeError as error:  # a label that is empty or too long
        return [], socket.gaierror(socket.EAI_NONAME, str(error))
    found = [
        ResolveResult(
            hostname=host,
            host=str(address[0]),
            port=int(address[1]),
            family=kind,
            proto=proto,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for kind, _, proto, _, address in infos
    ]
    return found, None


def _system_context() -> ssl.SSLContext:
    """The system's authorities; a host without any gets those that come with httpx."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and os.listdir(paths.capath)):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _no_password() -> str:
    # Without it OpenSSL would ask on the terminal, and wait for ever.
    return ""


def _file_stamp(path: str) -> tuple[int, int, int] | None:
    if not path:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
