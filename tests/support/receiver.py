"""A stand-in for Komodor that remembers all that arrives; quick, in a thread.

Answers what `behave` says for each body; by default 201. For tests that need
faults on request there is the sandbox; this one is for counting.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable

from support.waiting import PATIENCE_S

OK = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Receiver:
    """Serves on loopback from `start` to `stop`."""

    def __init__(
        self,
        behave: Callable[[bytes], bytes | None] = lambda body: OK,
        listening: socket.socket | None = None,
    ) -> None:
        """`listening` is a socket that is bound already; else one is made."""
        # summary -> for each arrival, whether it was marked as a possible duplicate
        self.arrivals: dict[str, list[bool]] = defaultdict(list)
        self.order: list[str] = []
        self.behave = behave  # None: close without an answer; b"": never answer
        self.latency_s = 0.0
        self.requests = 0
        self.port = 0
        self.connections: set[asyncio.WriteTransport] = set()
        self._listening = listening
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/mgmt/v1/events"

    def start(self) -> Receiver:
        self._thread.start()
        future = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        future.result(PATIENCE_S)
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def _listen(self) -> None:
        listening = self._listening
        if listening is None:
            listening = socket.create_server(("127.0.0.1", self.port))
        self._server = await self._loop.create_server(lambda: _Connection(self), sock=listening)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for connection in tuple(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # in which they end

    def later(self, transport: asyncio.WriteTransport, answer: bytes) -> None:
        """Answer after `latency_s`."""
        self._loop.call_later(self.latency_s, transport.write, answer)

    def record(self, body: bytes) -> bytes | None:
        self.requests += 1
        answer = self.behave(body)
        if answer is OK or answer is None:
            event = json.loads(body)
            marked = event.get("details", {}).get("possibleDuplicate") is True
            self.arrivals[event["summary"]].append(marked)
            self.order.append(event["summary"])
        return answer


class _Connection(asyncio.Protocol):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._receiver.connections.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._receiver.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(rest) < length:
                return
            self._data = rest[length:]
            answer = self._receiver.record(rest[:length])
            if answer is None:
                self._transport.abort()
                return
            if self._receiver.latency_s:
                self._receiver.later(self._transport, answer)
            else:
                self._transport.write(answer)
