"""What the tests of the producer's side share: a place of their own, and an agent's socket."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "fake_agent", Path(__file__).parent.parent / "fake_agent.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)


class Place:
    """A configuration with a socket and a spool of its own."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "outboxd.sock"
        self.spool = directory / "spool"
        self.config = str(directory / "config.toml")
        Path(self.config).write_text(
            f'[intake]\nsocket = "{self.socket}"\nspool = "{self.spool}"\n'
        )

    def agent_was_here(self) -> None:
        """Make the spool as an agent leaves it, which alone makes `rejected/`."""
        for part in ("tmp", "new", "rejected"):
            (self.spool / part).mkdir(parents=True, exist_ok=True)

    def spooled(self) -> list[dict[str, Any]]:
        """The events in the spool, oldest first."""
        files = sorted((self.spool / "new").glob("*")) if self.spool.exists() else []
        return [json.loads(file.read_text()) for file in files]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def agent(place: Place) -> Iterator[Any]:
    """An agent's socket at that place, which answers as the test says."""
    fake = _MODULE.FakeAgent(place.socket)
    yield fake
    fake.close()
