"""The line that `systemctl status` shows, kept up with what happens.

Told at most once in `TELL_S`, and not at all while nothing changes: an idle
agent is not woken for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from outboxd.agent.systemd import Notifier

TELL_S = 0.5  # from a change to its telling


class StatusLine:
    """Tells the service manager `summary()` soon after each `changed`."""

    def __init__(self, notifier: Notifier, summary: Callable[[], str]) -> None:
        self._notifier = notifier
        self._summary = summary
        self._timer: asyncio.TimerHandle | None = None
        self._told = ""

    def changed(self) -> None:
        """Something happened that the line may speak of."""
        if self._timer is None and self._notifier.enabled:
            self._timer = asyncio.get_running_loop().call_later(TELL_S, self._tell)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        summary = self._summary()
        if summary != self._told and self._notifier.status(summary):
            self._told = summary
