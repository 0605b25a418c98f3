"""What `check` looks at on the way to Komodor: names, connection, TLS, clock, key.

One connection is made and one call that changes nothing. The key goes into
its header and nowhere else.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from outboxd import __version__
from outboxd.cli.findings import Finding, bad, good, note
from outboxd.config.load import Config
from outboxd.delivery.connections import Tls, proxy_for
from outboxd.errors import EX_CONFIG, EX_NOPERM, EX_UNAVAILABLE, ConfigError
from outboxd.units import format_duration

EVENTS_END = "/events"
VALIDATE_END = "/apikey/validate"
SKEW_MAX_S = 30.0
CERTIFICATE_SOON_S = 14 * 86400
ANSWER_BYTES_MAX = 64 * 1024
PORTS = {"https": 443, "http": 80}


class Reached(NamedTuple):
    """The server's answer to the validate call."""

    status: int
    date: str | None
    content_type: str
    body: bytes


def endpoint(config: Config, key: str | None) -> Iterator[Finding]:
    """From the name to the key, as far as it goes."""
    parts = urlsplit(config.komodor.endpoint)
    proxy = proxy_for(config.komodor.endpoint, config.komodor.proxy)
    first = urlsplit(proxy) if proxy else parts
    named = _names(first, "proxy" if proxy else "DNS")
    yield named
    if named.hint:
        return
    try:
        connection = _connection(config, parts, first if proxy else None)
    except ConfigError as error:
        yield bad("TLS", error.message, error.hint or "look at the files", EX_CONFIG)
        return
    try:
        connected = _connect(connection, parts)
        yield connected
        if connected.hint and connected.exit_code:
            return
        yield from _call(connection, parts, key, bool(proxy))
    finally:
        connection.close()


def _names(parts: SplitResult, word: str) -> Finding:
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        told = f"the name {host} cannot be resolved: {getattr(error, 'strerror', None) or error}"
        return bad(word, told, "look at /etc/resolv.conf and the network", EX_UNAVAILABLE)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    return good(word, f"{host} is {', '.join(addresses[:4])}")


def _connection(
    config: Config, parts: SplitResult, proxy: SplitResult | None
) -> http.client.HTTPConnection:
    """The connection, not yet made; through the proxy where there is one."""
    komodor = config.komodor
    first = proxy or parts
    host = first.hostname or ""
    port = first.port or PORTS.get(first.scheme, 80)
    timeout_s = komodor.connect_timeout_s
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    context = Tls(komodor.ca_file, komodor.client_cert, komodor.client_key).context()
    connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    if proxy:
        connection.set_tunnel(parts.hostname or "", parts.port or 443, _proxy_headers(proxy))
    return connection


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}


def _connect(connection: http.client.HTTPConnection, parts: SplitResult) -> Finding:
    where = f"{parts.hostname}:{parts.port or PORTS[parts.scheme]}"
    started_s = time.monotonic()
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        told = f"the certificate of {where} does not verify: {error.verify_message}"
        hint = "set [komodor] ca_file if a proxy or a private authority signs it; check the clock"
        return bad("TLS", told, hint, EX_UNAVAILABLE)
    except ssl.SSLError as error:
        told = f"TLS with {where} failed: {error.reason or error}"
        return bad("TLS", told, "is it an https port, and is client_cert right?", EX_UNAVAILABLE)
    except OSError as error:
        told = f"no connection to {where}: {error.strerror or error}"
        return bad("connection", told, "look at firewall, proxy and the endpoint", EX_UNAVAILABLE)
    took_ms = (time.monotonic() - started_s) * 1000
    if not isinstance(connection.sock, ssl.SSLSocket):
        return good("connection", f"{where} in {took_ms:.0f} ms, without TLS")
    return _certificate(connection.sock, f"{where} in {took_ms:.0f} ms")


def _certificate(connection: ssl.SSLSocket, where: str) -> Finding:
    told = f"{where}, {connection.version()}"
    certificate = connection.getpeercert() or {}
    ends = certificate.get("notAfter")
    if not isinstance(ends, str):
        return good("TLS", told)
    left_s = ssl.cert_time_to_seconds(ends) - time.time()
    told += f", the certificate ends in {format_duration(left_s)}"
    if left_s < CERTIFICATE_SOON_S:
        return note("TLS", told, "it is renewed by whoever runs the endpoint: tell them")
    return good("TLS", told)


def _call(
    connection: http.client.HTTPConnection, parts: SplitResult, key: str | None, proxied: bool
) -> Iterator[Finding]:
    """The validate call, and what its answer tells of clock and key."""
    if not parts.path.endswith(EVENTS_END):
        told = f"not checked: the endpoint's path does not end in {EVENTS_END}"
        yield note("API key", told, "Komodor's is https://api.komodor.com/mgmt/v1/events")
        return
    path = parts.path.removesuffix(EVENTS_END) + VALIDATE_END
    if proxied and parts.scheme == "http":
        path = f"{parts.scheme}://{parts.netloc}{path}"
    try:
        reached = _ask(connection, path, parts, key)
    except (OSError, http.client.HTTPException) as error:
        told = f"no answer from {parts.netloc}: {error or type(error).__name__}"
        hint = "it accepts connections and does not answer: try again, and ask its owner"
        yield bad("endpoint", told, hint, EX_UNAVAILABLE)
        return
    clock = _clock(reached.date)
    if clock is not None:
        yield clock
    yield _key(reached, key)


def _ask(
    connection: http.client.HTTPConnection, path: str, parts: SplitResult, key: str | None
) -> Reached:
    headers = {"Host": parts.netloc, "User-Agent": f"outboxd/{__version__}"}
    if key is not None:
        headers["x-api-key"] = key
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read(ANSWER_BYTES_MAX)
    content_type = answer.headers.get("Content-Type", "")
    return Reached(answer.status, answer.headers.get("Date"), content_type, body)


def _clock(date: str | None) -> Finding | None:
    """Our clock against the server's, which tells whole seconds."""
    if date is None:
        return None
    try:
        server_s = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
    skew_s = time.time() - server_s
    if abs(skew_s) <= SKEW_MAX_S:
        return good("clock", "agrees with the server's")
    way = "ahead of" if skew_s > 0 else "behind"
    told = f"{format_duration(abs(skew_s))} {way} the server's"
    return note("clock", told, "events tell wrong times: `timedatectl set-ntp true`")


def _key(reached: Reached, key: str | None) -> Finding:
    status = reached.status
    if status in (401, 402, 403) or _says_invalid(reached):
        if key is None:
            hint = "give this command the key to have it checked"
            return note("endpoint", "reached; it wants a key, as it should", hint)
        told = f"the key was refused ({status})"
        return bad("API key", told, "make a new one in Komodor, and put it in place", EX_NOPERM)
    if 200 <= status < 300 and "html" not in reached.content_type.lower():
        return good("API key", "valid")
    if 200 <= status < 400:
        told = f"answered {status} with a page: a captive portal, or not Komodor"
        return bad("endpoint", told, "look at network and [komodor] endpoint", EX_UNAVAILABLE)
    if status in (404, 405):
        told = f"there is no validate call here ({status})"
        return bad("endpoint", told, "look at [komodor] endpoint", EX_UNAVAILABLE)
    told = f"the endpoint answered {status}"
    return bad("endpoint", told, "it is reached and not well: try again later", EX_UNAVAILABLE)


def _says_invalid(reached: Reached) -> bool:
    try:
        content = json.loads(reached.body)
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("valid") is False
