"""The mappings that come with outboxd, beneath those of the configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources

from outboxd.gateway.webhooks import Webhook, compile_webhook


def compile_webhooks(configured: Mapping[str, Mapping[str, str]]) -> dict[str, Webhook]:
    """Every webhook that is taken, by name: the shipped ones, and `[webhooks.NAME]`
    of the configuration in their place or beside them.

    Raises:
        ConfigError: a mapping of the configuration is wrong.
    """
    shipped = tomllib.loads(
        resources.files("outboxd.gateway").joinpath("webhooks.toml").read_text()
    )
    return {
        name: compile_webhook(name, mapping) for name, mapping in {**shipped, **configured}.items()
    }
