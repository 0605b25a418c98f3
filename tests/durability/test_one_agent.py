"""Only one agent works on an outbox: a dead one's leftovers are cleared, a live one's are not."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agent import AgentProcess
from support.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver().start()
    yield receiver
    receiver.stop()


def post(agent: AgentProcess, summary: str) -> int:
    event = json.dumps({"eventType": "one", "summary": summary}).encode()
    return agent.request("POST", "/mgmt/v1/events", event)[0]


def agent_in(directory: Path, receiver: Receiver, **paths: Path) -> AgentProcess:
    directory.mkdir(exist_ok=True)
    return AgentProcess(directory, receiver.endpoint, **paths)


def test_a_second_agent_names_the_first_and_leaves_all_alone(tmp_path, receiver):
    first = agent_in(tmp_path / "first", receiver)
    first.start()
    socket_before = os.stat(first.socket)
    second = agent_in(tmp_path / "second", receiver, outbox=first.outbox, spool=first.spool)
    second.config.write_text(
        second.config.read_text().replace(str(second.socket), str(first.socket))
    )
    waiting = first.spool / "new" / ".hidden"
    waiting.write_text("not for anyone")
    second.start(ready=False)
    pid = first.pid
    assert second.wait() == 75
    assert str(pid) in second.log_text()
    assert "Traceback" not in second.log_text()
    after = os.stat(first.socket)
    assert (after.st_ino, after.st_ctime_ns) == (socket_before.st_ino, socket_before.st_ctime_ns)
    assert waiting.exists()
    assert post(first, "still here") == 201
    first.await_empty()
    assert first.stop() == 0


def test_an_agent_with_its_own_outbox_does_not_steal_a_live_socket(tmp_path, receiver):
    first = agent_in(tmp_path / "first", receiver)
    first.start()
    second = agent_in(tmp_path / "second", receiver)
    second.config.write_text(
        second.config.read_text().replace(str(second.socket), str(first.socket))
    )
    second.start(ready=False)
    assert second.wait() == 78
    assert "another process answers there" in second.log_text()
    assert post(first, "still mine") == 201
    assert first.stop() == 0


def test_after_a_crash_socket_and_lock_are_taken_over(tmp_path, receiver):
    agent = agent_in(tmp_path / "agent", receiver)
    agent.start()
    assert post(agent, "before") == 201
    agent.kill()
    assert agent.socket.exists()  # stale, and so is the pid in the lock file
    lock = Path(f"{agent.outbox}.lock")
    lock.write_text("1\n")
    agent.start()
    assert lock.read_text() == f"{agent.pid}\n"
    assert post(agent, "after") == 201
    agent.await_empty()
    assert agent.stop() == 0
    assert not agent.socket.exists()
    assert set(receiver.arrivals) == {"before", "after"}


def test_a_stopped_but_living_agent_keeps_its_outbox_and_socket(tmp_path, receiver):
    """One that hangs is still the one: its file must not be opened twice."""
    first = agent_in(tmp_path / "first", receiver)
    first.start()
    first.signal(signal.SIGSTOP)
    try:
        second = agent_in(tmp_path / "second", receiver, outbox=first.outbox, spool=first.spool)
        second.start(ready=False)
        assert second.wait() == 75
    finally:
        first.signal(signal.SIGCONT)
    assert post(first, "woken") == 201
    assert first.stop() == 0


def test_a_file_in_the_sockets_place_is_not_removed(tmp_path, receiver):
    agent = agent_in(tmp_path / "agent", receiver)
    agent.socket.write_text("a person's file")
    agent.start(ready=False)
    assert agent.wait() == 78
    assert agent.socket.read_text() == "a person's file"


def test_when_the_socket_was_replaced_the_stop_leaves_the_new_one(tmp_path, receiver):
    agent = agent_in(tmp_path / "agent", receiver)
    agent.start()
    with socket.socket(socket.AF_UNIX) as other:
        # In one step, and it answers: the agent, which looks, finds nothing to bind anew.
        other.bind(str(tmp_path / "other"))
        other.listen()
        os.rename(tmp_path / "other", agent.socket)
        assert agent.stop() == 0
        assert agent.socket.exists()
