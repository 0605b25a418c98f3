"""The files that TLS depends on, read anew when they change.

It opens them and makes a context of them; it never makes a connection.
"""

from __future__ import annotations

import os
import ssl
from typing import NamedTuple

from outboxd.errors import ConfigError
from outboxd.files import FileVersion, check_readable, file_version


class Tls(NamedTuple):
    """The files; empty for the system's own authorities, and for no certificate of ours."""

    ca_file: str = ""
    client_cert: str = ""
    client_key: str = ""

    def stamp(self) -> tuple[FileVersion | None, ...]:
        """Changes whenever one of the files does."""
        authorities = (self.ca_file,) if self.ca_file else _system_paths()
        return tuple(map(file_version, (*authorities, self.client_cert, self.client_key)))

    def context(self) -> ssl.SSLContext:
        """A fresh context from the files as they are now; ConfigError if they are no use."""
        try:
            if self.ca_file:
                check_readable(self.ca_file)
                context = ssl.create_default_context(cafile=self.ca_file)
            else:
                context = _system_context()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"[komodor] ca_file = {self.ca_file!r} cannot be used: {error}",
                "it must be a readable PEM file with the authorities to trust",
            ) from error
        if self.client_cert:
            try:
                for path in filter(None, (self.client_cert, self.client_key)):
                    check_readable(path)
                context.load_cert_chain(self.client_cert, self.client_key or None, _no_password)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"[komodor] client_cert = {self.client_cert!r} with client_key = "
                    f"{self.client_key!r} cannot be used: {error}",
                    "they must be a readable PEM certificate and its key, without a password",
                ) from error
        return context


class WatchedTls:
    """A context that follows its files; what worked stays until they work again."""

    def __init__(self, files: Tls) -> None:
        self._files = files
        self._stamp = files.stamp()  # before reading: a change meanwhile is seen later
        self.context = files.context()

    def reread(self, whether_changed_or_not: bool = False) -> bool:
        """Take over the files if they changed; whether there is a new context.

        Raises:
            ConfigError: they changed into something of no use, told each time until
                they are of use again; the context before stays in force.
        """
        stamp = self._files.stamp()
        if stamp == self._stamp and not whether_changed_or_not:
            return False
        context = self._files.context()
        self._stamp, self.context = stamp, context
        return True


def _system_paths() -> tuple[str, ...]:
    """Where this host keeps its authorities, whether anything is there or not."""
    paths = ssl.get_default_verify_paths()
    return (
        os.environ.get(paths.openssl_cafile_env, paths.openssl_cafile),
        os.environ.get(paths.openssl_capath_env, paths.openssl_capath),
    )


def _system_context() -> ssl.SSLContext:
    """The system's authorities; a host without any gets those that come with httpx."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and os.listdir(paths.capath)):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _no_password() -> str:
    # Without it OpenSSL would ask on the terminal, and wait for ever.
    return ""
