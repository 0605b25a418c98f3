"""Signals between whoever calls `exec` and its job: each that is sent reaches the job once.

A signal may be sent to `exec` alone, and must be passed on; or to the whole
process group (a terminal's Ctrl-C, timeout(1), kill with a negative number), or
to each process of a control group (systemd), and then the job has it already.
The kernel does not say which; so a witness sits in the job's group, which
blocks every signal and so shows by those that it has pending what was sent to
all. `exec` must stay in that group too: a shell stops and continues it there.

It uses the C core of `signal` alone, to start at once.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
else:
    import _signal as signals

ALL = frozenset(signals.valid_signals())
# No handler can have the first two. The others say that we ourselves are at fault, and the
# program goes on where it was: into the same fault.
_NOT_CAUGHT = {
    *(signals.SIGKILL, signals.SIGSTOP),
    *(signals.SIGSEGV, signals.SIGBUS, signals.SIGFPE, signals.SIGILL),
    # A terminal sends these to the group, and stops us as it stops the job.
    *(signals.SIGTTIN, signals.SIGTTOU),
}
CAUGHT = ALL - _NOT_CAUGHT
# Python ignores these when it starts, whatever the caller did.
IGNORED_BY_PYTHON = (signals.SIGPIPE, signals.SIGXFSZ)


def ignored_by_caller() -> frozenset[int]:
    """The signals that were ignored when this process began: they stay so for the job."""
    found = {
        number
        for number in ALL
        if number not in IGNORED_BY_PYTHON and signals.getsignal(number) == signals.SIG_IGN
    }
    # Of those two the kernel no longer knows. Who ignores them does so for its children too:
    # systemd, the cron that it started, a shell's `trap ''`. But Python, which ignores both,
    # does so for itself alone: its subprocess gives them back to the children.
    parents = _ignored_by(os.getppid()).intersection(IGNORED_BY_PYTHON)
    return frozenset(found if len(parents) == len(IGNORED_BY_PYTHON) else found | parents)


def restore(ignored: frozenset[int], mask: set[int]) -> None:
    """In the child, before it becomes the job: every disposition and the mask as they were."""
    for number in CAUGHT:
        signals.signal(number, signals.SIG_IGN if number in ignored else signals.SIG_DFL)
    signals.pthread_sigmask(signals.SIG_SETMASK, mask)


class Witness:
    """A process in the job's group that does nothing but have signals pending."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._pid: int | None = None
        self._end: int | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        return self._pid

    def pending(self) -> frozenset[int]:
        """What was sent to it since it was made."""
        if self._pid is None:
            return frozenset()
        return _mask_of(self._pid, b"ShdPnd:")

    def renew(self) -> frozenset[int]:
        """Forget what was pending, and tell it: with what came until the next one sat there."""
        pid, end = self._pid, self._end
        self._start()
        pending = frozenset() if pid is None else _mask_of(pid, b"ShdPnd:")
        _end_one(pid, end)
        return pending

    def end(self) -> None:
        """Needed no more."""
        pid, end = self._pid, self._end
        self._pid = self._end = None
        _end_one(pid, end)

    def _start(self) -> None:
        # It reads from us, and so ends with us. Not our own program's name: whoever sends
        # a signal to all that is called outboxd does not mean it.
        ours: list[int] = []
        self._pid = self._end = None
        try:
            read_end, self._end = os.pipe2(os.O_CLOEXEC)
            ours.append(read_end)
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            ours.append(nowhere)
            self._pid = os.posix_spawn(
                "/bin/cat",
                ["cat"],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read_end, 0),
                    (os.POSIX_SPAWN_DUP2, nowhere, 1),
                    (os.POSIX_SPAWN_DUP2, nowhere, 2),
                ],
                setpgroup=self._group,
                setsigmask=ALL,
            )
        except OSError:
            self._pid = None  # then every signal counts as sent to us alone
        finally:
            for descriptor in ours:
                os.close(descriptor)


def _end_one(pid: int | None, end: int | None) -> None:
    if pid is not None:
        os.kill(pid, signals.SIGKILL)
        os.waitpid(pid, 0)
    if end is not None:
        os.close(end)


def _ignored_by(pid: int) -> frozenset[int]:
    return _mask_of(pid, b"SigIgn:")


def _mask_of(pid: int, field: bytes) -> frozenset[int]:
    """A set of signals as /proc/PID/status shows it (proc(5)); empty where it cannot be read."""
    try:
        descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.read(descriptor, 65536)
        finally:
            os.close(descriptor)
    except OSError:
        return frozenset()
    _, found, rest = status.partition(b"\n" + field)
    mask = int(rest.split(None, 1)[0], 16) if found else 0
    return frozenset(number for number in ALL if mask >> (number - 1) & 1)
