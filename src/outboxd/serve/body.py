"""Reading a request's body, with every wait and every size limited.

A client that stalls, or lets its body drip, is ended after `STALL_S` of
waiting; one that sends more than it may is refused before the rest is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp.web import BaseRequest

from outboxd.serve.table import Refusal

STALL_S = 10.0
# Waiting is paid for by what arrives: a long body has more time, a drip has not.
DRIP_BYTES_PER_S = 16 * 1024

EVENT_HINT = "send a smaller event, or raise [intake] event_bytes_max"

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read_body(request: BaseRequest, bytes_max: int, stall_s: float = STALL_S) -> bytes:
    """The whole body; raises Refusal 413 or 408 without reading the rest."""
    stream = request.content
    if stream.is_eof() and "Expect" not in request.headers:
        # The usual case: it all came with the headers.
        data = stream.read_nowait(-1)
        if len(data) > bytes_max:
            raise too_large(bytes_max)
        return data
    parts: list[bytes] = []
    size = 0
    async for part in body_parts(request, bytes_max, stall_s):
        parts.append(part)
        size += len(part)
        if size > bytes_max:
            raise too_large(bytes_max)
    return b"".join(parts)


async def body_parts(
    request: BaseRequest,
    declared_max: int,
    stall_s: float = STALL_S,
    hint: str = EVENT_HINT,
) -> AsyncIterator[bytes]:
    """The body as it comes. A length declared over `declared_max` is refused
    unread (413); the caller counts where no length was declared."""
    length = request.content_length
    if length is not None and length > declared_max:
        raise too_large(declared_max, hint)
    await _say_continue(request)
    stream = request.content
    loop = asyncio.get_running_loop()
    budget_s = stall_s
    while True:
        if stream.is_eof():
            data = stream.read_nowait(-1)
        else:
            asked_at = loop.time()
            try:
                async with asyncio.timeout(budget_s):
                    data = await stream.readany()
            except TimeoutError:
                raise stalled(stall_s) from None
            waited_s = loop.time() - asked_at
            budget_s = min(stall_s, budget_s - waited_s + len(data) / DRIP_BYTES_PER_S)
            if budget_s <= 0:
                raise stalled(stall_s)
        if not data:
            return
        yield data


def too_large(bytes_max: int, hint: str = EVENT_HINT) -> Refusal:
    return Refusal(
        413,
        f"the body is larger than {bytes_max} bytes",
        None,
        hint,
        {"Connection": "close"},
    )


def stalled(stall_s: float) -> Refusal:
    return Refusal(
        408,
        f"the body did not arrive within {stall_s:g} seconds",
        None,
        "send it again, whole; nothing of an unfinished event was kept",
        {"Connection": "close"},
    )


async def _say_continue(request: BaseRequest) -> None:
    expect = request.headers.get("Expect")
    if expect is None:
        return
    if expect.strip().lower() != "100-continue":
        raise Refusal(417, f"cannot meet Expect: {expect[:80]}", None, "leave the header out")
    if request.version >= (1, 1) and not request.content.is_eof():
        await request.writer.write(_CONTINUE)
        # The interim answer is not part of the real one: without this the
        # server would believe that it had begun to answer.
        request.writer.output_size = 0
