"""What the agent costs: start, memory, idling, bytes on disk, a million events."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.intake import hold, load
from benchmarks.load import BODY
from benchmarks.machine import Agent, endpoint
from benchmarks.prepared import deliver_all, fill
from benchmarks.table import Row

NOWHERE = "http://127.0.0.1:9/mgmt/v1/events"  # the discard port: nobody listens


def emit(directory: Path, runs: int) -> Row:
    """The command that cron calls, with an agent running."""

    def timed(*command: str) -> float:
        began_s = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return (time.perf_counter() - began_s) * 1000

    outboxd = str(Path(sys.executable).parent / "outboxd")
    with endpoint() as port, Agent(directory, f"http://127.0.0.1:{port}/mgmt/v1/events") as agent:
        bare, whole = [], []
        for _ in range(runs):
            bare.append(timed(sys.executable, "-c", "pass"))
            whole.append(timed(outboxd, "emit", "-c", str(agent.config), "deploy", "it is out"))
    return Row("`outboxd emit`, the whole process", median(whole), "ms", median(bare),
               "python -c pass", at_most=2.5)  # fmt: skip


def start(directory: Path, runs: int) -> Row:
    """From the command to the open intake, with an empty outbox."""
    cpu_ms = []
    for number in range(runs):
        place = directory / str(number)
        place.mkdir()
        with Agent(place, NOWHERE) as agent:
            cpu_ms.append(agent.start_cpu_s * 1000)
    note = f"minimum {min(cpu_ms):.0f}"
    return Row("start to ready, CPU, empty outbox", median(cpu_ms), "ms", at_most=350.0, note=note)


def idle(directory: Path, seconds: float) -> list[Row]:
    with endpoint() as port, Agent(directory, f"http://127.0.0.1:{port}/mgmt/v1/events") as agent:
        time.sleep(2.0)
        cpu_s, wakeups = agent.cpu_s(), agent.wakeups()
        time.sleep(seconds)
        cpu_share = (agent.cpu_s() - cpu_s) / seconds * 100
        wakeups_per_s = (agent.wakeups() - wakeups) / seconds
        resident = agent.resident_mib()
    return [
        Row("idle: share of a core", cpu_share, "%", at_most=0.2),
        Row("idle: wake-ups", wakeups_per_s, "/s", at_most=5.0),
        Row("idle: resident memory", resident, "MiB", at_most=40.0),
    ]


def disk(directory: Path, count: int, details: int, at_most: float) -> Row:
    """Bytes written an event from intake to pruned, under load.

    SQLite writes whole pages, so what a small event costs is decided by how
    many events share a commit; `details` makes the event as large as the
    webhook payloads that people put there.
    """
    body = BODY[:-2] + b',"payload":"' + b"x" * details + b'"}}' if details else BODY
    lines = b"\n".join([body] * 1000)
    with (
        endpoint() as port,
        Agent(
            directory,
            f"http://127.0.0.1:{port}/mgmt/v1/events",
            outbox={"retain_delivered": "1s"},
            delivery={"concurrency_max": 64},
        ) as agent,
    ):
        before = agent.written_bytes()
        for _ in range(count // 1000):
            agent.request("POST", "/v1/events/batch", lines)
        agent.await_pending(0)
        deadline_s = time.monotonic() + 120
        while json.loads(agent.request("GET", "/v1/status")[1])["outbox"]["delivered"]:
            assert time.monotonic() < deadline_s, "nothing was pruned"
            time.sleep(0.5)
        written = (agent.written_bytes() - before) / count
    return Row(
        f"disk: bytes written from intake to pruned, an event of {len(body):,} bytes",
        written,
        "B",
        2.0 * len(body),
        "twice its body",
        at_most=at_most,
    )


def million(directory: Path, many: int, few: int, seconds: float) -> list[Row]:
    """The same with many and with few pending: drain, receipts, start, memory."""
    measured: dict[int, dict[str, float]] = {}
    for count in (few, many):
        place = directory / str(count)
        place.mkdir()
        with endpoint() as port:
            agent = Agent(
                place,
                f"http://127.0.0.1:{port}/mgmt/v1/events",
                delivery={"concurrency_max": 64},
            )
            fill(agent.outbox, count)
            with agent:
                start_s = agent.start_s
                hold(agent)
                p99_ms = load(agent.socket, seconds)["p99_ms"]
                resident = agent.resident_mib()
                agent.request("POST", "/v1/release", b"{}")
                before, began_s = agent.pending(), time.perf_counter()
                while agent.pending() > before - min(few, 20_000) * 0.8:
                    time.sleep(0.05)
                left = agent.pending()
                rate = (before - left) / (time.perf_counter() - began_s)
                agent.kill()
        measured[count] = {"start": start_s, "p99": p99_ms, "memory": resident, "rate": rate}
    a, b = measured[few], measured[many]
    names = f"{many:,} pending", f"{few:,} pending"
    return [
        Row(f"drain, {names[0]}", b["rate"], "events/s", a["rate"], names[1], 0.9),
        Row(f"receipt p99, {names[0]}", b["p99"], "ms", a["p99"], names[1], at_most=1.5),
        Row(f"start, {names[0]}: more than with {few:,}", b["start"] - a["start"], "s",
            at_most=1.0),
        Row(f"memory, {names[0]}: more than with {few:,}", b["memory"] - a["memory"], "MiB",
            at_most=20.0),
    ]  # fmt: skip


def pruning(directory: Path, count: int, seconds: float) -> Row:
    """The longest receipt while a million delivered entries are pruned."""
    with endpoint() as port:
        agent = Agent(
            directory,
            f"http://127.0.0.1:{port}/mgmt/v1/events",
            outbox={"retain_delivered": "1s"},
        )
        fill(agent.outbox, count)
        deliver_all(agent.outbox, 0)
        with agent:
            hold(agent)
            p99_ms = load(agent.socket, seconds)["p99_ms"]
    return Row(f"receipt p99 while {count:,} delivered entries are pruned", p99_ms, "ms",
               at_most=50.0)  # fmt: skip


def rows(short: bool) -> list[Row]:
    """All rows of cost."""
    found: list[Row] = []
    many = 20_000 if short else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        found.append(emit(Path(name), 10 if short else 40))
    with tempfile.TemporaryDirectory() as name:
        found.append(start(Path(name), 3 if short else 9))
    with tempfile.TemporaryDirectory() as name:
        found += idle(Path(name), 5.0 if short else 30.0)
    with tempfile.TemporaryDirectory() as name:
        found.append(disk(Path(name), 5_000 if short else 20_000, 2000, at_most=2.0))
    with tempfile.TemporaryDirectory() as name:
        found.append(disk(Path(name), 10_000 if short else 50_000, 0, at_most=8.0))
    if not short:
        with tempfile.TemporaryDirectory() as name:
            found += million(Path(name), many, 10_000, 5.0)
        with tempfile.TemporaryDirectory() as name:
            found.append(pruning(Path(name), many, 10.0))
    return found
