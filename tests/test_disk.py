"""What is said of a disk without room: what it ran out of."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from outboxd.disk import has_inodes, room_hint
from outboxd.producer.spool import NotStored, put

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a small disk"
)


@pytest.fixture
def without_inodes(tmp_path):
    """A disk with bytes to spare and not one inode."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-o", "size=4m,nr_inodes=6", "none"]
    subprocess.run(["mount", "-t", "tmpfs", *options, str(disk)], check=True)
    try:
        (disk / "tmp").mkdir()
        (disk / "new").mkdir()
        for number in range(3):
            (disk / f"{number}").touch()
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_without_inodes_the_hint_is_to_look_for_inodes(without_inodes):
    with pytest.raises(NotStored, match="df -i"):
        put(str(without_inodes), b"{}")
    assert not has_inodes(f"{without_inodes}/not/there")


def test_with_inodes_it_is_to_look_for_bytes(tmp_path):
    assert "df -h" in room_hint(f"{tmp_path}/not/there")
    assert "df -h" in room_hint("not there")
