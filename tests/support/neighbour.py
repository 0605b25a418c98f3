"""Other users of a host with an agent: processes of theirs that ask it things.

For attacks whose outcome does not depend on time. The agent is real, and may be
changed by a patch before it starts (a control).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.outside import Agent

ALICE, BOB = 65_534, 65_533

# Asks for one line of JSON after the other, each on a connection of its own.
ASKER = """
import http.client, json, os, socket, sys
path, user = sys.argv[1], int(sys.argv[2])
os.setgroups([]); os.setgid(user); os.setuid(user)
for line in sys.stdin:
    method, target, headers, body = json.loads(line)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.settimeout(60)
    opened.connect(path)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = opened
    connection.request(method, target, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    connection.close()
    print(json.dumps([answer.status, text]), flush=True)
"""


class Neighbour:
    """A user of the host who is in the socket's group."""

    def __init__(self, socket_path: Path, user: int) -> None:
        self.user = user
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", ASKER, str(socket_path), str(user)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        self, method: str, target: str, body: str | None = None, **headers: str
    ) -> tuple[int, str]:
        """Status and text of the answer; `_` in a header's name stands for `-`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._process.stdin.write(json.dumps([method, target, named, body]) + "\n")
        self._process.stdin.flush()
        status, text = json.loads(self._process.stdout.readline())
        return status, text

    def hand_in(self, summary: str, event: dict[str, Any] | None = None, **headers: str) -> Any:
        """The receipt of an event, or the refusal, with its status as `code`."""
        body = json.dumps({"eventType": "neighbour", "summary": summary, **(event or {})})
        status, text = self.ask("POST", "/mgmt/v1/events", body, **headers)
        return {**json.loads(text), "code": status}

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def drop(agent: Agent, name: str, content: bytes, owner: int = ALICE) -> None:
    """A spool file of another user, by the way that all files come."""
    temporary = agent.spool / "tmp" / name
    temporary.write_bytes(content)
    os.chown(temporary, owner, owner)
    os.rename(temporary, agent.spool / "new" / name)


class House:
    """An agent, and those who share it."""

    def __init__(self, agent: Agent, environ: dict[str, str]) -> None:
        self.agent = agent
        self.environ = environ  # of commands that are to have the same patch
        self.alice = Neighbour(agent.socket, ALICE)
        self.bob = Neighbour(agent.socket, BOB)

    def end(self) -> None:
        self.alice.end()
        self.bob.end()


@contextmanager
def house(
    directory: Path,
    endpoint: str = "http://127.0.0.1:9/",
    patch: str = "",
    environ: dict[str, str] | None = None,
    **sections: dict[str, object],
) -> Iterator[House]:
    """A running agent whose socket every user may use."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    environ = dict(environ or {})
    if patch:
        (directory / "patch").mkdir()
        (directory / "patch" / "sitecustomize.py").write_text(patch)
        environ["PYTHONPATH"] = str(directory / "patch")
    intake = {"socket_mode": "0666", "read_others": False, **sections.pop("intake", {})}
    agent = Agent(directory, endpoint, extra={"intake": intake, **sections}, environ=environ)
    agent.start()
    shared = House(agent, environ)
    try:
        yield shared
    finally:
        shared.end()
        agent.kill()
