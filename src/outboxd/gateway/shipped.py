"""The mappings that come with outboxd, beneath those of the configuration."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping

from outboxd.errors import ConfigError
from outboxd.files import read_start
from outboxd.gateway.webhooks import SIGNATURE, Signature, Webhook, compile_webhook

_SECRET_BYTES_MAX = 4096
# Not by importlib.resources: for the sake of zip files it takes half a megabyte.
_SHIPPED = os.path.join(os.path.dirname(__file__), "webhooks.toml")


def compile_webhooks(configured: Mapping[str, Mapping[str, str]]) -> dict[str, Webhook]:
    """Every webhook that is taken, by name: the shipped ones, and `[webhooks.NAME]`
    of the configuration in their place or beside them. A table that holds nothing but
    a signature leaves the shipped mapping as it is.

    Raises:
        ConfigError: a mapping of the configuration is wrong, or a secret cannot be read.
    """
    with open(_SHIPPED, "rb") as file:
        mappings: dict[str, Mapping[str, str]] = dict(tomllib.load(file))
    signatures: dict[str, Signature] = {}
    for name, table in configured.items():
        mapping = {part: value for part, value in table.items() if part not in SIGNATURE}
        if mapping or name not in mappings:
            mappings[name] = mapping
        if len(mapping) < len(table):
            signatures[name] = _signature(name, table)
    return {
        name: compile_webhook(name, mapping, signatures.get(name))
        for name, mapping in mappings.items()
    }


def secret_files(configured: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The files with the secrets of signed webhooks."""
    key = SIGNATURE[1]
    return [table[key] for table in configured.values() if table.get(key)]


def _signature(name: str, table: Mapping[str, str]) -> Signature:
    label = f"[webhooks.{name}]"
    for key in SIGNATURE:
        if not table.get(key):
            hint = f"{' and '.join(SIGNATURE)} go together"
            raise ConfigError(f"{label} {key} is missing", hint)
    path = table["signature_secret_file"]
    try:
        secret = read_start(path, _SECRET_BYTES_MAX + 1).strip()
    except OSError as error:
        message = f"{label} signature_secret_file = {path!r}: cannot be read: {error.strerror}"
        raise ConfigError(message, "it must be readable by the agent") from None
    if not 16 <= len(secret) <= _SECRET_BYTES_MAX:
        message = f"{label} signature_secret_file = {path!r}: {len(secret)} bytes are no secret"
        raise ConfigError(message, f"put 16 to {_SECRET_BYTES_MAX} bytes in it")
    return Signature(table["signature_header"].strip().lower(), secret)
