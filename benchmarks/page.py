"""What an open, searching page costs the agent, beside the same agent without one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.load import BODY
from benchmarks.machine import HERE, Agent, endpoint
from benchmarks.prepared import fill_delivered
from benchmarks.table import Row
from benchmarks.visitor import PARTIAL_S, Visitor
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.web.tally import BLOCK_ROWS

RATE = 200  # receipts a second
DRAINED = 15_000  # events, with and without the page
SETTLES_S = 5.0  # the first count of everything is not what is measured
GIVEN_BACK_S = 75.0  # a minute after the last look the index is let go


@contextlib.contextmanager
def visitor(port: int) -> Iterator[None]:
    """A page that is open and searches."""
    command = [sys.executable, "-m", "benchmarks.visitor", str(port)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HERE.parent)
    assert child.stdout is not None
    try:
        assert child.stdout.readline(), "the page was not answered"
        yield
        assert child.poll() is None, "the page ended"
    finally:
        child.terminate()
        child.wait(10)
        child.stdout.close()


def receipts(agent: Agent, seconds: float) -> dict[str, float]:
    """Latencies at the steady rate."""
    command = [sys.executable, "-m", "benchmarks.paced", agent.socket, str(RATE), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=HERE.parent)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def drain(agent: Agent) -> float:
    """Events a second of a backlog that was held until it stood."""
    agent.request("POST", "/v1/hold", b"{}")
    for _ in range(DRAINED // 5000):
        agent.request("POST", "/v1/events/batch", b"\n".join([BODY] * 5000))
    began_s = time.perf_counter()
    agent.request("POST", "/v1/release", b"{}")
    agent.await_pending(0)
    return DRAINED / (time.perf_counter() - began_s)


def first_count_s(port: int) -> float:
    """Until a page that has just been opened has counted everything, asking as it does."""

    async def counted() -> None:
        visitor = Visitor(port)
        while True:
            facets, _ = await asyncio.gather(
                visitor.get("/v1/facets"), visitor.get("/v1/histogram?buckets=90")
            )
            if b'"complete":true' in facets:
                return
            await asyncio.sleep(PARTIAL_S)

    began_s = time.perf_counter()
    asyncio.run(counted())
    return time.perf_counter() - began_s


def reading_s(outbox: Path) -> float:
    """What a count needs of each entry, read and nothing else done."""
    engine = SqliteEngine(str(outbox))
    began_s = time.perf_counter()
    seqs = engine.seq_range()
    for start in range(seqs.start, seqs.stop, BLOCK_ROWS):
        engine.index_rows(range(start, start + BLOCK_ROWS))
    took_s = time.perf_counter() - began_s
    engine.close()
    return took_s


def measured(
    directory: Path, count: int, turns: int, seconds: float, *, waits: bool = True
) -> list[Row]:
    """Without and with the page in turn, on one agent with so many events; `waits`:
    until what the page took is given back."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    calm: list[float] = []
    watched: list[float] = []
    alone: list[float] = []
    beside: list[float] = []
    with endpoint() as other:
        agent = Agent(
            directory,
            f"http://127.0.0.1:{other}/mgmt/v1/events",
            delivery={"concurrency_max": 64, "report_outage": False},
            http={"listen": f"127.0.0.1:{port}"},
        )
        fill_delivered(agent.outbox, count)
        with agent:
            drain(agent)  # permits grow, and a log is there
            before_mib = agent.resident_mib()
            highest_mib = before_mib
            for _ in range(turns):
                calm.append(receipts(agent, seconds)["p99_ms"])
                alone.append(drain(agent))
                with visitor(port):
                    time.sleep(SETTLES_S)
                    watched.append(receipts(agent, seconds)["p99_ms"])
                    beside.append(drain(agent))
                    highest_mib = max(highest_mib, agent.resident_mib())
            after_mib = count_s = None
            if waits:
                time.sleep(GIVEN_BACK_S)
                after_mib = agent.resident_mib()
                count_s = first_count_s(port)
    name = f"a page open and searching {count:,} events"
    found = [
        Row(f"{name}: p99 of receipts at {RATE}/s", median(watched), "ms", median(calm),
            "without the page", at_most=2.0),
        Row("the same: drain", median(beside), "events/s", median(alone), "without the page", 0.85),
        Row("the same: memory more", highest_mib - before_mib, "MiB", at_most=64.0),
    ]  # fmt: skip
    if after_mib is not None and count_s is not None:
        kept_mib = after_mib - before_mib
        found.append(Row("the same: memory kept a minute after", kept_mib, "MiB", at_most=8.0))
        reading = reading_s(agent.outbox)
        found.append(
            Row("the same: its first count", count_s, "s", reading, "reading alone", at_most=5.0)
        )
    return found


def rows(short: bool) -> list[Row]:
    """All rows of the page."""
    with tempfile.TemporaryDirectory() as name:
        if short:
            return measured(Path(name), 20_000, 1, 4.0, waits=False)
        return measured(Path(name), 1_000_000, 3, 10.0)
