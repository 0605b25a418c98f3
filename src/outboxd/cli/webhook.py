"""`outboxd webhook`: which webhooks are taken, and what one payload would become."""

from __future__ import annotations

import json
import sys

from outboxd.config.load import load
from outboxd.errors import EX_OK, EventError, UsageError
from outboxd.event.komodor import parse, wire_body
from outboxd.gateway.alertmanager import read_group
from outboxd.gateway.shipped import compile_webhooks
from outboxd.gateway.webhooks import read_events
from outboxd.producer.command_line import Arguments, did_you_mean
from outboxd.text import harmless_json

ALERTMANAGER = "alertmanager"
FILE_BYTES_MAX = 64 << 20


def run(arguments: Arguments) -> int:
    """List the webhooks, or try one on a payload."""
    config = load(arguments.config)
    webhooks = compile_webhooks(config.webhooks)
    if arguments.subcommand == "list":
        for name in sorted([ALERTMANAGER, *webhooks]):
            print(name)
        return EX_OK
    payload = _payload(arguments.file)
    event_type_max = config.komodor.event_type_max
    if arguments.name == ALERTMANAGER:
        group = read_group(payload, None, event_type_max)
        bodies = [event.body for event in group.events]
    elif arguments.name in webhooks:
        bodies = read_events(webhooks[arguments.name], payload, event_type_max)
    else:
        known = (ALERTMANAGER, *webhooks)
        hint = f"there are {', '.join(sorted(known))}{did_you_mean(arguments.name, known)}"
        raise UsageError(f"there is no webhook {arguments.name!r}", hint)
    for body in bodies:
        event = parse(body, event_type_max, config.intake.event_bytes_max)
        sent = json.loads(wire_body(event, config.defaults.for_events()))
        print(harmless_json(json.dumps(sent, indent=2, ensure_ascii=False)))
    sys.stdout.flush()
    count = len(bodies)
    print(f"{count} event{'' if count == 1 else 's'}; nothing was sent", file=sys.stderr)
    return EX_OK


def _payload(path: str) -> object:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "name a file, or -") from None
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"{path}: larger than {FILE_BYTES_MAX} bytes", "is it the right file?")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        hint = "a payload is the body of the sender's request"
        raise EventError(f"{path}: no JSON: {error}", None, hint) from None
