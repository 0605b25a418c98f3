"""Small real servers on loopback, each with one way to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from dataclasses import dataclass

import pytest
import trustme
import uvloop
from support.ports import free_port

from outboxd.delivery.outcome import Answer
from outboxd.delivery.transport import Transport

GOOD = (
    b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n"
    b'{"id":"k1"}'
)


@dataclass
class Komodor:
    """What the transport reads of the configuration."""

    endpoint: str
    proxy: str = ""
    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    connect_timeout_s: float = 30.0
    request_timeout_s: float = 30.0


class Server:
    """Reads requests whole and answers with what the script says.

    The script is called with (writer, request number, request) and writes what
    it likes; the connection is closed when it returns True.
    """

    def __init__(self, script, context=None, host="127.0.0.1", reads_first=True):
        self.script, self.context, self.host = script, context, host
        self.reads_first = reads_first
        self.requests: list[bytes] = []
        self.connections = 0
        self.errors: list[Exception] = []
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(
            self._serve, self.host, 0, ssl=self.context, limit=2**20
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def url(self, scheme="http", host=None):
        host = host or (f"[{self.host}]" if ":" in self.host else self.host)
        return f"{scheme}://{host}:{self.port}/mgmt/v1/events"

    async def _serve(self, reader, writer):
        self.connections += 1
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while True:
                request = await read_request(reader) if self.reads_first else b""
                self.requests.append(request)
                done = self.script(writer, len(self.requests), request)
                if asyncio.iscoroutine(done):
                    done = await done
                await writer.drain()
                if done:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(Exception):
                writer.close()


async def read_request(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


def good(writer, _number, _request):
    writer.write(GOOD)


class ConnectProxy:
    """An HTTP proxy that knows CONNECT, and perhaps wants credentials."""

    def __init__(self, authorization: str | None = None, refuses: bytes | None = None):
        self.authorization, self.refuses = authorization, refuses
        self.connects: list[bytes] = []
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.connects.append(head)
            wanted = self.authorization
            if (
                wanted
                and f"proxy-authorization: basic {wanted}".lower() not in head.decode().lower()
            ):
                writer.write(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                    b'Proxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
                )
                return
            if self.refuses:
                writer.write(self.refuses)
                return
            port = head.split()[1].decode().rpartition(":")[2]
            # Whatever name was asked for: tests have servers on loopback alone.
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                await asyncio.gather(_pipe(reader, there_writer), _pipe(there_reader, writer))
            finally:
                there_writer.close()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(Exception):
                await writer.drain()
            writer.close()


class SocksProxy(ConnectProxy):
    """A SOCKS5 proxy (RFC 1928), perhaps with a name and a password (RFC 1929)."""

    def __init__(self, credentials: tuple[str, str] | None = None, reply: int = 0):
        super().__init__()
        self.credentials, self.reply = credentials, reply
        self.names: list[bytes] = []

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            version, count = await reader.readexactly(2)
            assert version == 5, "this is no SOCKS"
            methods = await reader.readexactly(count)
            method = 2 if self.credentials else 0
            if method not in methods:
                writer.write(b"\x05\xff")
                return
            writer.write(bytes((5, method)))
            if self.credentials and not await self._knows(reader, writer):
                return
            port = await self._asked_for(reader)
            writer.write(bytes((5, self.reply, 0, 1)) + bytes(6))
            if self.reply:
                return
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(_pipe(reader, there_writer), _pipe(there_reader, writer))
            finally:
                there_writer.close()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(Exception):
                await writer.drain()
            writer.close()

    async def _knows(self, reader, writer):
        _, length = await reader.readexactly(2)
        name = await reader.readexactly(length)
        (length,) = await reader.readexactly(1)
        given = (name.decode(), (await reader.readexactly(length)).decode())
        writer.write(bytes((1, int(given != self.credentials))))
        return given == self.credentials

    async def _asked_for(self, reader):
        kind = (await reader.readexactly(4))[3]
        length = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
        name = await reader.readexactly(length)
        self.names.append(name)
        self.connects.append(name)
        return int.from_bytes(await reader.readexactly(2), "big")


async def _pipe(reader, writer):
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof() if writer.can_write_eof() else writer.close()


async def send_once(settings: Komodor, body: bytes = b"{}", key: str | None = "secret") -> Answer:
    transport = Transport(settings, key)
    try:
        return await transport.send("0190-id", body)
    finally:
        await transport.close()


class Loopback:
    """The above, for tests: there are no packages of tests to import from."""

    Komodor, Server = Komodor, Server
    ConnectProxy, SocksProxy = ConnectProxy, SocksProxy
    GOOD = GOOD
    good = staticmethod(good)
    send_once = staticmethod(send_once)

    closed_port = staticmethod(functools.cache(free_port))


def _run_on_uvloop(main):
    """As `uvloop.run`, which from Python 3.12 on calls the very `asyncio.run` that is replaced."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@pytest.fixture(params=["uvloop", pytest.param("asyncio", marks=pytest.mark.long)])
def each_loop(request, monkeypatch):
    """The agent runs on uvloop; commands, and whoever imports the transport, on asyncio's
    (among the full figures)."""
    if request.param == "uvloop":
        monkeypatch.setattr(asyncio, "run", _run_on_uvloop)


@pytest.fixture
def loopback():
    return Loopback


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """An authority of our own, and files for the settings."""
    ca = trustme.CA()
    folder = tmp_path_factory.mktemp("tls")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    client = ca.issue_cert("agent@example.com")
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")
    client.private_key_pem.write_to_path(folder / "client.key")
    ca.folder = folder

    def context(*names: str, **options):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*(names or ("127.0.0.1", "localhost")), **options).configure_cert(made)
        return made

    ca.server_context = context
    return ca


@pytest.fixture(autouse=True)
def no_proxy_from_the_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
