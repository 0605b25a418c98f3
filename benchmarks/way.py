"""The way of one event through the source: which files it passes, counted by a tracer.

    python -m benchmarks.way          both ways, file by file in the order of the first step

Runs the agent's own `run_agent` in this process, with `sys.setprofile` on every thread,
and notes each file of outboxd in which a function is called while one event is on its
way: from its POST until its receipt is handed to the socket, and until it is settled
and the agent is still. Only what each of a few events passed counts, since what happens
once a second is none's. What the idle agent calls too stands in brackets. Where each of
these begins and ends is seen by the tracer, and no pause is taken for it: on a busy machine
an event would be settled later than that, and belong to the next one or to nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import outboxd
from benchmarks.machine import endpoint, stats

SOURCE = str(Path(outboxd.__file__).parent) + "/"
EVENT = {"eventType": "deploy", "summary": "one event", "severity": "information"}
WARM_UP_EVENTS = 20
EVENTS = 3
# Where the receipt leaves.
RECEIPT_SENT = ("serve/connection.py", "PeerConnection._send")
# Where the answer from the endpoint is at its end, and where the sender, with all of it
# settled, has nothing left to do but to offer to send what comes in next.
ANSWERED = ("delivery/in_flight.py", "InFlight._end")
OFFERED = ("delivery/claims.py", "Claims.offer")
# What the idle agent does each second, as long as somebody is connected.
LOOKED = ("serve/server.py", "HttpServer._look")
# What it does more seldom is put off: no event has a part in it, but each of a few would
# seem to where they take as long.
SELDOM_S = 3600.0
DEADLINE_S = 90.0


class Way(NamedTuple):
    """What one event passed on its way."""

    name: str  # where to
    files: list[str]  # of its own, first called first
    idle: list[str]  # and those that the idle agent calls too


class Tracer:
    """The files of outboxd in which a function was called since `restart`, first called first."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.files: dict[str, None] = {}
        self.until_receipt: list[str] | None = None
        self.is_settled = False
        self.has_looked = False  # after its connections
        self._is_answered = False

    def install(self) -> None:
        """On this thread and on those that start from now on."""
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    def _called(self, frame: FrameType, what: str, _argument: object) -> None:
        name = frame.f_code.co_filename
        if not name.startswith(SOURCE):
            return
        file = name.removeprefix(SOURCE)
        if what == "call":
            self.files.setdefault(file)
        elif what == "return":
            self._returned((file, frame.f_code.co_qualname))

    def _returned(self, place: tuple[str, str]) -> None:
        if place == RECEIPT_SENT:
            self.until_receipt = self.until_receipt or list(self.files)
        elif place == ANSWERED:
            self._is_answered = True
        elif place == OFFERED:
            self.is_settled = self._is_answered
        elif place == LOOKED:
            self.has_looked = True


class Client:
    """Hands in events over the agent's socket, and asks for nothing else."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))

    def post(self) -> None:
        """One event, to its receipt."""
        body = json.dumps(EVENT).encode()
        head = f"POST /mgmt/v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        answer = self._socket.recv(65536)
        if b" 201 " not in answer.partition(b"\r\n")[0]:
            raise AssertionError(f"refused: {answer!r}")


def watch(port: int, path: Path, tracer: Tracer) -> list[Way]:
    """What the way to the receipt passes, and that to the settlement."""
    await_socket(path)
    client = Client(path)
    for _ in range(WARM_UP_EVENTS):
        pass_one(client, port, tracer)
    ways: dict[str, list[list[str]]] = {"receipt": [], "settlement": []}
    for _ in range(EVENTS):
        pass_one(client, port, tracer)
        assert tracer.until_receipt is not None, "the receipt left by another way"
        ways["receipt"].append(tracer.until_receipt)
        ways["settlement"].append(list(tracer.files))
    tracer.restart()
    await_true(lambda: tracer.has_looked, "the agent does not look after its connections")
    idle = tracer.files
    told = []
    for name, runs in ways.items():
        passed = [file for file in runs[0] if all(file in run for run in runs)]
        own = [file for file in passed if file not in idle]
        told.append(Way(name, own, [file for file in passed if file in idle]))
    return told


def pass_one(client: Client, port: int, tracer: Tracer) -> None:
    """One event, from its POST until it is settled."""
    tracer.restart()
    client.post()
    await_true(lambda: stats(port)["count"], "the event did not arrive")
    await_true(lambda: tracer.is_settled, "the event was not settled")


def await_socket(path: Path) -> None:
    """Until the agent takes events."""
    await_true(lambda: takes_connections(path), "the agent did not start")


def takes_connections(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


def await_true(condition: Callable[[], object], otherwise: str) -> None:
    """Until it is so; fails with what is said otherwise."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(otherwise)
        time.sleep(0.02)


def ways() -> list[Way]:
    """Both ways, of an agent that this process runs meanwhile."""
    from outboxd.agent import listeners, run, upkeep

    listeners.LOOK_S = run.KEY_WATCH_S = upkeep.TICK_S = SELDOM_S
    os.environ["KOMODOR_API_KEY"] = "benchmark"
    tracer = Tracer()
    told: list[Way] = []
    with tempfile.TemporaryDirectory() as folder, endpoint() as port:
        path = Path(folder) / "s"
        config = Path(folder) / "config.toml"
        config.write_text(
            f'[komodor]\nendpoint = "http://127.0.0.1:{port}/mgmt/v1/events"\n'
            f'[intake]\nsocket = "{path}"\nspool = "{folder}/spool"\n'
            f'[outbox]\npath = "{folder}/outbox.db"\n[log]\nlevel = "warning"\n'
        )

        def look() -> None:
            try:
                told.extend(watch(port, path, tracer))
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        watcher = threading.Thread(target=look)
        watcher.start()  # before the tracer is there: its own steps are nobody's
        tracer.install()
        run.run_agent(str(config))
        sys.setprofile(None)
        threading.setprofile(None)
        watcher.join()
    return told


def main() -> int:
    told = ways()
    if sys.argv[1:] == ["--json"]:
        print(json.dumps({way.name: way.files for way in told}))
        return 0 if told else 1
    for name, files, idle in told:
        print(f"from POST to {name}: {len(files)} files, and {len(idle)} of the idle agent")
        for each in files:
            print(f"    {each}")
        for each in idle:
            print(f"  ( {each} )")
    return 0 if told else 1


if __name__ == "__main__":
    sys.exit(main())
