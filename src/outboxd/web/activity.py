"""The last hour of the agent in a few numbers: backlog, deliveries, destination.

Kept in memory and bounded: one sample every few seconds, the oldest forgotten.
It only looks at counts that others keep anyway, and never asks the disk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

from outboxd.clock import Clock
from outboxd.outbox.model import Counts
from outboxd.status import Destination

INTERVAL_S = 5.0
KEPT_S = 3600.0


class Counted(Protocol):
    """What is read of the outbox."""

    @property
    def counts(self) -> Counts: ...


class Sample(NamedTuple):
    """How things stood at one moment."""

    at: int
    pending: int
    delivered_total: int  # since the start of the process or of the outbox: only grows
    state: str


class Activity:
    """Samples of the last hour, newest last."""

    def __init__(
        self,
        outbox: Counted,
        destination: Destination,
        clock: Clock,
        delivered_total: Callable[[], int] | None = None,
    ) -> None:
        """`delivered_total` is a count that only grows; else the outbox's own is
        taken, which pruning makes smaller now and then."""
        self._outbox = outbox
        self._destination = destination
        self._clock = clock
        self._delivered_total = delivered_total or (lambda: outbox.counts.delivered)
        self._samples: deque[Sample] = deque(maxlen=int(KEPT_S / INTERVAL_S) + 1)

    async def run(self) -> None:
        """Take a sample every few seconds until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(INTERVAL_S)

    def sample(self) -> None:
        """Note how things stand now."""
        self._samples.append(self._now())

    def to_json(self) -> dict[str, object]:
        """Columns, because some hundreds of objects would be four times the bytes.

        `rate` is deliveries a second since the sample before.
        """
        samples = [*self._samples, self._now()]
        oldest_at = samples[-1].at - int(KEPT_S * 1000)
        samples = [sample for sample in samples if sample.at >= oldest_at]
        return {
            "now": samples[-1].at,
            "windowMs": int(KEPT_S * 1000),
            "intervalMs": int(INTERVAL_S * 1000),
            "at": [sample.at for sample in samples],
            "pending": [sample.pending for sample in samples],
            "rate": [
                0.0,
                *(_rate(old, new) for old, new in pairwise(samples)),
            ],
            "state": [sample.state for sample in samples],
        }

    def _now(self) -> Sample:
        return Sample(
            at=self._clock.wall_ms(),
            pending=self._outbox.counts.pending,
            delivered_total=self._delivered_total(),
            state=str(self._destination.status().state),
        )


def _rate(old: Sample, new: Sample) -> float:
    """Deliveries a second between two samples; a clock set back gives none."""
    elapsed_s = (new.at - old.at) / 1000
    delivered = new.delivered_total - old.delivered_total
    return round(delivered / elapsed_s, 2) if elapsed_s > 0 and delivered > 0 else 0.0
