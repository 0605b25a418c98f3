"""The real agent under the two protocols of systemd: passed sockets, notifications."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

AGENT = [sys.executable, "-m", "outboxd", "run"]
EVENT = json.dumps({"eventType": "deploy", "summary": "rolled out"})


class Manager:
    """Stands in for systemd: an agent's directories, its socket, what it tells."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "agent.sock")
        self.config = directory / "config.toml"
        self.write_config()
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(directory / "notify"))
        self.notified.settimeout(PATIENCE_S)
        self.processes: list[subprocess.Popen[bytes]] = []

    def write_config(self, more: str = "") -> None:
        # Nothing listens at the endpoint: the destination is no matter here.
        self.config.write_text(
            f'[komodor]\nendpoint = "http://127.0.0.1:9/mgmt/v1/events"\n'
            f'[intake]\nsocket = "{self.path}"\nspool = "{self.directory}/spool"\n'
            f'[outbox]\npath = "{self.directory}/outbox.db"\n{more}'
        )

    def start(self, *before: str, piped: bool = False, **environ: str) -> subprocess.Popen[bytes]:
        with open(self.directory / "log", "ab") as log:
            process = subprocess.Popen(
                [*before, *AGENT, "-c", str(self.config)],
                env={**os.environ, "KOMODOR_API_KEY": "test-key", **environ},
                stderr=subprocess.PIPE if piped else log,
            )
        self.processes.append(process)
        return process

    def start_told(self, **environ: str) -> subprocess.Popen[bytes]:
        return self.start(NOTIFY_SOCKET=str(self.directory / "notify"), **environ)

    def hear(self, field: str) -> dict[str, str]:
        """Wait for a message with this field."""
        while True:
            text = self.notified.recv(4096).decode()
            message = dict(line.split("=", 1) for line in text.split("\n"))
            if field in message:
                return message

    def hand_in(self) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE_S)
        connection.sock.connect(self.path)
        connection.request("POST", "/mgmt/v1/events", EVENT)
        answer = connection.getresponse()
        body = json.load(answer)
        connection.close()
        return answer.status, body

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_S)
            if process.stderr:
                process.stderr.close()
        self.notified.close()


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def test_a_producer_that_came_before_the_agent_gets_its_receipt(manager, need):
    activate = need("systemd-socket-activate", "systemd")
    # It starts the agent when somebody connects, and gives it the socket.
    process = manager.start(activate, "--listen", manager.path, "-E", "KOMODOR_API_KEY", piped=True)
    assert process.stderr
    assert b"Listening on" in process.stderr.readline()
    status, receipt = manager.hand_in()
    assert status == 201, manager.log()
    assert receipt["status"] == "accepted"
    process.terminate()
    assert process.wait(PATIENCE_S) == 0, manager.log()
    assert os.path.exists(manager.path), "a socket that was passed is not the agent's to remove"


def test_the_service_manager_is_told_of_start_reload_and_stop(manager):
    manager.write_config('[delivery]\ndrain_timeout = "77s"\n')
    process = manager.start_told()
    assert manager.hear("READY")["READY"] == "1"
    assert manager.hand_in()[0] == 201
    process.send_signal(signal.SIGHUP)
    reloading = manager.hear("RELOADING")
    assert int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    manager.hear("READY")
    process.terminate()
    manager.hear("STOPPING")
    # The manager must not cut a drain short that the configuration allows.
    drain_s = int(manager.hear("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) / 1e6
    assert drain_s > 77
    assert process.wait(PATIENCE_S) == 0, manager.log()


def test_a_reload_of_a_bad_configuration_ends_and_the_agent_goes_on(manager):
    process = manager.start_told()
    manager.hear("READY")
    manager.write_config('[log]\nlevel = "loud"\n')
    process.send_signal(signal.SIGHUP)
    manager.hear("RELOADING")
    manager.hear("READY")
    assert manager.hand_in()[0] == 201
    assert "loud" in manager.log()


def test_the_watchdog_is_fed_while_the_agent_gets_on(manager):
    manager.start_told(WATCHDOG_USEC="300000")
    manager.hear("READY")
    for _ in range(3):
        manager.hear("WATCHDOG")


def test_a_socket_meant_for_another_process_is_left_alone(manager):
    process = manager.start_told(LISTEN_PID="1", LISTEN_FDS="1")
    manager.hear("READY")
    assert manager.hand_in()[0] == 201
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
