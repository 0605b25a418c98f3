"""Waiting for the state of something that tells nobody of its changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# How long is waited for what comes within a moment on a machine with nothing else to do:
# so long that a test which fails by it has found a fault, however busy the machine is.
PATIENCE_S = 90.0


async def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Return once it is met; TimeoutError where it is not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (that is what this is for)
            await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object], what: object = "it did not come about") -> None:
    """Return once it is met; AssertionError, with what was waited for as it then is, where it
    is not in time."""
    ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_s, f"waited in vain: {what}"
        time.sleep(0.02)
