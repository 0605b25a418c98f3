"""Attacks on a gateway's TCP listener. Standard library alone; run as processes.

`target` is JSON: port, the authority's file, a token that is good and limited to
the cluster "own", and one that was revoked. Attackers come from the addresses
127.0.1.1 and up, each with its own share of the connections. Each attack prints
how often it was answered what.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import ssl
import time
from collections import Counter, deque
from itertools import cycle
from typing import Any

EVENT = json.dumps(
    {"eventType": "bad", "summary": "attack", "scope": {"clusters": ["other"]}}
).encode()
PEERS = 40
MANY_PEERS = 2_000


class Attacker:
    """A way to the gateway, and the count of its answers."""

    def __init__(self, target: str, seconds: float) -> None:
        self.told: dict[str, Any] = json.loads(target)
        self.ends_s = time.monotonic() + seconds
        self.answers: Counter[str] = Counter()
        self.bodies: set[bytes] = set()
        self._number = 0
        self._context = ssl.create_default_context(cafile=self.told["ca"])
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends_s

    def connect(self, peers: int = PEERS) -> socket.socket | None:
        """A TCP connection from the next address."""
        self._number += 1
        high, low = divmod(self._number % peers, 250)
        source = (f"127.0.{1 + high}.{1 + low}", 0)
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", self.told["port"]), 1.0, source)
        return None

    def shake_hands(self, peers: int = PEERS) -> ssl.SSLSocket | None:
        opened = self.connect(peers)
        if opened is None:
            return None
        try:
            return self._context.wrap_socket(opened, server_hostname="localhost")
        except OSError:
            opened.close()
            return None

    def ask(self, opened: ssl.SSLSocket, data: bytes) -> bool:
        """Send a request and read its answer; whether the connection goes on."""
        try:
            opened.sendall(data)
        except OSError:
            self.answers["cut"] += 1
        return self.read(opened)

    def read(self, opened: ssl.SSLSocket) -> bool:
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                more = opened.recv(65536)
                if not more:
                    return False
                head += more
            head, _, body = head.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").lower().split("\r\n")
            sizes = [line.split(":")[1] for line in lines if line.startswith("content-length:")]
            while sizes and len(body) < int(sizes[0]):
                body += opened.recv(65536)
        except OSError:
            return False
        status = lines[0].split()[1]
        self.answers[status] += 1
        if status == "401":
            self.bodies.add(body)
        return "connection: close" not in lines

    def tell(self) -> None:
        print(json.dumps([dict(self.answers), len(self.bodies)]), flush=True)


def post(
    token: str, body: bytes, path: str = "/mgmt/v1/events", length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"x-api-key: {token}", f"Content-Length: {size}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1") + body


def busy_machine(target: str, seconds: float) -> None:
    """No attack: the processor time that an attacker takes from everybody."""
    attacker = Attacker(target, seconds)
    while not attacker.is_over:
        pass
    attacker.tell()


def idle_connections(target: str, seconds: float, count: int = 2_000) -> None:
    """Two thousand that have shaken hands and say nothing."""
    attacker = Attacker(target, seconds)
    opened = []
    while not attacker.is_over:
        if len(opened) < count and (one := attacker.shake_hands()) is not None:
            opened.append(one)
        else:
            time.sleep(0.01)
    attacker.answers["open"] = len(opened)
    attacker.tell()


def plain_idle_connections(target: str, seconds: float, count: int = 2_000) -> None:
    """Two thousand that do not even begin with TLS."""
    attacker = Attacker(target, seconds)
    opened = []
    while not attacker.is_over:
        if len(opened) < count and (one := attacker.connect()) is not None:
            opened.append(one)
        else:
            time.sleep(0.01)
    attacker.tell()


def idle_connections_of_many(target: str, seconds: float) -> None:
    """Two thousand addresses with one each, which have shaken hands and say nothing; whoever
    is ended comes again."""
    attacker = Attacker(target, seconds)
    opened: deque[ssl.SSLSocket] = deque()
    while not attacker.is_over:
        if (one := attacker.shake_hands(MANY_PEERS)) is None:
            time.sleep(0.01)
            continue
        opened.append(one)
        if len(opened) > MANY_PEERS:
            opened.popleft().close()
    attacker.tell()


def unfinished_handshakes(target: str, seconds: float) -> None:
    """The beginning of a handshake, over and over, each left open."""
    attacker = Attacker(target, seconds)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    opened = []
    while not attacker.is_over:
        if (one := attacker.connect()) is not None:
            with contextlib.suppress(OSError):
                one.send(hello)
            opened.append(one)
        if len(opened) > 1_000:
            opened.pop(0).close()
        time.sleep(0.001)
    attacker.tell()


def slow_heads(target: str, seconds: float) -> None:
    """Heads of which a byte comes now and then."""
    _drip(target, seconds, lambda told: b"POST /mgmt/v1/events HTTP/1.1\r\nHost: x\r\nX-Slow: ")


def slow_bodies(target: str, seconds: float) -> None:
    """Bodies with a good token whose last bytes come now and then."""
    _drip(target, seconds, lambda told: post(told["token"], b" " * 200_000, length=262_144))


def _drip(target: str, seconds: float, start: Any, count: int = 300) -> None:
    attacker = Attacker(target, seconds)
    begin = start(attacker.told)
    opened: list[ssl.SSLSocket] = []
    while not attacker.is_over:
        while len(opened) < count and not attacker.is_over:
            one = attacker.shake_hands()
            if one is None:
                break
            with contextlib.suppress(OSError):
                one.sendall(begin)
                opened.append(one)
        for one in opened:
            with contextlib.suppress(OSError):
                one.send(b"x")
        time.sleep(0.2)
    attacker.tell()


def wrong_tokens(target: str, seconds: float, count: int = 10_000) -> None:
    """Ten thousand in a row: wrong, revoked and malformed ones, on all kinds of paths."""
    attacker = Attacker(target, seconds)
    tokens = (
        *("outboxd_" + "A" * 43, attacker.told["revoked"], "", "x" * 4_000, "\xff\xfe", "%00"),
        *(attacker.told["token"][:-1], attacker.told["token"] + "A"),
    )
    paths = ("/mgmt/v1/events", "/v1/status", "/v1/webhooks/nobody", "/../etc/passwd", "/metrics")
    opened = None
    for number in range(count):
        if attacker.is_over:
            break
        opened = opened or attacker.shake_hands()
        if opened is None:
            continue
        asked = post(tokens[number % len(tokens)], EVENT, paths[number % len(paths)])
        if not attacker.ask(opened, asked):
            opened.close()
            opened = None
    attacker.tell()


def huge_and_nested(target: str, seconds: float) -> None:
    """With a good token: too much, too deep, and far more promised than comes."""
    attacker = Attacker(target, seconds)
    token = attacker.told["token"]
    deep = b'{"eventType":"a","summary":"b","details":' + b'{"a":' * 40_000 + b"1" + b"}" * 40_001
    requests = (
        post(token, deep),
        post(token, b"[" * 200_000),
        post(token, b"[" * 4_000_000, "/v1/alertmanager"),
        post(token, b'{"alerts": [' + b"{}," * 1_000_000 + b"{}]}", "/v1/alertmanager"),
        post(token, b"x" * 1_000_000),
        post(token, b"x", length=10**15),
        post(token, b"x", "/v1/webhooks/github", length=10**9),
    )
    number = 0
    while not attacker.is_over:
        if (opened := attacker.shake_hands()) is not None:
            opened.settimeout(1.0)
            attacker.ask(opened, requests[number % len(requests)])
            opened.close()
        number += 1
    attacker.tell()


def large_webhooks(target: str, seconds: float) -> None:
    """With a good token: all that the mappings can be made to work on, none of it allowed.

    Of Alertmanager's groups each alert is for another's cluster. Of another webhook's request
    the last is, so that all before it are read: there it refuses them all.
    """
    attacker = Attacker(target, seconds)
    alert = {
        "status": "firing",
        "labels": {"alertname": "Down", "severity": "critical", "cluster": "own", "pod": "p" * 40},
        "annotations": {"summary": "s" * 100, "description": "d" * 200},
        "startsAt": "2026-11-21T10:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example/graph?g0.expr=up",
    }
    foreign = {**alert, "labels": {**alert["labels"], "cluster": "other"}}  # type: ignore[dict-item]
    group = {"alerts": [{**foreign, "fingerprint": f"{n:016x}"} for n in range(5_000)]}
    alerts = {"alerts": [{**alert, "fingerprint": f"{n:016x}"} for n in range(5_000)] + [foreign]}
    long = {"alerts": [{**foreign, "annotations": {"a": "\u00e9\n" * 500_000}}] * 2}
    flag: dict[str, Any] = {"kind": "flag", "name": "f", "title": "t", "_id": "1"}
    nested: Any = 1
    for _ in range(99):
        nested = {"a": nested}
    payloads = (
        ("/v1/alertmanager", group),
        ("/v1/alertmanager", long),
        ("/v1/alertmanager", {"alerts": [{}] * 2_000_000}),
        ("/v1/webhooks/grafana", alerts),
        ("/v1/webhooks/launchdarkly", {**flag, "x": list(range(200_000))}),
        ("/v1/webhooks/launchdarkly", {"body": json.dumps({**flag, "x": ["a\n"] * 200_000})}),
        ("/v1/webhooks/launchdarkly", {**flag, "tags": [f"t{n}" for n in range(200_000)]}),
        ("/v1/webhooks/launchdarkly", {**flag, "x": nested, "y": "z" * 1_000_000}),
    )
    for path, payload in cycle(payloads):
        if attacker.is_over:
            break
        request = post(attacker.told["token"], json.dumps(payload).encode(), path)
        if (opened := attacker.shake_hands()) is not None:
            opened.settimeout(10.0)
            attacker.ask(opened, request)
            opened.close()
    attacker.tell()


def foreign_scope(target: str, seconds: float) -> None:
    """Events for another token's cluster, one by one and in batches."""
    attacker = Attacker(target, seconds)
    token = attacker.told["token"]
    opened = None
    while not attacker.is_over:
        opened = opened or attacker.shake_hands()
        if opened is not None and not attacker.ask(opened, post(token, EVENT)):
            opened.close()
            opened = None
    attacker.tell()
