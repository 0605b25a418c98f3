"""`outboxd emit`: hand in one event.

On stdout stands the receipt's id and nothing else, so that a script can keep
it; whatever else there is to say goes to stderr. It stands in crontabs: it
imports nothing heavy and every wait in it ends.
"""

from __future__ import annotations

import os
import sys

from outboxd.errors import EX_OK, UsageError
from outboxd.event.komodor import build
from outboxd.producer import gateway, settings
from outboxd.producer.command_line import Arguments
from outboxd.producer.hand_in import Stored, hand_in
from outboxd.producer.messages import say, silence
from outboxd.producer.words import make_readable, moment
from outboxd.text import harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

READ_BYTES = 65536
BESIDE_JSON = ("config", "socket", "gateway", "token_file", "gateway_ca")
# What of the command line becomes text of the event.
TEXTS = (
    *("type", "summary", "severity", "cluster", "namespace", "service", "detail"),
    *("dedup_key", "occurred_at"),
)


def run(arguments: Arguments) -> int:
    _check_form(arguments)
    make_readable(arguments, TEXTS)
    details = read_details(arguments.detail)
    place = settings.load(arguments.config)
    if place.warning is not None:
        say(f"warning: {place.warning}")
    if arguments.json is not None:
        data = _read(arguments.json, place.event_bytes_max)
    else:
        data = build(
            arguments.type,
            arguments.summary,
            arguments.severity,
            arguments.cluster,
            arguments.namespace,
            arguments.service,
            details,
            arguments.dedup_key,
            arguments.occurred_at and moment(arguments.occurred_at),
            arguments.ttl_s,
        )
    stored = hand_in(data, place, arguments.socket, gateway.find(arguments))
    tell(stored)
    if stored.id is not None:
        _print_id(stored.id)
    return EX_OK


def _print_id(id: str) -> None:
    """A reader that has gone, or a full disk, makes no failure of what is stored: who tries
    again would make a second event."""
    try:
        print(harmless(id), flush=True)
    except BrokenPipeError:
        silence(1)
    except OSError as error:
        silence(1)
        say(f"warning: the event is stored; its id {id} could not be written: {error.strerror}")


def tell(stored: Stored) -> None:
    """What its sender should know, on stderr."""
    for warning in stored.warnings:
        say(f"warning: {warning}")
    if stored.where == "spool":
        say(f"{stored.reason}; spooled as {stored.spool_name}; goes out when the agent takes it")
    elif stored.status == "duplicate":
        say("duplicate: an event with this dedup key is known; its id is printed")


def read_details(pairs: Iterable[str]) -> dict[str, str]:
    """`K=V`, each; a value may hold more equals signs."""
    details: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--detail cannot be {pair!r}", "write --detail KEY=VALUE")
        if name in details:
            raise UsageError(f"--detail {name} is given twice", "give each detail once")
        details[name] = value
    return details


def _check_form(arguments: Arguments) -> None:
    if arguments.json is None:
        if arguments.type is None or arguments.summary is None:
            missing = "TYPE and SUMMARY" if arguments.type is None else "SUMMARY"
            hint = "write: outboxd emit TYPE SUMMARY; or outboxd emit --json - for a whole event"
            raise UsageError(f"emit needs {missing}", hint)
        return
    if arguments.type is not None:
        raise UsageError(
            "--json takes the whole event, beside TYPE and SUMMARY there is none",
            "leave out one of the two; a stream of events is for the batch route or the spool",
        )
    beside = sorted(arguments.given - {"json", *BESIDE_JSON})
    if beside:
        flag = "--" + beside[0].removesuffix("_s").replace("_", "-")
        raise UsageError(
            f"--json takes the whole event, {flag} cannot be given beside it",
            "put it into the event",
        )


def _read(path: str, bytes_max: int) -> bytes:
    """The file, but no more of it than shows that it is too large."""
    try:
        if path == "-":
            if sys.stdin is None:
                raise UsageError("there is no standard input", "give --json a file")
            descriptor = 0
        else:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        parts: list[bytes] = []
        left = bytes_max + 1
        while left > 0 and (part := os.read(descriptor, min(left, READ_BYTES))):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise UsageError(message, "name a file, or -") from None
    return b"".join(parts)
