"""How fast a backlog goes out, and how soon a single event."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import trustme
import uvloop

from benchmarks.load import BODY, REQUEST
from benchmarks.machine import Agent, endpoint, process, stats
from benchmarks.prepared import fill
from benchmarks.table import Row, cpu_row

QUICK = {"concurrency_max": 64, "report_outage": False}


class Drained(NamedTuple):
    """What it took, an event."""

    per_second: float
    cpu_us: float  # of all threads, as the kernel counts it


def drained(directory: Path, count: int, url: str, **sections: dict[str, object]) -> Drained:
    """A full drain, from the agent's start to its last settlement."""
    directory.mkdir()
    agent = Agent(directory, url, delivery={**QUICK}, **sections)
    fill(agent.outbox, count)
    with agent:
        began_s, began_cpu_s = time.perf_counter(), agent.cpu_s()
        agent.await_pending(0)
        taken_s, cpu_s = time.perf_counter() - began_s, agent.cpu_s() - began_cpu_s
    return Drained(count / taken_s, cpu_s / count * 1e6)


def transport_alone(url: str, count: int, permits: int, ca_file: str = "") -> Drained:
    """The bare exchange: the same transport with nothing around it."""
    from msgspec.structs import replace

    from outboxd.config.load import load_client
    from outboxd.delivery.transport import Transport

    async def main() -> Drained:
        built_in = load_client(None, {"HOME": "/"}).komodor
        transport = Transport(replace(built_in, endpoint=url, ca_file=ca_file), "benchmark")
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                answer = await transport.send("01a2009a-c7ff-77ea-a81c-709b1dd41655", BODY)
                assert answer.status == 201, answer

        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*[work() for _ in range(permits)])
        taken_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        await transport.close()
        return Drained(count / taken_s, cpu_s / count * 1e6)

    return uvloop.run(main())


def loopback(directory: Path, count: int, runs: int) -> list[Row]:
    """Bare, plain and over TLS in turn: rates vary by two from one minute to the
    next, the CPU an event by a tenth."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    trusting = {"ca_file": str(directory / "ca.pem")}
    bare, plain, tls = [], [], []
    with endpoint() as port, endpoint(certificate=directory / "server.pem") as tls_port:
        url = f"http://127.0.0.1:{port}/mgmt/v1/events"
        tls_url = f"https://127.0.0.1:{tls_port}/mgmt/v1/events"
        for n in range(runs):
            bare.append(transport_alone(url, count, 64))
            plain.append(drained(directory / f"plain{n}", count, url))
            tls.append(drained(directory / f"tls{n}", count, tls_url, komodor=trusting))
    rate, tls_rate = (median(run.per_second for run in runs) for runs in (plain, tls))
    bare_cpu_us = median(run.cpu_us for run in bare)
    plain_us = [run.cpu_us for run in plain]
    return [
        Row(f"drain of {count:,} events, loopback", rate, "events/s",
            median(run.per_second for run in bare), "the transport alone"),
        cpu_row("the same, CPU an event", plain_us, bare_cpu_us, "the bare exchange", 3.5),
        cpu_row("the same, absolute", plain_us, at_most=100.0),
        Row("drain over TLS", tls_rate, "events/s", rate, "plain"),
        cpu_row("the same, CPU an event, TLS", [run.cpu_us for run in tls], median(plain_us),
                "plain", 1.8),
    ]  # fmt: skip


def slow(directory: Path, count: int) -> Row:
    with endpoint(delay_ms=50) as port:
        url = f"http://127.0.0.1:{port}/mgmt/v1/events"
        found = drained(directory / "slow", count, url)
    return Row(
        "drain at 50 ms answer time, 64 permits",
        found.per_second,
        "events/s",
        64 / 0.05,
        "64 / 50 ms",
        0.93,
        note=f"{count:,} events, the growth from 1 permit included; "
        f"{found.cpu_us:.0f} us of CPU an event",
    )


def throttled(directory: Path, per_second: int, settles_s: float, measured_s: float) -> Row:
    """A backlog against the sandbox, which answers 429 above so many a second."""

    def received() -> int:
        connection.request("GET", "/sandbox/summary")
        return int(json.loads(connection.getresponse().read())["received"])

    sandbox = ("-m", "outboxd", "sandbox", "--listen", "127.0.0.1:0")
    with process(*sandbox) as line:
        address = line.removeprefix("listening on http://")
        connection = HTTPConnection(address, timeout=10)
        faults = json.dumps({"rateLimit": per_second, "retryAfter": "1"})
        connection.request("POST", "/sandbox/faults", faults)
        connection.getresponse().read()
        agent = Agent(directory, f"http://{address}/mgmt/v1/events", delivery={**QUICK})
        fill(agent.outbox, round(per_second * (settles_s + measured_s) * 1.2))
        with agent:
            time.sleep(settles_s)
            began_s, before = time.perf_counter(), received()
            time.sleep(measured_s)
            rate = (received() - before) / (time.perf_counter() - began_s)
            attempts = re.findall(
                r'outboxd_delivery_attempts_total\{outcome="(\w+)"\} (\S+)',
                agent.request("GET", "/metrics")[1].decode(),
            )
        connection.close()
    made = {name: float(count) for name, count in attempts}
    refused = made["throttled"] / sum(made.values())
    return Row(
        f"drain against 429 above {per_second} a second",
        rate,
        "events/s",
        float(per_second),
        "what is taken",
        0.9,
        note=f"{refused:.2%} of the requests were refused",
    )


def one_event(directory: Path, times: int) -> list[Row]:
    """From the start of the POST to the arrival at the endpoint, agent idle."""
    import socket

    def timed(connect, port: int) -> float:  # type: ignore[no-untyped-def]
        taken = []
        for _ in range(times):
            stats(port)
            time.sleep(0.02)
            began_s = time.monotonic()
            with connect() as one:
                one.sendall(REQUEST)
                one.recv(65536)
            while not (told := stats(port))["count"]:
                time.sleep(0.005)
            taken.append((told["first"] - began_s) * 1000)
        return median(taken)

    def unix(path: str) -> socket.socket:
        one = socket.socket(socket.AF_UNIX)
        one.connect(path)
        return one

    with endpoint() as port, Agent(directory, f"http://127.0.0.1:{port}/mgmt/v1/events") as agent:
        direct = timed(lambda: socket.create_connection(("127.0.0.1", port)), port)
        through = timed(lambda: unix(agent.socket), port)
    sync = bare_sync_ms(directory / "synced", times)
    return [
        Row("one event, idle agent, POST to arrival", through, "ms", sync + 2 * direct + 1.5,
            "bare sync, two direct POSTs and 1.5 ms", at_most=1.0,
            note=f"a sync {sync:.2g}, a direct POST {direct:.2g} ms"),
        Row("the same, absolute", through, "ms", at_most=10.0),
    ]  # fmt: skip


def bare_sync_ms(path: Path, times: int) -> float:
    """As long as a commit's frames take to reach the disk."""
    taken = []
    with open(path, "wb", buffering=0) as file:
        for _ in range(times):
            time.sleep(0.02)
            file.write(b"x" * 8192)
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began_s) * 1000)
    return median(taken)


def rows(short: bool) -> list[Row]:
    """All rows of delivery."""
    count = 5_000 if short else 50_000
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        found += loopback(Path(name), count, 1 if short else 3)
        found.append(slow(Path(name), 10_000 if short else 60_000))
    if not short:
        with tempfile.TemporaryDirectory() as name:
            found.append(throttled(Path(name), 200, 20.0, 40.0))
    with tempfile.TemporaryDirectory() as name:
        found += one_event(Path(name), 20 if short else 100)
    return found
