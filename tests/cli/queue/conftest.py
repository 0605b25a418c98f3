"""A real agent, a real sandbox, and the commands as processes."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.waiting import PATIENCE_S

NOBODY = 65534
# A process that has imported all of outboxd and forks for each command: that is a
# process of its own, with its own user and descriptors, and no test waits for
# a hundred interpreters to start. (`fresh=True` starts one all the same.) All of
# it, because the user nobody may not be able to read where it is installed. And it
# gives up no agent that is only late, as a busy machine's may be.
NURSERY = f"""
import encodings.idna, grp, httpcore, importlib, json, os, pkgutil, pwd, shutil, sys, time, outboxd
for module in pkgutil.walk_packages(outboxd.__path__, "outboxd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from outboxd.cli.main import main
outboxd.cli.agent.TIMEOUT_S = outboxd.cli.status.CHECK_ANSWER_S = {PATIENCE_S}
outboxd.cli.wait.LOOK_MIN_S = {PATIENCE_S}
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, path in ((0, "/dev/null"), (1, order["out"]), (2, order["err"])):
            flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags, 0o600), descriptor)
        os.environ.clear()
        os.environ.update(order["environment"])
        time.tzset()
        if order["nobody"]:
            os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
        code = 70
        try:
            code = main(order["words"])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class World:
    """A directory with a sandbox and, while it runs, an agent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "outboxd.sock"
        self.outbox = directory / "outbox.db"
        self.config = directory / "config.toml"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "KOMODOR_API_KEY"},
            "NO_PROXY": "*",
            "TZ": "UTC",
        }
        self.agent: subprocess.Popen[bytes] | None = None
        self.refused = 0  # events, since one was surely delivered
        self.sandbox = subprocess.Popen(
            [sys.executable, "-m", "outboxd", "sandbox", "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
        )
        assert self.sandbox.stdout is not None
        self.nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self.sandbox.stdout.readline().decode().split()[-1]
        self.write_config()

    def write_config(self, more: str = "") -> None:
        (self.directory / "key").write_text("any-key\n")
        (self.directory / "key").chmod(0o600)
        self.config.write_text(
            f'[komodor]\nendpoint = "{self.url}/mgmt/v1/events"\napi_key_file = "key"\n'
            f'[intake]\nsocket = "outboxd.sock"\nspool = "spool"\n[outbox]\npath = "outbox.db"\n'
            f'[delivery]\nbackoff_initial = "50ms"\nbackoff_max = "200ms"\n{more}'
        )

    # --- processes ---

    def start_agent(self) -> None:
        with open(self.directory / "agent.log", "ab") as log:
            command = [sys.executable, "-m", "outboxd", "run", "-c", str(self.config)]
            self.agent = subprocess.Popen(command, stderr=log, env=self.environment)
        ends_at_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_at_s and self.agent.poll() is None:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError((self.directory / "agent.log").read_text())

    def stop_agent(self) -> None:
        if self.agent is not None:
            self.agent.terminate()
            self.agent.wait(PATIENCE_S)
            self.agent = None

    def close(self) -> None:
        self.stop_agent()
        self.sandbox.terminate()
        self.sandbox.communicate(timeout=PATIENCE_S)
        self.nursery.communicate(timeout=PATIENCE_S)  # its input ends, and so does it

    # --- commands ---

    def run(self, *words: str, nobody: bool = False, fresh: bool = False) -> Done:
        """`outboxd` with these words and this world's configuration, as a process."""
        words = (*words, "-c", str(self.config))
        if fresh:
            done = subprocess.run(
                [sys.executable, "-m", "outboxd", *words],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            return Done(done.returncode, done.stdout, done.stderr)
        out, err = self.directory / "out", self.directory / "err"
        order = {"words": words, "nobody": nobody, "environment": self.environment}
        line = json.dumps({**order, "out": str(out), "err": str(err)})
        assert self.nursery.stdin is not None
        assert self.nursery.stdout is not None
        self.nursery.stdin.write(line + "\n")
        self.nursery.stdin.flush()
        code = int(self.nursery.stdout.readline())
        return Done(code, out.read_text(), err.read_text())

    # --- the agent's own interface ---

    def post(self, event: dict[str, Any] | bytes, path: str = "/mgmt/v1/events") -> Any:
        return self.ask("POST", path, event)

    def ask(self, method: str, path: str, event: dict[str, Any] | bytes = b"") -> Any:
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        try:
            connection.request(method, path, body)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def status(self) -> Any:
        return self.ask("GET", "/v1/status")

    def add(self, summary: str, **fields: Any) -> str:
        """Hand in an event; its id."""
        receipt = self.post({"eventType": "test", "summary": summary, **fields})
        assert receipt["status"] == "accepted", receipt
        return str(receipt["id"])

    def faults(self, **wanted: Any) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/sandbox/faults", json.dumps(wanted).encode()):
            pass

    def settle(self) -> None:
        """Wait until nothing is pending: what tests before left goes by no test's faults."""
        ends_at_s = time.monotonic() + PATIENCE_S
        while self.status()["outbox"]["pending"]:
            assert time.monotonic() < ends_at_s, self.status()
            time.sleep(0.01)
        # Ten refused in a row, with none delivered between, are the destination's fault.
        if self.refused >= 5:
            assert self.run("wait", self.add("a good one between")).code == 0
            self.refused = 0

    def until_state(self, id: str, state: str) -> dict[str, Any]:
        """Wait for an entry's state, seen through the command."""
        ends_at_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_at_s:
            entry = self.run("events", "show", id, "--json").json
            if entry["state"] == state:
                return entry
        raise AssertionError(f"{id} is not {state}")

    def dead(self, summary: str, **fields: Any) -> str:
        """An event that the sandbox refuses; its id, once it is a dead letter."""
        self.refused += 1
        self.faults(status=400)
        id = self.add(summary, **fields)
        assert self.run("wait", id).code == 1
        self.faults(status=None)
        return id


class Done:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        assert "Traceback" not in err, err
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def __repr__(self) -> str:
        return f"exit code {self.code}\nout: {self.out}\nerr: {self.err}"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A sandbox with an agent, for all tests of a file."""
    with tempfile.TemporaryDirectory(prefix="outboxd-test-") as directory:
        Path(directory).chmod(0o755)
        world = World(Path(directory))
        try:
            world.start_agent()
            yield world
        finally:
            world.close()
