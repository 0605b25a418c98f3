"""Processes to measure, and what the kernel says of them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
# Where bytecode may not be written every start would compile everything.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def describe() -> dict[str, str]:
    """The machine and the versions that the figures hold for."""
    cpu = "unknown"
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[str]:
    """A helper process; yields the first line that it prints."""
    child = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=HERE.parent
    )
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.terminate()
        child.wait(10)
        child.stdout.close()


@contextlib.contextmanager
def endpoint(delay_ms: float = 0.0, certificate: Path | None = None) -> Iterator[int]:
    """A server to deliver to; yields its port."""
    arguments = ["-m", "benchmarks.endpoint", "--delay-ms", str(delay_ms)]
    if certificate is not None:
        arguments += ["--certificate", str(certificate)]
    with process(*arguments) as port:
        yield int(port)


def stats(port: int) -> dict[str, Any]:
    """What has arrived since the last time this was asked (plain http alone)."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/stats")
    told: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return told


class Agent:
    """A real agent in a directory."""

    def __init__(self, directory: Path, url: str, **sections: dict[str, Any]) -> None:
        self.directory = directory
        self.socket = str(directory / "s")
        self.spool = directory / "spool"
        self.outbox = directory / "outbox.db"
        every: dict[str, dict[str, Any]] = {
            "komodor": {"endpoint": url},
            "intake": {"socket": self.socket, "spool": str(self.spool)},
            "outbox": {"path": str(self.outbox), "events_max": 0},
            "log": {"level": "warning"},
        }
        for name, keys in sections.items():
            every.setdefault(name, {}).update(keys)
        self.config = directory / "config.toml"
        self.config.write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
                for name, keys in every.items()
            )
        )
        self.start_s = self.start_cpu_s = 0.0

    def __enter__(self) -> Agent:
        address = str(self.directory / "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(address)
            notify.settimeout(60)
            began_s = time.perf_counter()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "outboxd", "run", "-c", str(self.config)],
                env={**os.environ, "KOMODOR_API_KEY": "benchmark", "NOTIFY_SOCKET": address},
            )
            while b"READY=1" not in notify.recv(4096):
                pass
            self.start_s = time.perf_counter() - began_s
        self.pid = self._child.pid
        self.start_cpu_s = self.cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        self._child.send_signal(signal.SIGTERM)
        self._child.wait(60)

    def kill(self) -> None:
        self._child.kill()
        self._child.wait(10)

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = _Unix(self.socket)
        connection.request(method, path, body)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, data

    def pending(self) -> int:
        status = json.loads(self.request("GET", "/v1/status")[1])
        return int(status["outbox"]["pending"])

    def await_pending(self, count: int = 0, timeout_s: float = 300.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while self.pending() > count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.pending()} events still wait")
            time.sleep(0.1)

    def resident_mib(self) -> float:
        return resident_mib(self.pid)

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def wakeups(self) -> int:
        """Voluntary context switches of all threads."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
        return total

    def written_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/io").read_text().splitlines():
            if line.startswith("write_bytes"):
                return int(line.split()[1])
        raise AssertionError("no write_bytes in /proc/PID/io")


def cpu_s(pid: int) -> float:
    """The CPU time of all its threads, those that have ended too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid: int) -> float:
    """The process' memory in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


class _Unix(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
