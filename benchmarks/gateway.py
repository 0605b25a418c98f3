"""What a gateway costs: receipts over TLS, a handshake, a connection, a fleet behind it."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import tempfile
import time
from contextlib import ExitStack
from http.client import HTTPSConnection
from pathlib import Path
from statistics import median
from subprocess import check_output
from typing import NamedTuple

import trustme

from benchmarks.drain import QUICK, drained
from benchmarks.intake import hold, load
from benchmarks.machine import HERE, Agent, endpoint, stats
from benchmarks.prepared import fill
from benchmarks.table import Row
from outboxd.gateway.tokens import ProducerLimits, Token, append_token, digest_of

TOKEN = "benchmark"  # the API key of every agent here
DRAIN_S = 600.0


class Gateway(NamedTuple):
    """An agent that listens on TCP; started by its context."""

    agent: Agent
    port: int


def gateway(directory: Path, komodor_port: int) -> Gateway:
    """Not started yet. Its authority is in ca.pem."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(directory / "gateway.pem")
    append_token(str(directory / "tokens"), Token("hosts", digest_of(TOKEN), ProducerLimits()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    intake = {
        "listen": f"127.0.0.1:{port}",
        "tls_cert": str(directory / "gateway.pem"),
        "tls_key": str(directory / "gateway.pem"),
        "tokens_file": str(directory / "tokens"),
        "connections_max": 5000,
        "connections_per_peer": 5000,
    }
    url = f"http://127.0.0.1:{komodor_port}/mgmt/v1/events"
    return Gateway(Agent(directory, url, intake=intake, delivery={**QUICK}), port)


def receipts(directory: Path, seconds: float, runs: int) -> list[Row]:
    """Single events on 32 connections, over TLS and by the socket in turn."""

    def over_tls(for_s: float) -> float:
        words = (f"127.0.0.1:{port}", "32", str(for_s), str(directory / "ca.pem"), TOKEN)
        command = [sys.executable, "-m", "benchmarks.load", *words]
        told = json.loads(check_output(command, cwd=HERE.parent))
        assert set(told["codes"]) == {"201"}, told
        return float(told["per_second"])

    with endpoint() as komodor_port, ExitStack() as stack:
        agent, port = gateway(directory, komodor_port)
        stack.enter_context(agent)
        hold(agent)
        load(agent.socket, 0.5)
        over_tls(0.5)
        by_socket, by_tls = [], []
        for _ in range(runs):
            by_socket.append(load(agent.socket, seconds)["per_second"])
            by_tls.append(over_tls(seconds))
    return [
        Row("gateway: durable single POSTs over TLS, 32 connections", median(by_tls), "/s",
            median(by_socket), "the Unix socket", 0.6)
    ]  # fmt: skip


def connections(directory: Path, count: int) -> list[Row]:
    """What a handshake takes of the gateway's CPU, and a connection of its memory."""
    with endpoint() as komodor_port, ExitStack() as stack:
        agent, port = gateway(directory, komodor_port)
        stack.enter_context(agent)

        def connected() -> HTTPSConnection:
            # A context of its own, so that no session is resumed.
            context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
            connection = HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
            connection.request("GET", "/mgmt/v1/apikey/validate", headers={"x-api-key": TOKEN})
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
            return connection

        for _ in range(20):
            connected().close()
        before_mib, before_s, began_s = agent.resident_mib(), agent.cpu_s(), time.perf_counter()
        for _ in range(count):
            stack.callback(connected().close)
        taken_ms = (time.perf_counter() - began_s) * 1000 / count
        cpu_ms = (agent.cpu_s() - before_s) * 1000 / count
        memory_kib = (agent.resident_mib() - before_mib) * 1024 / count
    return [
        Row("gateway: a handshake and its first request, its CPU", cpu_ms, "ms",
            note=f"{taken_ms:.1f} ms with the client's"),
        Row(f"gateway: memory a connection, of {count}", memory_kib, "KiB", at_most=64.0),
    ]  # fmt: skip


def fleet(directory: Path, hosts: int, events: int) -> Row:
    """Agents that drain through one gateway, against one that drains as many directly.

    All of them share this machine: each event is sent and stored once more, and the
    hosts' share of the work is in the figure.
    """
    total = hosts * events
    with endpoint() as komodor_port:
        url = f"http://127.0.0.1:{komodor_port}/mgmt/v1/events"
        direct = drained(directory / "direct", total, url)
        stats(komodor_port)
        place = directory / "gateway"
        place.mkdir()
        with ExitStack() as stack:
            made = gateway(place, komodor_port)
            for number in range(hosts):
                # They look for the gateway each second, and it starts last.
                home = directory / f"host{number}"
                home.mkdir()
                host = Agent(
                    home,
                    f"https://127.0.0.1:{made.port}/mgmt/v1/events",
                    komodor={"ca_file": str(place / "ca.pem")},
                    delivery={**QUICK, "backoff_max": "1s"},
                    log={"level": "error"},
                )
                fill(host.outbox, events)
                stack.enter_context(host)
            stack.enter_context(made.agent)
            began_s, arrived = time.perf_counter(), 0
            while arrived < total:
                time.sleep(0.2)
                arrived += stats(komodor_port)["count"]
                if time.perf_counter() - began_s > DRAIN_S:
                    raise TimeoutError(f"{arrived} of {total} events have arrived")
            rate = total / (time.perf_counter() - began_s)
    return Row(f"gateway: {hosts} agents drain {events:,} events each through it", rate,
               "events/s", direct.per_second, f"one agent drains {total:,} directly",
               note="all agents on this machine")  # fmt: skip


def rows(short: bool) -> list[Row]:
    """All rows of a gateway."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        found += receipts(Path(name), 2.0 if short else 5.0, 1 if short else 3)
    with tempfile.TemporaryDirectory() as name:
        found += connections(Path(name), 200 if short else 1000)
    with tempfile.TemporaryDirectory() as name:
        found.append(fleet(Path(name), *((5, 1000) if short else (100, 1000))))
    return found
