"""An open outbox as the agent has it, whatever engine keeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Protocol

from outboxd.outbox.outbox import Outbox
from outboxd.outbox.upkeep import UpkeepJob


class Opened(Protocol):
    """What the agent needs of an outbox that it has opened."""

    async def start(self) -> Outbox:
        """The outbox, with its writers running."""

    def jobs(self, outbox: Outbox) -> list[UpkeepJob]:
        """The upkeep that this engine needs beside that of any outbox."""

    def copied(self, outbox: Outbox) -> Awaitable[tuple[int, AsyncIterator[bytes]]]:
        """The size of a consistent copy, in bytes, and its parts; raises DiskShort, and
        Unavailable where there can be none."""

    @property
    def has_rescues(self) -> bool:
        """Whether something of a damaged outbox is still to be salvaged."""

    async def salvage(self, outbox: Outbox) -> tuple[int, int]:
        """Bring it into the outbox; how many were salvaged and lost."""

    def release(self) -> None:
        """Let another process have it; after the outbox has stopped."""

    def close(self) -> None:
        """Close it, where no outbox was started, and let another process have it."""
