"""Listening sockets: made, taken over and removed.

A Unix socket must never be open to more people than the configuration says,
not for an instant, and a socket that another process answers on is never
taken away from it. Call `bind_unix` only while holding the outbox: then what
does not answer is a dead agent's.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from typing import NamedTuple

from outboxd.disk import room_hint
from outboxd.errors import ConfigError, DiskShort
from outboxd.serve.peer import credentials

PATH_BYTES_MAX = 107  # of sun_path's 108 bytes one ends the name
_ANSWER_S = 2.0


class BoundSocket(NamedTuple):
    """A listening socket and the file that is its name (None: it has none)."""

    socket: socket.socket
    path: str | None
    identity: tuple[int, int, int] | None
    is_ours: bool = True  # made here, and so to be removed here


def bind_unix(
    path: str, mode: int, group: str = "", setting: str = "[intake] socket"
) -> BoundSocket:
    """Bind and listen; raises ConfigError with the `setting` that is wrong."""
    label = f"{setting} = {path!r}"
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ConfigError(
            f"{label}: the path has {len(os.fsencode(path))} bytes",
            f"a Unix socket's path has at most {PATH_BYTES_MAX}; choose a shorter one",
        )
    group_id = _group_id(group)
    _make_parent(path, label)
    _clear_stale(path, label)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux takes the mode of the file from the socket's own: closed to
        # all until owner and mode are as asked.
        os.fchmod(listening.fileno(), 0)
        listening.bind(path)
        if group_id is not None:
            os.chown(path, -1, group_id, follow_symlinks=False)
        os.chmod(path, mode)
        found = os.lstat(path)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskShort(f"{label}: {error.strerror}", room_hint(path)) from error
        raise ConfigError(
            f"{label}: {error.strerror}",
            "the directory must exist and be writable for the agent's user, "
            "who must be a member of socket_group",
        ) from error
    return BoundSocket(listening, path, _identity(found))


def adopt(descriptor: int) -> BoundSocket:
    """A listening socket that the service manager made and passed in."""
    listening = socket.socket(fileno=descriptor)
    if listening.type != socket.SOCK_STREAM:
        raise ConfigError(
            f"the passed file descriptor {descriptor} is no stream socket",
            "use ListenStream= in the socket unit",
        )
    os.set_inheritable(descriptor, False)
    path = listening.getsockname() if listening.family == socket.AF_UNIX else None
    if not isinstance(path, str) or not path.startswith("/"):
        return BoundSocket(listening, None, None, is_ours=False)
    try:
        identity = _identity(os.lstat(path))
    except OSError:
        identity = None
    return BoundSocket(listening, path, identity, is_ours=False)


def in_place(bound: BoundSocket) -> BoundSocket | None:
    """The socket, where its path still leads to it; None where it does not.

    A file that only changed (another mode or group) is taken over as it is now.
    """
    assert bound.path is not None, "a socket without a name cannot be out of place"
    try:
        found = os.lstat(bound.path)
    except OSError:
        return None
    if _identity(found) == bound.identity:
        return bound
    if not stat.S_ISSOCK(found.st_mode):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        try:
            caller.connect(bound.path)
        except BlockingIOError:
            return bound  # somebody listens and is busy: looked at again later
        except OSError:
            return None
        listens_there = credentials(caller.fileno())
    if listens_there.process_id != credentials(bound.socket.fileno()).process_id:
        return None
    return bound._replace(identity=_identity(found))


def remove(bound: BoundSocket) -> None:
    """Unlink the socket's file if it is still the one that we made."""
    if bound.path is None or not bound.is_ours:
        return
    with contextlib.suppress(OSError):
        found = os.lstat(bound.path)
        if _identity(found) == bound.identity:
            os.unlink(bound.path)


def bind_tcp(listen: str, setting: str = "[http] listen") -> BoundSocket:
    """Bind an address such as "127.0.0.1:8098" or "[::1]:8098"; raises ConfigError with
    the `setting` that it stands in."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"{setting} = {listen!r} is no address", 'write it as "127.0.0.1:8098", or ""'
        )
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(found[4])
            listening.listen(128)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"{setting} = {listen!r}: {error.strerror}",
            "choose an address of this host and a port that is free",
        ) from error
    return BoundSocket(listening, None, None)


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    # File systems give an inode's number out again at once: its time is needed too.
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _group_id(group: str) -> int | None:
    if not group:
        return None
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(
            f"[intake] socket_group = {group!r}: there is no such group",
            "create it, or name another one",
        ) from None


def _make_parent(path: str, label: str) -> None:
    parent = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(parent, mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{label}: cannot make {parent}: {error.strerror}",
            "make the directory, or choose another one",
        ) from error


def check_free_of_others(path: str, label: str) -> bool:
    """Whether a socket is there already; raises ConfigError where anything else is."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{label}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(
            f"{label}: something that is no socket is there",
            "move it away, or choose another path",
        )
    return True


def _clear_stale(path: str, label: str) -> None:
    if not check_free_of_others(path, label):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(_ANSWER_S)
        try:
            caller.connect(path)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                return
            if error.errno == errno.ENOENT:
                return
    raise ConfigError(
        f"{label}: another process answers there",
        "stop it, or give this agent a socket of its own",
    )
