"""What a new configuration changes, by the names of its settings. Pure."""

from __future__ import annotations

from outboxd.config.keys import KEYS
from outboxd.config.load import Config

# Read at the start alone; all others are taken over by a reload.
AT_THE_START = frozenset(
    {
        "[intake] socket",
        "[intake] socket_mode",
        "[intake] socket_group",
        "[intake] spool",
        "[intake] listen",
        "[intake] tls_cert",
        "[intake] tls_key",
        "[intake] client_ca",
        "[intake] connections_max",
        "[intake] connections_per_peer",
        "[outbox] path",
        "[outbox] url",
        "[outbox] password_file",
        "[outbox] durability",
        "[delivery] lease",
        "[http] listen",
        "[metrics] textfile",
    }
)


def changed(before: Config, after: Config) -> list[str]:
    """The settings whose values differ, such as "[http] listen"."""

    def value(config: Config, section: str, attribute: str) -> object:
        return getattr(getattr(config, section), attribute)

    names = [
        key.label
        for key in KEYS
        if value(before, key.section, key.attribute) != value(after, key.section, key.attribute)
    ]
    return names if before.webhooks == after.webhooks else [*names, "[webhooks]"]


def needs_restart(names: list[str]) -> list[str]:
    """Those of the changed settings that a reload cannot take over."""
    return [name for name in names if name in AT_THE_START]


def changes_the_way(names: list[str]) -> bool:
    """Whether requests would go another way: to another endpoint, or with other files."""
    way = ("endpoint", "proxy", "ca_file", "client_cert", "client_key")
    timeouts = ("connect_timeout", "request_timeout")
    return any(f"[komodor] {name}" in names for name in (*way, *timeouts))
