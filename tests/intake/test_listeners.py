"""The agent's listeners on a real agent: a path that goes, a page that comes later, a Unix page."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time

import pytest
from support.agent import GONE, AgentProcess, UnixConnection
from support.waiting import wait_until

ENDPOINT = "http://127.0.0.1:9/"
EVENT = json.dumps({"eventType": "a", "summary": "b"}).encode()


@pytest.fixture
def start(tmp_path):
    """Starts an agent; killed at the end."""
    agents = []

    def started(**options):
        agent = AgentProcess(tmp_path, ENDPOINT, **options)
        agents.append(agent)
        agent.start()
        return agent

    yield started
    for agent in agents:
        if agent.pid is not None:
            agent.kill()


def takes(agent) -> bool:
    try:
        return agent.request("POST", "/mgmt/v1/events", EVENT)[0] == 201
    except GONE:
        return False


def remove(path):
    os.unlink(path)


def replace_by_a_dead_socket(path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{path}2")
    os.rename(f"{path}2", path)  # in one step: the agent binds a path that it finds free


@pytest.mark.parametrize("harm", [remove, replace_by_a_dead_socket])
def test_a_socket_whose_path_goes_is_bound_anew_and_open_connections_stay(start, harm):
    agent = start(extra={"intake": {"socket_mode": "0640"}})
    kept = UnixConnection(str(agent.socket))
    kept.connect()
    harm(agent.socket)
    wait_until(lambda: takes(agent))
    assert stat.S_IMODE(os.stat(agent.socket).st_mode) == 0o640
    assert "socket.rebound" in agent.log_text()
    kept.request("POST", "/mgmt/v1/events", EVENT)
    assert kept.getresponse().status == 201
    kept.close()
    assert agent.stop() == 0
    assert not agent.socket.exists()


MANY_LOOKS_WHILE_IT_STOPS = """
import asyncio, sys
from outboxd.agent import listeners
listeners.LOOK_S = 0.001
stop = listeners.Listeners.stop
async def later(self):
    for _ in range(50):
        await asyncio.sleep(0.002)
    await stop(self)
listeners.Listeners.stop = later
from outboxd.cli.main import main
sys.exit(main(sys.argv[4:]))
"""


def test_an_agent_that_stops_does_not_bind_its_path_anew(start):
    agent = start(prefix=(sys.executable, "-c", MANY_LOOKS_WHILE_IT_STOPS))
    assert takes(agent)
    assert agent.stop() == 0
    assert "socket.rebound" not in agent.log_text()
    assert not agent.socket.exists()


def test_the_socket_of_another_process_in_its_place_is_left_alone_and_told(start):
    agent = start()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{agent.socket}2")
        other.listen(16)
        os.rename(f"{agent.socket}2", agent.socket)
        wait_until(lambda: "socket.lost" in agent.log_text())
        assert "another process answers there" in agent.log_text()
    os.unlink(agent.socket)
    wait_until(lambda: takes(agent))


def test_a_change_of_mode_is_no_replacement(start):
    agent = start()
    os.chmod(agent.socket, 0o600)
    inode = os.stat(agent.socket).st_ino
    time.sleep(2.5)  # one look
    assert takes(agent)
    assert os.stat(agent.socket).st_ino == inode
    assert "socket.rebound" not in agent.log_text()


def test_a_socket_handed_in_says_what_to_do(start, tmp_path):
    path = tmp_path / "handed-in"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(16)
        os.set_inheritable(listening.fileno(), True)
        # systemd's own call sets the variables in the child after the fork.
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        prefix = (os.sys.executable, "-c", script, str(listening.fileno()))
        agent = start(prefix=prefix, pass_fds=(listening.fileno(), 3))
        os.unlink(path)
        wait_until(lambda: "socket.lost" in agent.log_text())
        assert "systemctl restart outboxd.socket" in agent.log_text()


def test_the_page_on_a_unix_socket_reads_and_changes_nothing(start, tmp_path):
    page = tmp_path / "page.sock"
    agent = start(extra={"http": {"listen": f"unix:{page}"}})
    assert takes(agent)

    def ask(method, target, host="localhost"):
        connection = UnixConnection(str(page))
        connection.request(method, target, headers={"Host": host})
        status = connection.getresponse().status
        connection.close()
        return status

    assert ask("GET", "/v1/events") == 200
    assert ask("GET", "/") == 200
    assert ask("POST", "/mgmt/v1/events") == 404
    assert ask("POST", "/v1/hold") == 403  # without the link that `outboxd page` gives
    assert agent.status()["destination"]["state"] != "held"
    assert ask("GET", "/v1/events", "evil.example") == 421
    assert agent.stop() == 0
    assert not page.exists()
