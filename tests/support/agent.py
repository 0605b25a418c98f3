"""Real agents as processes, for tests that kill them, and a zygote that starts them quickly.

Two ways to start one. `exec` is what a person does: a new interpreter. `fork`
uses a zygote, a process that has imported the agent and forks for each start:
the same code, unmodified, without 0.5 s of imports, so that a test can afford
a thousand restarts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from support.waiting import PATIENCE_S

# Where bytecode may not be written every start would compile everything.
ENVIRON = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
ENVIRON["KOMODOR_API_KEY"] = "test-key"

# The parent process that strace pretends to, so that the child knows that it is attached.
ATTACHED_PID = 4_000_000

ZYGOTE = """
import ctypes, os, subprocess, sys, time
from outboxd.cli.main import main
import outboxd.agent.run
tracers = {}
for line in sys.stdin:
    act, *words = line.rstrip("\\n").split("\\t")
    if act == "wait":
        pid = int(words[0])
        print(os.waitpid(pid, 0)[1], flush=True)
        if pid in tracers:
            tracers.pop(pid).wait()
        continue
    config, log, notify, attached, strace, namespace = words
    pid = os.fork()
    if pid and strace:
        words = [*strace.split(" "), "-p", str(pid)]
        tracers[pid] = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    if pid == 0:
        if strace:
            ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # whoever asks
            while os.getppid() != int(attached):
                time.sleep(0.002)
        os.environ["NOTIFY_SOCKET"] = notify
        if namespace:
            with open(f"/run/netns/{namespace}") as file:
                assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0, namespace
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 2); os.dup2(fd, 1)
        null = os.open("/dev/null", os.O_RDONLY); os.dup2(null, 0)
        code = 70
        try:
            code = main(["run", "-c", config])
        finally:
            os._exit(code)
    print(pid, flush=True)
"""


class Zygote:
    """Starts agents by forking, as many as are wanted."""

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        """`environ` goes before what the agents have in their environment."""
        path = {k: v for k, v in os.environ.items() if k == "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**ENVIRON, **path, **(environ or {})},
        )

    def start(
        self,
        config: Path,
        log: Path,
        notify: str,
        strace: tuple[str, ...] = (),
        namespace: str | None = None,
    ) -> int:
        """Fork an agent, into that network namespace where one is given. With `strace`,
        that is attached before the agent does anything."""
        if strace:
            strace = (*strace, "-e", f"inject=getppid:retval={ATTACHED_PID}")
        return self._ask(
            *("start", str(config), str(log), notify),
            *(str(ATTACHED_PID), " ".join(strace), namespace or ""),
        )

    def wait(self, pid: int) -> int:
        """The exit status of a child that is dead or about to be, as os.waitpid gives it."""
        return self._ask("wait", str(pid))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()

    def _ask(self, *words: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join(words) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


class AgentProcess:
    """One agent in a directory of its own; started, killed and started again."""

    def __init__(
        self,
        directory: Path,
        endpoint: str,
        *,
        extra: dict[str, dict[str, object]] | None = None,
        zygote: Zygote | None = None,
        prefix: tuple[str, ...] = (),
        namespace: str | None = None,
        environ: dict[str, str] | None = None,
        outbox: Path | None = None,
        spool: Path | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.directory = directory
        self.config = directory / "config.toml"
        self.socket = directory / "s"
        self.spool = spool or directory / "spool"
        self.outbox = outbox or directory / "outbox.db"
        self.log = directory / "log"
        self.pid: int | None = None
        self.strace: tuple[str, ...] = ()  # attached to what a zygote starts
        self._zygote = zygote
        self._prefix = prefix
        self._namespace = namespace  # of the network
        self._environ = environ or {}
        self._pass_fds = pass_fds
        self._popen: subprocess.Popen[bytes] | None = None
        sections: dict[str, dict[str, object]] = {
            "komodor": {"endpoint": endpoint},
            "intake": {"socket": str(self.socket), "spool": str(self.spool)},
            "outbox": {"path": str(self.outbox), "disk_free_min": "1MiB"},
            "delivery": {"backoff_initial": "20ms", "backoff_max": "200ms"},
        }
        for name, keys in (extra or {}).items():
            sections.setdefault(name, {}).update(keys)
            # None: not even what stands above.
            sections[name] = {k: v for k, v in sections[name].items() if v is not None}
        self.config.write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
                for name, keys in sections.items()
            )
        )

    def start(self, *, ready: bool = True) -> None:
        """Start, and wait until it says that it takes events."""
        address = str(self.directory / "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(address)
            notify.settimeout(PATIENCE_S)
            self._launch(address)
            if ready:
                self._await_ready(notify)

    def _launch(self, address: str) -> None:
        if self._zygote is not None:
            self.pid = self._zygote.start(
                self.config, self.log, address, self.strace, self._namespace
            )
            return
        inside = ("ip", "netns", "exec", self._namespace) if self._namespace else ()
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [
                    *inside,
                    *self._prefix,
                    sys.executable,
                    "-m",
                    "outboxd",
                    "run",
                    "-c",
                    str(self.config),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **ENVIRON,
                    "NOTIFY_SOCKET": address,
                    **self._environ,
                },
                pass_fds=self._pass_fds,
            )
        self.pid = self._popen.pid

    def _await_ready(self, notify: socket.socket) -> None:
        deadline = time.monotonic() + PATIENCE_S
        notify.settimeout(0.5)
        while time.monotonic() < deadline:
            try:
                if b"READY=1" in notify.recv(4096):
                    return
            except TimeoutError:
                if self._popen is not None and self._popen.poll() is not None:
                    break
        raise AssertionError(f"the agent did not start:\n{self.log_text()[-3000:]}")

    def signal(self, number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code; negative for the signal that ended it."""
        if self._popen is not None:
            code = self._popen.wait(timeout_s)
            self._popen = None
        else:
            assert self._zygote is not None
            assert self.pid is not None
            status = self._zygote.wait(self.pid)
            code = os.waitstatus_to_exitcode(status)
        self.pid = None
        return code

    def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return self.wait()

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def request(
        self, method: str, path: str, body: bytes | None = None, timeout_s: float = PATIENCE_S
    ) -> tuple[int, object]:
        """One request on a connection of its own."""
        connection = UnixConnection(str(self.socket), timeout_s)
        try:
            # Whoever refuses a body need not read all of it, however slowly it comes.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data[:1] in (b"{", b"[") else data
        finally:
            connection.close()

    def answers(self) -> bool:
        """Whether it takes events now."""
        try:
            return self.request("GET", "/readyz")[0] == 200
        except GONE:
            return False

    def status(self) -> dict:
        return self.request("GET", "/v1/status")[1]  # type: ignore[return-value]

    def await_taken(self, timeout_s: float = PATIENCE_S) -> None:
        """Until nothing waits in the spool."""
        deadline = time.monotonic() + timeout_s
        while any(not name.startswith(".") for name in os.listdir(self.spool / "new")):
            if time.monotonic() > deadline:
                raise AssertionError(f"files stay in the spool:\n{self.log_text()[-3000:]}")
            time.sleep(0.02)

    def await_empty(self, timeout_s: float = PATIENCE_S) -> dict:
        """Until nothing is pending and the spool is empty; the status then."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            waiting = [n for n in os.listdir(self.spool / "new") if not n.startswith(".")]
            if status["outbox"]["pending"] == 0 and not waiting:
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"still waiting: {len(waiting)} files, {status}")
            time.sleep(0.05)


class UnixConnection(HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: str, timeout_s: float = PATIENCE_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


# What a producer sees when the agent goes away in the middle.
GONE = (OSError, HTTPException)
