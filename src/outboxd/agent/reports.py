"""The agent's own event on the timeline, of an outage that is over.

Made by `delivery.report` and handed to the intake like anybody's; this room
decides only whether an outage is worth one.
"""

from __future__ import annotations

import asyncio
import socket

from outboxd.delivery.facts import OutageEnded
from outboxd.delivery.report import outage_report
from outboxd.errors import OutboxdError
from outboxd.intake.intake import Intake
from outboxd.intake.producer import AGENT
from outboxd.observe.logs import get_logger
from outboxd.outbox.model import Source
from outboxd.outbox.outbox import Outbox

# Only among so few can all that wait be reports of earlier outages.
FEW_PENDING = 64


class OutageReports:
    """Hands in one event for each outage that delayed others'."""

    def __init__(self, outbox: Outbox, intake: Intake) -> None:
        self._outbox = outbox
        self._intake = intake
        self._running: set[asyncio.Task[None]] = set()
        self._log = get_logger("agent")

    def tell(self, outage: OutageEnded, late_after_s: float) -> None:
        """Report it in the background, if an event was late by more than `late_after_s`."""
        task = asyncio.get_running_loop().create_task(self._report(outage, late_after_s))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def cancel(self) -> None:
        """Before the outbox is closed."""
        for task in tuple(self._running):
            task.cancel()

    async def _report(self, outage: OutageEnded, late_after_s: float) -> None:
        try:
            await self._report_if_late(outage, late_after_s)
        except OutboxdError as error:
            self._log.warning("report.failed", error=error.message, hint=error.hint)

    async def _report_if_late(self, outage: OutageEnded, late_after_s: float) -> None:
        longest_s = (outage.ended_at - outage.oldest_at) / 1000
        delayed = outage.delayed - await self._own_pending()
        if delayed <= 0 or longest_s < late_after_s:
            return
        data = outage_report(
            delayed=delayed,
            longest_delay_s=longest_s,
            began_at=outage.began_at,
            ended_at=outage.ended_at,
            reason=outage.reason,
            host=socket.gethostname(),
        )
        await self._intake.take(data, Source.AGENT, AGENT)

    async def _own_pending(self) -> int:
        if self._outbox.counts.pending > FEW_PENDING:
            return 0
        return await self._outbox.read(lambda engine: engine.own_reports_pending())
