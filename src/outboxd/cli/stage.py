"""The demo's stage: a temporary directory with a real sandbox and a real agent.

It starts, kills and asks them as any user would, by processes, sockets and
files. It must never leave a process behind unless it is told to.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

from outboxd.cli.agent import UnixConnection
from outboxd.errors import Unavailable
from outboxd.producer import spool

API_KEY = "demo-key"
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 15.0
# A Unix socket's path has room for 107 bytes.
DIRECTORY_CHARACTERS_MAX = 80
# What the surroundings may hold that is meant for another agent.
FOREIGN = (
    *("OUTBOXD_CONFIG", "KOMODOR_API_KEY", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"),
    *("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"),
)


class Stage:
    """Sandbox and agent, and the ways to them."""

    def __init__(self) -> None:
        directory = tempfile.mkdtemp(prefix="outboxd-demo-")
        if len(directory) > DIRECTORY_CHARACTERS_MAX:
            os.rmdir(directory)
            directory = tempfile.mkdtemp(prefix="outboxd-demo-", dir="/tmp")
        self.directory = directory
        self.config_path = os.path.join(directory, "config.toml")
        self.socket_path = os.path.join(directory, "outboxd.sock")
        self.spool_path = os.path.join(directory, "spool")
        self.sandbox_url = ""
        self.page_url = ""
        self.sandbox: subprocess.Popen[bytes] | None = None
        self.agent: subprocess.Popen[bytes] | None = None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    api_key = API_KEY

    @property
    def agent_pid(self) -> int:
        assert self.agent is not None, "the agent was started"
        return self.agent.pid

    @property
    def sandbox_pid(self) -> int:
        assert self.sandbox is not None, "the sandbox was started"
        return self.sandbox.pid

    # --- processes ---

    def start_sandbox(self) -> None:
        """Start it on a free port and wait until it listens."""
        words = ("sandbox", "--listen", "127.0.0.1:0", "--api-key", API_KEY)
        self.sandbox = self._start("sandbox", *words)
        log_path = os.path.join(self.directory, "sandbox.log")
        while not self.sandbox_url:
            self._check_alive(self.sandbox, "sandbox")
            with open(log_path, encoding="utf-8") as log:
                line = log.readline()
            if line.startswith("listening on ") and line.endswith("\n"):
                self.sandbox_url = line.split()[-1]
            time.sleep(0.02)
        self._write_config()

    def start_agent(self) -> None:
        """Start it and wait until it takes events."""
        self.agent = self._start("agent", "run", "-c", self.config_path)
        ends_at_s = time.monotonic() + START_TIMEOUT_S
        while True:
            self._check_alive(self.agent, "agent")
            try:
                UnixConnection(self.socket_path, 1.0).connect()
                return
            except OSError:
                if time.monotonic() > ends_at_s:
                    raise self._failure("agent", "does not open its socket") from None
                time.sleep(0.02)

    def kill_agent(self) -> None:
        """As a crash or the kernel's own choice would: no warning, no clean-up."""
        assert self.agent is not None, "the agent was started"
        self.agent.send_signal(signal.SIGKILL)
        self.agent.wait()

    def close(self) -> None:
        """End both and remove the directory."""
        for process in (self.agent, self.sandbox):
            if process is not None and process.poll() is None:
                process.terminate()
        for process in (self.agent, self.sandbox):
            if process is not None:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- the producers' ways ---

    def post(self, body: bytes, path: str = "/mgmt/v1/events") -> list[str]:
        """Hand in by the socket; the receipts' ids. OSError or HTTPException where it fails."""
        connection = UnixConnection(self.socket_path, ANSWER_TIMEOUT_S)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status not in (200, 201):
            raise http.client.HTTPException(f"answered {answer.status}: {content}")
        return [receipt["id"] for receipt in content.get("results", [content]) if "id" in receipt]

    def spool(self, data: bytes) -> None:
        """Hand in by the drop directory; stored once this returns."""
        spool.put(self.spool_path, data)

    def emit(self, *words: str) -> None:
        """Hand in by the command, a process of its own."""
        command = (sys.executable, "-m", "outboxd", "emit", "-c", self.config_path, *words)
        done = subprocess.run(
            command, env=self._environment(), capture_output=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise Unavailable(f"emit failed: {done.stderr.decode(errors='replace').strip()}")

    # --- the other side ---

    def faults(self, **wanted: Any) -> None:
        """Make the sandbox misbehave, or not."""
        self._ask("/sandbox/faults", json.dumps(wanted).encode())

    def received_count(self) -> int:
        """How many events the sandbox has answered 201."""
        count: int = self._ask("/sandbox/summary")["distinct"]
        return count

    def received(self) -> list[dict[str, Any]]:
        """Every event that the sandbox received, duplicates included."""
        events: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self._ask(f"/v1/events?limit=500{cursor}")
            events += page["events"]
            if page["next"] is None:
                return events
            cursor = f"&cursor={page['next']}"

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        with self._opener.open(self.sandbox_url + path, body, ANSWER_TIMEOUT_S) as answer:
            return json.loads(answer.read())

    # --- the machinery ---

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with open(os.path.join(self.directory, f"{name}.log"), "ab") as log:
            # A session of its own: Ctrl-C is for the demo, which ends them in order.
            return subprocess.Popen(
                (sys.executable, "-m", "outboxd", *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self._environment(),
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        return {**kept, "KOMODOR_API_KEY": API_KEY, "NO_PROXY": "*", "no_proxy": "*"}

    def _write_config(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            page = f"127.0.0.1:{probe.getsockname()[1]}"
        self.page_url = f"http://{page}/"
        with open(self.config_path, "w", encoding="utf-8") as file:
            file.write(
                f'[komodor]\nendpoint = "{self.sandbox_url}/mgmt/v1/events"\n\n'
                f'[intake]\nsocket = "{self.socket_path}"\nspool = "{self.spool_path}"\n\n'
                f'[outbox]\npath = "{self.directory}/outbox.db"\n\n'
                "# Short waits, so that the demo is short.\n"
                '[delivery]\nbackoff_initial = "200ms"\nbackoff_max = "1s"\n\n'
                f'[http]\nlisten = "{page}"\n'
            )

    def _check_alive(self, process: subprocess.Popen[bytes], name: str) -> None:
        if process.poll() is not None:
            raise self._failure(name, f"ended with {process.returncode}")

    def _failure(self, name: str, what: str) -> Unavailable:
        with open(os.path.join(self.directory, f"{name}.log"), "rb") as log:
            tail = log.read()[-2000:].decode(errors="replace").strip()
        return Unavailable(f"the {name} {what}", f"its log ends: {tail}" if tail else None)
