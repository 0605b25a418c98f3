"""Server-sent events: tells a page that something changed, and how things stand.

It sends no entries, only a revision and the status: the page asks for what it
shows. So a page that sleeps misses nothing, and a busy agent sends no more
than a few lines a second. A fixed number of pages may listen at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator

from outboxd.serve.answers import Refusal, Streamed
from outboxd.serve.request import Request
from outboxd.serve.table import Handler
from outboxd.web.source import TimelineSource

LISTENERS_MAX = 32
INTERVAL_MIN_S = 0.4  # between two messages to one page
SILENCE_MAX_S = 5.0  # a sign of life at least as often, so that a dead peer is noticed
_RETRY_MS = 2000


def stream_handler(source: TimelineSource) -> Handler:
    """The handler of `GET /v1/stream`."""
    listeners = 0

    async def stream(_: Request, __: str) -> Streamed:
        if listeners >= LISTENERS_MAX:
            # The page then asks from time to time instead.
            later = {"Retry-After": "10"}
            raise Refusal(503, "too many pages listen", None, "ask later", later, limit="streams")
        headers = {"Cache-Control": "no-store"}
        return Streamed(told(), content_type="text/event-stream", headers=headers)

    async def told() -> AsyncGenerator[bytes, None]:
        nonlocal listeners
        listeners += 1
        try:
            async with contextlib.aclosing(_messages(source)) as messages:
                async for message in messages:
                    yield message
        finally:
            listeners -= 1

    return stream


async def _messages(source: TimelineSource) -> AsyncGenerator[bytes, None]:
    yield b"retry: %d\n\n" % _RETRY_MS
    async with contextlib.aclosing(_paced(source.changes())) as revisions:
        async for revision in revisions:
            if revision is None:
                yield b"event: alive\ndata: 1\n\n"
                continue
            status = json.dumps({"revision": revision, "status": await source.status()})
            yield b"event: changed\ndata: " + status.encode() + b"\n\n"


async def _paced(changes: AsyncIterator[str]) -> AsyncGenerator[str | None, None]:
    """The changes, none sooner than the interval after the last, and None in silence."""
    following: asyncio.Task[str] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(changes))
            done, _ = await asyncio.wait({following}, timeout=SILENCE_MAX_S)
            if not done:
                yield None
                continue
            revision, following = following.result(), None
            yield revision
            await asyncio.sleep(INTERVAL_MIN_S)
    except StopAsyncIteration:
        return
    finally:
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await following
        aclose = getattr(changes, "aclose", None)
        if aclose is not None:
            await aclose()
