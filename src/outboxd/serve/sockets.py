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

from outboxd.errors import ConfigError, DiskShort

PATH_BYTES_MAX = 107  # of sun_path's 108 bytes one ends the name
_ANSWER_S = 2.0


class BoundSocket(NamedTuple):
    """A listening socket and the file that is its name (None: not ours to remove)."""

    socket: socket.socket
    path: str | None
    identity: tuple[int, int, int] | None


def bind_unix(path: str, mode: int, group: str = "") -> BoundSocket:
    """Bind and listen; raises ConfigError with the key that is wrong."""
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ConfigError(
            f"[intake] socket = {path!r}: the path has {len(os.fsencode(path))} bytes",
            f"a Unix socket's path has at most {PATH_BYTES_MAX}; choose a shorter one",
        )
    group_id = _group_id(group)
    _make_parent(path)
    _clear_stale(path)
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
            raise DiskShort(
                f"[intake] socket = {path!r}: {error.strerror}", "make room on its disk"
            ) from error
        raise ConfigError(
            f"[intake] socket = {path!r}: {error.strerror}",
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
    return BoundSocket(listening, None, None)


def remove(bound: BoundSocket) -> None:
    """Unlink the socket's file if it is still the one that we made."""
    if bound.path is None:
        return
    with contextlib.suppress(OSError):
        found = os.lstat(bound.path)
        if _identity(found) == bound.identity:
            os.unlink(bound.path)


def bind_tcp(listen: str) -> BoundSocket:
    """Bind `[http] listen`, such as "127.0.0.1:8098" or "[::1]:8098"."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"[http] listen = {listen!r} is no address", 'write it as "127.0.0.1:8098", or ""'
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
            f"[http] listen = {listen!r}: {error.strerror}",
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


def _make_parent(path: str) -> None:
    parent = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(parent, mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"[intake] socket = {path!r}: cannot make {parent}: {error.strerror}",
            "make the directory, or choose another one",
        ) from error


def _clear_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"[intake] socket = {path!r}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(
            f"[intake] socket = {path!r}: something that is no socket is there",
            "move it away, or choose another path",
        )
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
        f"[intake] socket = {path!r}: another process answers there",
        "stop it, or give this agent a socket of its own",
    )
