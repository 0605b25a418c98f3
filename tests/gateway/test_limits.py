"""Each limit of the TCP listener holds, and with it off the same look finds that it does not."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.waiting import PATIENCE_S

from outboxd.gateway.alertmanager import ALERTS_MAX
from outboxd.gateway.routes import VALUES_MAX, WEBHOOK_BYTES_MAX
from outboxd.gateway.tokens import ProducerLimits, new_token
from outboxd.serve.connection import STALL_S

EVENT = {"eventType": "deploy", "summary": "s", "scope": {"clusters": ["prod"]}}
MIB = 1024 * 1024

# With it what takes ten seconds is over after three, in which a busy machine shakes hands.
HASTY = """
import outboxd.serve.server as server
server.HttpServer.__init__.__kwdefaults__["stall_s"] = 3.0
"""
# And what stands open must not be over by itself while a busy machine still looks.
PATIENT = """
import outboxd.serve.server as server
server.HttpServer.__init__.__kwdefaults__["stall_s"] = 300.0
"""
# How long is looked before it is said that something does not come about: with its limit
# off each test waits so long.
LOOK_S = 20.0
FEW_DESCRIPTORS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
"""
MANY_NAMES = 2_000


class Limit(NamedTuple):
    """A limit: how to see that it holds, and Python that takes it away from an agent."""

    look: Callable[[Any], list[str]]  # what is wrong; nothing where it holds
    off: str
    settings: dict[str, Any] = {}  # noqa: RUF012
    tokens: dict[str, dict[str, Any]] = {"web": {}}  # noqa: RUF012
    always: str = ""  # Python that runs in both


def connect(gateway, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S, (source, 0))


@contextmanager
def spoken(gateway, source: str = "127.0.0.1"):
    """A connection that has shaken hands."""
    with connect(gateway, source) as plain:
        with gateway.context.wrap_socket(plain, server_hostname="localhost") as opened:
            yield opened


def still_open(opened: list[socket.socket], allowed: int) -> int:
    """How many the gateway has not ended, once they are no more than allowed."""
    ends_s = time.monotonic() + LOOK_S
    alive = list(opened)
    while len(alive) > allowed and time.monotonic() < ends_s:
        alive = [one for one in alive if not has_ended(one)]
        time.sleep(0.05)
    return len(alive)


def has_ended(one: socket.socket) -> bool:
    """Whether it was closed at the other end; what came before that is read away."""
    one.settimeout(0)
    try:
        while one.recv(4096):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        pass
    return True


def answered(opened: ssl.SSLSocket, drip: bytes) -> str:
    """What comes back while a byte is sent now and then; "" where nothing does."""
    ends_s = time.monotonic() + LOOK_S
    opened.settimeout(0.25)
    while time.monotonic() < ends_s:
        try:
            opened.send(drip)
            return opened.recv(65536).decode("latin-1") or "ended"
        except TimeoutError:
            continue
        except OSError:
            return "ended"
    return ""


def post_until_told(gateway, path: str, body: bytes) -> int:
    """The status; 0 where the connection was ended before an answer was read."""
    try:
        return gateway.request("POST", path, body, gateway.secrets["web"]).status
    except (OSError, HTTPException):
        return 0


def expected(what: str, found: object, *wanted: object) -> list[str]:
    return [] if found in wanted else [f"{what}: {found!r} instead of {wanted!r}"]


# --- how to look ---


def connections_in_all(gateway) -> list[str]:
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(gateway, f"127.0.1.{n // 5 + 1}")) for n in range(60)]
        left = still_open(opened, 20)
        served = gateway.post(EVENT, gateway.secrets["web"]).status
    found = [f"{left} connections are open"] if left > 20 else []
    return found + expected("a newcomer", served, 201)


def connections_of_many_peers(gateway) -> list[str]:
    """Sixty addresses with a connection each, which have shaken hands and say nothing."""
    host = HTTPSConnection("localhost", gateway.port, context=gateway.context, timeout=PATIENCE_S)
    key = {"x-api-key": gateway.secrets["web"]}
    with ExitStack() as stack:
        stack.callback(host.close)
        host.request("GET", "/mgmt/v1/apikey/validate", headers=key)
        host.getresponse().read()
        kept = host.sock
        for number in range(60):
            with suppress(OSError):  # it is refused
                stack.enter_context(stack.enter_context(spoken(gateway, f"127.0.3.{number + 1}")))
        try:
            served: object = gateway.post(EVENT, gateway.secrets["web"]).status
        except OSError as error:
            served = repr(error)
        host.request("GET", "/mgmt/v1/apikey/validate", headers=key)
        host.getresponse().read()
        stays = host.sock is kept
    found = expected("a newcomer", served, 201)
    return found + ([] if stays else ["a host's connection made room for a stranger's"])


def connections_of_a_peer(gateway) -> list[str]:
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(gateway, "127.0.1.1")) for _ in range(30)]
        left = still_open(opened, 5)
    return [f"{left} connections of one peer are open"] if left > 5 else []


def dripping_head(gateway) -> list[str]:
    with spoken(gateway) as opened:
        opened.send(b"POST /mgmt/v1/events HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        told = answered(opened, b"x")
    return expected("a head that drips", told[:12], "HTTP/1.1 408", "ended")


def dripping_body(gateway) -> list[str]:
    with spoken(gateway) as opened:
        head = "POST /mgmt/v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        opened.send(f"{head}x-api-key: {gateway.secrets['web']}\r\n\r\n{{".encode())
        told = answered(opened, b" ")
    return expected("a body that drips", told[:12], "HTTP/1.1 408", "ended")


def rate_of_a_token(gateway) -> list[str]:
    began_s, taken = time.monotonic(), 0
    for _ in range(30):
        taken += gateway.post(EVENT, gateway.secrets["web"]).status == 201
    allowed = 1 + 0.5 * (time.monotonic() - began_s)
    return [f"{taken} events taken where {allowed:.0f} are allowed"] if taken > allowed else []


def rate_of_a_token_in_a_batch(gateway) -> list[str]:
    lines = b"\n".join([json.dumps(EVENT).encode()] * 6_000)
    answer = gateway.request("POST", "/v1/events/batch", lines, gateway.secrets["web"])
    taken = answer.raw.count(b'"accepted"')
    return [f"{taken} events of a batch taken"] if taken > 4_000 else []


def work_for_a_wrong_token(gateway) -> list[str]:
    for number in range(MANY_NAMES):
        line = new_token(f"n{number}", ProducerLimits())[1]
        gateway.lines.append(f"{line.name} {line.digest}")
    gateway.tokens.write_text("\n".join([gateway.tokens.read_text().rstrip(), *gateway.lines]))
    gateway.agent.await_log("gateway.tokens_renewed")

    def spent_us(path: str, token: str) -> float:
        """The loop's own time for one request."""
        clock = Path(f"/proc/{gateway.agent.pid}/schedstat")
        connection = HTTPSConnection(
            "localhost", gateway.port, context=gateway.context, timeout=PATIENCE_S
        )
        try:
            for number in range(250):
                if number == 50:
                    before = int(clock.read_text().split()[0])
                connection.request("GET", path, headers={"x-api-key": f"{token}{number}"})
                connection.getresponse().read()
            return (int(clock.read_text().split()[0]) - before) / 200 / 1000
        finally:
            connection.close()

    health, wrong = spent_us("/healthz", ""), spent_us("/mgmt/v1/apikey/validate", "outboxd_x")
    print(f"{wrong:.0f} us for a wrong token, {health:.0f} us for the gateway's health")
    return [f"a wrong token costs {wrong / health:.1f} times a look"] if wrong > 6 * health else []


def lines_for_wrong_tokens(gateway) -> list[str]:
    for _ in range(60):
        gateway.post(EVENT, "outboxd_wrong")
    count = gateway.agent.log_text().count("gateway.unauthenticated")
    return [f"{count} lines in the log"] if count > 30 else []


def answers_to_strangers(gateway) -> list[str]:
    answers = set()
    for method, path in (
        ("POST", "/mgmt/v1/events"),
        ("GET", "/mgmt/v1/apikey/validate"),
        ("GET", "/v1/status"),
        ("POST", "/v1/webhooks/github"),
        ("PUT", "/nothing?a=b"),
        ("DELETE", "/healthz"),
        ("POST", "/v1/alertmanager"),
    ):
        for token in (None, "", "outboxd_" + "A" * 43, "x" * 4000, gateway.secrets["web"][:-1]):
            answer = gateway.request(method, path, b"{}", token)
            # Whether the connection goes on depends on whether the body was there already.
            heads = {k: v for k, v in answer.headers.items() if k not in ("Date", "Connection")}
            answers.add((answer.status, answer.raw, tuple(sorted(heads.items()))))
    found = [] if len(answers) == 1 else [f"{len(answers)} different answers"]
    return found + [f"{status}" for status, _, _ in answers if status != 401]


def scope_required(gateway) -> list[str]:
    answer = gateway.post({"eventType": "t", "summary": "s"}, gateway.secrets["web"])
    return expected("no scope", answer.status, 422)


def foreign_scope(gateway) -> list[str]:
    lines = json.dumps({**EVENT, "scope": {"namespaces": ["kube-system"]}}).encode()
    batch = gateway.request("POST", "/v1/events/batch", lines, gateway.secrets["web"])
    found = ["a foreign namespace in a batch"] if b'"accepted"' in batch.raw else []
    answer = gateway.post({**EVENT, "scope": {"clusters": ["other"]}}, gateway.secrets["web"])
    return found + expected("a foreign cluster", answer.status, 422)


def size_of_an_event(gateway) -> list[str]:
    body = json.dumps({**EVENT, "details": {"a": "x" * 300_000}}).encode()
    return expected("300,000 bytes", post_until_told(gateway, "/mgmt/v1/events", body), 413, 0)


def depth_of_an_event(gateway) -> list[str]:
    body = b'{"eventType":"a","summary":"b","details":' + b'{"a":' * 150 + b"1" + b"}" * 151
    return expected("150 levels", post_until_told(gateway, "/mgmt/v1/events", body), 400)


def bytes_of_a_webhook(gateway) -> list[str]:
    body = b'{"zen": "%s"}' % (b"x" * WEBHOOK_BYTES_MAX)
    return expected("a webhook", post_until_told(gateway, "/v1/webhooks/github", body), 413, 0)


def values_of_a_webhook(gateway) -> list[str]:
    body = b'{"zen": [%s0]}' % (b"0," * VALUES_MAX)
    return expected("values", post_until_told(gateway, "/v1/webhooks/github", body), 413)


def alerts_of_a_group(gateway) -> list[str]:
    body = b'{"alerts": [%s{}]}' % (b"{}," * ALERTS_MAX)
    return expected("alerts", post_until_told(gateway, "/v1/alertmanager", body), 422)


def bytes_of_a_peer(gateway) -> list[str]:
    """Webhooks of 7 MiB each that are not finished: of how many the rest is awaited."""
    head = f"POST /v1/webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: {8 * MIB}\r\n"
    begun = f"{head}x-api-key: {gateway.secrets['web']}\r\n\r\n".encode() + b" " * (7 * MIB)
    with ExitStack() as stack:
        opened = [stack.enter_context(spoken(gateway, "127.0.1.1")) for _ in range(6)]
        for one in opened:
            one.settimeout(LOOK_S)
            try:
                one.sendall(begun)
            except OSError:
                continue  # refused in the middle
        left = still_open(opened, 3)
        served = gateway.post(EVENT, gateway.secrets["web"]).status
    found = [f"{left * 7} MiB are held for one peer"] if left > 3 else []
    return found + expected("another peer", served, 201)


def descriptors_kept_back(gateway) -> list[str]:
    found = []
    with ExitStack() as stack:
        for number in range(380):
            try:
                stack.enter_context(connect(gateway, f"127.0.1.{number % 40 + 1}"))
            except OSError:
                break  # the queue is full: it takes no more
        await_all_accepted(gateway)  # what follows must not come before them
        try:
            body = json.dumps(EVENT).encode()
            status, _ = gateway.agent.request("POST", "/mgmt/v1/events", body, timeout_s=LOOK_S)
            found += expected("the Unix socket", status, 201)
        except (OSError, HTTPException) as error:
            found.append(f"the Unix socket: {error!r}")
        ends_s = time.monotonic() + LOOK_S
        while not gateway.komodor.arrivals and time.monotonic() < ends_s:
            time.sleep(0.05)
        if not gateway.komodor.arrivals:
            found.append("nothing is delivered")
    return found


def await_all_accepted(gateway) -> None:
    """Until the agent's descriptors have not become more for a second."""
    count, since_s, ends_s = 0, time.monotonic(), time.monotonic() + PATIENCE_S
    while time.monotonic() < min(ends_s, since_s + 1.0):
        found = len(os.listdir(f"/proc/{gateway.agent.pid}/fd"))
        if found > count:
            count, since_s = found, time.monotonic()
        time.sleep(0.05)


def retry_after_is_spread(gateway) -> list[str]:
    assert gateway.post(EVENT, gateway.secrets["web"]).status == 201
    told = [
        int(gateway.post(EVENT, gateway.secrets["web"]).headers["Retry-After"]) for _ in range(24)
    ]
    found = [f"{min(told)} to {max(told)} s"] if max(told) - min(told) < 150 else []
    return found + [f"{one} s" for one in told if not 900 <= one <= 1500]


LIMITS = {
    "connections": Limit(
        connections_in_all,
        """
import outboxd.budgets as budgets
budgets.gateway_limits = lambda total, share: budgets.ListenerLimits(4000, 4000)
""",
        {"intake": {"connections_max": 20, "connections_per_peer": 20}},
        always=PATIENT,
    ),
    "connections of many peers": Limit(
        connections_of_many_peers,
        """
from outboxd.serve.connected import Connections
Connections.giving_way_to = lambda self, newcomer: None
""",
        {"intake": {"connections_max": 20}},
        always=PATIENT,
    ),
    "connections of a peer": Limit(
        connections_of_a_peer,
        """
import outboxd.budgets as budgets
budgets.gateway_limits = lambda total, share: budgets.ListenerLimits(total, total)
""",
        {"intake": {"connections_per_peer": 5}},
        always=PATIENT,
    ),
    "head": Limit(
        dripping_head,
        """
from outboxd.serve.connection import PeerConnection
PeerConnection._check_idle = lambda self, now_s: None
""",
        always=HASTY,
    ),
    "body": Limit(
        dripping_body,
        """
from outboxd.serve.connection import PeerConnection
PeerConnection._body_stalled = lambda self, body: None
""",
        always=HASTY,
    ),
    "rate": Limit(
        rate_of_a_token,
        """
from outboxd.gateway.authority import TokenBucket
TokenBucket.take = lambda self, count, now_s: 0.0
""",
        tokens={"web": {"rate": 0.5}},
    ),
    "rate in a batch": Limit(
        rate_of_a_token_in_a_batch,
        """
from outboxd.gateway.authority import TokenBucket
TokenBucket.take = lambda self, count, now_s: 0.0
""",
        tokens={"web": {"rate": 2.0}},
    ),
    "work for a wrong token": Limit(
        work_for_a_wrong_token,
        """
import itertools
import outboxd.gateway.listener as listener
from outboxd.files import FileVersion
count = itertools.count()
listener.file_version = lambda path: FileVersion(0, next(count), 0, 0)
""",
    ),
    "lines for wrong tokens": Limit(
        lines_for_wrong_tokens,
        """
from outboxd.observe.throttle import Throttle
Throttle.admit = lambda self, kind, now_s: True
""",
    ),
    "constant 401": Limit(
        answers_to_strangers,
        """
from outboxd.gateway.gatekeeper import Gatekeeper
from outboxd.serve.answers import Refusal
first = Gatekeeper.__call__
def call(self, request):
    if request.path.startswith("/nothing"):
        raise Refusal(404, "there is nothing")
    first(self, request)
Gatekeeper.__call__ = call
""",
    ),
    "require-scope": Limit(
        scope_required,
        """
import outboxd.gateway.authority as authority
authority.objection = lambda event, limits: None
""",
        tokens={"web": {"require_scope": True}},
    ),
    "scope": Limit(
        foreign_scope,
        """
import outboxd.gateway.authority as authority
authority.objection = lambda event, limits: None
""",
        tokens={"web": {"clusters": ("prod",), "namespaces": ("web",)}},
    ),
    "size of an event": Limit(
        size_of_an_event,
        """
from outboxd.intake.intake import Intake
Intake.bytes_max = lambda self, producer: 1 << 40
""",
    ),
    "depth of an event": Limit(
        depth_of_an_event,
        """
import outboxd.event.jsontext as jsontext
jsontext.DEPTH_MAX = 100_000
""",
    ),
    "bytes of a webhook": Limit(
        bytes_of_a_webhook,
        """
import outboxd.gateway.routes as routes
routes.WEBHOOK_BYTES_MAX = 1 << 40
""",
    ),
    "values of a webhook": Limit(
        values_of_a_webhook,
        """
import outboxd.gateway.routes as routes
routes.VALUES_MAX = 1 << 40
""",
    ),
    "alerts of a group": Limit(
        alerts_of_a_group,
        """
import outboxd.gateway.alertmanager as alertmanager
alertmanager.ALERTS_MAX = 1 << 40
""",
    ),
    "bytes of a peer": Limit(
        bytes_of_a_peer,
        """
import outboxd.budgets as budgets
budgets.gateway_limits = lambda total, share: budgets.ListenerLimits(total, share, 1 << 40, 1 << 40)
""",
        always=PATIENT,
    ),
    "descriptors": Limit(
        descriptors_kept_back,
        """
import outboxd.budgets as budgets
budgets.ListenerLimits.fit = lambda self, *told: self
""",
        always=FEW_DESCRIPTORS + PATIENT,
    ),
    "Retry-After": Limit(
        retry_after_is_spread,
        """
from outboxd.serve.server import HttpServer
HttpServer.spread = lambda self, answer: answer
""",
        tokens={"web": {"rate": 0.001}},
    ),
}


@pytest.fixture
def limited(make_gateway, komodor, full):
    """`limited(limit, off=True)`: a gateway before which to look."""
    if not full:
        pytest.skip("an agent for each limit, with it and without: --full")

    def make(limit: Limit, off: bool):
        patch = limit.always + (limit.off if off else "")
        gateway = make_gateway(limit.tokens, patch=patch, **limit.settings)
        gateway.komodor = komodor
        gateway.lines = []
        return gateway

    return make


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_the_gateway_holds(limited, name):
    assert LIMITS[name].look(limited(LIMITS[name], False)) == []


@pytest.mark.parametrize("name", LIMITS)
def test_with_a_limit_off_the_look_finds_it(limited, name):
    assert LIMITS[name].look(limited(LIMITS[name], True)) != []


def test_heads_bodies_and_handshakes_have_ten_seconds():
    assert STALL_S == 10.0
