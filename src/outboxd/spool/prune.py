"""How much `rejected/` may hold, and what goes first.

Whoever may hand in can have refused as much as they like, and nobody looks
there every day: beyond the bounds the oldest goes, of whoever has most, so
that one user's refused files never push out another's. Blocking, as `files`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from typing import NamedTuple

from outboxd.spool.files import SpoolFolder
from outboxd.spool.rejects import SUFFIX, owner_told

REJECTED_BYTES_MAX = 256 << 20  # on the disk: a hole takes no room
REJECTED_FILES_MAX = 10_000  # with their texts twice as many
_LEFT = 0.9  # of the bounds, so that the next refusal need not look again


class Held(NamedTuple):
    """What `rejected/` holds."""

    bytes: int
    files: int

    def is_too_much(self, part: float = 1.0) -> bool:
        return self.bytes > REJECTED_BYTES_MAX * part or self.files > REJECTED_FILES_MAX * part


class _Refused(NamedTuple):
    """A refused file and its text."""

    since_ns: int
    name: str
    bytes: int


def measure(folder: SpoolFolder) -> Held:
    """What is in it now."""
    sizes = [refused.bytes for _, refused in _refused(folder)]
    return Held(sum(sizes), len(sizes))


def size_of(folder: SpoolFolder, name: str) -> int:
    """What a refused file and its text take on the disk."""
    return sum(_bytes(found) for found in _both(folder, name) if found is not None)


def prune(folder: SpoolFolder) -> tuple[Held, int]:
    """Remove what is too much; what is left, and how many files went."""
    by_owner: dict[int, list[_Refused]] = {}
    for owner, refused in _refused(folder):
        by_owner.setdefault(owner, []).append(refused)
    for files in by_owner.values():
        files.sort(reverse=True)  # the oldest is the last
    sizes = {owner: sum(one.bytes for one in files) for owner, files in by_owner.items()}
    held = Held(sum(sizes.values()), sum(map(len, by_owner.values())))
    gone = 0
    while by_owner and held.is_too_much(_LEFT):
        if held.bytes > REJECTED_BYTES_MAX * _LEFT:
            owner = max(sizes, key=sizes.__getitem__)
        else:
            owner = max(by_owner, key=lambda owner: len(by_owner[owner]))
        oldest = by_owner[owner].pop()
        sizes[owner] -= oldest.bytes
        held = Held(held.bytes - oldest.bytes, held.files - 1)
        gone += 1
        if not by_owner[owner]:
            del by_owner[owner], sizes[owner]
        _remove(folder, oldest.name)
    return held, gone


def _refused(folder: SpoolFolder) -> Iterator[tuple[int, _Refused]]:
    """Each refused file with the uid whose it was. A text alone counts as one, too."""
    own = os.geteuid()
    with os.scandir(folder.rejected) as entries:
        names = {entry.name for entry in entries}
    for name in names:
        if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in names:
            continue
        file, text = _both(folder, name)
        if file is None:
            continue
        # What the agent wrote itself is the agent's, whosever lines it holds.
        owner = file.st_uid
        if owner == own:
            owner = owner_told(folder, name, own)
        since_ns = file.st_ctime_ns if text is None else text.st_mtime_ns
        size = _bytes(file) + (0 if text is None else _bytes(text))
        yield owner, _Refused(since_ns, name, size)


def _both(folder: SpoolFolder, name: str) -> list[os.stat_result | None]:
    found: list[os.stat_result | None] = []
    for each in (name, name + SUFFIX):
        try:
            found.append(os.stat(each, dir_fd=folder.rejected, follow_symlinks=False))
        except OSError:
            found.append(None)
    return found


def _bytes(found: os.stat_result) -> int:
    return found.st_blocks * 512


def _remove(folder: SpoolFolder, name: str) -> None:
    """The file first: a crash in between leaves a text, and no file without its reason."""
    for each in (name, name + SUFFIX):
        with contextlib.suppress(OSError):
            found = os.stat(each, dir_fd=folder.rejected, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(each, ignore_errors=True, dir_fd=folder.rejected)
            else:
                os.unlink(each, dir_fd=folder.rejected)
