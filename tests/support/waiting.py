"""Waiting for the state of something that tells nobody of its changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return once it is met; TimeoutError where it is not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (that is what this is for)
            await asyncio.sleep(0.01)
