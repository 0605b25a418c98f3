"""sd_notify and passed sockets, with real sockets in systemd's place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from support.waiting import PATIENCE_S

from outboxd.agent.systemd import Notifier, passed_sockets
from outboxd.clock import FakeClock


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    """A stand-in for systemd: (what NOTIFY_SOCKET says, its socket)."""
    receiving = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiving.settimeout(PATIENCE_S)
    if request.param == "file":
        address = str(tmp_path / "notify")
        receiving.bind(address)
    else:
        address = f"@outboxd-test-{os.getpid()}"
        receiving.bind("\0" + address[1:])
    yield address, receiving
    receiving.close()


@pytest.fixture
def notifier(manager):
    notifier = Notifier({"NOTIFY_SOCKET": manager[0]}, FakeClock(monotonic_s=12.5))
    yield notifier
    notifier.close()


def heard(manager) -> list[str]:
    return manager[1].recv(4096).decode().split("\n")


def test_ready_is_told_with_a_line_of_status(notifier, manager):
    assert notifier.ready("takes events")
    assert heard(manager) == ["READY=1", "STATUS=takes events"]


def test_a_reload_is_told_with_its_moment(notifier, manager):
    assert notifier.reloading()
    assert heard(manager) == ["RELOADING=1", "MONOTONIC_USEC=12500000"]


def test_the_rest_is_told(notifier, manager):
    assert notifier.stopping()
    assert heard(manager) == ["STOPPING=1"]
    assert notifier.watchdog()
    assert heard(manager) == ["WATCHDOG=1"]
    assert notifier.extend_timeout(2.5)
    assert heard(manager) == ["EXTEND_TIMEOUT_USEC=2500000"]


def test_a_status_cannot_smuggle_another_field_in(notifier, manager):
    assert notifier.status("held: \n READY=1")
    assert heard(manager) == ["STATUS=held: READY=1"]


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_without_a_manager_nothing_is_told(address):
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert not notifier.enabled
    assert not notifier.ready()


def test_a_manager_that_went_away_is_no_error(tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert not notifier.watchdog()
    notifier.close()


def test_a_manager_that_does_not_read_delays_nobody(notifier, manager):
    while notifier.watchdog():
        pass
    assert not notifier.watchdog()


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_time_is_ours_alone(environ, watchdog_s):
    notifier = Notifier(environ)
    assert notifier.watchdog_s == watchdog_s
    assert notifier.watchdog_interval_s() == (watchdog_s and watchdog_s / 3)


TAKE = """
import os, sys
from outboxd.errors import OutboxdError
from outboxd.agent.systemd import passed_sockets
os.environ.update(LISTEN_PID=sys.argv[1] or str(os.getpid()), LISTEN_FDS=sys.argv[2])
if sys.argv[3]:
    os.environ["LISTEN_FDNAMES"] = sys.argv[3]
try:
    taken = passed_sockets()
except OutboxdError as error:
    sys.exit(str(error))
print([(name, passed.fileno(), os.get_inheritable(passed.fileno())) for name, passed in taken])
assert not any(name.startswith("LISTEN_") for name in os.environ)
assert passed_sockets() == []
"""


def take(*sockets: socket.socket, pid: str = "", names: str = "") -> subprocess.CompletedProcess:
    """Start a process with these sockets from descriptor 3 on, as systemd does."""
    moves = " ".join(f"{3 + at}<&{each.fileno()}" for at, each in enumerate(sockets))
    command = [sys.executable, "-c", TAKE, pid, str(len(sockets)), names]
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {moves}', "bash", *command],
        pass_fds=[each.fileno() for each in sockets],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def listening(tmp_path):
    made = []

    def listen(name="a"):
        each = socket.socket(socket.AF_UNIX)
        each.bind(str(tmp_path / name))
        each.listen()
        made.append(each)
        return each

    yield listen
    for each in made:
        each.close()


def test_passed_sockets_are_taken_once_with_their_names(listening):
    result = take(listening("a"), listening("b"), names="outboxd.socket:other")
    assert result.stdout == "[('outboxd.socket', 3, False), ('other', 4, False)]\n", result.stderr


def test_names_may_be_missing(listening):
    assert take(listening()).stdout == "[('', 3, False)]\n"


def test_sockets_meant_for_another_process_are_left_alone(listening):
    assert take(listening(), pid="1").stdout == "[]\n"


def test_what_is_no_listening_stream_is_refused_with_what_to_do(tmp_path):
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(str(tmp_path / "datagrams"))
    result = take(datagrams)
    datagrams.close()
    assert "no listening stream socket" in result.stderr
    assert "ListenStream=" in result.stderr


def test_without_systemd_there_are_none():
    assert passed_sockets({}) == []
    assert passed_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == []
