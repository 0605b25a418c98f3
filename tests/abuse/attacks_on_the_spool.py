"""Attacks by files. Standard library alone; run as processes of root, who gives them to another."""

from __future__ import annotations

import json
import os
import time

GOOD = json.dumps({"eventType": "flood", "summary": "file"}).encode()


def _put(spool: str, name: str, data: bytes, size: int = 0, owner: int = 65534) -> None:
    temporary = f"{spool}/tmp/{name}"
    with open(temporary, "wb") as file:
        file.write(data)
        if size:
            file.truncate(size)
    os.utime(temporary, (1, 1))
    os.chown(temporary, owner, owner)
    os.rename(temporary, f"{spool}/new/{name}")


def short_bad_lines(spool: str, seconds: float, count: int = 40) -> None:
    """Forty files of 256 KiB, each of 131,072 lines that are no events."""
    for number in range(count):
        _put(spool, f"short-{number}", b"1\n" * 131_072)
    time.sleep(seconds)


def _few_short_bad_lines(spool: str, seconds: float) -> None:
    """For an agent that explains each of them: enough to be noticed, and to an end soon."""
    short_bad_lines(spool, seconds, 8)


def half_bad_lines(spool: str, seconds: float, count: int = 40) -> None:
    """Files in which each second line is an event, so that none may be refused unread."""
    line = b'{"eventType":"a","summary":"b"}\n1\n'
    for number in range(count):
        _put(spool, f"half-{number}", line * (256 * 1024 // len(line)))
    time.sleep(seconds)


def long_bad_lines(spool: str, seconds: float, count: int = 40) -> None:
    """Lines of 200 KB that are wrong at their ends, forty in each file."""
    line = b'{"eventType": "a", "summary": "b", "details": {"x": [' + b"1," * 100_000 + b"}}\n"
    for number in range(count):
        _put(spool, f"long-{number}", line * 40)
    time.sleep(seconds)


def sparse_files(spool: str, seconds: float, count: int = 2) -> None:
    """An event, and behind it a hole of a gigabyte."""
    for number in range(count):
        _put(spool, f"sparse-{number}", GOOD + b"\n", 1 << 30)
    time.sleep(seconds)


def many_files(spool: str, seconds: float, count: int = 20_000) -> None:
    """As many small files as can be written, by one user."""
    ends_s = time.monotonic() + seconds
    for number in range(count):
        if time.monotonic() > ends_s:
            return
        _put(spool, f"many-{number}", GOOD)


def many_bad_files(spool: str, seconds: float) -> None:
    """As many refused files as can be written, by one user."""
    ends_s = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends_s:
        _put(spool, f"bad-{number}", b"nonsense " * 400)
        number += 1


def directories(spool: str, seconds: float, count: int = 3000) -> None:
    """Directories with something in them."""
    ends_s = time.monotonic() + seconds
    for number in range(count):
        if time.monotonic() > ends_s:
            return
        os.makedirs(f"{spool}/tmp/d{number}/inside")
        os.rename(f"{spool}/tmp/d{number}", f"{spool}/new/d{number}")
    time.sleep(max(0.0, ends_s - time.monotonic()))
