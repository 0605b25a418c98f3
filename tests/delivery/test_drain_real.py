"""A backlog drained by a real agent against the real sandbox, which throttles."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from support.agent import AgentProcess

LIMIT = 200  # requests a second; the sandbox refuses bursts of over a tenth of a second
SETTLES_S, MEASURED_S = 35.0, 20.0


@pytest.fixture
def sandbox() -> Iterator[str]:
    """Its host and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "outboxd", "sandbox", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip().removeprefix("listening on http://")
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def ask(address: str, method: str, path: str, body: object = None) -> dict:
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def attempts(agent: AgentProcess) -> dict[str, float]:
    """The agent's own count of attempts by outcome."""
    _, text = agent.request("GET", "/metrics")
    pattern = r'outboxd_delivery_attempts_total\{outcome="(\w+)"\} (\S+)'
    return {name: float(value) for name, value in re.findall(pattern, text.decode())}


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_the_drain_settles_within_a_tenth_below_what_the_sandbox_takes(
    full: bool, sandbox: str, tmp_path: Path
):
    if not full:
        pytest.skip("the full figures: --full")
    ask(sandbox, "POST", "/sandbox/faults", {"rateLimit": LIMIT, "retryAfter": "1"})
    agent = AgentProcess(tmp_path, f"http://{sandbox}/mgmt/v1/events")
    agent.start()
    try:
        lines = [
            json.dumps({"eventType": "drain", "summary": f"event {number}"})
            for number in range(round(LIMIT * (SETTLES_S + MEASURED_S) * 1.1))
        ]
        status, _ = agent.request("POST", "/v1/events/batch", "\n".join(lines).encode())
        assert status == 200
        time.sleep(SETTLES_S)
        began_s, began = time.monotonic(), ask(sandbox, "GET", "/sandbox/summary")["received"]
        time.sleep(MEASURED_S)
        ended_s, ended = time.monotonic(), ask(sandbox, "GET", "/sandbox/summary")["received"]
        taken_per_s = (ended - began) / (ended_s - began_s)
        made = attempts(agent)
    finally:
        agent.stop()
    assert 0.9 * LIMIT <= taken_per_s <= 1.02 * LIMIT
    assert 0 < made["throttled"] < 0.02 * sum(made.values())
