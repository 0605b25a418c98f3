"""Hand in to a gateway over HTTPS, from where no agent runs: CI runners, pods.

Its intake speaks Komodor's own call, with a token for the key. A few tries
within some seconds, all with the event's dedup key, so that they make one
event; every wait ends, a name server's too. It never follows a redirect and
never sends the token in clear text but to this machine itself. Imported only
where a gateway is named, since TLS is slow to come.
"""

from __future__ import annotations

import os
from time import monotonic, sleep

from outboxd.errors import Unavailable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from ssl import SSLContext

    from outboxd.producer.command_line import Arguments

TIMEOUT_S = 6.0  # of one try
ALTOGETHER_S = 10.0  # of all tries and what is waited between them
PAUSES_S = (0.3, 1.0)  # before the second and the third try
RETRY_AFTER_MAX_S = 3.0  # told to wait longer, the event goes into the spool
ANSWER_BYTES_MAX = 1 << 20
TOKEN_BYTES_MAX = 4096
LATER = (408, 425, 429)


class GatewayClient:
    """Where a gateway is, and how it knows us."""

    def __init__(self, url: str, token: str, ca_file: str | None = None) -> None:
        """`url` is https://host[:port], or http to this machine; its path may say more.

        Raises UsageError.
        """
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username:
            raise UsageError(
                f"the gateway cannot be {url!r}", "write https://gateway.example.com:8443"
            )
        if parts.scheme == "http" and not _is_here(parts.hostname):
            raise UsageError(f"the gateway {url!r} would get the token in clear text", "use https")
        self.host = parts.hostname
        self.port = port
        self.is_tls = parts.scheme == "https"
        self.path = parts.path.rstrip("/")
        self.token = token
        self.ca_file = ca_file

    def post(self, target: str, body: bytes) -> tuple[int, bytes]:
        """The answer's status and body after at most three tries. Raises Unavailable."""
        context, ends_s = self._context(), monotonic() + ALTOGETHER_S
        for pause_s in (*PAUSES_S, None):
            try:
                timeout_s = min(TIMEOUT_S, ends_s - monotonic())
                status, answer, retry_after_s = self._try(target, body, context, timeout_s)
            except Unavailable:
                if pause_s is None or monotonic() + pause_s * 1.5 >= ends_s:
                    raise
                retry_after_s = 0.0
            else:
                is_final = status < 500 and status not in LATER
                if is_final or pause_s is None or retry_after_s > RETRY_AFTER_MAX_S:
                    return status, answer
                if monotonic() + max(pause_s, retry_after_s) * 1.5 >= ends_s:
                    return status, answer
            # At random over half of it, so that many do not come back at once.
            sleep(max(pause_s, retry_after_s) * (1 + os.urandom(1)[0] / 512))
        raise AssertionError

    def _context(self) -> SSLContext | None:
        """Whom to trust; None for plain HTTP. Raises Unavailable."""
        if not self.is_tls:
            return None
        from ssl import create_default_context

        try:
            return create_default_context(cafile=self.ca_file)
        except OSError as error:
            told = error.strerror or str(error)
            raise Unavailable(
                f"the gateway's authority {self.ca_file} cannot be used: {told}"
            ) from None

    def _try(
        self, target: str, body: bytes, context: SSLContext | None, timeout_s: float
    ) -> tuple[int, bytes, float]:
        """One exchange, in a thread of its own: a look-up of a name has no time limit."""
        from threading import Thread

        found: list[tuple[int, bytes, float] | Exception] = []

        def work() -> None:
            try:
                found.append(self._exchange(target, body, context, timeout_s))
            except Exception as error:
                found.append(error)

        thread = Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout_s)
        if not found:
            raise Unavailable(f"the gateway did not answer in {timeout_s:.1f} seconds")
        if isinstance(found[0], Exception):
            why = getattr(found[0], "strerror", None) or str(found[0]) or type(found[0]).__name__
            raise Unavailable(f"the gateway {self.host} cannot be reached: {why}")
        return found[0]

    def _exchange(
        self, target: str, body: bytes, context: SSLContext | None, timeout_s: float
    ) -> tuple[int, bytes, float]:
        from http.client import HTTPConnection, HTTPSConnection

        if context is not None:
            connection: HTTPConnection = HTTPSConnection(
                self.host, self.port, timeout=timeout_s, context=context
            )
        else:
            connection = HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            headers = {"Content-Type": "application/json", "x-api-key": self.token}
            path = self.path if self.path.endswith(target) else self.path + target
            connection.request("POST", path, body, {**headers, "Connection": "close"})
            answer = connection.getresponse()
            return (
                answer.status,
                answer.read(ANSWER_BYTES_MAX),
                _seconds(answer.getheader("Retry-After") or "0"),
            )
        finally:
            connection.close()


def load_ahead() -> None:
    """Import what a hand-in needs beside this, while it is there."""
    for name in ("http.client", "ssl", "threading", "ipaddress", "encodings.idna"):
        __import__(name)


def find(arguments: Arguments, environ: Mapping[str, str] = os.environ) -> GatewayClient | None:
    """The gateway that the command line or the environment names; None where neither does.

    Raises UsageError where it cannot be used as named.
    """
    url = arguments.gateway or environ.get("OUTBOXD_GATEWAY")
    if not url:
        return None
    token = environ.get("OUTBOXD_TOKEN", "")
    if arguments.token_file is not None:
        token = _read_token(arguments.token_file)
    token = token.strip()
    if not token:
        raise UsageError(
            "the gateway needs a token, which `outboxd token new` gives",
            "set $OUTBOXD_TOKEN, or name a file with --token-file",
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        where = "$OUTBOXD_TOKEN" if arguments.token_file is None else arguments.token_file
        raise UsageError(
            f"what stands in {where} is no token",
            "give the one line that `outboxd token new` printed, and nothing else",
        )
    # Without either, OpenSSL goes by $SSL_CERT_FILE and the system's authorities.
    return GatewayClient(
        url, token, arguments.gateway_ca or environ.get("OUTBOXD_GATEWAY_CA") or None
    )


def _read_token(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(TOKEN_BYTES_MAX).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(
            f"--token-file {path} cannot be read: {error.strerror}", "name a file with the token"
        ) from None


def _seconds(told: str) -> float:
    """What Retry-After says; its form with a date is more than is waited for here."""
    return float(told) if told.isascii() and told.isdigit() and len(told) < 9 else 3600.0


def _is_here(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name, which may begin with 127. and lead anywhere
        return False
