"""Runs what must be done now and then while the agent runs.

One coroutine with one slow tick; every step is short and none of them is on
the way of an event. An idle agent wakes a few times a minute for it.
"""

from __future__ import annotations

import asyncio

from outboxd.clock import Clock
from outboxd.errors import DiskShort, OutboxDamaged, OutboxdError
from outboxd.findings import Finding, bad
from outboxd.observe.logs import get_logger
from outboxd.observe.metrics import Metrics
from outboxd.outbox.upkeep import TICK_S, UpkeepJob


class Upkeep:
    """Runs the jobs, one after the other, until cancelled."""

    def __init__(self, clock: Clock, jobs: list[UpkeepJob], metrics: Metrics) -> None:
        self._clock = clock
        self._jobs = jobs
        self._metrics = metrics
        self._failing: dict[str, OutboxdError] = {}
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
                    self._failed(job, error)
                else:
                    self._worked(job)
                due_s[job.name] = self._clock.monotonic_s() + job.every_s
            await asyncio.sleep(TICK_S)

    def findings(self) -> list[Finding]:
        """The jobs that failed when they were last run, for `check`."""
        return [
            bad(name, error.message, error.hint or "the agent's log says more", error.exit_code)
            for name, error in self._failing.items()
        ]

    def _failed(self, job: UpkeepJob, error: OutboxdError) -> None:
        """Told once, until it works again or fails otherwise."""
        self._metrics.part_failed(job.name)
        before = self._failing.get(job.name)
        self._failing[job.name] = error
        if before is None or before.message != error.message:
            self._log.warning("upkeep.failed", job=job.name, error=error.message, hint=error.hint)

    def _worked(self, job: UpkeepJob) -> None:
        if self._failing.pop(job.name, None) is not None:
            self._log.info("upkeep.recovered", job=job.name)
