"""Turns what the network stack raises into our own words.

One function for all of it. It never decides what a fault means: that is
`outcome`'s table.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import aiohttp

from outboxd.delivery.outcome import Fault

# An alert about a certificate comes from the other side, so it is about ours.
_ABOUT_OUR_CERTIFICATE = (
    "CERTIFICATE_REQUIRED",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE",
    "ALERT_UNKNOWN_CA",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_ACCESS_DENIED",
)
_NO_CREDENTIALS_TAKEN = 407
_DOES_NOT_VERIFY = (ssl.SSLCertVerificationError, aiohttp.ClientConnectorCertificateError)


def fault_of(error: BaseException, connected: bool) -> tuple[Fault, str, bool]:
    """The fault, what it says of itself, and whether the request may have left.

    `connected`: there was a connection to write the request on, so the request
    may have arrived unless the fault itself rules that out.
    """
    chain = tuple(_chain(error))
    text = _text(chain)
    before = _before_the_request(chain)
    if before is not None:
        return before, text, False
    if not connected:
        return _while_connecting(chain), text, False
    if any(isinstance(e, TimeoutError) for e in chain):
        return Fault.TIMEOUT, "", True
    if any(isinstance(e, aiohttp.ClientResponseError) for e in chain):
        return Fault.GARBAGE, text, True
    return Fault.LOST, text, True


def _before_the_request(chain: tuple[BaseException, ...]) -> Fault | None:
    """Faults that say themselves that the server processed nothing."""
    for error in chain:
        if isinstance(
            error, ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError
        ):
            return Fault.CERTIFICATE
        if isinstance(error, aiohttp.ClientHttpProxyError):
            taken = error.status != _NO_CREDENTIALS_TAKEN
            return Fault.PROXY if taken else Fault.PROXY_AUTH
        # With TLS 1.3 this alert comes after our side of the handshake ended,
        # but before the server reads what follows: the request is not processed.
        reason = str(getattr(error, "reason", None) or "")  # of an ssl.SSLError
        if any(name in reason for name in _ABOUT_OUR_CERTIFICATE):
            return Fault.CLIENT_CERTIFICATE
    return None


def _while_connecting(chain: tuple[BaseException, ...]) -> Fault:
    for error in chain:
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            return Fault.PROXY
        if isinstance(error, ssl.SSLError):
            return Fault.TLS
        if isinstance(error, socket.gaierror | aiohttp.ClientConnectorDNSError):
            return Fault.DNS
        if isinstance(error, aiohttp.ClientConnectorSSLError):
            return Fault.TLS
        # The operating system gave up on a connection (ETIMEDOUT): our own
        # limit has no errno.
        if isinstance(error, TimeoutError) and error.errno is None:
            return Fault.CONNECT_TIMEOUT
    return Fault.CONNECT


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what brought it about, outermost first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting.append(current.__context__)
        waiting.append(current.__cause__)
        for name in ("os_error", "certificate_error"):
            inner = getattr(current, name, None)
            waiting.append(inner if isinstance(inner, BaseException) else None)


def _text(chain: tuple[BaseException, ...]) -> str:
    """What the innermost cause that says anything says."""
    for error in chain:
        # aiohttp's own class has the same ancestor and not its attributes.
        if verify_message := getattr(error, "verify_message", None):
            return str(verify_message)
    for error in chain:
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return f"{error.status} {error.message}"
    for error in chain:
        if isinstance(error, OSError) and error.strerror:
            return str(error.strerror)
    for error in chain:
        if str(error):
            return str(error)
    return ""
