"""Files with a secret in them, found and read; what they must hold is for each to check."""

from __future__ import annotations

import os
from collections.abc import Mapping

from outboxd.errors import ConfigError
from outboxd.files import read_start
from outboxd.locations import credential_path


def read_secret(path: str, label: str, hint: str, bytes_max: int) -> bytes:
    """The file's first `bytes_max` bytes.

    Raises:
        ConfigError: it cannot be read; the hint says what it must be.
    """
    try:
        return read_start(path, bytes_max)
    except OSError as error:
        raise ConfigError(f"{label}: {path} cannot be read: {error.strerror}", hint) from error


def credential(environ: Mapping[str, str], name: str) -> str | None:
    """The path of a credential that systemd hands over, if something stands in it: the
    service's unit gives a blank one where there is no file to give."""
    path = credential_path(environ, name)
    return path if path and os.path.exists(path) and os.path.getsize(path) > 1 else None
