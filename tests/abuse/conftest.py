"""What the attacks share: the agent that is attacked, and who may play another user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.abuse import abused
from support.neighbour import House, house


@pytest.fixture(scope="session")
def as_root() -> None:
    """Skips where nobody can play another user, and fails where all tests must run."""
    if os.geteuid() != 0:
        reason = "attackers of another user need root"
        if os.environ.get("OUTBOXD_TEST_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def attacked(full, as_root):
    """`with attacked(patch, section={...}) as abuse:`; in a directory that every user can enter."""
    if not full:
        pytest.skip("measures what others notice of an attack, with nothing beside it: --full")
    with _public_directory() as directory:
        numbers = iter(range(100))

        def start(patch: str = "", **settings):
            return abused(directory / str(next(numbers)), patch, **settings)

        yield start


@pytest.fixture(scope="module")
def shared_house(as_root) -> Iterator[House]:
    """One agent for all attacks of a file that leave it as it is."""
    with _public_directory() as directory, house(directory / "h", **SHARED) as shared:
        yield shared


SHARED: dict[str, Any] = {"dedup": {"repeat_window": "1h"}}


@pytest.fixture
def make_house(as_root) -> Iterator[Callable[..., Any]]:
    """`with make_house(endpoint, patch, section={...}) as house:`"""
    with _public_directory() as directory:
        numbers = iter(range(100))
        yield lambda *given, **named: house(directory / str(next(numbers)), *given, **named)


@pytest.fixture
def only_full(full) -> None:
    """For a control, or another form of what every run tries."""
    if not full:
        pytest.skip("it is among the full figures: --full")


@pytest.fixture
def controlled_house(only_full, make_house) -> Callable[..., Any]:
    """`with controlled_house(patch) as house:` one whose agent lacks a rule."""
    return lambda patch, **named: make_house(patch=patch, **{**SHARED, **named})


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can enter."""
    with _public_directory() as directory:
        yield directory


@contextmanager
def _public_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="outboxd-abuse-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)
