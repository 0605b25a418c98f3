"""A page that is open and searches, as a browser's tab asks the agent: a process of its own.

`python -m benchmarks.visitor PORT`. Listens to the stream and asks what
`web/static/app.js` asks, at its pace; every few seconds it looks for another text,
so that a scan of everything is always under way. Ends with its input.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

COUNTS_MIN_S = 1.5
PARTIAL_S = 0.35  # as in app.js
ACTIVITY_S = 5.0
SEARCHES_S = 6.0  # then another text


class Visitor:
    """One tab."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._needle = ""
        self.changed = asyncio.Event()

    async def get(self, path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
        return answer

    async def listen(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while line := await reader.readline():
            if line.startswith(b"event: changed"):
                self.changed.set()

    async def type(self) -> None:
        for number in itertools.count():
            self._needle = f"nothing-like-it-{number}"
            await asyncio.sleep(SEARCHES_S)

    async def refresh(self) -> None:
        while True:
            await self.changed.wait()
            self.changed.clear()
            await self.get(f"/v1/events?limit=50&q={self._needle}")

    async def count(self) -> None:
        while True:
            facets, _ = await asyncio.gather(
                self.get(f"/v1/facets?q={self._needle}"),
                self.get(f"/v1/histogram?buckets=90&q={self._needle}"),
            )
            is_complete = b'"complete":true' in facets
            await asyncio.sleep(COUNTS_MIN_S if is_complete else PARTIAL_S)

    async def look_at_the_hour(self) -> None:
        while True:
            await self.get("/v1/activity")
            await asyncio.sleep(ACTIVITY_S)


async def main(port: int) -> None:
    visitor = Visitor(port)
    await visitor.get("/v1/facets")
    print(time.time(), flush=True)
    await asyncio.gather(
        visitor.listen(), visitor.type(), visitor.refresh(), visitor.count(),
        visitor.look_at_the_hour(),
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
