"""Records what an agent under load does to its disk: every system call, with the data.

A recording is a directory: `state/` (outbox and spool, as the agent left them),
`trace.N` (strace's output of each run of the agent) and `promises.json` (which
event each receipt's id stands for). The agent is the real one, unmodified; the
spool's producer is the one of `outboxd emit`, a child of the same strace, so
that the order of all calls is known.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from support.agent import GONE, AgentProcess, UnixConnection
from support.receiver import OK, Receiver
from support.trace import CALLS, Step, read_steps
from support.waiting import PATIENCE_S

REFUSED = b"HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 2\r\n\r\n{}"

# Runs the spool's producer beside the agent; both are under the same strace.
LAUNCHER = """
import json, os, sys, time
spool, run, count, command = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
if os.fork() == 0:
    from outboxd.producer.spool import put
    from support.recording import body_of
    for number in range(count):
        summary = f"s{run}-{number}"
        name = put(spool, body_of(summary))
        try:
            mtime_ns = os.stat(f"{spool}/new/{name}").st_mtime_ns
        except FileNotFoundError:
            mtime_ns = 0  # taken already: every image before has it by chance only
        told = {"name": name, "mtime_ns": mtime_ns, "summary": summary}
        os.write(1, b"stored " + json.dumps(told).encode() + b"\\n")
        time.sleep(0.004)
    os._exit(0)
os.execv(command[0], command)
"""


class Recording(NamedTuple):
    """A recording, read."""

    directory: Path
    steps: list[Step]
    summaries: dict[str, str]  # id -> summary, of every receipt

    @property
    def state(self) -> str:
        return str(self.directory / "state")


def read(directory: Path) -> Recording:
    traces = sorted(directory.glob("trace.*"))
    summaries = json.loads((directory / "promises.json").read_text())
    return Recording(directory, read_steps(traces, directory / "state"), summaries)


@lru_cache(10_000)
def body_of(summary: str) -> bytes:
    """The event with this summary: always the same, of a size of its own."""
    draw = random.Random(summary)
    size = draw.choice((10, 10, 100, 300, 1000, 6000))
    text = "".join(draw.choices("abcdefgh ", k=size))
    event = {"eventType": "cut", "summary": summary, "details": {"text": text}}
    return json.dumps(event).encode()


def record(
    directory: Path, *, runs: int, posts: int, patch: str = "", pauses: int = 0, seed: int = 0
) -> Path:
    """Run an agent so many times, all but the last ended by SIGKILL.

    In each run three producers hand in `posts` events in all, beside a spool
    writer. With `pauses` the load stops now and then until the agent has
    emptied its log. `patch` is Python that spoils the agent, for controls.
    """
    directory.mkdir()
    state = directory / "state"
    state.mkdir()
    environ = {"PYTHONPATH": str(Path(__file__).parents[1])}
    if patch:
        (directory / "patch").mkdir()
        (directory / "patch" / "sitecustomize.py").write_text(patch)
        environ["PYTHONPATH"] = f"{directory / 'patch'}:{environ['PYTHONPATH']}"
    receiver = Receiver(_behave).start()
    producers = _Producers(directory / "s", seed)
    try:
        for run in range(runs):
            _run(directory, run, runs, receiver, environ, producers, posts, pauses)
    finally:
        receiver.stop()
        (directory / "promises.json").write_text(json.dumps(producers.summaries))
    assert producers.errors == []
    return directory


def _behave(body: bytes) -> bytes:
    return REFUSED if b"-7" in body[:80] else OK


def _run(
    directory: Path,
    run: int,
    runs: int,
    receiver: Receiver,
    environ: dict[str, str],
    producers: _Producers,
    posts: int,
    pauses: int,
) -> None:
    state = directory / "state"
    # All processes hold the writing end; the reading end tells when they are gone.
    ended, alive = os.pipe()
    strace = ("strace", "-D", "-f", "-q", "-y", "--seccomp-bpf", "-xx", "-s", "1000000")
    launcher = (sys.executable, "-c", LAUNCHER, str(state / "spool"), str(run), str(posts // 4))
    agent = AgentProcess(
        directory,
        receiver.endpoint,
        prefix=(*strace, "-o", str(directory / f"trace.{run}"), "-e", CALLS, *launcher),
        environ=environ,
        outbox=state / "outbox.db",
        spool=state / "spool",
        pass_fds=(alive,),
    )
    try:
        agent.start()
        os.close(alive)
        alive = -1
        producers.work(run, posts, pauses, agent)
        agent.signal(signal.SIGTERM if run == runs - 1 else signal.SIGKILL)
        agent.wait()
    finally:
        if agent.pid is not None:
            agent.kill()
        if alive >= 0:
            os.close(alive)
        os.read(ended, 1)
        os.close(ended)


class _Producers:
    """Hand in over the socket, one by one and in batches, and keep the receipts."""

    def __init__(self, socket: Path, seed: int) -> None:
        self.summaries: dict[str, str] = {}
        self.errors: list[str] = []
        self._socket = socket
        self._seed = seed

    def work(self, run: int, posts: int, pauses: int, agent: AgentProcess) -> None:
        for part in range(pauses + 1):
            threads = [
                threading.Thread(target=self._produce, args=(f"{run}-{part}-{n}", posts // 3, n))
                for n in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
                assert not thread.is_alive()
            if part < pauses:
                _await_empty_log(agent)

    def _produce(self, name: str, count: int, number: int) -> None:
        connection = UnixConnection(str(self._socket))
        draw = random.Random(f"{self._seed}-{name}")
        done = 0
        try:
            while done < count:
                size = min(count - done, draw.choice((2, 5, 20)) if number == 2 else 1)
                summaries = [f"p{name}-{done + n}" for n in range(size)]
                self._hand_in(connection, summaries)
                done += size
        except GONE as error:
            self.errors.append(repr(error))
        finally:
            connection.close()

    def _hand_in(self, connection: UnixConnection, summaries: list[str]) -> None:
        path = "/mgmt/v1/events" if len(summaries) == 1 else "/v1/events/batch"
        connection.request("POST", path, b"\n".join(body_of(s) for s in summaries))
        answer = json.loads(connection.getresponse().read())
        for summary, told in zip(summaries, answer.get("results", [answer]), strict=True):
            if told.get("status") != "accepted":
                self.errors.append(str(told))
            self.summaries[told.get("id", "")] = summary


def _await_empty_log(agent: AgentProcess) -> None:
    """The agent's upkeep empties a log that no longer grows."""
    agent.await_empty()
    log = Path(f"{agent.outbox}-wal")
    emptied = threading.Event()
    ends_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_s:
        if log.stat().st_size == 0:
            return
        emptied.wait(0.1)
    raise AssertionError("the log was not emptied")
