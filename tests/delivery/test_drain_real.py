"""A backlog drained by a real agent against the real sandbox, which throttles."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from support.agent import AgentProcess
from support.waiting import PATIENCE_S

LIMIT = 200  # requests a second; the sandbox refuses bursts of over a tenth of a second
WINDOW_S, LONGEST_S = 10, 120  # seconds


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
        process.wait(PATIENCE_S)
        process.stdout.close()


def ask(address: str, method: str, path: str, body: object = None) -> dict:
    connection = HTTPConnection(address, timeout=PATIENCE_S)
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
            for number in range(round(LIMIT * LONGEST_S * 1.1))
        ]
        status, _ = agent.request("POST", "/v1/events/batch", "\n".join(lines).encode())
        assert status == 200
        # Whoever takes the processor away for a second takes a tenth of a window
        # with it; so it must settle in one window, and not in a given one.
        seen: deque[tuple[float, int]] = deque(maxlen=WINDOW_S + 1)
        began_s, taken_per_s = time.monotonic(), 0.0
        while not 0.9 * LIMIT <= taken_per_s <= 1.02 * LIMIT:
            now_s = time.monotonic()
            assert now_s - began_s < LONGEST_S, f"{taken_per_s:.0f} a second at last"
            seen.append((now_s, ask(sandbox, "GET", "/sandbox/summary")["received"]))
            if len(seen) > WINDOW_S:
                taken_per_s = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
            time.sleep(1.0)
        made = attempts(agent)
    finally:
        agent.stop()
    assert 0 < made["throttled"] < 0.02 * sum(made.values())
