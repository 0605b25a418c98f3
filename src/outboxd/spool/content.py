"""What a spool file holds: one event, or JSON Lines.

It decides and checks, and opens nothing. A file that is one JSON value is one
event, however many lines it is printed over; anything else is read line by
line, so that its good lines are taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from outboxd.errors import EventError
from outboxd.intake.intake import PLAIN_BYTES, Intake
from outboxd.intake.producer import Producer
from outboxd.outbox.model import Incoming, Source
from outboxd.slices import Slices
from outboxd.spool.rejects import FAULTS_TOLD_MAX, LineFault, is_beyond_help


class Content(NamedTuple):
    """A small file's events, and the lines that are none."""

    items: list[Incoming]
    line_numbers: list[int]  # of the items
    faults: list[tuple[LineFault, bytes]]
    lines: int  # that were read
    unread: bytes = b""  # the rest of the file, where its bad lines were too many


async def read_content(door: Intake, data: bytes, producer: Producer, slices: Slices) -> Content:
    """What a file of at most `event_bytes_max` bytes holds."""
    if not data or data.isspace():
        fault = LineFault(1, None, "the file is empty", "write the event in tmp/, then rename it")
        return Content([], [], [(fault, b"")], 1)
    try:
        if len(data) <= PLAIN_BYTES:
            prepared = door.prepare(data, Source.SPOOL, producer)
        else:
            prepared = await door.prepare_apart(data, Source.SPOOL, producer)
        return Content([prepared.incoming], [1], [], 1)
    except EventError as error:
        as_one = error
    if is_one_value(data):
        return Content([], [], [(LineFault.of(1, as_one), data)], 1)
    items: list[Incoming] = []
    numbers: list[int] = []
    faults: list[tuple[LineFault, bytes]] = []
    number, bad_bytes, unread = 0, 0, b""
    for number, line, end in _lines(data):
        if not line or line.isspace():
            continue
        try:
            told = len(faults) < FAULTS_TOLD_MAX
            items.append(await prepare_line(door, line, producer, told))
            numbers.append(number)
        except EventError as error:
            faults.append((LineFault.of(number, error), line))
            bad_bytes += len(line)
            if is_beyond_help(len(faults), len(items), bad_bytes):
                unread = data[end:]
                break
        await slices.pause()
    if not items and not _is_value(data.lstrip().partition(b"\n")[0]):
        # Neither its first line nor any other is one: an event cut short.
        faults, unread = [(LineFault.of(1, as_one), data)], b""
    return Content(items, numbers, faults, number, unread)


async def prepare_line(
    door: Intake, line: bytes | None, producer: Producer, told: bool
) -> Incoming:
    """A line's event; where it is long, judged beside the loop. Raises EventError, with
    the reason where it is to be `told`."""
    if line is None or len(line) <= PLAIN_BYTES:
        return door.prepare_line(line, Source.SPOOL, producer, told).incoming
    return (await door.prepare_apart(line, Source.SPOOL, producer)).incoming


def _lines(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Each line with its number and where the next one begins; none is held longer than needed."""
    number = start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        yield number, data[start:end], end + 1
        start = end + 1


def is_one_value(data: bytes) -> bool:
    """Whether it is one JSON value, as far as that can be told, or one line."""
    return b"\n" not in data.strip() or _is_value(data)


def _is_value(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
