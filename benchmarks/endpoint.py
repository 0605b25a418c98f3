"""The cheapest server that a sender can be measured against, as a process.

Answers 201 to every request after `--delay-ms`, and counts: `GET /stats` tells
how many arrived, when the first and the last did (seconds of CLOCK_MONOTONIC,
which all processes of a host share), and takes the count back to zero.
Prints its port when it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time

import uvloop

OK = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Stats:
    count = 0
    first_s = 0.0
    last_s = 0.0


class Endpoint(asyncio.Protocol):
    """One connection; requests come one after the other, whole or in pieces."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            self._data = self._data[end + 4 + length :]
            if head.startswith(b"get /stats"):
                self._tell()
            else:
                self._take()

    def _take(self) -> None:
        now_s = time.monotonic()
        if not Stats.count:
            Stats.first_s = now_s
        Stats.count += 1
        Stats.last_s = now_s
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._answer)
        else:
            self._transport.write(OK)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(OK)

    def _tell(self) -> None:
        told = json.dumps(
            {"count": Stats.count, "first": Stats.first_s, "last": Stats.last_s}
        ).encode()
        Stats.count = 0
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(told)}\r\n\r\n".encode()
        self._transport.write(head + told)


async def serve(delay_s: float, certificate: str | None) -> None:
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Endpoint(delay_s), "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--certificate", default=None)
    options = parser.parse_args()
    uvloop.run(serve(options.delay_ms / 1000, options.certificate))
