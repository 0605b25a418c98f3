"""The demo's stage: a temporary directory with a real sandbox and real agents.

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
    """The sandbox, the agents, and the ways to them."""

    def __init__(self) -> None:
        directory = tempfile.mkdtemp(prefix="outboxd-demo-")
        if len(directory) > DIRECTORY_CHARACTERS_MAX:
            os.rmdir(directory)
            directory = tempfile.mkdtemp(prefix="outboxd-demo-", dir="/tmp")
        self.directory = directory
        self.sandbox_url = ""
        self.gateway_url = ""
        self.sandbox: subprocess.Popen[bytes] | None = None
        self.agents: list[StageAgent] = []
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def sandbox_pid(self) -> int:
        assert self.sandbox is not None, "the sandbox was started"
        return self.sandbox.pid

    # --- processes ---

    def start_sandbox(self) -> None:
        """Start it on a free port and wait until it listens."""
        words = ("sandbox", "--listen", "127.0.0.1:0", "--api-key", API_KEY)
        self.sandbox = self.start("sandbox", *words)
        log_path = os.path.join(self.directory, "sandbox.log")
        while not self.sandbox_url:
            self.check_alive(self.sandbox, "sandbox")
            with open(log_path, encoding="utf-8") as log:
                line = log.readline()
            if line.startswith("listening on ") and line.endswith("\n"):
                self.sandbox_url = line.split()[-1]
            time.sleep(0.02)

    def add_agent(self, name: str) -> StageAgent:
        """One that sends to the sandbox; not started yet."""
        return self._add(StageAgent(self, name, self.sandbox_url, API_KEY))

    def add_gateway(self) -> StageAgent:
        """One that also takes events over TCP; without TLS, since it is on loopback."""
        # An address of its own: its port stays free while it is killed, on a busy host too.
        address = _free_address(".".join(map(str, (127, *os.urandom(2), 1))))
        self.gateway_url = f"http://{address}"
        tokens = self._tokens_path
        with open(tokens, "x", encoding="utf-8"):
            os.chmod(tokens, 0o600)
        intake = f'listen = "{address}"\ntokens_file = "{tokens}"\n'
        return self._add(StageAgent(self, "gateway", self.sandbox_url, API_KEY, intake))

    def add_host(self, name: str) -> StageAgent:
        """One that sends to the gateway, with a token of its own."""
        token = self.command("token", "new", name, "--tokens-file", self._tokens_path)
        return self._add(StageAgent(self, name, self.gateway_url, token.strip()))

    def _add(self, agent: StageAgent) -> StageAgent:
        self.agents.append(agent)
        return agent

    @property
    def _tokens_path(self) -> str:
        return os.path.join(self.directory, "tokens")

    def close(self) -> None:
        """End all of them and remove the directory."""
        processes = [*(agent.process for agent in reversed(self.agents)), self.sandbox]
        for process in processes:
            if process is not None and process.poll() is None:
                process.terminate()
        for process in processes:
            if process is not None:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

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

    def command(self, *words: str) -> str:
        """Run a command to its end; its stdout. Unavailable where it fails."""
        done = subprocess.run(
            (sys.executable, "-m", "outboxd", *words),
            env=_environment(API_KEY),
            capture_output=True,
            check=False,
            timeout=60,
        )
        if done.returncode != 0:
            raise Unavailable(f"{words[0]} failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def start(self, name: str, *words: str, api_key: str = API_KEY) -> subprocess.Popen[bytes]:
        """Start a process that goes on, with a log of that name."""
        with open(os.path.join(self.directory, f"{name}.log"), "ab") as log:
            # A session of its own: Ctrl-C is for the demo, which ends them in order.
            return subprocess.Popen(
                (sys.executable, "-m", "outboxd", *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=_environment(api_key),
                start_new_session=True,
            )

    def check_alive(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Raises Unavailable, with the end of its log, where the process has ended."""
        if process.poll() is not None:
            raise self.failure(name, f"ended with {process.returncode}")

    def failure(self, name: str, what: str) -> Unavailable:
        """An error with the end of that process's log."""
        with open(os.path.join(self.directory, f"{name}.log"), "rb") as log:
            tail = log.read()[-2000:].decode(errors="replace").strip()
        return Unavailable(f"the {name} {what}", f"its log ends: {tail}" if tail else None)


class StageAgent:
    """One agent of the stage: its files, its process, and the producers' ways to it."""

    def __init__(
        self, stage: Stage, name: str, destination: str, api_key: str, intake: str = ""
    ) -> None:
        """`destination` is the URL of a sandbox or gateway; `intake` are more lines of
        the configuration's section."""
        self._stage = stage
        self.name = name
        self.api_key = api_key
        self._directory = os.path.join(stage.directory, name)
        os.mkdir(self._directory)
        self.config_path = os.path.join(self._directory, "config.toml")
        self.socket_path = os.path.join(self._directory, "outboxd.sock")
        self._spool_path = os.path.join(self._directory, "spool")
        self.process: subprocess.Popen[bytes] | None = None
        page = _free_address()
        self.page_url = f"http://{page}/"
        with open(self.config_path, "w", encoding="utf-8") as file:
            file.write(
                f'[komodor]\nendpoint = "{destination}/mgmt/v1/events"\n\n'
                f'[intake]\nsocket = "{self.socket_path}"\nspool = "{self._spool_path}"\n{intake}\n'
                f'[outbox]\npath = "{self._directory}/outbox.db"\n\n'
                "# Short waits, so that the demo is short.\n"
                '[delivery]\nbackoff_initial = "200ms"\nbackoff_max = "1s"\n\n'
                f'[http]\nlisten = "{page}"\n'
            )

    @property
    def pid(self) -> int:
        """Of its process, the last one."""
        assert self.process is not None, "the agent was started"
        return self.process.pid

    def start(self) -> None:
        """Start it and wait until it takes events."""
        words = ("run", "-c", self.config_path)
        self.process = self._stage.start(self.name, *words, api_key=self.api_key)
        ends_at_s = time.monotonic() + START_TIMEOUT_S
        while True:
            self._stage.check_alive(self.process, self.name)
            connection = UnixConnection(self.socket_path, 1.0)
            try:
                connection.connect()
                return
            except OSError:
                if time.monotonic() > ends_at_s:
                    raise self._stage.failure(self.name, "does not open its socket") from None
                time.sleep(0.02)
            finally:
                connection.close()

    def kill(self) -> None:
        """As a crash or the kernel's own choice would: no warning, no clean-up."""
        assert self.process is not None, "the agent was started"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def pending_count(self) -> int:
        """Events that it still has to send on."""
        connection = UnixConnection(self.socket_path, ANSWER_TIMEOUT_S)
        try:
            connection.request("GET", "/v1/status")
            count: int = json.loads(connection.getresponse().read())["outbox"]["pending"]
            return count
        finally:
            connection.close()

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
        spool.put(self._spool_path, data)

    def emit(self, *words: str) -> None:
        """Hand in by the command, a process of its own."""
        self._stage.command("emit", "-c", self.config_path, *words)


def _environment(api_key: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return {**kept, "KOMODOR_API_KEY": api_key, "NO_PROXY": "*", "no_proxy": "*"}


def _free_address(host: str = "127.0.0.1") -> str:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
