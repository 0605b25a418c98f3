"""Values that other parts know, read at the moment when somebody looks.

Each reader is the part's own cheap callable. A reader that fails costs its
own values (they show NaN) and never the scrape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from outboxd.clock import Clock
from outboxd.status import Deliverer, DestinationState


class Gauges:
    """Reads what is known elsewhere, at the moment of a scrape."""

    def __init__(self, clock: Clock) -> None:
        self.readers: dict[str, Callable[[], object]] = {}
        self.events_max = 0
        self.disk_free_min_bytes = 0
        self._clock = clock

    def families(self) -> Iterator[Metric]:
        yield from self._entries()
        yield from self._outbox()
        yield from self._destination()
        yield from self._deliverer()
        yield self._certificate()
        yield _gauge("outboxd_intake_accepting", "1 while intake takes events.",
                     self._number("accepting"))  # fmt: skip
        yield _gauge("outboxd_http_connections", "Connections open on the agent's listeners.",
                     self._number("connections"))  # fmt: skip
        yield _gauge("outboxd_spool_files_waiting", "Spool files seen and not yet taken.",
                     self._number("spool_waiting"))  # fmt: skip
        yield _gauge("outboxd_disk_free_bytes", "Free room where the outbox lies.",
                     self._number("disk_free_bytes"))  # fmt: skip
        yield _gauge("outboxd_disk_free_min_bytes", "Free room below which intake refuses.",
                     self.disk_free_min_bytes)  # fmt: skip

    def _entries(self) -> Iterator[Metric]:
        entries = GaugeMetricFamily(
            "outboxd_entries", "Entries in the outbox, held ones included.", labels=["state"]
        )
        counts = self._read("counts")
        for state in ("pending", "delivered", "dead"):
            entries.add_metric([state], _field(counts, state))
        yield entries
        yield _gauge("outboxd_entries_held", "Entries held by the operator.",
                     _field(counts, "held"))  # fmt: skip
        yield _gauge("outboxd_entries_pending_max", "Pending entries at which intake refuses; "
                     "0: no limit.", self.events_max)  # fmt: skip
        oldest_at = self._number("oldest_pending_at")
        age_s = max(0.0, (self._clock.wall_ms() - oldest_at) / 1000) if oldest_at else 0.0
        yield _gauge("outboxd_oldest_pending_age_seconds", "Age of the oldest pending entry; "
                     "0: none.", oldest_at if math.isnan(oldest_at) else age_s)  # fmt: skip

    def _outbox(self) -> Iterator[Metric]:
        yield _gauge("outboxd_outbox_bytes", "The outbox's files on disk.",
                     self._number("outbox_bytes"))  # fmt: skip
        yield _gauge("outboxd_outbox_wal_bytes", "The outbox's write-ahead log on disk.",
                     self._number("wal_bytes"))  # fmt: skip
        damage = self._read("damage")
        salvaged, lost = _field(damage, "salvaged"), _field(damage, "lost")
        # Gauges, though they only grow: the outbox remembers them over restarts.
        yield _gauge(
            "outboxd_damage_salvaged_entries", "Entries saved from damaged files.", salvaged
        )
        yield _gauge("outboxd_damage_lost_entries", "Entries lost to damage.", lost)

    def _destination(self) -> Iterator[Metric]:
        status = self._read("destination")
        states = GaugeMetricFamily(
            "outboxd_destination_state", "1 for the state the destination is in.", labels=["state"]
        )
        current = getattr(status, "state", None) if status else DestinationState.UNTRIED.value
        for state in DestinationState:
            states.add_metric([state.value], int(current == state.value))
        yield states
        held = current == DestinationState.HELD.value
        yield _gauge("outboxd_destination_held", "1 while the destination is held.", int(held))
        yield _gauge("outboxd_delivery_permits", "Requests that may run at once.",
                     _field(status, "permits"))  # fmt: skip
        yield _gauge("outboxd_delivery_in_flight", "Requests that run now.",
                     _field(status, "in_flight"))  # fmt: skip

    def _deliverer(self) -> Iterator[Metric]:
        """Who delivers, where gateways share an outbox; without a value where none do."""
        deliverer = self._read("deliverer")
        shared = deliverer if isinstance(deliverer, Deliverer) else None
        here = 1 if shared is None else int(shared.is_here)
        yield _gauge("outboxd_delivers", "1 where this agent delivers, and not another gateway.",
                     here)  # fmt: skip
        for name, help, value in (
            ("outboxd_lease_left_seconds", "Until the lease of who delivers ends; below 0: nobody "
             "delivers.", None if shared is None else shared.lease_left_s or -shared.unled_s),
            ("outboxd_database_answer_seconds", "Time in which the outbox's database answered.",
             None if shared is None else shared.answer_s),
            ("outboxd_database_usable", "0 while the outbox's database cannot be used.",
             None if shared is None else int(shared.trouble is None)),
            ("outboxd_database_standby_lag_seconds", "How far its slowest standby is behind.",
             None if shared is None else shared.standby_lag_s or 0.0),
        ):  # fmt: skip
            family = GaugeMetricFamily(name, help, labels=["outbox", "account"])
            if shared is not None:
                family.add_metric(
                    [shared.outbox, shared.account], math.nan if value is None else value
                )
            yield family

    def _certificate(self) -> Metric:
        """Without a value where the agent is no gateway with a certificate of its own."""
        left = GaugeMetricFamily(
            "outboxd_gateway_certificate_left_seconds",
            "Until the gateway's certificate ends; below 0: no client takes it.",
            labels=(),
        )
        ends_at = self._read("certificate_ends_at")
        if isinstance(ends_at, int) and ends_at:
            left.add_metric((), (ends_at - self._clock.wall_ms()) / 1000)
        return left

    def _read(self, name: str) -> object:
        """What the reader gives; 0 without one, None where it fails."""
        read = self.readers.get(name)
        if read is None:
            return 0
        try:
            return read()
        except Exception:  # a scrape must show the rest
            return _FAILED

    def _number(self, name: str) -> float:
        value = self._read(name)
        if value is None:
            return 0.0
        return float(value) if isinstance(value, (int, float)) else math.nan


_FAILED = object()


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _field(values: object, name: str) -> float:
    if values == 0:
        return 0.0
    value = getattr(values, name, None)
    return float(value) if isinstance(value, (int, float)) else math.nan
