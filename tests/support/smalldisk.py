"""Small disks that can be filled: tmpfs, or ext4 in a file, mounted for one test.

The mount is made in a mount namespace of its own, held by one process, so that
it vanishes with the test whatever happens. The agent enters that namespace;
the test looks in through /proc.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HELD = """
set -e
{mount}
echo mounted
exec cat
"""


class SmallDisk:
    """A mounted file system of `size_mib`; `kind` is tmpfs, ext4-1k or ext4-4k."""

    def __init__(self, base: Path, kind: str, size_mib: int = 40) -> None:
        self.inside = base / "disk"  # its name for the agent
        self.inside.mkdir()
        image = base / "image"
        if kind == "tmpfs":
            mount = f"mount -t tmpfs -o size={size_mib}m none {self.inside}"
        else:
            with image.open("wb") as file:
                file.truncate(size_mib * 1024 * 1024)
            block = {"ext4-1k": "1024", "ext4-4k": "4096"}[kind]
            # Without blocks kept for root, who runs the tests.
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", block, str(image)], check=True)
            mount = f"mount -o loop {image} {self.inside}"
        self._holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", HELD.format(mount=mount)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            _, errors = self._holder.communicate()
            raise OSError(errors.decode().strip())
        # To start an agent that sees it.
        self.prefix = ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt")
        self.outside = Path(f"/proc/{self._holder.pid}/root{self.inside}")

    def close(self) -> None:
        self._holder.communicate()

    def free_bytes(self) -> int:
        status = os.statvfs(self.outside)
        return status.f_bavail * status.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all of the room but `leave_bytes`."""
        fd = os.open(self.outside / "filler", os.O_RDWR | os.O_CREAT)
        try:
            step = 1 << 20
            size = os.fstat(fd).st_size
            while step >= 512:
                if self.free_bytes() - leave_bytes < step:
                    step //= 2
                    continue
                try:
                    os.pwrite(fd, bytes(step), size)
                    os.fsync(fd)
                    size += step
                except OSError:
                    step //= 2
        finally:
            os.close(fd)

    def empty(self) -> None:
        """Give the room back."""
        (self.outside / "filler").unlink()


def make(base: Path, kind: str, need, size_mib: int = 40) -> SmallDisk:
    """The disk, or a skip (a failure when all tests must run) with the reason."""
    for tool in ("unshare", "nsenter", "mount"):
        need(tool)
    if kind != "tmpfs":
        need("mkfs.ext4", "e2fsprogs")
    try:
        return SmallDisk(base, kind, size_mib)
    except OSError as error:
        reason = f"cannot mount a {kind}: {error}"
        if os.environ.get("OUTBOXD_TEST_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
