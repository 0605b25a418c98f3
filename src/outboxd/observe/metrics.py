"""What the agent counts and measures, for Prometheus.

One object with a registry of its own and a method for each fact. Names begin
with `outboxd_`, end in their unit or `_total`, and are all there with 0 from
the start. No event's id, type or text is ever a label. A method here never
raises and never waits: counting must not cost an event.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outboxd.clock import Clock
from outboxd.observe.cells import OTHER, Counter, Histogram, LabelledCounter, NamedCounter
from outboxd.observe.gauges import Gauges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from outboxd.outbox.model import Counts, Damage
    from outboxd.status import Deliverer, DestinationStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The label values that are there from the start.
SOURCES = ("socket", "batch", "spool", "agent")
REFUSALS = ("invalid", "too_large", "full", "disk_short", "stalled", "stopping",
            "internal", "not_allowed", "rate", OTHER)  # fmt: skip
# By the name of a token, of whom there may be this many; the others are one.
TOKEN_REFUSALS = ("invalid", "too_large", "stalled", "not_allowed", "rate", "full", "disk_short")
TOKENS_NAMED_MAX = 100
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

    def accepted(self, source: str, count: int = 1) -> None:
        """Events that got a receipt as new ones; by `outbox.model.Source`."""
        self._accepted.add(source, count)

    def refused(self, reason: str, count: int = 1) -> None:
        """Events that were not kept; by one of `REFUSALS`."""
        self._refused.add(reason, count)

    def duplicates(self, count: int = 1) -> None:
        """Events answered with the receipt of an earlier one of the same dedup key."""
        self._duplicates.value += count

    def repeats(self, count: int = 1) -> None:
        """Events merged into an identical entry within `repeat_window`."""
        self._repeats.value += count

    def intake_request(self, duration_s: float) -> None:
        """One request on the socket, from its end of reading to its answer."""
        self._request_duration.observe(duration_s)

    def limit_met(self, limit: str) -> None:
        """One of `LIMITS_MET`, which stand in the README with what happens beyond them."""
        self._limits_met.add(limit, 1)

    def unauthenticated(self) -> None:
        """A request over TCP of which nobody knows who sent it."""
        self._unauthenticated.value += 1

    def known_tokens(self, names: Iterable[str]) -> None:
        """Names of the gateway's tokens: their series are there from now on."""
        for cell in (self._token_accepted, self._token_refused, self._token_clocks):
            cell.know(names)

    def token_accepted(self, name: str, count: int) -> None:
        """Events that the producer of a token handed in, and that were kept."""
        self._token_accepted.add(name, count)

    def token_refused(self, name: str, reason: str, count: int) -> None:
        """Events of the producer of a token that were not kept; by one of `TOKEN_REFUSALS`."""
        self._token_refused.add(name, count, reason)

    def token_clock_wrong(self, name: str) -> None:
        """An event whose host has a clock that is wrong."""
        self._token_clocks.add(name, 1)

    def alerts_truncated(self, count: int) -> None:
        """Alerts that Alertmanager left out of its requests."""
        self._alerts_truncated.value += count

    def spool_file(self, result: str, count: int = 1) -> None:
        """Spool files finished with: `taken`, `rejected`, or `pruned` from `rejected/` later."""
        self._spool_files.add(result, count)

    # Outbox.

    def commit(self, duration_s: float, rows: int) -> None:
        """One commit, its sync included, and how many rows it wrote. Also the
        writer's progress."""
        self._commit_duration.observe(duration_s)
        self._commit_rows.observe(rows)
        self.progress("writer")

    def pruned(self, count: int) -> None:
        """Delivered entries deleted after `retain_delivered`."""
        self._pruned.value += count

    # Delivery.

    def attempt(self, outcome: str, duration_s: float) -> None:
        """One HTTP exchange; by `outbox.model.Outcome`."""
        self._attempts.add(outcome, 1)
        self._attempt_duration.observe(duration_s)

    def delivered(self, count: int = 1) -> None:
        """Entries settled as delivered."""
        self._delivered.value += count
        self._last_delivery_at = self._clock.wall_ms()

    def delivery_age(self, age_s: float) -> None:
        """How old one delivered event was: from its receipt to Komodor's answer."""
        self._delivery_age.observe(age_s if age_s > 0 else 0.0)

    def dead(self, reason: str, count: int = 1) -> None:
        """Entries settled as dead letters; by `outbox.model.DeadReason`."""
        self._dead.add(reason, count)

    def set_aside(self, outcome: str, count: int = 1) -> None:
        """Entries that wait by themselves, refused while others pass; by Outcome."""
        self._set_aside.add(outcome, count)

    def revived(self, count: int) -> None:
        """Rejected entries that are pending again, since everything was rejected."""
        self._revived.value += count

    def possible_duplicates(self, count: int = 1) -> None:
        """Requests whose answer was lost: their next delivery is marked."""
        self._possible_duplicates.value += count

    # Operation.

    def operator(self, action: str, count: int = 1) -> None:
        """What a person did to entries or the destination: one of `OPERATOR_ACTIONS`."""
        self._operator.add(action, count)

    def reload(self, applied: bool) -> None:
        """A new configuration was applied, or refused and the old one kept."""
        self._reloads.add("applied" if applied else "refused", 1)
        self._reload_refused = not applied

    def part_failed(self, part: str) -> None:
        """Something beside the main job did not work, and is tried again: one of
        `SIDE_PARTS`, or a job of the upkeep."""
        self._part_failures.add(part, 1)

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
        yield from (cell.family() for cell in self._cells())
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
        self._accepted = LabelledCounter(
            "outboxd_events_accepted", "Events committed and receipted.", "source", SOURCES
        )
        self._refused = LabelledCounter(
            "outboxd_events_refused", "Events refused; they were not kept.", "reason", REFUSALS
        )
        self._duplicates = Counter(
            "outboxd_events_duplicate", "Events whose dedup key was known already."
        )
        self._repeats = Counter(
            "outboxd_events_repeated", "Events merged into an identical one that waited."
        )
        self._request_duration = Histogram(
            "outboxd_intake_request_duration_seconds", "Time to answer a producer.", _FAST_S
        )
        self._limits_met = LabelledCounter(
            "outboxd_http_limits_met",
            "Connections and requests that a limit ended, refused, cut or kept waiting.",
            "limit",
            LIMITS_MET,
        )
        self._unauthenticated = Counter(
            "outboxd_gateway_unauthenticated", "Requests over TCP without a valid token."
        )
        self._token_accepted = NamedCounter(
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
        self._alerts_truncated = Counter(
            "outboxd_gateway_alerts_truncated", "Alerts that Alertmanager left out (max_alerts)."
        )
        self._spool_files = LabelledCounter(
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
        self._pruned = Counter(
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
        self._dead = LabelledCounter(
            "outboxd_events_dead", "Entries that became dead letters.", "reason", DEAD_REASONS
        )
        self._set_aside = LabelledCounter(
            "outboxd_events_set_aside", "Entries refused while others passed.", "outcome", OUTCOMES
        )
        self._revived = Counter(
            "outboxd_events_revived", "Rejected entries pending again: everything was rejected."
        )
        self._possible_duplicates = Counter(
            "outboxd_delivery_possible_duplicates", "Requests that may have arrived unanswered."
        )
        self._last_delivery_at = 0

    def _make_operation(self) -> None:
        self._operator = LabelledCounter(
            "outboxd_operator_actions", "What operators did.", "action", OPERATOR_ACTIONS
        )
        self._reloads = LabelledCounter(
            "outboxd_config_reloads", "Configurations read anew.", "result", RELOAD_RESULTS
        )
        self._reload_refused = False
        self._part_failures = LabelledCounter(
            "outboxd_part_failures",
            "Failures of what is not the main job; each is tried again.",
            "part",
            SIDE_PARTS,
        )
        self._progress_at = dict.fromkeys(PARTS, 0)

    def _cells(self) -> Iterable[Counter | LabelledCounter | NamedCounter | Histogram]:
        return (
            *(self._accepted, self._refused, self._duplicates, self._repeats),
            *(self._request_duration, self._limits_met, self._spool_files),
            *(self._unauthenticated, self._alerts_truncated),
            *(self._token_accepted, self._token_refused, self._token_clocks),
            *(self._commit_duration, self._commit_rows, self._pruned),
            *(self._attempts, self._attempt_duration, self._delivered, self._delivery_age),
            *(self._dead, self._set_aside, self._revived, self._possible_duplicates),
            *(self._operator, self._reloads, self._part_failures),
        )

    def _progress_family(self) -> Metric:
        family = GaugeMetricFamily(
            "outboxd_last_progress_timestamp_seconds",
            "When a part of the agent last got on with its work, since 1970; 0: not yet.",
            labels=["part"],
        )
        for part, at in list(self._progress_at.items()):
            family.add_metric([part], at / 1000)
        return family
