"""A listener's certificate, read anew when its files change, and its handshakes.

Half-written or mismatched files leave the ones before in force: a renewal is
several writes, and in the middle of it the listener must go on. It must never
serve without a certificate, and never log a key.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

from outboxd.errors import ConfigError
from outboxd.files import FileVersion, file_version
from outboxd.serve.connection import Connection

if TYPE_CHECKING:
    from outboxd.serve.server import HttpServer

_BREATH_S = 0.05  # after an accept that failed


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


class TlsAcceptor:
    """Takes connections and shakes hands, within the server's limits.

    A connection counts from its first packet on and not from the end of its
    handshake, so that handshakes that never end are bounded like all else. Each
    uses the certificate that is in force when it begins.
    """

    def __init__(self, server: HttpServer, files: TlsFiles, listening: socket.socket) -> None:
        self._server = server
        self._files = files
        self._listening = listening
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept(), name="tls accept")

    def close(self) -> None:
        """Take no more; handshakes under way are ended."""
        self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()
        self._listening.close()

    async def _accept(self) -> None:
        while True:
            try:
                accepted, address = await self._loop.sock_accept(self._listening)
            except OSError:
                # Out of descriptors, or the peer was faster in leaving: others go on.
                await asyncio.sleep(_BREATH_S)
                continue
            if not self._server.make_room(address[0]):
                accepted.close()  # no answer could be read before the handshake
                continue
            handshake = self._loop.create_task(self._shake_hands(accepted, address[0]))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, accepted: socket.socket, holder: str) -> None:
        connection = Connection(self._server)
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._files.context,
                ssl_handshake_timeout=self._server.stall_s,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, TimeoutError, asyncio.CancelledError) as error:  # SSLError is an OSError
            if connection.holder is None:  # it was never made, and gives back nothing itself
                accepted.close()
                self._server.limits.connections.give(holder)
                self._server.limited("handshake")
            if isinstance(error, asyncio.CancelledError):
                raise


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and wait for ever.
    raise ValueError("the key has a passphrase")
