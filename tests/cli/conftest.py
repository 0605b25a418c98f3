"""What the tests of commands share: a place of their own, and the command as a process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.waiting import PATIENCE_S

_SPEC = importlib.util.spec_from_file_location(
    "fake_agent", Path(__file__).parent.parent / "fake_agent.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

NOBODY = 65534
# Imports what a command needs and becomes another user only then: the interpreter
# itself may stand where that user has no right to look.
AS_NOBODY = f"""
import os, sys
import outboxd.producer.emit_command, outboxd.producer.exec_command, pwd, json, signal
import outboxd.producer.hand_in, outboxd.producer.masking, outboxd.producer.settings
from outboxd.cli.main import main
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
sys.exit(main(sys.argv[1:]))
"""


class Place:
    """A configuration with a socket and a spool of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "outboxd.sock"
        self.spool = directory / "spool"
        self.config = directory / "config.toml"
        self.config.write_text(f'[intake]\nsocket = "{self.socket}"\nspool = "{self.spool}"\n')
        self.environment = {
            **os.environ,
            "OUTBOXD_CONFIG": str(self.config),
            "XDG_STATE_HOME": str(directory / "state"),
        }

    def spooled(self) -> list[dict[str, Any]]:
        """The events in the spool, oldest first."""
        files = sorted((self.spool / "new").glob("*")) if self.spool.exists() else []
        return [json.loads(file.read_text()) for file in files]

    def start(self, *words: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
        """`outboxd` with these words, as a process."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            [sys.executable, "-m", "outboxd", *words],
            env=options.pop("env", self.environment),
            **options,
        )

    def run(
        self, *words: str | bytes, input: bytes = b"", as_nobody: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """The same to its end."""
        command = ["-c", AS_NOBODY] if as_nobody else ["-m", "outboxd"]
        done = subprocess.run(
            [sys.executable, *command, *words],
            input=input,
            capture_output=True,
            env=options.pop("env", self.environment),
            timeout=PATIENCE_S,
            check=False,
            **options,
        )
        return subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A configuration with a socket and a spool of its own, and no agent."""
    return Place(tmp_path)


@pytest.fixture
def agent(place: Place) -> Iterator[Any]:
    """An agent's socket at that place, which answers as the test says."""
    fake = _MODULE.FakeAgent(place.socket)
    yield fake
    fake.close()


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")


@pytest.fixture
def open_to_all(tmp_path: Path) -> Callable[[], None]:
    """Let other users go through the directories above the test's own."""

    def allow() -> None:
        for directory in (tmp_path, *tmp_path.parents):
            if directory == Path("/") or directory.owner() != "root" or directory.name == "tmp":
                continue
            directory.chmod(directory.stat().st_mode | 0o011)

    return allow
