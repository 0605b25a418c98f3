"""What the agent counts and measures, for Prometheus.

One object with a registry of its own, and a cell or a method for each fact, called
with what is to be counted. Names begin with `outboxd_`, end in their unit or
`_total`, and are all there with 0 from the start. No event's id, type or text is
ever a label. Nothing here raises or waits: counting must not cost an event.

prometheus_client's own cells take a lock and about 1 and 2.7 microseconds a call;
several of them on the way of each event would be felt. Here a count is an integer in
a list, and prometheus_client's families are made of it when somebody looks. Each cell
is written by one thread alone (the event loop's or the writer's), so no lock is
needed; reading one between two additions shows at worst the older value. A label
value that is not among those given at the start is counted as `other`.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from outboxd.clock import Clock
from outboxd.observe.gauges import Gauges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outboxd.outbox.model import Counts, Damage
    from outboxd.status import Deliverer, DestinationStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

OTHER = "other"
# The label values that are there from the start.
SOURCES = ("socket", "batch", "spool", "agent")
REFUSALS = ("invalid", "too_large", "full", "disk_short", "stalled", "stopping",
            "internal", "not_allowed", "rate", OTHER)  # fmt: skip
# By the name of a token, of whom there may be this many; the others are one.
TOKEN_REFUSALS = ("invalid", "too_large", "stalled", "not_allowed", "rate", "full", "disk_short")
TOKENS_NAMED_MAX = 100
# By the uid of a user of this host, of whom there may be this many; the others are one.
USER_REFUSALS = ("invalid", "too_large", "full", "disk_short", "no_right")
USERS_NAMED_MAX = 100
OUTCOMES = ("delivered", "throttled", "unavailable", "hold", "rejected")
DEAD_REASONS = ("rejected", "exhausted", "expired")
LIMITS_MET = ("connections", "displaced", "abandoned", "pipelined", "idle", "bytes",
              "head_stalled", "body_stalled", "answer_unread", "malformed", "handshake",
              "listings", "streams", "page", "names", "paced", "turn", OTHER)  # fmt: skip
SPOOL_RESULTS = ("taken", "rejected", "pruned")
OPERATOR_ACTIONS = ("retry", "drop", "hold", "release")
RELOAD_RESULTS = ("applied", "refused")
PARTS = ("writer", "sender", "spool")
# What is not the main job and may fail without stopping it; upkeep's jobs by their names.
SIDE_PARTS = ("page", "gateway", "socket", "textfile")

_FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_EXCHANGE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_AGE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
          86400.0, 604800.0)  # fmt: skip
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Counter:
    """A count without labels."""

    __slots__ = ("help", "name", "value")

    def __init__(self, name: str, help: str) -> None:
        self.name = name
        self.help = help
        self.value = 0

    def __call__(self, count: int = 1) -> None:
        self.value += count

    def family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self.name, self.help, value=self.value)


class LabelledCounter:
    """A count for each value of one label."""

    __slots__ = ("_counts", "help", "label", "name")

    def __init__(self, name: str, help: str, label: str, values: Iterable[str]) -> None:
        self.name = name
        self.help = help
        self.label = label
        self._counts = dict.fromkeys(values, 0)

    def __call__(self, value: str, count: int = 1) -> None:
        counts = self._counts
        if value not in counts:
            value = OTHER
            counts.setdefault(OTHER, 0)
        counts[value] += count

    def family(self) -> CounterMetricFamily:
        family = CounterMetricFamily(self.name, self.help, labels=[self.label])
        for value, count in list(self._counts.items()):
            family.add_metric([value], count)
        return family


class NamedCounter:
    """A count for each of a bounded number of names, and of a reason where there are some.

    Names that come once there are `names_max` of them are counted as `other`, so that
    nobody's configuration makes series without end.
    """

    __slots__ = ("_counts", "_labels", "_names_max", "_reasons", "help", "name")

    def __init__(
        self,
        name: str,
        help: str,
        label: str,
        reasons: Sequence[str] = (),
        names_max: int = 100,
    ) -> None:
        self.name = name
        self.help = help
        self._labels = [label, "reason"] if reasons else [label]
        self._reasons = (*reasons, OTHER) if reasons else ("",)
        self._names_max = names_max
        self._counts: dict[str, dict[str, int]] = {}
        self._of(OTHER)

    def know(self, names: Iterable[str]) -> None:
        """These are there from now on, with 0."""
        for name in names:
            self._of(name)

    def __call__(self, name: str, count: int, reason: str = "") -> None:
        counts = self._of(name)
        counts[reason if reason in counts else OTHER] += count

    def family(self) -> CounterMetricFamily:
        family = CounterMetricFamily(self.name, self.help, labels=self._labels)
        for name, counts in list(self._counts.items()):
            for reason, count in counts.items():
                family.add_metric([name, reason][: len(self._labels)], count)
        return family

    def _of(self, name: str) -> dict[str, int]:
        counts = self._counts.get(name)
        if counts is None:
            if len(self._counts) > self._names_max:
                return self._counts[OTHER]
            self._counts[name] = counts = dict.fromkeys(self._reasons, 0)
        return counts


class Histogram:
    """How observations spread over buckets."""

    __slots__ = ("_bounds", "_counts", "_sum", "help", "name")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self._bounds = [float(bound) for bound in bounds]
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def __call__(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self) -> HistogramMetricFamily:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip([*self._bounds, inf], self._counts, strict=True):
            total += count
            buckets.append((repr(bound) if bound < inf else "+Inf", total))
        return HistogramMetricFamily(self.name, self.help, buckets=buckets, sum_value=self._sum)


Cell = Counter | LabelledCounter | NamedCounter | Histogram


class Metrics(Collector):
    """The agent's metrics; made once, handed to every part."""

    content_type = CONTENT_TYPE

    def __init__(self, version: str = "unknown", clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._version = version
        self._make_intake()
        self._make_outbox()
        self._make_delivery()
        self._make_operation()
        self._gauges = Gauges(self._clock)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        # Apart, because node_exporter has process metrics of its own and
        # refuses a text file that repeats them.
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    # Intake.

    def known_tokens(self, names: Iterable[str]) -> None:
        """Names of the gateway's tokens: their series are there from now on."""
        for cell in (self.token_accepted, self._token_refused, self._token_clocks):
            cell.know(names)

    def token_refused(self, name: str, reason: str, count: int) -> None:
        """Events of the producer of a token that were not kept; by one of `TOKEN_REFUSALS`."""
        self._token_refused(name, count, reason)

    def token_clock_wrong(self, name: str) -> None:
        """An event whose host has a clock that is wrong."""
        self._token_clocks(name, 1)

    def user_refused(self, name: str, reason: str, count: int) -> None:
        """Events of a user of this host that were not kept, or requests to act that were
        refused; by the uid and one of `USER_REFUSALS`."""
        self._user_refused(name, count, reason)

    # Outbox.

    def commit(self, duration_s: float, rows: int) -> None:
        """One commit, its sync included, and how many rows it wrote. Also the
        writer's progress."""
        self._commit_duration(duration_s)
        self._commit_rows(rows)
        self.progress("writer")

    # Delivery.

    def attempt(self, outcome: str, duration_s: float) -> None:
        """One HTTP exchange; by `outbox.model.Outcome`."""
        self._attempts(outcome, 1)
        self._attempt_duration(duration_s)

    def delivered(self, count: int = 1) -> None:
        """Entries settled as delivered."""
        self._delivered(count)
        self._last_delivery_at = self._clock.wall_ms()

    def delivery_age(self, age_s: float) -> None:
        """How old one delivered event was: from its receipt to Komodor's answer."""
        self._delivery_age(age_s if age_s > 0 else 0.0)

    # Operation.

    def reload(self, applied: bool) -> None:
        """A new configuration was applied, or refused and the old one kept."""
        self._reloads("applied" if applied else "refused", 1)
        self._reload_refused = not applied

    def progress(self, part: str) -> None:
        """`writer`, `sender` or `spool` got on with its work, or saw that there is
        none. Called once a round, not once an event."""
        self._progress_at[part] = self._clock.wall_ms()

    # Values read when somebody looks.

    def watch(
        self,
        *,
        counts: Callable[[], Counts] | None = None,
        oldest_pending_at: Callable[[], int | None] | None = None,
        damage: Callable[[], Damage] | None = None,
        outbox_bytes: Callable[[], int] | None = None,
        wal_bytes: Callable[[], int] | None = None,
        disk_free_bytes: Callable[[], int] | None = None,
        accepting: Callable[[], bool] | None = None,
        spool_waiting: Callable[[], int] | None = None,
        destination: Callable[[], DestinationStatus] | None = None,
        connections: Callable[[], int] | None = None,
        deliverer: Callable[[], Deliverer | None] | None = None,
        certificate_ends_at: Callable[[], int | None] | None = None,
    ) -> None:
        """Say where to read these; each is called at a scrape, must be cheap,
        and if it raises its metrics show NaN. Those not given stay as they are."""
        given = {name: read for name, read in locals().items() if name != "self"}
        self._gauges.readers.update({name: read for name, read in given.items() if read})

    def limits(self, *, events_max: int, disk_free_min_bytes: int) -> None:
        """The settings that alerts compare with; again after a reload. 0: no limit."""
        self._gauges.events_max = events_max
        self._gauges.disk_free_min_bytes = disk_free_min_bytes

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry) + generate_latest(self._process)

    def families(self) -> list[Metric]:
        """The agent's own metrics, without those of its process."""
        return list(self.collect())

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield from (each.family() for each in vars(self).values() if isinstance(each, Cell))
        yield from self._gauges.families()
        yield self._progress_family()
        yield GaugeMetricFamily(
            "outboxd_last_delivery_timestamp_seconds",
            "When an entry was last settled as delivered, since 1970; 0: not since the start.",
            value=self._last_delivery_at / 1000,
        )
        yield GaugeMetricFamily(
            "outboxd_config_reload_refused",
            "1 while the last configuration that was asked for was refused and the old one kept.",
            value=int(self._reload_refused),
        )
        build = GaugeMetricFamily(
            "outboxd_build_info", "Always 1; what runs.", labels=["version", "python"]
        )
        build.add_metric([self._version, platform.python_version()], 1)
        yield build

    def _make_intake(self) -> None:
        # Events that got a receipt as new ones; by `outbox.model.Source`.
        self.accepted = LabelledCounter(
            "outboxd_events_accepted", "Events committed and receipted.", "source", SOURCES
        )
        # Events that were not kept; by one of `REFUSALS`.
        self.refused = LabelledCounter(
            "outboxd_events_refused", "Events refused; they were not kept.", "reason", REFUSALS
        )
        # Events answered with the receipt of an earlier one of the same dedup key.
        self.duplicates = Counter(
            "outboxd_events_duplicate", "Events whose dedup key was known already."
        )
        # Events merged into an identical entry within `repeat_window`.
        self.repeats = Counter(
            "outboxd_events_repeated", "Events merged into an identical one that waited."
        )
        # One request on the socket, from its end of reading to its answer.
        self.intake_request = Histogram(
            "outboxd_intake_request_duration_seconds", "Time to answer a producer.", _FAST_S
        )
        # One of `LIMITS_MET`, which stand in the README with what happens beyond them.
        self.limit_met = LabelledCounter(
            "outboxd_http_limits_met",
            "Connections and requests that a limit ended, refused, cut or kept waiting.",
            "limit",
            LIMITS_MET,
        )
        # A request over TCP of which nobody knows who sent it.
        self.unauthenticated = Counter(
            "outboxd_gateway_unauthenticated", "Requests over TCP without a valid token."
        )
        # Events that the producer of a token handed in, and that were kept.
        self.token_accepted = NamedCounter(
            "outboxd_gateway_events_accepted",
            "Events that came over TCP and were kept, by the name of the token.",
            "token",
            names_max=TOKENS_NAMED_MAX,
        )
        self._token_refused = NamedCounter(
            "outboxd_gateway_events_refused",
            "Events that came over TCP and were refused, by the name of the token.",
            "token",
            TOKEN_REFUSALS,
            names_max=TOKENS_NAMED_MAX,
        )
        self._token_clocks = NamedCounter(
            "outboxd_gateway_clock_wrong",
            "Events of hosts whose clock is off by a minute or more, by the name of the token.",
            "token",
            names_max=TOKENS_NAMED_MAX,
        )
        self._user_refused = NamedCounter(
            "outboxd_user_refusals",
            "Events and requests to act of users of this host that were refused, by their uid.",
            "uid",
            USER_REFUSALS,
            names_max=USERS_NAMED_MAX,
        )
        # Alerts that Alertmanager left out of its requests.
        self.alerts_truncated = Counter(
            "outboxd_gateway_alerts_truncated", "Alerts that Alertmanager left out (max_alerts)."
        )
        # Spool files finished with: `taken`, `rejected`, or `pruned` from `rejected/` later.
        self.spool_file = LabelledCounter(
            "outboxd_spool_files", "Spool files finished with.", "result", SPOOL_RESULTS
        )

    def _make_outbox(self) -> None:
        self._commit_duration = Histogram(
            "outboxd_outbox_commit_duration_seconds",
            "Time of a commit, its sync included.",
            _FAST_S,
        )
        self._commit_rows = Histogram(
            "outboxd_outbox_commit_rows", "Rows that one commit wrote.", _ROWS
        )
        # Delivered entries deleted after `retain_delivered`.
        self.pruned = Counter(
            "outboxd_outbox_pruned_entries", "Delivered entries deleted after their time."
        )

    def _make_delivery(self) -> None:
        self._attempts = LabelledCounter(
            "outboxd_delivery_attempts", "HTTP exchanges, by what they meant.", "outcome", OUTCOMES
        )
        self._attempt_duration = Histogram(
            "outboxd_delivery_attempt_duration_seconds", "Time of an HTTP exchange.", _EXCHANGE_S
        )
        self._delivered = Counter("outboxd_events_delivered", "Entries settled as delivered.")
        self._delivery_age = Histogram(
            "outboxd_delivery_age_seconds", "Time from receipt to delivery.", _AGE_S
        )
        # Entries settled as dead letters; by `outbox.model.DeadReason`.
        self.dead = LabelledCounter(
            "outboxd_events_dead", "Entries that became dead letters.", "reason", DEAD_REASONS
        )
        # Entries that wait by themselves, refused while others pass; by Outcome.
        self.set_aside = LabelledCounter(
            "outboxd_events_set_aside", "Entries refused while others passed.", "outcome", OUTCOMES
        )
        # Rejected entries that are pending again, since everything was rejected.
        self.revived = Counter(
            "outboxd_events_revived", "Rejected entries pending again: everything was rejected."
        )
        # Requests whose answer was lost: their next delivery is marked.
        self.possible_duplicates = Counter(
            "outboxd_delivery_possible_duplicates", "Requests that may have arrived unanswered."
        )
        self._last_delivery_at = 0

    def _make_operation(self) -> None:
        # What a person did to entries or the destination: one of `OPERATOR_ACTIONS`.
        self.operator = LabelledCounter(
            "outboxd_operator_actions", "What operators did.", "action", OPERATOR_ACTIONS
        )
        self._reloads = LabelledCounter(
            "outboxd_config_reloads", "Configurations read anew.", "result", RELOAD_RESULTS
        )
        self._reload_refused = False
        # Something beside the main job did not work, and is tried again: one of
        # `SIDE_PARTS`, or a job of the upkeep.
        self.part_failed = LabelledCounter(
            "outboxd_part_failures",
            "Failures of what is not the main job; each is tried again.",
            "part",
            SIDE_PARTS,
        )
        self._progress_at = dict.fromkeys(PARTS, 0)

    def _progress_family(self) -> Metric:
        family = GaugeMetricFamily(
            "outboxd_last_progress_timestamp_seconds",
            "When a part of the agent last got on with its work, since 1970; 0: not yet.",
            labels=["part"],
        )
        for part, at in list(self._progress_at.items()):
            family.add_metric([part], at / 1000)
        return family
