"""Put an event into the spool, as a maildir delivery does.

Write in `tmp/`, sync the file, rename it into `new/`, sync that directory: a
crash between two steps leaves nothing half-written in `new/`, and what was
reported as stored is there after a power cut. It never reads the spool; a
producer may have no right to list it.
"""

# ruff: noqa: SIM105 (contextlib brings half a dozen modules that a cron job would wait for)

from __future__ import annotations

import os
from errno import EROFS, EXDEV
from time import time_ns

from outboxd.disk import room_hint, sync_directory
from outboxd.errors import EX_TEMPFAIL, OutboxdError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

MODE_DIRECTORY = 0o700
MODE_OWN, MODE_SHARED_GROUP, MODE_SHARED = 0o600, 0o640, 0o644
# Set on a directory, it gives new files the directory's group.
S_ISGID = 0o2000


class NotStored(OutboxdError):
    """The event could be stored nowhere."""

    exit_code = EX_TEMPFAIL


def put(spool: str, data: bytes, *, synced: bool = True) -> str:
    """Store it durably; gives the file's name in `new/`. Raises NotStored.

    Without `synced` it waits for no disk: the file outlives this process, but
    not a power cut within the half minute that the kernel takes to write it.
    """
    if not spool:
        raise NotStored(
            "the agent of this host has no spool: it shares its outbox on PostgreSQL",
            "start it, or hand in to another gateway with --gateway",
        )
    # The time first, so that the agent takes them in order; random bits behind
    # it, so that names neither meet nor can be guessed.
    name = f"{time_ns() // 1000:017d}-{os.urandom(8).hex()}.json"
    temporary = f"{spool}/tmp/{name}"
    try:
        try:
            file, mode = _open(spool, temporary)
        except FileNotFoundError:
            _make_directories(spool)
            file, mode = _open(spool, temporary)
    except OSError as error:
        _fail(spool, error)
    try:
        os.fchmod(file, mode)  # whatever the umask: the agent must be able to read it
        _write_all(file, data)
        if synced:
            os.fsync(file)
        # Closed before the rename: the agent takes no file that somebody may still write to.
        os.close(file)
        file = -1
        os.rename(temporary, f"{spool}/new/{name}")
        if synced:
            _sync_rename(f"{spool}/new", name)
    except OSError as error:
        # In `new/` too: what we say is not stored must not go out all the same.
        _remove(temporary)
        _remove(f"{spool}/new/{name}")
        _fail(spool, error)
    except BaseException:
        # Ctrl-C, say: its caller is told nothing, so nothing may go out.
        _remove(temporary)
        _remove(f"{spool}/new/{name}")
        raise
    finally:
        if file >= 0:
            os.close(file)
    return name


def _open(spool: str, temporary: str) -> tuple[int, int]:
    """The new file, and the mode it is to have."""
    mode = _mode_for(f"{spool}/new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(temporary, flags, mode), mode


def _make_directories(spool: str) -> None:
    """Make what is missing of the spool."""
    for part in ("tmp", "new"):
        try:
            _make_directory(f"{spool}/{part}")
        except OSError:
            if not os.path.isdir(f"{spool}/{part}"):
                raise
            # No right to make one, and none is missing.


def _make_directory(directory: str) -> None:
    """Make it and what is missing above it, durably. Others may do the same at this moment."""
    parent = os.path.dirname(directory) or "."
    try:
        try:
            os.mkdir(directory, MODE_DIRECTORY)
        except FileNotFoundError:
            _make_directory(parent)
            os.mkdir(directory, MODE_DIRECTORY)
    except FileExistsError:
        return
    sync_directory(parent)


def _mode_for(new: str) -> int:
    """As few readers as the agent can be among.

    The agent owns the spool. Where that is us, nobody else need read it; where
    new files get the spool's group, the agent is in it; else all may read, and
    a name that cannot be guessed in a directory that cannot be listed hides it.
    """
    status = os.stat(new)
    if status.st_uid == os.geteuid():
        return MODE_OWN
    return MODE_SHARED_GROUP if status.st_mode & S_ISGID else MODE_SHARED


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_rename(directory: str, name: str) -> None:
    try:
        sync_directory(directory)
    except PermissionError:
        # Whoever may hand in but not list cannot open the directory to sync it.
        # A sync of the renamed file makes ext4, XFS and Btrfs commit the rename too.
        try:
            file = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # the agent has taken it already
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # it is not there, or the disk fails: the first error is the one to tell


def _fail(spool: str, error: OSError) -> NoReturn:
    raise NotStored(
        f"the spool {spool} cannot take it: {error.strerror or error}",
        _hint(spool, error),
    ) from None


def _how_to_join(spool: str) -> str:
    """A service's spool is its group's: who hands in becomes a member. Its modes stay."""
    other = "or name another spool with -c"
    try:
        import grp
        import pwd

        status = os.stat(f"{spool}/new")
        if status.st_mode & 0o030 == 0o030:
            group = grp.getgrgid(status.st_gid).gr_name
            user = pwd.getpwuid(os.getuid()).pw_name
            return f"as root: usermod -aG {group} {user}, then a new login; {other}"
    except (OSError, KeyError, ImportError):
        pass
    return f"let this user write in {spool}/tmp and {spool}/new, {other}"


def _hint(spool: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return _how_to_join(spool)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"make {spool}/tmp and {spool}/new, or start the agent once, which does"
    if error.errno == EXDEV:
        return f"put {spool}/tmp and {spool}/new on one file system, or start the agent"
    if error.errno == EROFS:
        return "mount it with the right to write, or name another spool with -c"
    return f"{room_hint(spool)}, or start the agent; then hand it in again"
