"""How fast events come in: single, in batches, by the spool."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from subprocess import check_output

from benchmarks.load import BODY
from benchmarks.machine import HERE, Agent, endpoint, process
from benchmarks.prepared import bare_sqlite
from benchmarks.table import Row, cpu_row

HELD = {"attempts_max": 0}


def load(path: str, seconds: float) -> dict[str, float]:
    out = check_output(
        [sys.executable, "-m", "benchmarks.load", path, "32", str(seconds)], cwd=HERE.parent
    )
    told: dict[str, float] = json.loads(out)
    return told


def hold(agent: Agent) -> None:
    """Intake alone is measured: nothing is sent meanwhile."""
    status, body = agent.request("POST", "/v1/hold", b'{"reason": "benchmark"}')
    assert status == 200, body


def singles(directory: Path, seconds: float, runs: int) -> list[Row]:
    """32 connections, one event a request."""
    with process("-m", "benchmarks.empty_server", str(directory / "empty")):
        ceiling = median(load(str(directory / "empty"), seconds)["per_second"] for _ in range(runs))
    with endpoint() as port, Agent(directory, f"http://127.0.0.1:{port}/mgmt/v1/events") as agent:
        hold(agent)
        load(agent.socket, 0.5)
        told, cpu_us = [], []
        for _ in range(runs):
            before_s = agent.cpu_s()
            told.append(load(agent.socket, seconds))
            cpu_us.append((agent.cpu_s() - before_s) / told[-1]["count"] * 1e6)
    rate = median(t["per_second"] for t in told)
    p99_ms = median(t["p99_ms"] for t in told)
    return [
        Row("durable single POSTs, 32 connections", rate, "/s", ceiling, "empty handler", 0.45),
        cpu_row("durable single POSTs, CPU a receipt", cpu_us, at_most=100.0),
        Row("their p99", p99_ms, "ms", at_most=10.0),
    ]


def batch(directory: Path, count: int, runs: int) -> list[Row]:
    """The batch route, 5,000 lines a request, against bare SQLite."""
    ceiling = median(bare_sqlite(directory / f"bare{n}.db", count, 100) for n in range(runs))
    lines = b"\n".join([BODY] * 5000)
    with endpoint() as port, Agent(directory, f"http://127.0.0.1:{port}/mgmt/v1/events") as agent:
        hold(agent)
        agent.request("POST", "/v1/events/batch", lines)
        rates, cpu_us = [], []
        portions = max(1, count // 5000)
        for _ in range(runs):
            began_s, began_cpu_s = time.perf_counter(), agent.cpu_s()
            for _ in range(portions):
                status, _answer = agent.request("POST", "/v1/events/batch", lines)
                assert status == 200
            rates.append(portions * 5000 / (time.perf_counter() - began_s))
            cpu_us.append((agent.cpu_s() - began_cpu_s) / (portions * 5000) * 1e6)
    return [
        cpu_row("batch route, CPU an event", cpu_us, at_most=25.0),
        Row("batch route", median(rates), "events/s", ceiling, "bare executemany", 0.35),
    ]


def spool(directory: Path, count: int, batch_rate: float) -> list[Row]:
    """One event a file, and one large file."""
    spool_directory = directory / "spool"
    ceiling = _bare_files(directory / "bare", count)
    with endpoint() as port, Agent(directory, f"http://127.0.0.1:{port}/mgmt/v1/events") as agent:
        hold(agent)
        _write_files(spool_directory / "tmp", count)
        began_s = time.perf_counter()
        for name in os.listdir(spool_directory / "tmp"):
            os.rename(spool_directory / "tmp" / name, spool_directory / "new" / name)
        _until_gone(spool_directory / "new")
        rate = count / (time.perf_counter() - began_s)
        lines = max(10_000, count * 5)
        (spool_directory / "tmp" / "large").write_bytes(b"\n".join([BODY] * lines))
        began_s = time.perf_counter()
        os.rename(spool_directory / "tmp" / "large", spool_directory / "new" / "large")
        _until_gone(spool_directory / "new")
        large_rate = lines / (time.perf_counter() - began_s)
    return [
        Row("spool, one event a file", rate, "files/s", ceiling, "bare read and unlink", 0.3),
        Row(f"spool, a file of {lines:,} lines", large_rate, "events/s", batch_rate,
            "the batch route", 1.0),
    ]  # fmt: skip


def _write_files(directory: Path, count: int) -> None:
    for number in range(count):
        (directory / f"{number:07d}").write_bytes(BODY)


def _bare_files(directory: Path, count: int) -> float:
    directory.mkdir()
    _write_files(directory, count)
    began_s = time.perf_counter()
    for name in os.listdir(directory):
        with open(directory / name, "rb") as file:
            file.read()
        os.unlink(directory / name)
    return count / (time.perf_counter() - began_s)


def _until_gone(directory: Path) -> None:
    while any(os.scandir(directory)):
        time.sleep(0.01)


def rows(short: bool) -> list[Row]:
    """All rows of intake."""
    found: list[Row] = []
    seconds, runs = (2.0, 1) if short else (5.0, 3)
    with tempfile.TemporaryDirectory() as name:
        found += singles(Path(name), seconds, runs)
    with tempfile.TemporaryDirectory() as name:
        found += batch(Path(name), 20_000 if short else 100_000, runs)
    with tempfile.TemporaryDirectory() as name:
        found += spool(Path(name), 3_000 if short else 20_000, found[-1].value)
    return found
