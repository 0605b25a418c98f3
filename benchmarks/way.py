"""The way of one event through the source: which files it passes, counted by a tracer.

    python -m benchmarks.way          both ways, file by file in the order of the first step

Runs the agent's own `run_agent` in this process, with `sys.setprofile` on every thread,
and notes each file of outboxd in which a function is called while one event is on its
way: from its POST to its receipt, with delivery held, and from its POST to its
settlement. What the idle agent calls too, watched before, stands in brackets.
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
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import outboxd
from benchmarks.machine import endpoint, stats

SOURCE = str(Path(outboxd.__file__).parent) + "/"
EVENT = {"eventType": "deploy", "summary": "one event", "severity": "information"}
WARM_UP_EVENTS = 20
IDLE_S = 3.0
# Nothing belongs to the event any more when it is settled and the agent is still.
STILL_S = 0.3
DEADLINE_S = 30.0


class Tracer:
    """The files of outboxd in which a function was called since `restart`, first called first."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}

    def restart(self) -> None:
        self.files = {}

    def install(self) -> None:
        """On this thread and on those that start from now on."""
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    def _called(self, frame: FrameType, what: str, _argument: object) -> None:
        name = frame.f_code.co_filename
        if what == "call" and name.startswith(SOURCE):
            self.files.setdefault(name.removeprefix(SOURCE))


class Client:
    """Hands in events over the agent's socket, and asks for nothing else."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))

    def post(self, path: str = "/mgmt/v1/events", told: object = EVENT) -> None:
        """One request, an event's if not told otherwise, to its answer."""
        body = json.dumps(told).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        answer = self._socket.recv(65536)
        if b" 20" not in answer.partition(b"\r\n")[0]:
            raise AssertionError(f"refused: {answer!r}")


def watch(port: int, path: Path, tracer: Tracer) -> Iterator[tuple[str, list[str], list[str]]]:
    """What each way passes: its name, the files, and those that the idle agent calls too."""
    await_socket(path)
    client = Client(path)
    for _ in range(WARM_UP_EVENTS):
        client.post()
        await_arrival(port)
    time.sleep(STILL_S)
    tracer.restart()
    time.sleep(IDLE_S)
    idle = tracer.files
    tracer.restart()
    client.post()
    await_arrival(port)
    time.sleep(STILL_S)
    settlement = list(tracer.files)
    # Delivery begins before the receipt is written: for the way to that it is held.
    client.post("/v1/hold", {})
    time.sleep(STILL_S)
    tracer.restart()
    client.post()
    for name, files in (("receipt", tracer.files), ("settlement", settlement)):
        yield name, [each for each in files if each not in idle], [f for f in files if f in idle]


def await_socket(path: Path) -> None:
    """Until the agent takes events."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            return
        time.sleep(0.05)
    raise AssertionError("the agent did not start")


def await_arrival(port: int) -> None:
    """Until an event has arrived at the endpoint."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not stats(port)["count"]:
        if time.monotonic() > deadline_s:
            raise AssertionError("the event did not arrive")
        time.sleep(0.02)


def main() -> int:
    from outboxd.agent.run import run_agent

    os.environ["KOMODOR_API_KEY"] = "benchmark"
    tracer = Tracer()
    with tempfile.TemporaryDirectory() as folder, endpoint() as port:
        path = Path(folder) / "s"
        config = Path(folder) / "config.toml"
        config.write_text(
            f'[komodor]\nendpoint = "http://127.0.0.1:{port}/mgmt/v1/events"\n'
            f'[intake]\nsocket = "{path}"\nspool = "{folder}/spool"\n'
            f'[outbox]\npath = "{folder}/outbox.db"\n[log]\nlevel = "warning"\n'
        )
        told: list[tuple[str, list[str], list[str]]] = []

        def look() -> None:
            try:
                told.extend(watch(port, path, tracer))
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        watcher = threading.Thread(target=look)
        watcher.start()  # before the tracer is there: its own steps are nobody's
        tracer.install()
        run_agent(str(config))
        sys.setprofile(None)
        watcher.join()
    for name, files, idle in told:
        print(f"from POST to {name}: {len(files)} files, and {len(idle)} of the idle agent")
        for each in files:
            print(f"    {each}")
        for each in idle:
            print(f"  ( {each} )")
    return 0 if told else 1


if __name__ == "__main__":
    sys.exit(main())
