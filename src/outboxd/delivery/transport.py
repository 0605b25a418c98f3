"""One request, one answer: the way to the endpoint, straight or through a proxy.

It sends, keeps the connections, and says what came of a request in our own words
(`Answer`). It never retries, never follows a redirect, never waits longer than it
was told, and never decides what an answer means.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from outboxd import __version__
from outboxd.config.sections import Komodor
from outboxd.delivery import faults
from outboxd.delivery.dialing import Address, Resolver, connected
from outboxd.delivery.exchange import EndpointConnection
from outboxd.delivery.outcome import BODY_START_BYTES, Answer, Fault
from outboxd.delivery.proxies import DEFAULT_PORTS, credentials_of, proxy_for
from outboxd.delivery.tls import Tls, WatchedTls
from outboxd.errors import ConfigError
from outboxd.event.hop import ASKED, OFFER, OFFERED
from outboxd.text import spellings

if TYPE_CHECKING:
    from outboxd.delivery.proxied import Proxied

USER_AGENT = f"outboxd/{__version__}"
_ADDRESSES_KEPT_S = 60.0
_API_KEY, _OF_THE_PROXY = "[api key]", "[proxy password]"
# Also where another server, or another connection of a proxy, may answer otherwise.
_OF_THE_WAY = frozenset({408, 421, 425})
_URL_SAFE = "/%:@!$&'()*+,;=~?"


class Transport:
    """The way to one endpoint. Make it in the running loop, close it there.

    Raises:
        ConfigError: a proxy or a file that cannot be used.
    """

    def __init__(self, komodor: Komodor, key: str | None) -> None:
        self._endpoint = komodor.endpoint
        parts = urlsplit(komodor.endpoint)
        proxy = proxy_for(komodor.endpoint, komodor.proxy)
        proxy_parts = urlsplit(proxy or "")
        files = Tls(komodor.ca_file, komodor.client_cert, komodor.client_key)
        # Nobody reads a hundred authorities for an endpoint without TLS.
        over_tls = "https" in (parts.scheme, proxy_parts.scheme)
        self._tls = WatchedTls(files) if over_tls or any(files) else None
        self._proxy_host = proxy_parts.hostname
        self._of_the_proxy = credentials_of(proxy_parts)
        self._request_timeout_s = komodor.request_timeout_s
        self._way: Pool | Proxied
        if proxy is None:
            port = parts.port or DEFAULT_PORTS[parts.scheme]
            context = self._context() if parts.scheme == "https" else None
            self._way = Pool(host_of(parts), port, context, komodor.connect_timeout_s)
        else:
            from outboxd.delivery.proxied import Proxied

            self._way = Proxied(
                proxy, self._context(), komodor.connect_timeout_s, komodor.request_timeout_s
            )
        self._renewals = 0
        self._has_untold_files = False  # taken over after a fault, by nobody's call
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
        self._post_head = head_of("POST", self._endpoint, headers)
        known = [(spelt, _API_KEY) for spelt in (spellings(key) if key else ())]
        for secret in self._of_the_proxy:
            known += [(spelt, _OF_THE_PROXY) for spelt in spellings(secret)]
        # The longest first, so that no end of a longer one stays behind.
        self._secrets = sorted(known, key=lambda each: len(each[0]), reverse=True)

    async def send(self, id: str, body: bytes, offers_hop: bool = False) -> Answer:
        """One POST of an event; always an Answer, within `request_timeout`.

        `offers_hop` asks whoever answers whether it is a gateway.
        """
        return await self._post(id, body, OFFERED if offers_hop else "")

    async def ask(self, id: str) -> Answer:
        """Asks a gateway what became of an event that it took. What is sent is no event,
        so that whoever answers can take none."""
        return await self._post(id, b"{}", ASKED)

    async def _post(self, id: str, body: bytes, offer: str) -> Answer:
        way = self._way
        if not isinstance(way, Pool):
            headers = {**self._headers, "Idempotency-Key": id}
            if offer:
                headers[OFFER] = offer
            return await self._proxied(way, "POST", self._endpoint, headers, body)
        return await self._straight(
            way,
            b"%bIdempotency-Key: %b\r\n%bContent-Length: %d\r\n\r\n%b"
            % (
                self._post_head,
                id.encode("ascii"),
                f"{OFFER}: {offer}\r\n".encode() if offer else b"",
                len(body),
                body,
            ),
        )

    async def validate(self) -> Answer:
        """Asks whether the key is good."""
        way, url = self._way, validate_url(self._endpoint)
        if not isinstance(way, Pool):
            return await self._proxied(way, "GET", url, self._headers, b"")
        return await self._straight(way, head_of("GET", url, self._headers) + b"\r\n")

    def refresh(self) -> None:
        """Forget connections and addresses: the next request looks afresh.

        Requests under way go on. Called by itself after every fault: a laptop
        that changed networks must not wait for dead connections to time out.
        """
        with suppress(ConfigError):  # half-written files do not take away what works
            if self.reread_files():
                self._has_untold_files = True
                return
        self._renew()

    def reread_files(self, whether_changed_or_not: bool = False) -> bool:
        """Take over authorities, certificate and key file where they changed on disk;
        whether they did since the last call. New connections use them.

        Raises:
            ConfigError: they cannot be used; what was read before stays in force.
        """
        if self._tls is None:
            return False
        is_new = self._tls.reread(whether_changed_or_not)
        if is_new:
            self._renew()
        untold, self._has_untold_files = self._has_untold_files, False
        return is_new or untold

    async def close(self) -> None:
        """Ends all connections, those under way too."""
        await self._way.close()

    def _context(self) -> ssl.SSLContext | None:
        return self._tls.context if self._tls else None

    def _renew(self) -> None:
        self._renewals += 1
        self._way.renew(self._context())

    async def _straight(self, pool: Pool, request: bytes) -> Answer:
        renewals = self._renewals
        ends_s = asyncio.get_running_loop().time() + self._request_timeout_s
        connection = pool.take()
        if connection is None:
            try:
                connection = await pool.dial(ends_s)
            except Exception as error:  # OSError, or a defect: nothing has left
                fault, text = faults.connecting(error)
                return self._judged(Answer(fault=fault, fault_text=text, sent=False), renewals)
        try:
            answer = await connection.exchange(request, ends_s)
        except asyncio.CancelledError:
            connection.abort()
            raise
        return self._judged(answer, renewals)

    async def _proxied(
        self, way: Proxied, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        renewals = self._renewals
        return self._judged(await way.request(method, url, headers, body), renewals)

    def _judged(self, answer: Answer, renewals: int) -> Answer:
        """The answer without secrets, once what it says of the connections is seen to.

        `renewals`: how many there had been when its request began.
        """
        status = answer.status
        if answer.fault is not None:
            if renewals == self._renewals:  # else another fault has seen to it
                self.refresh()
            text = self._described(answer.fault, answer.fault_text)
            return answer._replace(fault_text=text)
        if status is not None and (status >= 500 or status in _OF_THE_WAY):
            # A proxy may answer so on some of its connections alone.
            self._way.drop_idle()
        return self._without_secrets(answer)

    def _without_secrets(self, answer: Answer) -> Answer:
        """An answer may echo the request; neither the key nor what the proxy is told may
        reach a log by that way."""
        body = answer.body_start
        for spelt, instead in self._secrets:
            if spelt.encode() in body:
                body = body.replace(spelt.encode(), instead.encode())
            for name, value in answer.headers.items():
                if spelt in value:
                    headers = {**answer.headers, name: value.replace(spelt, instead)}
                    answer = answer._replace(headers=headers)
        if self._secrets and len(answer.body_start) >= BODY_START_BYTES:
            # It was cut there: what stands at its end may be the beginning of one.
            body = body[: -len(self._secrets[0][0])]
        return answer if body is answer.body_start else answer._replace(body_start=body)

    def _described(self, fault: Fault, text: str) -> str:
        for spelt, instead in self._secrets:
            text = text.replace(spelt, instead)
        where = None
        if fault in (Fault.PROXY, Fault.PROXY_AUTH):
            where = self._proxy_host
        elif fault in (Fault.DNS, Fault.CONNECT, Fault.CONNECT_TIMEOUT):
            where = self._proxy_host or urlsplit(self._endpoint).hostname
        return ": ".join(part for part in (where, text) if part)


class Pool:
    """The connections to one host.

    Args:
        context: for TLS; None: plain
        connect_timeout_s: for name, connection and TLS together
    """

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, connect_timeout_s: float
    ) -> None:
        self._host, self._port = host, port
        self._context = context
        self._connect_timeout_s = connect_timeout_s
        self._resolver = Resolver()
        self._addresses: asyncio.Future[list[Address]] | None = None
        self._resolved_at_s = 0.0
        self._generation = 0
        self._idle: list[EndpointConnection] = []  # the one used last at the end
        self._open: set[EndpointConnection] = set()
        self._all_closed = asyncio.Event()

    def take(self) -> EndpointConnection | None:
        """An idle connection that is as it was left, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.abort()
        return None

    async def dial(self, ends_s: float) -> EndpointConnection:
        """A new connection, by `ends_s` of the loop's clock at the latest.

        Raises:
            OSError: there is none to be had (ssl.SSLError and socket.gaierror are such).
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(min(ends_s, loop.time() + self._connect_timeout_s)):
            generation, context = self._generation, self._context
            sock = await connected(await self._resolved())
            _, connection = await loop.create_connection(
                lambda: EndpointConnection(sock, self._released, self._closed),
                sock=sock,
                ssl=context,
                server_hostname=self._host if context else None,
            )
        connection.generation = generation
        self._open.add(connection)
        if not connection.open:  # meanwhile
            self._closed(connection)
        return connection

    def drop_idle(self) -> None:
        """Let the next requests have new connections; those in use may come back."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def renew(self, context: ssl.SSLContext | None) -> None:
        """Forget all connections, once they are idle, and addresses."""
        self._context = context
        self._generation += 1
        self._addresses = None
        self.drop_idle()

    async def close(self) -> None:
        """End all connections, those in use too."""
        self.renew(self._context)
        self._all_closed.clear()
        for connection in tuple(self._open):
            connection.abort()
        if self._open:
            await self._all_closed.wait()

    def _released(self, connection: EndpointConnection) -> None:
        if connection.generation == self._generation:
            self._idle.append(connection)
        else:
            connection.close()

    def _closed(self, connection: EndpointConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._open:
            self._all_closed.set()

    async def _resolved(self) -> list[Address]:
        """The host's addresses; one lookup serves all who ask meanwhile."""
        loop = asyncio.get_running_loop()
        known = self._addresses
        if known is not None and known.done():
            old = loop.time() - self._resolved_at_s > _ADDRESSES_KEPT_S
            if old or known.exception() is not None:
                known = None
        if known is None:
            known = self._addresses = self._resolver.resolve(self._host, self._port)
            self._resolved_at_s = loop.time()
        return await asyncio.shield(known)


def validate_url(endpoint: str) -> str:
    """Where Komodor says whether a key is good, beside the endpoint for events."""
    parts = urlsplit(endpoint)
    base = parts.path.rstrip("/").rpartition("/")[0]
    return urlunsplit((parts.scheme, parts.netloc, f"{base}/apikey/validate", "", ""))


def host_of(parts: SplitResult) -> str:
    """The URL's host as names are looked up and certificates name it."""
    host = parts.hostname or ""
    return host if host.isascii() else host.encode("idna").decode()


def head_of(method: str, url: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request but for its last, empty line."""
    parts = urlsplit(url)
    target = quote(parts.path or "/", safe=_URL_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_URL_SAFE)
    host = host_of(parts)
    host = f"[{host}]" if ":" in host else host
    if parts.port not in (None, DEFAULT_PORTS[parts.scheme]):
        host += f":{parts.port}"
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    assert not any("\r" in line or "\n" in line for line in lines)
    return "".join(f"{line}\r\n" for line in lines).encode()
