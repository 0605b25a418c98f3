"""What a spool file holds: one event, or JSON Lines.

Pure: decides and checks, opens nothing. A file that is one JSON value is one
event, however many lines it is printed over; anything else is read line by
line, so that its good lines are taken.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from outboxd.errors import EventError
from outboxd.intake.intake import Intake
from outboxd.intake.producer import Producer
from outboxd.outbox.model import Incoming, Source
from outboxd.spool.rejects import Fault


class Content(NamedTuple):
    """A small file's events, and the lines that are none."""

    items: list[Incoming]
    line_numbers: list[int]  # of the items
    faults: list[tuple[Fault, bytes]]
    lines: int  # in all


def read_content(door: Intake, data: bytes, producer: Producer) -> Content:
    """What a file of at most `event_bytes_max` bytes holds."""
    if not data or data.isspace():
        fault = Fault(1, None, "the file is empty", "write the event in tmp/, then rename it")
        return Content([], [], [(fault, b"")], 1)
    try:
        return Content([door.prepare(data, Source.SPOOL, producer).incoming], [1], [], 1)
    except EventError as error:
        as_one = error
    if is_one_value(data):
        return Content([], [], [(Fault.of(1, as_one), data)], 1)
    items: list[Incoming] = []
    numbers: list[int] = []
    faults: list[tuple[Fault, bytes]] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        try:
            items.append(door.prepare_line(line, Source.SPOOL, producer).incoming)
            numbers.append(number)
        except EventError as error:
            faults.append((Fault.of(number, error), line))
    if not items and not _is_value(data.lstrip().partition(b"\n")[0]):
        # Neither its first line nor any other is one: an event cut short.
        faults = [(Fault.of(1, as_one), data)]
    return Content(items, numbers, faults, len(lines))


def is_one_value(data: bytes) -> bool:
    """Whether it is one JSON value, as far as that can be told, or one line."""
    return b"\n" not in data.strip() or _is_value(data)


def _is_value(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
