"""Attacks by connections and by how they are used. Standard library alone; run as processes."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import time

EVENT = json.dumps({"eventType": "bad", "summary": "attack"}).encode()
POST = b"POST /mgmt/v1/events HTTP/1.1\r\nHost: x\r\n"


def many_descriptors() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connected(target: str, timeout_s: float = 1.0) -> socket.socket | None:
    """A connection to a path or to host:port; None where none is to be had."""
    host, colon, port = target.rpartition(":")
    try:
        if colon and port.isdigit():
            return socket.create_connection((host, int(port)), timeout_s)
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.settimeout(timeout_s)
        opened.connect(target)
    except OSError:
        return None
    return opened


def send(opened: socket.socket, data: bytes) -> bool:
    try:
        opened.send(data)
    except OSError:
        opened.close()
        return False
    return True


def idle_connections(target: str, seconds: float, count: int = 16_000) -> None:
    """As many as there are to be had, and nothing on any of them."""
    many_descriptors()
    ends_s = time.monotonic() + seconds
    opened = []
    while time.monotonic() < ends_s:
        if len(opened) < count and (one := connected(target, 0.2)) is not None:
            opened.append(one)
        else:
            time.sleep(0.01)


def slow_heads(target: str, seconds: float, count: int = 400) -> None:
    """Heads of which a byte comes now and then; new ones for those that were ended."""
    _drip(target, seconds, count, POST + b"X-Slow: ")


def slow_bodies(target: str, seconds: float, count: int = 400) -> None:
    """Bodies of the largest size whose last bytes come now and then."""
    head = POST + b"Content-Length: 262144\r\n\r\n"
    _drip(target, seconds, count, head + b" " * 200_000)


def _drip(target: str, seconds: float, count: int, start: bytes) -> None:
    many_descriptors()
    ends_s = time.monotonic() + seconds
    opened: list[socket.socket] = []
    while time.monotonic() < ends_s:
        while len(opened) < count and time.monotonic() < ends_s:
            one = connected(target)
            if one is None:
                break
            with contextlib.suppress(OSError):
                one.sendall(start)
                opened.append(one)
        opened = [one for one in opened if send(one, b"x")]
        time.sleep(0.2)


def bad_batches(target: str, seconds: float, count: int = 300) -> None:
    """Batches of long lines that are wrong at their ends, and nobody waits for the answer."""
    many_descriptors()
    line = b'{"eventType": "a", "summary": "b", "details": {"x": [' + b"1," * 100_000 + b"}}\n"
    body = line * 40
    head = b"POST /v1/events/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    _send_all(target, seconds, count, head + body)


def short_bad_lines(target: str, seconds: float, count: int = 32) -> None:
    """As many bad lines as a batch may hold."""
    body = b"1\n" * (4 << 20)
    head = b"POST /v1/events/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    _send_all(target, seconds, count, head + body)


def _send_all(target: str, seconds: float, count: int, data: bytes) -> None:
    """Send it on `count` connections at once; who has sent all leaves, and comes again."""
    ends_s = time.monotonic() + seconds
    left: dict[socket.socket, memoryview] = {}
    poll = select.poll()
    by_number: dict[int, socket.socket] = {}
    while time.monotonic() < ends_s:
        while len(left) < count and (one := connected(target)) is not None:
            one.setblocking(False)
            left[one] = memoryview(data)
            by_number[one.fileno()] = one
            poll.register(one, select.POLLOUT)
        for number, _ in poll.poll(50):
            one = by_number[number]
            try:
                left[one] = left[one][one.send(left[one][:65536]) :]
            except BlockingIOError:
                continue
            except OSError:
                left[one] = memoryview(b"")
            if not left[one]:
                poll.unregister(one)
                del by_number[number], left[one]
                one.close()


def pipelined_requests(target: str, seconds: float, count: int = 100) -> None:
    """Small requests without an end, a packet full of them at a time."""
    ends_s = time.monotonic() + seconds
    small = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 5000
    opened = [one for _ in range(count) if (one := connected(target)) is not None]
    for one in opened:
        one.setblocking(False)
    while time.monotonic() < ends_s:
        for one in opened:
            with contextlib.suppress(OSError):
                one.send(small)
            with contextlib.suppress(OSError):
                one.recv(1 << 20)


def short_lived_connections(target: str, seconds: float, count: int = 10_000) -> None:
    """One after the other as fast as the system gives them, and nothing said on any."""
    _come_and_go(target, seconds, count, b"")


def reset_connections(target: str, seconds: float, count: int = 10_000) -> None:
    """The same, each left in the middle of a body."""
    _come_and_go(target, seconds, count, POST + b"Content-Length: 100000\r\n\r\n" + b" " * 1000)


def unread_receipts(target: str, seconds: float, count: int = 10_000) -> None:
    """The same, each left before the answer to a whole request."""
    body = b"Content-Length: %d\r\n\r\n%b" % (len(EVENT), EVENT)
    _come_and_go(target, seconds, count, POST + body)


def _come_and_go(target: str, seconds: float, count: int, said: bytes) -> None:
    """For so long, or (0) until there were so many."""
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s if seconds else count > 0:
        count -= 1
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.connect(target)  # where the queue is full it waits for its turn
        if not said or send(one, said):
            one.close()
