"""What a new configuration changes, by the names of its settings. Pure."""

from __future__ import annotations

from outboxd.config.keys import KEYS, Key
from outboxd.config.sections import Config


def changed(before: Config, after: Config) -> list[str]:
    """The settings whose values differ, such as "[http] listen"."""

    def value(config: Config, key: Key) -> object:
        return getattr(getattr(config, key.section), key.attribute)

    names = [key.label for key in KEYS if value(before, key) != value(after, key)]
    return names if before.webhooks == after.webhooks else [*names, "[webhooks]"]


def needs_restart(names: list[str]) -> list[str]:
    """Those of the changed settings that a reload cannot take over."""
    at_start = {key.label for key in KEYS if key.kind.at_start}
    return [name for name in names if name in at_start]


def changes_the_way(names: list[str]) -> bool:
    """Whether requests would go another way: to another endpoint, or with other files."""
    way = ("endpoint", "proxy", "ca_file", "client_cert", "client_key")
    timeouts = ("connect_timeout", "request_timeout")
    return any(f"[komodor] {name}" in names for name in (*way, *timeouts))
