"""Runs what must be done now and then while the agent runs.

One coroutine with one slow tick; every step is short and none of them is on
the way of an event. An idle agent wakes a few times a minute for it.
"""

from __future__ import annotations

import asyncio

from outboxd.clock import Clock
from outboxd.errors import DiskShort, OutboxDamaged, OutboxdError
from outboxd.observe.logs import get_logger
from outboxd.outbox.upkeep import TICK_S, Job


class Upkeep:
    """Runs the jobs, one after the other, until cancelled."""

    def __init__(self, clock: Clock, jobs: list[Job]) -> None:
        self._clock = clock
        self._jobs = jobs
        self._log = get_logger("upkeep")

    async def run(self) -> None:
        """Until cancelled; a job that fails is told and tried again next time."""
        due_s = {job.name: 0.0 for job in self._jobs}
        while True:
            for job in self._jobs:
                if self._clock.monotonic_s() < due_s[job.name]:
                    continue
                try:
                    await job.run()
                except DiskShort:
                    pass  # told by the intake; it is tried again by itself
                except OutboxDamaged:
                    raise  # the agent stops, and recovers at its next start
                except OutboxdError as error:
                    self._log.warning(
                        "upkeep.failed", job=job.name, error=error.message, hint=error.hint
                    )
                due_s[job.name] = self._clock.monotonic_s() + job.every_s
            await asyncio.sleep(TICK_S)
