"""What `check` looks at on the way to Komodor: names, connection, TLS, clock, key.

One connection is made and one call that changes nothing. The key goes into
its header and nowhere else.
"""

from __future__ import annotations

import email.utils
import json
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

from outboxd import __version__
from outboxd.cli import check_gateway
from outboxd.config.sections import Config
from outboxd.delivery.outcome import Answer, Fault, decide
from outboxd.delivery.proxied import Asked, ask
from outboxd.delivery.proxies import DEFAULT_PORTS, proxy_for
from outboxd.delivery.tls import Tls
from outboxd.delivery.transport import validate_url
from outboxd.errors import EX_CONFIG, EX_NOPERM, EX_UNAVAILABLE, ConfigError
from outboxd.findings import Finding, bad, good, note
from outboxd.outbox.model import Outcome
from outboxd.units import format_duration

EVENTS_END = "/events"
SKEW_MAX_S = 30.0
CERTIFICATE_SOON_S = 14 * 86400


def endpoint(config: Config, key: str | None) -> Iterator[Finding]:
    """From the name to the key, as far as it goes."""
    komodor = config.komodor
    parts = urlsplit(komodor.endpoint)
    try:
        proxy = proxy_for(komodor.endpoint, komodor.proxy)
    except ConfigError as error:
        yield bad("proxy", error.message, error.hint or "name another", EX_CONFIG)
        return
    named = _names(urlsplit(proxy) if proxy else parts, "proxy" if proxy else "DNS")
    yield named
    if named.hint:
        return
    try:
        asked = _ask(config, key, proxy)
    except ConfigError as error:
        yield bad("TLS", error.message, error.hint or "look at the files", EX_CONFIG)
        return
    where = f"{parts.hostname}:{parts.port or DEFAULT_PORTS[parts.scheme]}"
    yield _connection(asked, where)
    if asked.connected_s is None or asked.answer.fault is Fault.CLIENT_CERTIFICATE:
        return
    yield from _said(asked.answer, parts, key, config)


def _names(parts: SplitResult, word: str) -> Finding:
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        told = f"the name {host} cannot be resolved: {getattr(error, 'strerror', None) or error}"
        return bad(word, told, "look at /etc/resolv.conf and the network", EX_UNAVAILABLE)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    return good(word, f"{host} is {', '.join(addresses[:4])}")


def _ask(config: Config, key: str | None, proxy: str | None) -> Asked:
    """The validate call; where there can be none, one that asks for nothing."""
    komodor = config.komodor
    headers = {"User-Agent": f"outboxd/{__version__}", "Accept-Encoding": "identity"}
    if _has_validate(komodor.endpoint):
        method, url = "GET", validate_url(komodor.endpoint)
        if key is not None:
            headers["x-api-key"] = key
    else:
        method, url = "OPTIONS", komodor.endpoint
    over_tls = "https" in (urlsplit(komodor.endpoint).scheme, urlsplit(proxy or "").scheme)
    files = Tls(komodor.ca_file, komodor.client_cert, komodor.client_key)
    context = files.context() if over_tls or any(files) else None
    return ask(method, url, headers, proxy, context, komodor.connect_timeout_s)


def _has_validate(endpoint: str) -> bool:
    return urlsplit(endpoint).path.endswith(EVENTS_END)


def _connection(asked: Asked, where: str) -> Finding:
    fault, text = asked.answer.fault, asked.answer.fault_text
    if fault is Fault.CERTIFICATE:
        told = f"the certificate of {where} does not verify: {text}"
        hint = "set [komodor] ca_file if a proxy or a private authority signs it; check the clock"
        return bad("TLS", told, hint, EX_UNAVAILABLE)
    if fault in (Fault.TLS, Fault.CLIENT_CERTIFICATE):
        told = f"TLS with {where} failed: {text}"
        return bad("TLS", told, "is it an https port, and is client_cert right?", EX_UNAVAILABLE)
    if fault in (Fault.PROXY, Fault.PROXY_AUTH):
        told = f"the proxy does not connect to {where}: {text}"
        hint = "look at [komodor] proxy, or http_proxy and https_proxy, and its credentials"
        return bad("proxy", told, hint, EX_UNAVAILABLE)
    if asked.connected_s is None:
        told = f"no connection to {where}: {text or 'it took longer than connect_timeout'}"
        return bad("connection", told, "look at firewall, proxy and the endpoint", EX_UNAVAILABLE)
    took = f"{where} in {asked.connected_s * 1000:.0f} ms"
    if asked.tls is None:
        return good("connection", f"{took}, without TLS" if fault is None else took)
    return _certificate(asked, took)


def _certificate(asked: Asked, where: str) -> Finding:
    told = f"{where}, {asked.tls}"
    ends = asked.certificate.get("notAfter")
    if not isinstance(ends, str):
        return good("TLS", told)
    left_s = ssl.cert_time_to_seconds(ends) - time.time()
    told += f", the certificate ends in {format_duration(left_s)}"
    if left_s < CERTIFICATE_SOON_S:
        return note("TLS", told, "it is renewed by whoever runs the endpoint: tell them")
    return good("TLS", told)


def _said(answer: Answer, parts: SplitResult, key: str | None, config: Config) -> Iterator[Finding]:
    """What the answer tells of clock and key."""
    if answer.status is None:
        told = f"no answer from {parts.netloc}: {answer.fault_text or answer.fault}"
        hint = "it accepts connections and does not answer: try again, and ask its owner"
        yield bad("endpoint", told, hint, EX_UNAVAILABLE)
        return
    clock = _clock(answer.headers.get("date"))
    if clock is not None:
        yield clock
    if not _has_validate(parts.path):
        told = f"not checked: the endpoint's path does not end in {EVENTS_END}"
        yield note("API key", told, "Komodor's is https://api.komodor.com/mgmt/v1/events")
        return
    if check_gateway.is_gateway(answer):
        yield from check_gateway.of_destination(answer, config, key)
    else:
        yield _key(answer, answer.status, key)


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


def _key(answer: Answer, status: int, key: str | None) -> Finding:
    if status in (401, 402, 403) or _says_invalid(answer):
        if key is None:
            hint = "give this command the key to have it checked"
            return note("endpoint", "reached; it wants a key, as it should", hint)
        told = f"the key was refused ({status})"
        return bad("API key", told, "make a new one in Komodor, and put it in place", EX_NOPERM)
    if decide(answer, 0, 0.0).outcome is Outcome.DELIVERED:
        return good("API key", "valid")
    if 200 <= status < 400:
        told = f"answered {status} with a page: a captive portal, or not Komodor"
        return bad("endpoint", told, "look at network and [komodor] endpoint", EX_UNAVAILABLE)
    if status in (404, 405):
        told = f"there is no validate call here ({status})"
        return bad("endpoint", told, "look at [komodor] endpoint", EX_UNAVAILABLE)
    told = f"the endpoint answered {status}"
    return bad("endpoint", told, "it is reached and not well: try again later", EX_UNAVAILABLE)


def _says_invalid(answer: Answer) -> bool:
    try:
        content = json.loads(answer.body_start)
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("valid") is False
