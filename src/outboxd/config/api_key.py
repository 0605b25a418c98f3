"""Where the API key comes from: the environment, a file, systemd's credential, in this order.

A source without a usable key is told and passed over, so that neither a blank
file nor one with two lines keeps an agent from taking events. No message ever
shows a key, or what stands in its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from outboxd.config.secrets import credential, read_secret
from outboxd.config.sections import Config
from outboxd.errors import ConfigError
from outboxd.locations import CREDENTIAL

KEY_CHARACTERS_MAX = 4096


class ApiKey(NamedTuple):
    """The key, and what was found on the way to it."""

    value: str | None  # None: there is none that can be used
    source: str | None  # where it comes from, in words for people
    problems: tuple[ConfigError, ...]  # of sources that were given and hold none

    @property
    def problem(self) -> ConfigError | None:
        """What is wrong with the first source that was given."""
        return self.problems[0] if self.problems else None


def read_api_key(config: Config, environ: Mapping[str, str] = os.environ) -> ApiKey:
    """The first usable key; never raises for one that is not."""
    problems: list[ConfigError] = []
    for read in (_of_environment, _of_file, _of_credential):
        try:
            found = read(config, environ)
        except ConfigError as error:
            problems.append(error)
            continue
        if found is not None:
            return ApiKey(*found, tuple(problems))
    return ApiKey(None, None, tuple(problems))


def _of_environment(_: Config, environ: Mapping[str, str]) -> tuple[str, str] | None:
    key = environ.get("KOMODOR_API_KEY", "").strip()
    return (_checked(key, "$KOMODOR_API_KEY"), "$KOMODOR_API_KEY") if key else None


def _of_file(config: Config, _: Mapping[str, str]) -> tuple[str, str] | None:
    path = config.komodor.api_key_file
    return (_read(path, "[komodor] api_key_file"), path) if path else None


def _of_credential(_: Config, environ: Mapping[str, str]) -> tuple[str, str] | None:
    path = credential(environ, CREDENTIAL)
    label = f"the credential {CREDENTIAL}"
    return (_read(path, label), label) if path else None


def _read(path: str, label: str) -> str:
    hint = f"it must hold the API key, and the agent's user must own it: ls -l {path}"
    data = read_secret(path, label, hint, KEY_CHARACTERS_MAX + 2)
    return _checked(data.decode("utf-8", "replace").strip(), f"{label}: {path}")


def _checked(key: str, label: str) -> str:
    if not key:
        raise ConfigError(f"{label} is empty", "put the API key in it, and nothing else")
    if len(key) > KEY_CHARACTERS_MAX or not all("!" <= character <= "~" for character in key):
        message = f"{label} is no API key: it has spaces, line breaks or odd characters"
        raise ConfigError(message, "put the key in it, and nothing else")
    return key
