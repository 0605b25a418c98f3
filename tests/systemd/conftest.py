"""A host's tree with outboxd's units in it, as the installer makes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SYSTEM_UNITS = Path("/usr/lib/systemd/system")


@pytest.fixture(scope="module")
def host():
    """The tree: the host's own units, ours, and something to start."""
    # Not under pytest's own directory: that is closed to other users.
    root = Path(tempfile.mkdtemp(prefix="outboxd-host-"))
    root.chmod(0o755)
    if SYSTEM_UNITS.is_dir():
        shutil.copytree(SYSTEM_UNITS, root / SYSTEM_UNITS.relative_to("/"), symlinks=True)
    for program in ("opt/outboxd/current/bin/outboxd", "bin/sh"):
        path = root / program
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    for account in ((), ("team-a",)):
        install(root, *account)
    yield root
    shutil.rmtree(root)


def install(root: Path, *arguments: str) -> None:
    subprocess.run(
        [PROJECT / "systemd/install.sh", *arguments],
        env={**os.environ, "DESTDIR": str(root)},
        check=True,
    )
