"""Turns what the network stack raises into our own words.

One room for all of it. It never decides what a fault means: that is
`outcome`'s table.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

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


def connecting(error: BaseException) -> tuple[Fault, str]:
    """What kept a connection from being made, and what it says of itself."""
    chain = tuple(causes(error))
    return _about_certificates(chain) or _of_connecting(chain), said(chain)


def lost(error: BaseException | None, sent: bool) -> tuple[Fault, str, bool]:
    """Why a connection ended before the answer: the fault, what it says of itself,
    and whether the request may have arrived.

    `error`: None where the other side closed it in order. `sent`: whether any of
    the request had left.
    """
    if error is None:
        return Fault.LOST, "", sent
    chain = tuple(causes(error))
    # With TLS 1.3 this alert comes after our side of the handshake ended, but
    # before the server reads what follows: the request is not processed.
    about = _about_certificates(chain)
    return (about, said(chain), False) if about else (Fault.LOST, said(chain), sent)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what brought it about, outermost first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__context__, current.__cause__]


def said(chain: tuple[BaseException, ...]) -> str:
    """What the outermost cause that says anything to an operator says."""
    for error in chain:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
    for error in chain:
        if isinstance(error, OSError) and error.strerror:
            if error.errno is None or isinstance(error, ssl.SSLError | socket.gaierror):
                return error.strerror
            return os.strerror(error.errno)  # asyncio's own words name addresses
    return next((str(error) for error in chain if str(error)), "")


def _about_certificates(chain: tuple[BaseException, ...]) -> Fault | None:
    for error in chain:
        if isinstance(error, ssl.SSLCertVerificationError):
            return Fault.CERTIFICATE
        reason = str(error.reason or "") if isinstance(error, ssl.SSLError) else ""
        if any(name in reason for name in _ABOUT_OUR_CERTIFICATE):
            return Fault.CLIENT_CERTIFICATE
    return None


def _of_connecting(chain: tuple[BaseException, ...]) -> Fault:
    for error in chain:
        if isinstance(error, ssl.SSLError):
            return Fault.TLS
        if isinstance(error, socket.gaierror):
            return Fault.DNS
        # The operating system gave up on a connection (ETIMEDOUT): our own
        # limit has no errno.
        if isinstance(error, TimeoutError) and error.errno is None:
            return Fault.CONNECT_TIMEOUT
    return Fault.CONNECT
