"""What the attacks share: the agent that is attacked, and who may play another user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from support.abuse import abused


@pytest.fixture
def attacked(full):
    """`with attacked(patch, section={...}) as abuse:`; in a directory that every user can enter."""
    if not full:
        pytest.skip("measures what others notice of an attack, with nothing beside it: --full")
    if os.geteuid() != 0:
        reason = "attackers of another user need root"
        if os.environ.get("OUTBOXD_TEST_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="outboxd-abuse-") as directory:
        os.chmod(directory, 0o755)
        numbers = iter(range(100))

        def start(patch: str = "", **settings):
            return abused(Path(directory) / str(next(numbers)), patch, **settings)

        yield start
