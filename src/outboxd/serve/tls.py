"""A listener's certificate, read anew when its files change.

Half-written or mismatched files leave the ones before in force: a renewal is
several writes, and in the middle of it the listener must go on. It must never
serve without a certificate, and never log a key.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from outboxd.errors import ConfigError
from outboxd.files import FileVersion, check_readable, file_version


class TlsFiles:
    """Certificate, key and, where clients may show one, their authority: PEM files."""

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None:
        """Raises ConfigError where they cannot be used."""
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._seen = self._versions()
        self.context = self._load()

    def renew(self) -> bool:
        """Take changed files over, for the connections from now on.

        False where they are as they were. Raises ConfigError where they changed
        and cannot be used; they are tried again when they change once more.
        """
        found = self._versions()
        if found == self._seen:
            return False
        self._seen = found
        self.context = self._load()
        return True

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            for path in filter(None, (self._certificate, self._key, self._client_ca)):
                check_readable(path)
            context.load_cert_chain(self._certificate, self._key or None, password=_no_password)
            if self._client_ca:
                context.load_verify_locations(self._client_ca)
                # Asked for, and checked where there is one; who must have one is decided
                # where a request is answered, with words and not with a broken handshake.
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ValueError) as error:  # SSLError is an OSError
            files = ", ".join(filter(None, (self._certificate, self._key, self._client_ca)))
            raise ConfigError(
                f"the certificate cannot be used ({files}): {error}",
                "give PEM files that belong together and that the agent's user can read; "
                "a key without a passphrase",
            ) from error
        return context

    def _versions(self) -> list[FileVersion | None]:
        return [file_version(path) for path in (self._certificate, self._key, self._client_ca)]


def shown_certificate(context: ssl.SSLContext, path: str) -> Mapping[str, Any]:
    """What a listener with this context shows its clients, as `getpeercert` has it;
    `path` is the certificate's file. A handshake in memory tells it.

    Raises:
        ConfigError: no client would take it: it has expired, or is for something else.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever signed it is not at issue here
    client.load_verify_locations(path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    asking = client.wrap_bio(to_client, to_server)
    try:
        for end in (asking, server, asking, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLError as error:
        told = getattr(error, "verify_message", None) or error.reason
        hint = "renew it; it is taken over while the gateway runs"
        raise ConfigError(f"no client would take the certificate {path}: {told}", hint) from None
    return asking.getpeercert() or {}


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and wait for ever.
    raise ValueError("the key has a passphrase")
