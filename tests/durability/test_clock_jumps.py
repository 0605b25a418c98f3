"""The wall clock jumps a day, while the agent runs and across a restart.

Nothing stalls and nothing bursts: waits are measured with the clock that cannot
jump, and what is stored is bounded when it is read. The agent's clock is moved
by a file that its Python reads at each look; the agent itself is unmodified.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agent import AgentProcess
from support.receiver import OK, Receiver
from support.waiting import wait_until

DAY_S = 86_400
JUMPING = """
import os, time
_file = os.environ["JUMP_FILE"]
_time, _time_ns = time.time, time.time_ns

def _jump():
    with open(_file) as file:
        return int(file.read() or 0)

time.time = lambda: _time() + _jump()
time.time_ns = lambda: _time_ns() + _jump() * 1_000_000_000
"""
THROTTLED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver().start()
    yield receiver
    receiver.stop()


class JumpingAgent(AgentProcess):
    """An agent whose wall clock a test can set."""

    def __init__(self, directory: Path, receiver: Receiver, **delivery: object) -> None:
        self._jump = directory / "jump"
        self.jump(0)
        (directory / "clock").mkdir()
        (directory / "clock" / "sitecustomize.py").write_text(JUMPING)
        super().__init__(
            directory,
            receiver.endpoint,
            extra={"delivery": {"stamp": "never", "report_outage": False, **delivery}},
            environ={"PYTHONPATH": str(directory / "clock"), "JUMP_FILE": str(self._jump)},
        )

    def jump(self, seconds: int) -> None:
        fresh = self._jump.with_suffix(".new")
        fresh.write_text(str(seconds))
        os.rename(fresh, self._jump)

    def post(self, summary: str, **more: object) -> tuple[int, dict]:
        event = {"eventType": "clock", "summary": summary, **more}
        return self.request("POST", "/mgmt/v1/events", json.dumps(event).encode())


def arrived(receiver: Receiver, summaries: set[str]) -> None:
    wait_until(
        lambda: all(receiver.arrivals[summary] for summary in summaries),
        receiver.arrivals,
    )
    assert all(len(marks) == 1 for marks in receiver.arrivals.values())


@pytest.mark.parametrize("days", [pytest.param(1, marks=pytest.mark.long), -1])
def test_a_wait_that_the_destination_asked_for_is_neither_cut_short_nor_endless(
    tmp_path, receiver, days
):
    asked_s: list[float] = []

    def behave(body: bytes) -> bytes:
        asked_s.append(time.monotonic())
        return THROTTLED if len(asked_s) == 1 else OK

    receiver.behave = behave
    agent = JumpingAgent(tmp_path, receiver)
    agent.start()
    assert agent.post("first")[0] == 201
    # Until it has heard the answer: what comes in before that goes out at once.
    wait_until(lambda: agent.request("GET", "/v1/events")[1]["events"][0]["attemptCount"])
    agent.jump(days * DAY_S)
    assert agent.post("second")[0] == 201
    arrived(receiver, {"first", "second"})
    assert asked_s[1] - asked_s[0] >= 1.9
    assert agent.stop() == 0


@pytest.mark.parametrize("days", [pytest.param(1, marks=pytest.mark.long), -1])
def test_events_that_wait_for_their_own_backoff_go_out_after_a_jump(tmp_path, receiver, days):
    failures: list[str] = []

    def behave(body: bytes) -> bytes:
        if b"poison" in body and len(failures) < 5:
            failures.append("")
            return FAILED
        return OK

    receiver.behave = behave
    agent = JumpingAgent(tmp_path, receiver)
    agent.start()
    summaries = {f"event {number}" for number in range(20)} | {"poison 1", "poison 2"}
    for number, summary in enumerate(sorted(summaries)):
        assert agent.post(summary)[0] == 201
        if number == 10:
            agent.jump(days * DAY_S)
    arrived(receiver, summaries)
    assert agent.stop() == 0


@pytest.mark.parametrize("days", [pytest.param(1, marks=pytest.mark.long), -1])
def test_a_jump_across_a_restart_stalls_nothing_and_forgets_no_dedup_key(tmp_path, receiver, days):
    receiver.behave = lambda body: FAILED
    agent = JumpingAgent(tmp_path, receiver)
    agent.start()
    _, first = agent.post("kept", dedupKey="one")
    summaries = {f"event {number}" for number in range(20)} | {"kept"}
    for summary in summaries - {"kept"}:
        assert agent.post(summary)[0] == 201
    wait_until(lambda: receiver.requests >= 3)
    agent.kill()
    # What it had sent is answered: nothing of that arrives in the better times.
    wait_until(lambda: not receiver.connections)
    receiver.behave = lambda body: OK
    agent.jump(days * DAY_S)
    agent.start()
    status, again = agent.post("kept", dedupKey="one")
    assert (status, again["status"], again["id"]) == (200, "duplicate", first["id"])
    arrived(receiver, summaries)
    agent.await_empty()
    assert agent.status()["outbox"]["delivered"] == len(summaries)  # none pruned, none dead
    assert agent.stop() == 0


@pytest.mark.parametrize("days", [pytest.param(1, marks=pytest.mark.long), -1])
def test_a_bounded_rate_stays_bounded(tmp_path, receiver, days):
    times_s: list[float] = []

    def behave(body: bytes) -> bytes:
        times_s.append(time.monotonic())
        return OK

    receiver.behave = behave
    agent = JumpingAgent(tmp_path, receiver, rate_max=20)
    agent.start()
    summaries = {f"event {number}" for number in range(60)}
    began_s = time.monotonic()
    for summary in summaries:
        assert agent.post(summary)[0] == 201
    agent.jump(days * DAY_S)
    arrived(receiver, summaries)
    # 60 at 20 a second take two, a burst of a second's worth being allowed once. From before
    # the first was handed in: however late a machine is, none of them was sent before that.
    assert times_s[-1] - began_s >= 1.9
    assert agent.stop() == 0
