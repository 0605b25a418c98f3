"""Where the password of the outbox's database comes from: a file, systemd's credential, or
libpq's own means (~/.pgpass, a client certificate). No message ever shows one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from outboxd.config.sections import Config
from outboxd.errors import ConfigError
from outboxd.locations import PASSWORD_CREDENTIAL, credential_path

PASSWORD_BYTES_MAX = 4096


def read_database_password(config: Config, environ: Mapping[str, str] = os.environ) -> str | None:
    """The password; None where libpq is to find one, or needs none.

    Raises:
        ConfigError: the file that was given cannot be read, or there is none in it.
    """
    if config.outbox.password_file:
        return _read(config.outbox.password_file, "[outbox] password_file")
    path = credential_path(environ, PASSWORD_CREDENTIAL)
    # The service's unit gives a blank one where there is no file to give.
    if not path or not os.path.exists(path) or os.path.getsize(path) <= 1:
        return None
    return _read(path, f"the credential {PASSWORD_CREDENTIAL}")


def _read(path: str, label: str) -> str:
    hint = "it must hold the database's password, and the agent's user must be able to read it"
    try:
        # Not blocking: a FIFO in its place must not stop the agent for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(PASSWORD_BYTES_MAX + 1) or b""
        password = data.decode().rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{label}: {path} cannot be read: {error.strerror}", hint) from error
    except UnicodeDecodeError:
        raise ConfigError(f"{label}: {path} is not UTF-8", hint) from None
    if not password or len(data) > PASSWORD_BYTES_MAX or "\0" in password:
        raise ConfigError(f"{label}: there is no password in {path}", hint)
    return password
