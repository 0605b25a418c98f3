"""An hour with all faults mixed: nothing lost, and nothing grows.

Outages, throttling, lost answers, a full disk and spool storms, drawn from a
seed, on a disk of its own; in the first third kills too. Of the last life, two
thirds of the time, file descriptors stay flat, memory grows by less than a tenth
between its first and its last part, and the log stays bounded. OUTBOXD_SOAK_S
shortens it.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path
from statistics import median

import pytest
from support import smalldisk
from support.agent import GONE, AgentProcess, UnixConnection
from support.receiver import OK, Receiver

from outboxd.producer.spool import NotStored, put

IN_FLIGHT_MAX = 16
WAL_BYTES_MAX = 32 * 1024 * 1024
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
THROTTLED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class Weather:
    """What the destination does at the moment."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.now = "fine"

    def __call__(self, body: bytes) -> bytes | None:
        match self.now:
            case "outage":
                return UNAVAILABLE
            case "throttling":
                return THROTTLED if self._draw.random() < 0.3 else OK
            case "dropping":
                return None if self._draw.random() < 0.1 else OK
            case _:
                return OK


class Producers:
    """Four over the socket, one over the spool; what they were promised."""

    def __init__(self, agent: AgentProcess) -> None:
        self.promised: list[str] = []
        self.storm = False
        self.errors: list[str] = []
        self._agent = agent
        self._stop = threading.Event()
        work = [lambda n=n: self._post(n) for n in range(4)]
        self._threads = [threading.Thread(target=w) for w in (*work, self._spool)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert self.errors == []

    def _post(self, number: int) -> None:
        connection: UnixConnection | None = None
        count = 0
        while not self._stop.wait(0.01):
            count += 1
            summary = f"p{number}-{count}"
            body = json.dumps(
                {"eventType": "soak", "summary": summary, "details": {"text": "x" * 200}}
            )
            try:
                connection = connection or UnixConnection(str(self._agent.socket))
                connection.request("POST", "/mgmt/v1/events", body)
                response = connection.getresponse()
                response.read()
            except GONE:
                if connection is not None:
                    connection.close()
                    connection = None
                continue
            if response.status == 201:
                self.promised.append(summary)
            elif response.status not in (503, 507):
                self.errors.append(f"{response.status}")
        if connection is not None:
            connection.close()

    def _spool(self) -> None:
        count = 0
        while not self._stop.wait(0.001 if self.storm else 0.1):
            count += 1
            summary = f"s-{count}"
            try:
                event = {"eventType": "soak", "summary": summary}
                put(str(self._agent.spool), json.dumps(event).encode())
            except NotStored:
                continue  # a full disk
            self.promised.append(summary)


class Gauges:
    """What must not grow in one life of the agent."""

    def __init__(self) -> None:
        self.memory_kib: list[int] = []
        self.descriptors: list[int] = []
        self.log_bytes_most = 0

    def look(self, agent: AgentProcess) -> None:
        assert agent.pid is not None
        status = Path(f"/proc/{agent.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        self.memory_kib.append(int(line.split()[1]))
        self.descriptors.append(len(os.listdir(f"/proc/{agent.pid}/fd")))
        log = Path(f"{agent.outbox}-wal")
        self.log_bytes_most = max(self.log_bytes_most, log.stat().st_size)

    def check(self) -> dict[str, object]:
        part = max(1, len(self.memory_kib) // 5)
        first, last = median(self.memory_kib[part : 2 * part]), median(self.memory_kib[-part:])
        assert last < first * 1.1, self.memory_kib
        # Connections come and go: one for each request in flight, and the producers'.
        assert max(self.descriptors[-part:]) <= min(self.descriptors) + IN_FLIGHT_MAX + 8
        assert self.log_bytes_most < WAL_BYTES_MAX
        return {
            "memory MiB": (round(first / 1024), round(last / 1024)),
            "descriptors": (min(self.descriptors), max(self.descriptors)),
            "log MiB": round(self.log_bytes_most / 1048576),
        }


@pytest.mark.timeout(0)
def test_an_hour_of_everything_loses_nothing_and_nothing_grows(tmp_path, request, need, seed):
    if not request.config.getoption("--soak"):
        pytest.skip("only with --soak: it takes an hour")
    seconds = float(os.environ.get("OUTBOXD_SOAK_S", "3600"))
    draw = random.Random(seed)
    weather = Weather(random.Random(seed + 1))
    receiver = Receiver(weather).start()
    disk = smalldisk.make(tmp_path, "tmpfs", need, 300)
    agent = AgentProcess(
        tmp_path,
        receiver.endpoint,
        prefix=disk.prefix,
        outbox=disk.inside / "outbox.db",
        spool=disk.inside / "spool",
        extra={"outbox": {"retain_delivered": "10s", "disk_free_min": "1MiB"}},
    )
    agent.outbox, agent.spool = disk.outside / "outbox.db", disk.outside / "spool"
    gauges = Gauges()
    kills = 0
    try:
        agent.start()
        producers = Producers(agent)
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < seconds:
            count = draw.choice((0, 1, 3)) if passed_s < seconds / 3 else 0
            _spell(draw, weather, producers, agent, disk, count)
            kills += count
            if count:
                gauges = Gauges()
            gauges.look(agent)
        weather.now = "fine"
        producers.stop()
        agent.await_empty(300)
        assert agent.stop() == 0
    finally:
        if agent.pid is not None:
            agent.kill()
        disk.close()
        receiver.stop()
    _check(receiver, producers.promised)
    print(f"{len(producers.promised)} events, {kills} kills, {gauges.check()}")


def _spell(
    draw: random.Random,
    weather: Weather,
    producers: Producers,
    agent: AgentProcess,
    disk: smalldisk.SmallDisk,
    kills: int,
) -> None:
    """A few seconds of one kind of weather."""
    weather.now = draw.choice(("fine", "fine", "outage", "throttling", "dropping"))
    producers.storm = draw.random() < 0.2
    is_full = draw.random() < 0.15
    if is_full:
        disk.fill()
    for _ in range(kills):
        time.sleep(draw.uniform(0.05, 1))
        agent.kill()
        agent.start()
    time.sleep(draw.uniform(2, 5))  # time must pass: this is a soak
    if is_full:
        disk.empty()


def _check(receiver: Receiver, promised: list[str]) -> None:
    lost = [summary for summary in promised if not receiver.arrivals[summary]]
    assert lost == [], f"{len(lost)} of {len(promised)} lost: {lost[:5]}"
    twice = {s: marks for s, marks in receiver.arrivals.items() if len(marks) > 1}
    assert {s: marks for s, marks in twice.items() if not all(marks[1:])} == {}
