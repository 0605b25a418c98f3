"""How fast a backlog goes out, and how soon a single event."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import trustme
import uvloop

from benchmarks.load import BODY, REQUEST
from benchmarks.machine import Agent, endpoint, process, stats
from benchmarks.prepared import fill
from benchmarks.table import Row

QUICK = {"concurrency_max": 64, "report_outage": False}


def drained(directory: Path, count: int, url: str, **sections: dict[str, object]) -> float:
    """Events a second of a full drain, from the agent's start to its last settlement."""
    directory.mkdir()
    agent = Agent(directory, url, delivery={**QUICK}, **sections)
    fill(agent.outbox, count)
    with agent:
        began_s = time.perf_counter()
        agent.await_pending(0)
        return count / (time.perf_counter() - began_s)


class _Komodor:
    endpoint = ""
    proxy = ""
    ca_file = ""
    client_cert = ""
    client_key = ""
    connect_timeout_s = 10.0
    request_timeout_s = 30.0


def transport_alone(url: str, count: int, permits: int, ca_file: str = "") -> float:
    """Requests a second of the same transport with nothing around it."""
    from outboxd.delivery.transport import Transport

    async def main() -> float:
        settings = _Komodor()
        settings.endpoint, settings.ca_file = url, ca_file
        transport = Transport(settings, "benchmark")
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                answer = await transport.send("01a2009a-c7ff-77ea-a81c-709b1dd41655", BODY)
                assert answer.status == 201, answer

        began_s = time.perf_counter()
        await asyncio.gather(*[work() for _ in range(permits)])
        taken_s = time.perf_counter() - began_s
        await transport.close()
        return count / taken_s

    return uvloop.run(main())


def loopback(directory: Path, count: int, runs: int) -> Row:
    with endpoint() as port:
        url = f"http://127.0.0.1:{port}/mgmt/v1/events"
        ceiling = median(transport_alone(url, count // 2, 64) for _ in range(runs))
        rate = median(drained(directory / f"l{n}", count, url) for n in range(runs))
    return Row(f"drain of {count:,} events, loopback", rate, "events/s", ceiling,
               "the transport alone", 0.8)  # fmt: skip


def slow(directory: Path, count: int) -> Row:
    with endpoint(delay_ms=50) as port:
        url = f"http://127.0.0.1:{port}/mgmt/v1/events"
        rate = drained(directory / "slow", count, url)
    return Row(
        "drain at 50 ms answer time, 64 permits",
        rate,
        "events/s",
        64 / 0.05,
        "64 / 50 ms",
        0.93,
        note=f"{count:,} events, the growth from 1 permit included",
    )


def tls(directory: Path, count: int, plain: float) -> Row:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    with endpoint(certificate=directory / "server.pem") as port:
        url = f"https://127.0.0.1:{port}/mgmt/v1/events"
        rate = drained(
            directory / "tls", count, url, komodor={"ca_file": str(directory / "ca.pem")}
        )
    return Row("the same over TLS", rate, "events/s", plain, "plain", 0.85)


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
    return [
        Row("one event, idle agent, POST to arrival", through, "ms", direct, "direct POST",
            at_most=3.0),
        Row("the same, absolute", through, "ms", at_most=10.0),
    ]  # fmt: skip


def rows(short: bool) -> list[Row]:
    """All rows of delivery."""
    count = 5_000 if short else 50_000
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        found.append(loopback(Path(name), count, 1 if short else 3))
        if not short:
            found.append(tls(Path(name), count, found[0].value))
        found.append(slow(Path(name), 10_000 if short else 60_000))
    if not short:
        with tempfile.TemporaryDirectory() as name:
            found.append(throttled(Path(name), 200, 20.0, 40.0))
    with tempfile.TemporaryDirectory() as name:
        found += one_event(Path(name), 20 if short else 100)
    return found
