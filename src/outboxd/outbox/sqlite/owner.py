"""Whose outbox it is: root does nothing there that its owner could not do.

The directory of an outbox belongs to the agent's user, who may put there what
he likes: a link in the place of the database, of its log, of its lock. A command
that root runs would write where the link leads. So for as long as it has the
outbox open it is that user, as far as files go; what it makes there is the
agent's, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from outboxd.errors import NotPermitted


@contextmanager
def as_owner(path: str) -> Iterator[None]:
    """While within, root is the owner of the directory in which `path` is named.

    For commands alone: the effective user is the whole process's.

    Raises:
        NotPermitted: `path` itself is a link that somebody else has put there.
    """
    directory = os.path.dirname(os.path.abspath(path))
    try:
        owner = os.stat(directory)
    except OSError:
        yield  # the opening says what is wrong
        return
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    _refuse_link(path)
    groups, group_id = os.getgroups(), os.getegid()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group_id)
        os.setgroups(groups)


def _refuse_link(path: str) -> None:
    if os.path.islink(path) and os.lstat(path).st_uid != 0:
        raise NotPermitted(
            f"{path} is a symbolic link to {os.readlink(path)!r}, which root does not follow",
            "set [outbox] path to the file itself, or look who has put the link there",
        )
