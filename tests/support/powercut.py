"""What a power cut could leave of a directory, at any point of what happened to it.

A model of a file system that promises no more than POSIX does: what was synced
is there; of what was written since, any 512-byte sectors may be, each with any
of its versions; a name that was made, renamed or removed since its directory
was last synced may be there or not. Names are independent of each other, the
versions of one sector and of one name are not: a later one includes the earlier.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import NamedTuple

from support.trace import Step

SECTOR_BYTES = 512


class Write(NamedTuple):
    """A change of a file's content that is not synced."""

    step: int
    offset: int
    data: bytes | None  # None: the size is set to `offset` (or at least that, for `extend`)
    extends: bool = False


class File:
    """One inode: what is on the disk for certain, and what may be."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.size_synced_zeros = 0  # an allocated tail that need not be stored here
        self.unsynced: list[Write] = []

    def sync(self, since: int) -> None:
        done = [write for write in self.unsynced if write.step < since]
        self.unsynced = [write for write in self.unsynced if write.step >= since]
        for write in done:
            self._apply(self.synced, write)

    @staticmethod
    def _apply(content: bytearray, write: Write) -> None:
        if write.data is not None:
            _place(content, write.offset, write.data)
        elif write.extends:
            content.extend(bytes(max(0, write.offset - len(content))))
        else:
            del content[write.offset :]
            content.extend(bytes(write.offset - len(content)))

    def left(self, choice: Choice) -> bytearray:
        """One of the contents that may be left."""
        content = bytearray(self.synced)
        if not self.unsynced:
            return content
        versions: dict[int, int] = {}  # of each sector, how many there are
        for write in self.unsynced:
            for sector in _sectors(write):
                versions[sector] = versions.get(sector, 0) + 1
        kept = choice.versions(versions, self.unsynced)
        seen: dict[int, int] = {}
        for write in self.unsynced:
            if write.data is None:
                if choice.keeps_size(write.step):
                    self._apply(content, write)
                continue
            for sector in _sectors(write):
                seen[sector] = seen.get(sector, 0) + 1
                if seen[sector] > kept[sector]:
                    continue
                start = max(write.offset, sector * SECTOR_BYTES)
                end = min(write.offset + len(write.data), (sector + 1) * SECTOR_BYTES)
                _place(content, start, write.data[start - write.offset : end - write.offset])
        if choice.random.random() < 0.3:
            # The size was written, the data was not.
            end = max((w.offset + len(w.data) for w in self.unsynced if w.data), default=0)
            content.extend(bytes(max(0, end - len(content))))
        return content


def _place(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _sectors(write: Write) -> range:
    if write.data is None:
        return range(0)
    return range(
        write.offset // SECTOR_BYTES,
        (write.offset + len(write.data) + SECTOR_BYTES - 1) // SECTOR_BYTES,
    )


class Directory:
    """One directory's names as they are on the disk for certain."""

    def __init__(self) -> None:
        self.synced: dict[str, File | Directory] = {}


class Naming(NamedTuple):
    """A change of names that is not synced: all of its effects or none."""

    step: int
    effects: tuple[tuple[Directory, str, File | Directory | None], ...]

    def keys(self) -> list[tuple[int, str]]:
        return [(id(directory), name) for directory, name, _ in self.effects]


class Choice:
    """Which of the things that may be left are: drawn from a seed, in one of several moods."""

    MOODS = ("none", "all", "few", "half", "most", "in order", "one missing", "one present")

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.mood = self.random.choice(self.MOODS)
        self.names = self.random.choice((0.0, 0.5, 0.9, 1.0))
        self.share = {"few": 0.15, "half": 0.5, "most": 0.9}.get(self.mood, 0.5)

    def versions(self, there: dict[int, int], writes: list[Write]) -> dict[int, int]:
        draw = self.random
        match self.mood:
            case "none":
                return dict.fromkeys(there, 0)
            case "all":
                return there
            case "in order":
                return self._in_order(there, writes)
            case "one missing" | "one present":
                odd = draw.choice(list(there)) if there else None
                missing = self.mood == "one missing"
                return {s: n if (s != odd) == missing else 0 for s, n in there.items()}
            case _:
                return {
                    s: n if draw.random() < self.share else draw.randrange(n)
                    for s, n in there.items()
                }

    def _in_order(self, there: dict[int, int], writes: list[Write]) -> dict[int, int]:
        """All that was written before some moment, and nothing after."""
        order = [sector for write in writes for sector in _sectors(write)]
        kept = dict.fromkeys(there, 0)
        for sector in order[: self.random.randrange(len(order) + 1)]:
            kept[sector] += 1
        return kept

    def keeps_size(self, step: int) -> bool:
        return self.mood == "all" or (self.mood != "none" and self.random.random() < 0.5)

    def keeps_name(self) -> bool:
        return self.random.random() < self.names


class Disk:
    """The directory under `root`, followed step by step."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._top = Directory()
        self._now: dict[str, File | Directory] = {root: self._top}
        self._unsynced: list[Naming] = []
        self.mtimes: dict[str, int] = {}  # of spool files, by name

    def take(self, number: int, step: Step) -> None:
        """Let a step happen."""
        match step.kind:
            case "write" | "truncate" | "extend":
                file = self._now.get(step.path)
                if isinstance(file, File):
                    data = step.data if step.kind == "write" else None
                    file.unsynced.append(Write(number, step.offset, data, step.kind == "extend"))
            case "sync":
                node = self._now.get(step.path)
                if isinstance(node, File):
                    node.sync(step.since)
                elif isinstance(node, Directory):
                    self._sync_names(node, step.since)
            case "create" | "mkdir":
                node = File() if step.kind == "create" else Directory()
                self._now[step.path] = node
                self._name(number, (step.path, node))
            case "unlink":
                self._now.pop(step.path, None)
                self._name(number, (step.path, None))
            case "rename" | "link":
                node = self._now[step.path]
                self._now[step.other] = node
                effects: list[tuple[str, File | Directory | None]] = [(step.other, node)]
                if step.kind == "rename":
                    del self._now[step.path]
                    effects.insert(0, (step.path, None))
                self._name(number, *effects)
            case "stored":
                self.mtimes[step.path] = step.offset

    def _name(self, number: int, *effects: tuple[str, File | Directory | None]) -> None:
        placed = []
        for path, node in effects:
            parent = self._now[os.path.dirname(path)]
            assert isinstance(parent, Directory)
            placed.append((parent, os.path.basename(path), node))
        self._unsynced.append(Naming(number, tuple(placed)))

    def _sync_names(self, directory: Directory, since: int) -> None:
        """This directory's names are certain, and what they came from with them."""
        keys: set[tuple[int, str]] = set()
        certain = set()
        for naming in reversed(self._unsynced):
            touches = any(where is directory for where, _, _ in naming.effects)
            if (touches and naming.step < since) or keys.intersection(naming.keys()):
                keys.update(naming.keys())
                certain.add(naming.step)
        for naming in self._unsynced:
            if naming.step in certain:
                _settle(naming, None)
        self._unsynced = [n for n in self._unsynced if n.step not in certain]

    def leave(self, target: Path, seed: str) -> None:
        """Write what one power cut at this point leaves into `target`."""
        choice = Choice(seed)
        names: dict[int, dict[str, File | Directory]] = {}
        blocked: set[tuple[int, str]] = set()
        for naming in self._unsynced:
            if blocked.isdisjoint(naming.keys()) and choice.keeps_name():
                _settle(naming, names)
            else:
                blocked.update(naming.keys())
        self._write(self._top, target, names, choice)

    def _write(
        self,
        directory: Directory,
        target: Path,
        names: dict[int, dict[str, File | Directory]],
        choice: Choice,
    ) -> None:
        target.mkdir()
        for name, node in names.get(id(directory), directory.synced).items():
            path = target / name
            if isinstance(node, Directory):
                self._write(node, path, names, choice)
                continue
            content = node.left(choice)
            with path.open("wb") as file:
                if content.count(0) == len(content):
                    file.truncate(len(content))  # ballast: no need to fill the memory
                else:
                    file.write(content)
            if name in self.mtimes:
                os.utime(path, ns=(self.mtimes[name], self.mtimes[name]))


def _settle(naming: Naming, names: dict[int, dict[str, File | Directory]] | None) -> None:
    """Apply to the disk (None), or to copies of the directories it touches."""
    for directory, name, node in naming.effects:
        if names is None:
            entries = directory.synced
        else:
            entries = names.setdefault(id(directory), dict(directory.synced))
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node
