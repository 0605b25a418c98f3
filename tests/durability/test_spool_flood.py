"""A spool with a hundred thousand files at once, bad ones among them.

The agent stays up and takes every good one, its memory stays bounded, and those
who use the socket meanwhile are served.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agent import AgentProcess
from support.receiver import Receiver

MEMORY_GROWTH_KIB_MAX = 96 * 1024
SERVED_MEANWHILE = 10
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def agent(tmp_path) -> Iterator[AgentProcess]:
    """An agent whose destination is away: what it takes stays to be counted."""
    receiver = Receiver(lambda body: UNAVAILABLE).start()
    agent = AgentProcess(tmp_path, receiver.endpoint)
    agent.start()
    yield agent
    if agent.pid is not None:
        agent.kill()
    receiver.stop()


def memory_kib(pid: int | None, line: str) -> int:
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith(line):
            return int(text.split()[1])
    raise AssertionError(line)


def flood(spool: Path, count: int) -> int:
    """So many files aside, one in a hundred bad or odd; how many are good events."""
    good = 0
    for number in range(count):
        path = spool / "tmp" / f"{number:06}"
        match number % 100:
            case 7:
                path.write_bytes(b"{no event")
            case 17:
                path.symlink_to("/etc/passwd")
            case 27 if number < 20_000:
                os.mkfifo(path)
            case 37:
                path.mkdir()
            case _:
                event = {"eventType": "flood", "summary": f"file {number}"}
                path.write_text(json.dumps(event))
                good += 1
        os.utime(path, (1, 1), follow_symlinks=False)  # old: none that may still be growing
    return good


@pytest.mark.timeout(600)
def test_a_flood_of_files_is_taken_while_others_are_served(agent, full):
    count = 100_000 if full else 2_000
    good = flood(agent.spool, count)
    before_kib = memory_kib(agent.pid, "VmRSS")
    waiting = sorted(os.listdir(agent.spool / "tmp"))
    a_part = len(waiting) // SERVED_MEANWHILE
    served = 0
    while waiting or os.listdir(agent.spool / "new"):
        for name in waiting[:a_part]:
            os.rename(agent.spool / "tmp" / name, agent.spool / "new" / name)
        del waiting[:a_part]
        event = {"eventType": "other", "summary": f"socket {served}"}
        status, told = agent.request("POST", "/mgmt/v1/events", json.dumps(event).encode())
        assert status == 201, told
        served += 1
        threading.Event().wait(0 if waiting else 0.02)
    peak_kib = memory_kib(agent.pid, "VmHWM")
    outbox = agent.status()["outbox"]
    assert outbox["pending"] == good + served
    rejected = [n for n in os.listdir(agent.spool / "rejected") if not n.endswith(".error")]
    assert len(rejected) == count - good
    print(
        f"{count} files, {served} served meanwhile, {(peak_kib - before_kib) / 1024:.0f} MiB more"
    )
    assert served >= SERVED_MEANWHILE
    assert peak_kib - before_kib < MEMORY_GROWTH_KIB_MAX
    assert agent.stop() == 0
