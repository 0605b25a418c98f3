"""Every setting, once: its section, its name, its kind, its default.

Loading, the messages, what a reload changes, and the tests of the example file and
of the README's table all read it here. What a setting does stands in
config.example.toml. A section is frozen, so that a part may keep the one it got.
"""

# Annotations are evaluated here, for `keys` to read: no `from __future__ import annotations`.

from typing import Annotated

import msgspec

from outboxd.config.kinds import (
    at_start,
    choice,
    details,
    duration,
    mode,
    name,
    names,
    optional_path,
    path,
    share,
    size,
    switch,
    text,
    whole,
)
from outboxd.event.komodor import Defaults

EVENT_BYTES_MAX = 16 << 20
_NO_LIMIT = ", 0 for no limit"
_OFF = ', "0s" for none'
_URL = "a whole URL with its path: https, or http to a loopback address"
_PROXY = 'the http://, https:// or socks5:// URL of a proxy, or ""'
_DATABASE = 'the postgresql:// URL of a database without a password, or ""'
_PAGE = 'host:port, such as "127.0.0.1:8098", or "unix:" and a path, or "" for none'


class Komodor(msgspec.Struct, frozen=True, kw_only=True):
    """[komodor]: where events go."""

    endpoint: Annotated[str, text("https://api.komodor.com/mgmt/v1/events", _URL)]
    api_key_file: Annotated[str, optional_path("a file with the API key alone in it")]
    # Of gateways that share a database: whose entries are theirs.
    account: Annotated[str, at_start(name("default"))]
    event_type_max: Annotated[int, whole(60, 1, 10_000)]
    # Once it is checked, the content of proxy_file where that is given.
    proxy: Annotated[str, text("", _PROXY)]
    proxy_file: Annotated[str, optional_path("a file with the proxy's URL alone in it")]
    ca_file: Annotated[str, optional_path("a PEM file with the authorities to trust")]
    client_cert: Annotated[str, optional_path("a PEM file with the client's certificate")]
    client_key: Annotated[str, optional_path("a PEM file with the client certificate's key")]
    connect_timeout_s: Annotated[float, duration("10s", 0.01)]
    request_timeout_s: Annotated[float, duration("30s", 0.01)]
    retry_after_max_s: Annotated[float, duration("1h", 1)]
    allow_plain_http: Annotated[bool, switch(False)]


class Intake(msgspec.Struct, frozen=True, kw_only=True):
    """[intake]: where events come in."""

    socket: Annotated[str, at_start(path())]
    socket_mode: Annotated[str, at_start(mode("0660"))]
    socket_group: Annotated[
        str, at_start(text("", 'the name of a group of this system, or "" for none'))
    ]
    read_others: Annotated[bool, switch(False)]
    spool: Annotated[str, at_start(path())]
    event_bytes_max: Annotated[int, size("256KiB", 64, EVENT_BYTES_MAX)]
    listen: Annotated[str, at_start(text("", 'host:port, such as "0.0.0.0:8443", or "" for none'))]
    tls_cert: Annotated[str, at_start(optional_path("a PEM file with the listener's certificate"))]
    tls_key: Annotated[str, at_start(optional_path("a PEM file with the certificate's key"))]
    client_ca: Annotated[str, at_start(optional_path("a PEM file with the authority of clients"))]
    tokens_file: Annotated[str, optional_path("the file that `outboxd token new` writes")]
    connections_max: Annotated[int, at_start(whole(2000, 1, 1_000_000))]
    connections_per_peer: Annotated[int, at_start(whole(50, 1, 1_000_000))]
    allow_plain_listen: Annotated[bool, switch(False)]

    @property
    def socket_mode_bits(self) -> int:
        return int(self.socket_mode, 8)


class DefaultsSection(msgspec.Struct, frozen=True, kw_only=True):
    """[defaults]: what is added where an event names none."""

    clusters: Annotated[list[str], names()]
    namespaces: Annotated[list[str], names()]
    services: Annotated[list[str], names()]
    details: Annotated[dict[str, object], details()]

    def for_events(self) -> Defaults:
        """In the words of the reader of events, which knows no configuration."""
        return Defaults(self.clusters, self.namespaces, self.services, self.details)


class OutboxSection(msgspec.Struct, frozen=True, kw_only=True):
    """[outbox]: where they are kept, and for how long."""

    path: Annotated[str, at_start(path())]  # "" where there is a url
    url: Annotated[str, at_start(text("", _DATABASE))]
    password_file: Annotated[
        str, at_start(optional_path("a file with the database's password alone in it"))
    ]
    durability: Annotated[str, at_start(choice("replicated", "replicated", "local"))]
    events_max: Annotated[int, whole(1_000_000, 0, 1_000_000_000, _NO_LIMIT)]
    disk_free_min: Annotated[int, size("64MiB", 0, 1 << 50)]
    retain_delivered_s: Annotated[float, duration("7d")]
    ttl_s: Annotated[float, duration("0s", note=_OFF)]

    @property
    def place(self) -> str:
        """Where they are, for people."""
        return self.url or self.path


class Dedup(msgspec.Struct, frozen=True, kw_only=True):
    """[dedup]: what counts as the same event."""

    key_window_s: Annotated[float, duration("7d", note=_OFF)]
    repeat_window_s: Annotated[float, duration("0s", note=_OFF)]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """[delivery]: how they are sent."""

    concurrency_max: Annotated[int, whole(64, 0, 4096, _NO_LIMIT)]
    rate_max: Annotated[int, whole(0, 0, 1_000_000, _NO_LIMIT)]
    backoff_initial_s: Annotated[float, duration("1s", 0.001)]
    backoff_max_s: Annotated[float, duration("5m", 0.001)]
    attempts_max: Annotated[int, whole(20, 0, 1_000_000, _NO_LIMIT)]
    hold_probe_s: Annotated[float, duration("5m", 0.01)]
    stamp: Annotated[str, choice("late", "late", "always", "never")]
    late_after_s: Annotated[float, duration("60s")]
    drain_timeout_s: Annotated[float, duration("10s")]
    lease_s: Annotated[float, at_start(duration("15s", 1))]
    order: Annotated[str, choice("mixed", "mixed", "fifo")]
    fresh_share: Annotated[float, share(0.25)]
    report_outage: Annotated[bool, switch(True)]


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """[http]: the page and metrics over TCP."""

    listen: Annotated[str, at_start(text("", _PAGE))]


class MetricsSection(msgspec.Struct, frozen=True, kw_only=True):
    """[metrics]: the file for node_exporter."""

    textfile: Annotated[
        str, at_start(optional_path("the file to write (node_exporter reads *.prom)"))
    ]


class LogSection(msgspec.Struct, frozen=True, kw_only=True):
    """[log]: what is written to stderr."""

    level: Annotated[str, choice("info", "debug", "info", "warning", "error")]
    format: Annotated[str, choice("auto", "auto", "json", "console")]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, with its default where none was given."""

    source: str | None  # the file's path; None: built-in defaults
    komodor: Komodor
    intake: Intake
    defaults: DefaultsSection
    outbox: OutboxSection
    dedup: Dedup
    delivery: Delivery
    http: Http
    metrics: MetricsSection
    log: LogSection
    # [webhooks.NAME]: a part of an event to the expression that finds it.
    webhooks: dict[str, dict[str, str]]


# The sections of which each setting is known, by the name that one writes.
SECTION_TYPES: dict[str, type[msgspec.Struct]] = {
    "komodor": Komodor,
    "intake": Intake,
    "defaults": DefaultsSection,
    "outbox": OutboxSection,
    "dedup": Dedup,
    "delivery": Delivery,
    "http": Http,
    "metrics": MetricsSection,
    "log": LogSection,
}
