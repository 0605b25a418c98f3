"""What strace wrote of an agent, as a list of what happened to its files and sockets.

A line of strace becomes a `Step`. Order is the file's: strace stops a thread at
every call, so what one thread did because of another stands behind it. A call
that changes something counts from its entry (it may have reached the disk at
once), a sync only from its return, and an answer from its entry (the earliest
moment at which its reader may rely on it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CALLS = (
    "openat,write,writev,sendto,sendmsg,pwrite64,ftruncate,fallocate,fsync,fdatasync,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,link,linkat"
)

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))", re.DOTALL)
_RESULT = re.compile(r"\) += (-?\d+|\?)[^=]*$")
_HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_PROMISE = re.compile(rb'"id": "([0-9a-f-]{36})", "status": "(?:accepted|duplicate)"')
_SUMMARY = re.compile(rb'"summary": ?"([^"]+)"')


class Step(NamedTuple):
    """One thing that happened; which fields count depends on `kind`."""

    kind: str  # create mkdir write truncate sync rename link unlink promised stored sent
    path: str = ""
    other: str = ""  # rename, link: the new name
    offset: int = 0
    data: bytes = b""
    since: int = 0  # sync: covers what happened before this step
    names: tuple[str, ...] = ()  # promised: ids; stored, sent: summaries


class _Call(NamedTuple):
    name: str
    arguments: str
    result: int | None  # None: it never returned
    entered: int
    left: int


def read_steps(traces: list[Path], root: Path) -> list[Step]:
    """The steps of several runs of the agent, one after the other, under `root`."""
    steps: list[Step] = []
    existing: set[str] = {str(root)}
    for trace in traces:
        _add(steps, list(_calls(trace, root)), str(root), existing)
    return steps


def _calls(trace: Path, root: Path) -> Iterator[_Call]:
    wanted = _hexed(str(root))
    socket = _hexed("socket:")
    pending: dict[str, tuple[str, str, int]] = {}
    with trace.open() as file:
        for number, line in enumerate(file):
            found = _LINE.match(line)
            if found is None:
                continue
            thread, resumed, rest, name, arguments = found.groups()
            if resumed:
                if thread in pending:
                    name, begun, entered = pending.pop(thread)
                    yield _call(name, begun, rest, entered, number)
            elif wanted in arguments or socket in arguments or _hexed("stored ") in arguments:
                if arguments.endswith("<unfinished ...>\n"):
                    pending[thread] = (name, arguments, number)
                else:
                    yield _call(name, arguments, arguments, number, number)
    for name, begun, entered in pending.values():
        yield _Call(name, begun, None, entered, entered)


def _call(name: str, begun: str, end: str, entered: int, left: int) -> _Call:
    found = _RESULT.search(end)
    result = None if found is None or found[1] == "?" else int(found[1])
    return _Call(name, begun, result, entered, left)


def _add(steps: list[Step], calls: list[_Call], root: str, existing: set[str]) -> None:
    """Order by when each call counts, and translate."""
    moments: list[tuple[int, int, _Call]] = []
    for call in calls:
        if call.name in ("fsync", "fdatasync"):
            if call.result == 0:
                moments.append((call.entered, 0, call))
                moments.append((call.left, 1, call))
        elif call.result is None or call.result >= 0:
            moments.append((call.entered, 0, call))
    begun: dict[int, int] = {}
    positions: dict[str, int] = {}
    for _, phase, call in sorted(moments, key=lambda moment: moment[:2]):
        if call.name in ("fsync", "fdatasync"):
            if phase == 0:
                begun[call.entered] = len(steps)
            else:
                path = _path_of(call.arguments)
                if path.startswith(root):
                    steps.append(Step("sync", path, since=begun[call.entered]))
            continue
        steps.extend(_translate(call, root, existing, positions))


def _translate(
    call: _Call, root: str, existing: set[str], positions: dict[str, int]
) -> Iterator[Step]:
    name, arguments = call.name, call.arguments
    if name in ("write", "writev", "sendto", "sendmsg"):
        path = _path_of(arguments)
        data = b"".join(bytes.fromhex(s.replace("\\x", "")) for s in _STRING.findall(arguments))
        if path.startswith(root):
            offset = positions.get(path, 0)
            positions[path] = offset + len(data)
            yield Step("write", path, offset=offset, data=data)
        else:
            yield from _told(path, data)
        return
    if name == "pwrite64":
        path = _path_of(arguments)
        data = bytes.fromhex(_STRING.findall(arguments)[0].replace("\\x", ""))
        offset = int(_numbers(arguments)[-1])
        if path.startswith(root):
            yield Step("write", path, offset=offset, data=data)
        return
    if name in ("ftruncate", "fallocate"):
        path = _path_of(arguments)
        if path.startswith(root):
            size = int(_numbers(arguments)[-1])
            yield Step("truncate" if name == "ftruncate" else "extend", path, offset=size)
        return
    paths = _paths(arguments)
    if not paths or not paths[0].startswith(root):
        return
    if name == "openat":
        positions[paths[0]] = 0
        if "O_CREAT" in arguments and paths[0] not in existing:
            existing.add(paths[0])
            yield Step("create", paths[0])
        if "O_TRUNC" in arguments:
            yield Step("truncate", paths[0], offset=0)
    elif name in ("mkdir", "mkdirat"):
        existing.add(paths[0])
        yield Step("mkdir", paths[0])
    elif name in ("unlink", "unlinkat"):
        existing.discard(paths[0])
        yield Step("unlink", paths[0])
    else:
        existing.add(paths[1])
        if name.startswith("rename"):
            existing.discard(paths[0])
        yield Step("rename" if name.startswith("rename") else "link", paths[0], other=paths[1])


def _told(path: str, data: bytes) -> Iterator[Step]:
    """What went out by a socket, or to the producer's own record."""
    if data.startswith(b"stored "):
        told = json.loads(data[7:])
        yield Step("stored", path=told["name"], offset=told["mtime_ns"], names=(told["summary"],))
        return
    if not path.startswith("socket:"):
        return
    promised = _PROMISE.findall(data)
    if promised:
        yield Step("promised", names=tuple(id.decode() for id in promised))
        return
    sent = _SUMMARY.findall(data)
    if sent:
        yield Step("sent", names=tuple(summary.decode() for summary in sent))


def _hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def _text(hexed: str) -> str:
    return bytes.fromhex(hexed.replace("\\x", "")).decode(errors="surrogateescape")


def _path_of(arguments: str) -> str:
    """Of the descriptor that is the first argument."""
    found = re.match(r"\d+<((?:\\x[0-9a-f]{2})*)>", arguments)
    return _text(found[1]) if found else ""


def _paths(arguments: str) -> list[str]:
    """The names in a call's arguments, each with the directory it is relative to."""
    found = []
    pattern = re.compile(r'(?:(?:\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>, )?"((?:\\x[0-9a-f]{2})*)"')
    for directory, name in pattern.findall(arguments):
        path = _text(name)
        found.append(path if path.startswith("/") else f"{_text(directory)}/{path}")
    return found


def _numbers(arguments: str) -> list[str]:
    bare = _STRING.sub("", _HEX.sub("", arguments)).partition(")")[0]
    return re.findall(r"(?<![\w<])\d+(?![\w<])", bare.replace("<unfinished ...>", ""))
