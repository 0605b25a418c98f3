"""Attacks on a real agent, while a good producer measures what it still gets.

An attack is a function `attack(target, seconds)` in a file of its own (standard
library alone), run in processes of its own, as another user where that is asked
for. Beside it a producer of another uid hands in events one after the other,
each on a new connection, as `emit` does. What is expected whatever the attack:
see `Report.faults`. Each attack has a control that takes the limit away
(`patch`, Python that runs before the agent) and must be caught by the same
expectations.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support.agent import GONE
from support.outside import Agent

NOBODY = 65534
P99_MAX_MS = 250.0
# Of a machine that has nothing else to do; and how much slower it may be, that what is
# measured still says something. Beyond that an attack is not told from the machine.
CALM_P99_MS, SLOWER_MAX = 10.0, 4.0
RSS_MAX_MIB = 256.0
OVER_MAX_S = 5.0

ATTACKER = """
import encodings.idna  # a user who is nobody cannot load it later
import json, os, runpy, sys
path, name, target, seconds, user = json.loads(sys.argv[1])
attack = runpy.run_path(path)[name]
if user is not None:
    os.setgroups([]); os.setgid(user); os.setuid(user)
print("ready", flush=True)
sys.stdin.readline()
attack(target, seconds)
"""

PRODUCER = """
import json, http.client, socket, sys, time

def post(path, body):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = sock
    try:
        while True:
            try:
                sock.connect(path)
                break
            except BlockingIOError:  # the queue of the kernel is full: at once again
                time.sleep(0.005)
        connection.request("POST", "/mgmt/v1/events", body)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        return told["id"] if answer.status in (200, 201) else str(told)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return repr(error)
    finally:
        connection.close()

path, seconds = sys.argv[1], float(sys.argv[2])
took_ms, ids, failures = [], [], []
print("ready", flush=True)
sys.stdin.readline()
ends_s = time.monotonic() + seconds
number = 0
while time.monotonic() < ends_s:
    number += 1
    body = json.dumps({"eventType": "good", "summary": f"event {number}"})
    began_s = time.perf_counter()
    told = post(path, body)
    took_ms.append((time.perf_counter() - began_s) * 1000)
    (ids if len(told) == 36 else failures).append(told)
    time.sleep(0.005)
print(json.dumps([took_ms, ids, failures]), flush=True)
"""

# The floor of the same moment: one sync after the other in the agent's directory, by a
# process that nobody attacks. A machine or a disk that stands still shows here too.
SYNCER = """
import json, os, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
print("ready", flush=True)
sys.stdin.readline()
ends_s, slowest_s = time.monotonic() + seconds, 0.0
while time.monotonic() < ends_s:
    began_s = time.perf_counter()
    os.pwrite(file, bytes(4096), 0)
    os.fdatasync(file)
    slowest_s = max(slowest_s, time.perf_counter() - began_s)
    time.sleep(0.02)
print(json.dumps(slowest_s * 1000), flush=True)
"""


class Measured(NamedTuple):
    """What the good producer saw, and the slowest bare sync meanwhile."""

    took_ms: list[float]
    ids: list[str]
    failures: list[str]
    sync_ms: float

    @property
    def p99_ms(self) -> float:
        return sorted(self.took_ms)[int(len(self.took_ms) * 0.99)] if self.took_ms else 1e9

    @property
    def slower(self) -> float:
        """Without an attack: how many times slower than a machine with nothing else to do."""
        return min(SLOWER_MAX, max(1.0, self.p99_ms / CALM_P99_MS))


class Report(NamedTuple):
    """How one attack went."""

    calm: Measured
    attacked: Measured
    lost: list[str]  # receipts whose events are not in the outbox
    rss_mib: float  # the highest
    over_s: float  # from the attack's end until the agent is as before

    @property
    def allowed_ms(self) -> float:
        """The bound of a receipt's p99: 250 ms, which is what is promised.

        It is a promise for a machine on which a receipt takes a few ms when nobody
        attacks (a commit is one sync of the disk, and that is not ours). One that is
        slower before the attack has as many times longer, up to four: so the test
        judges what the attack adds, and a slow disk alone is no fault. On the machine
        that runs CI, with nothing beside it, the factor is 1. What the slowest bare
        sync took meanwhile is added: among some hundred receipts one that met it is
        the p99 (a virtual disk stands still for a second now and then).
        """
        return P99_MAX_MS * self.calm.slower + self.attacked.sync_ms

    def faults(self, longer: float = 1.0) -> list[str]:
        """Every expectation that does not hold; [] is a pass. A receipt may take so many
        times longer, where the README says so of an attack."""
        attacked, allowed_ms = self.attacked, self.allowed_ms * longer
        found = []
        if attacked.failures:
            found.append(f"{len(attacked.failures)} events refused: {attacked.failures[0][:200]}")
        if attacked.p99_ms >= allowed_ms:
            found.append(f"p99 of a receipt {attacked.p99_ms:.0f} ms, allowed {allowed_ms:.0f}")
        if self.rss_mib >= RSS_MAX_MIB:
            found.append(f"{self.rss_mib:.0f} MiB resident, allowed {RSS_MAX_MIB:.0f}")
        if self.lost:
            found.append(f"{len(self.lost)} accepted events lost")
        if self.over_s >= OVER_MAX_S * self.calm.slower:
            found.append(f"not over {self.over_s:.1f} s after the attack")
        return found

    def __str__(self) -> str:
        return (
            f"calm p99 {self.calm.p99_ms:.1f} ms; attacked p99 {self.attacked.p99_ms:.1f} ms of "
            f"{len(self.attacked.took_ms)}, failed {len(self.attacked.failures)}, "
            f"lost {len(self.lost)}, rss {self.rss_mib:.0f} MiB, over in {self.over_s:.1f} s"
        )


class Abuse:
    """An agent that delivers nothing, so that all it accepted can be looked for."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._calm: Measured | None = None  # before the first attack

    def attack(
        self,
        attack: Callable[[str, float], None],
        *,
        target: str | None = None,
        seconds: float = 2.5,
        processes: int = 1,
        users: Sequence[int | None] = (NOBODY,),
    ) -> Report:
        """Run it, as each of `users` in turn (None: as this process), and report.

        `target` is what the function is given; the socket's path without it.
        """
        agent = self.agent
        target = target or str(agent.socket)
        calm = self._calm = self._calm or self._measure(1.0)
        Path(f"/proc/{agent.pid}/clear_refs").write_text("5")  # the highest RSS begins anew
        before = len(os.listdir(f"/proc/{agent.pid}/fd"))
        where = inspect.getsourcefile(attack)
        attackers = [
            ready([ATTACKER, json.dumps([where, attack.__name__, target, seconds, user])])
            for user in users
            for _ in range(processes)
        ]
        try:
            for attacker in attackers:
                go(attacker)
            attacked = self._measure(seconds)
            for attacker in attackers:
                _, errors = attacker.communicate(timeout=seconds + 30)
                assert attacker.returncode == 0, errors
        finally:
            for attacker in attackers:
                attacker.kill()
                attacker.wait()
        over_s = self._until_over(before, OVER_MAX_S * calm.slower)
        lost = [id for id in (*calm.ids, *attacked.ids) if not self._has(id)]
        return Report(calm, attacked, lost, self._rss_mib(), over_s)

    def let(self, act: Callable[[str, float], None], user: int = NOBODY) -> None:
        """Have a user do something to its end, such as hand in what an attack asks for."""
        where = inspect.getsourcefile(act)
        given = json.dumps([where, act.__name__, str(self.agent.socket), 0.0, user])
        process = ready([ATTACKER, given])
        go(process)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    def _measure(self, seconds: float) -> Measured:
        producer = ready([PRODUCER, str(self.agent.socket), str(seconds)])
        syncer = syncing(self.agent.socket.parent, seconds)
        go(producer)
        output, errors = producer.communicate(timeout=seconds + 60)
        assert producer.returncode == 0, errors
        return Measured(*json.loads(output), slowest_ms(syncer))

    def _until_over(self, descriptors_before: int, longest_s: float) -> float:
        """Seconds until it answers at once and holds no more than before, or beyond the bound."""
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < longest_s + 0.5:
            asked_s = time.monotonic()
            try:
                quick = self.agent.request("GET", "/readyz", timeout_s=5)[0] == 200
            except GONE:
                quick = False
            quick = quick and time.monotonic() - asked_s < 0.5
            if quick and len(os.listdir(f"/proc/{self.agent.pid}/fd")) <= descriptors_before + 3:
                break
            time.sleep(0.1)
        return passed_s

    def _has(self, id: str) -> bool:
        return self.agent.request("GET", f"/v1/events/{id}")[0] == 200

    def _rss_mib(self) -> float:
        status = Path(f"/proc/{self.agent.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024


@contextmanager
def abused(
    directory: Path, patch: str = "", endpoint: str = "", **settings: dict[str, object]
) -> Iterator[Abuse]:
    """A running agent, changed by `patch` before it starts (a control).

    Its destination is held, or else `endpoint`, which must deliver nothing.
    """
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    environ = {}
    if patch:
        (directory / "patch").mkdir()
        (directory / "patch" / "sitecustomize.py").write_text(patch)
        environ["PYTHONPATH"] = str(directory / "patch")
    intake = {"socket_mode": "0666", **settings.pop("intake", {})}
    agent = Agent(
        directory,
        endpoint or "http://127.0.0.1:9/",
        extra={"intake": intake, **settings},
        environ=environ,
    )
    agent.start()
    try:
        if not endpoint:
            assert agent.request("POST", "/v1/hold", b"{}")[0] == 200
        yield Abuse(agent)
    finally:
        agent.kill()


def syncing(directory: Path, seconds: float) -> subprocess.Popen[str]:
    """Bare syncs for so long; it ends by itself, and `slowest_ms` tells."""
    syncer = ready([SYNCER, str(directory / "sync"), str(seconds)])
    go(syncer)
    return syncer


def slowest_ms(syncer: subprocess.Popen[str]) -> float:
    """The slowest of its syncs."""
    output, errors = syncer.communicate(timeout=60)
    assert syncer.returncode == 0, errors
    return float(output)


def ready(arguments: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate()
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
