"""What `check` tells of gateways: of the one that a host sends to, and of one's own.

Looks and changes nothing. No token is shown, and of the file only how many it has.
"""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Any

from outboxd.config.sections import Config
from outboxd.delivery.next_hop import read_greeting
from outboxd.delivery.outcome import Answer
from outboxd.errors import EX_CONFIG, EX_NOPERM, ConfigError
from outboxd.event.hop import GREETING, UNAUTHENTICATED
from outboxd.findings import Finding, bad, good, note
from outboxd.gateway.tokens import read_tokens
from outboxd.serve.tls import TlsFiles, shown_certificate
from outboxd.status import Gateway
from outboxd.units import format_duration, format_size

CERTIFICATE_SOON_S = 14 * 86400
NAMES_SHOWN = 6


def is_gateway(answer: Answer) -> bool:
    """Whether an answer to the validate call is a gateway's, be it a refusal."""
    return GREETING.lower() in answer.headers or UNAUTHENTICATED.encode() in answer.body_start


def of_destination(answer: Answer, config: Config, key: str | None) -> Iterator[Finding]:
    """What a host should know of the gateway that it sends to, by its answer."""
    if GREETING.lower() not in answer.headers:
        yield good("gateway", "the endpoint is a gateway, which sends on")
        if key is None:
            hint = "give this command the key to have it checked"
            yield note("API key", "not checked; the gateway wants a token of its own", hint)
            return
        told = f"the gateway does not know this token, or no longer ({answer.status})"
        hint = "`outboxd token new NAME` on the gateway makes one; put it in place of the key"
        yield bad("API key", told, hint, EX_NOPERM)
        return
    gateway = read_greeting(answer.headers[GREETING.lower()])
    if gateway is None:
        told = f"the endpoint is a gateway of another version: {answer.headers[GREETING.lower()]}"
        yield note("gateway", told, "upgrade the older one; until then stamps are added here")
        return
    yield good("gateway", f"the endpoint is a gateway, which sends on; {_told(gateway)}")
    yield from _narrower(gateway, config)
    yield good("API key", "the gateway knows this token")


def _told(gateway: Gateway) -> str:
    return (
        f"it knows an event again for {format_duration(gateway.dedup_s)}, takes types of"
        f" {gateway.event_type_max} characters and events of {format_size(gateway.event_bytes_max)}"
    )


def _narrower(gateway: Gateway, config: Config) -> Iterator[Finding]:
    """Where the gateway allows less than this host: what is taken here is refused there."""
    ours = config.dedup.key_window_s
    if gateway.dedup_s < ours:
        told = (
            f"it knows an event again for {format_duration(gateway.dedup_s)} only, and this host"
            f" for {format_duration(ours)}: after a longer outage there may be marked duplicates"
        )
        hint = f'set [dedup] key_window = "{ours:.0f}s" on the gateway'
        yield note("gateway", told, hint)
    for setting, theirs, limit in (
        ("[komodor] event_type_max", gateway.event_type_max, config.komodor.event_type_max),
        ("[intake] event_bytes_max", gateway.event_bytes_max, config.intake.event_bytes_max),
    ):
        if theirs < limit:
            told = (
                f"its {setting} is {theirs:,}, this host's {limit:,}: what is between becomes"
                " a dead letter here"
            )
            yield note("gateway", told, "set the same on both")


def of_listener(config: Config) -> Iterator[Finding]:
    """The gateway that this configuration makes: its certificate, its tokens, its TLS."""
    intake = config.intake
    if not intake.listen:
        return
    if intake.tls_cert:
        yield _certificate(intake.tls_cert, intake.tls_key, intake.client_ca)
    elif intake.allow_plain_listen:
        told = f"tokens and events cross the network to {intake.listen} in clear text"
        yield note("gateway", told, "give [intake] tls_cert and tls_key, or let a proxy end TLS")
    if intake.tokens_file:
        yield _tokens(intake.tokens_file)


def _certificate(certificate: str, key: str, client_ca: str) -> Finding:
    name = "gateway's TLS"
    try:
        context = TlsFiles(certificate, key, client_ca).context
        shown = shown_certificate(context, certificate)
    except ConfigError as error:
        return bad(name, error.message, error.hint or "renew it", EX_CONFIG)
    names = ", ".join(_names(shown))
    left_s = ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()
    told = f"{certificate} ends in {format_duration(left_s)}, for {names or 'no name at all'}"
    if not names:
        hint = "hosts verify the name that they call: it must have one in subjectAltName"
        return bad(name, told, hint, EX_CONFIG)
    if left_s < CERTIFICATE_SOON_S:
        return note(name, told, "renew it; it is taken over while the gateway runs")
    return good(name, told)


def _names(certificate: Mapping[str, Any]) -> list[str]:
    found = [str(value) for _, value in certificate.get("subjectAltName", ())]
    more = len(found) - NAMES_SHOWN
    return found[:NAMES_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def _tokens(path: str) -> Finding:
    name = "tokens"
    try:
        tokens = read_tokens(path)
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except ConfigError as error:
        denied = isinstance(error.__context__, PermissionError)
        hint = "give it to the agent's user: `chown outboxd:outboxd`" if denied else error.hint
        code = EX_NOPERM if denied else EX_CONFIG
        return bad(name, error.message, hint or "mend it", code)
    names = len({token.name for token in tokens})
    told = f"{path} has {_count(len(tokens), 'token')} of {_count(names, 'name')}"
    if not tokens:
        return note(name, told, "nobody can hand in: make one with `outboxd token new NAME`")
    if mode & stat.S_IWOTH:
        hint = f"chmod o-w {path}"
        return bad(name, f"anyone may write in {path}, and so make tokens", hint, EX_NOPERM)
    return good(name, told)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
