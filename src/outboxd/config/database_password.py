"""Where the password of the outbox's database comes from: a file, systemd's credential, or
libpq's own means (~/.pgpass, a client certificate). No message ever shows one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from outboxd.config.secrets import credential, read_secret
from outboxd.config.sections import Config
from outboxd.errors import ConfigError
from outboxd.locations import PASSWORD_CREDENTIAL

PASSWORD_BYTES_MAX = 4096


def read_database_password(config: Config, environ: Mapping[str, str] = os.environ) -> str | None:
    """The password; None where libpq is to find one, or needs none.

    Raises:
        ConfigError: the file that was given cannot be read, or there is none in it.
    """
    if config.outbox.password_file:
        return _read(config.outbox.password_file, "[outbox] password_file")
    path = credential(environ, PASSWORD_CREDENTIAL)
    return _read(path, f"the credential {PASSWORD_CREDENTIAL}") if path else None


def _read(path: str, label: str) -> str:
    hint = "it must hold the database's password, and the agent's user must be able to read it"
    data = read_secret(path, label, hint, PASSWORD_BYTES_MAX + 1)
    try:
        password = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{label}: {path} is not UTF-8", hint) from None
    if not password or len(data) > PASSWORD_BYTES_MAX or "\0" in password:
        raise ConfigError(f"{label}: there is no password in {path}", hint)
    return password
