"""Attacks by what a page may be asked. Standard library alone; run as processes.

`target` is host:port of the page, or the socket's path. Whoever asks does not
wait for the answer, and asks something else each time.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator


def connected(target: str) -> socket.socket | None:
    host, colon, port = target.rpartition(":")
    try:
        if colon and port.isdigit():
            return socket.create_connection((host, int(port)), 1.0)
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.settimeout(1.0)
        opened.connect(target)
    except OSError:
        return None
    return opened


def large_events(target: str, _: float, count: int = 200) -> None:
    """What a listing of all of them would need 50 MiB for."""
    details = {"x": "y" * 250_000}
    _hand_in(target, ({"summary": str(number), "details": details} for number in range(count)))


def many_large_events(target: str, seconds: float) -> None:
    """The same, with three times as many."""
    large_events(target, seconds, 600)


def many_names(target: str, _: float, count: int = 120) -> None:
    """Events of 22,000 short names each, none of them twice."""
    scopes = ([f"{number:x}.{each:x}" for each in range(22_000)] for number in range(count))
    _hand_in(target, ({"summary": "s", "scope": {"clusters": names}} for names in scopes))


def very_many_names(target: str, seconds: float) -> None:
    """The same, with three times as many events."""
    many_names(target, seconds, 360)


def long_names(target: str, _: float, count: int = 100) -> None:
    """Events of one name each, of 240 KB."""
    names = ([f"{number}-{'n' * 240_000}"] for number in range(count))
    _hand_in(target, ({"summary": "s", "scope": {"servicesNames": each}} for each in names))


def _hand_in(target: str, events: Iterator[dict[str, object]]) -> None:
    connection = http.client.HTTPConnection("localhost")
    opened = connected(target)
    assert opened is not None, f"{target} cannot be reached"
    opened.settimeout(30.0)
    connection.sock = opened
    for event in events:
        connection.request("POST", "/mgmt/v1/events", json.dumps({"eventType": "a", **event}))
        answer = connection.getresponse()
        told = answer.read()
        assert answer.status == 201, told
    connection.close()


def _ask_all(target: str, seconds: float, paths: list[str], count: int, reads: bool) -> None:
    """On `count` connections at once, one request after the other, each with a new word."""
    ends_s = time.monotonic() + seconds
    opened: list[socket.socket] = []
    number = 0
    while time.monotonic() < ends_s:
        while len(opened) < count and (one := connected(target)) is not None:
            one.setblocking(False)
            opened.append(one)
        for one in list(opened):
            path = paths[number % len(paths)].replace("WORD", f"nowhere{number}")
            number += 1
            try:
                if reads:
                    with contextlib.suppress(BlockingIOError):
                        if not one.recv(1 << 20):
                            raise ConnectionError
                one.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
            except BlockingIOError:
                continue
            except OSError:
                opened.remove(one)
                one.close()
        time.sleep(0.01)


def searches(target: str, seconds: float) -> None:
    """Texts that stand nowhere, so that all is looked through, in each way that looks."""
    lists = [f"/v1/{name}?q=WORD" for name in ("events", "facets", "histogram")]
    others = ["/v1/events?key=WORD", "/v1/events?error=WORD", "/v1/export?q=WORD"]
    _ask_all(target, seconds, [*lists, *others], 32, reads=True)


def counts(target: str, seconds: float) -> None:
    """Everything that is counted for the page, with filters and without."""
    paths = [f"/v1/{name}{query}" for name in COUNTED for query in FILTERS]
    _ask_all(target, seconds, paths, 16, reads=True)


def filters(target: str, seconds: float) -> None:
    """Listings of clusters that there are none of."""
    _ask_all(target, seconds, ["/v1/events?cluster=WORD", "/v1/export?notCluster=WORD"], 16, True)


COUNTED = ("facets", "histogram", "events", "export")
FILTERS = (
    *("", "?cluster=WORD", "?namespace=WORD&service=WORD", "?notService=WORD"),
    "?since=2000-01-01T00:00:00Z",
)


def unread_listings(target: str, seconds: float) -> None:
    """As much as there is, again and again, and nothing is read."""
    paths = ["/v1/events?limit=1000", "/v1/export", "/v1/facets"]
    _ask_all(target, seconds, paths, 64, reads=False)


def many_streams(target: str, seconds: float) -> None:
    """Pages that listen, and read nothing."""
    _ask_all(target, seconds, ["/v1/stream"], 200, reads=False)
