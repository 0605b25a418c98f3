"""What a job writes, passed on to where it would have written, with a copy of the end.

The job's stderr goes through a pipe of ours. Where its stdout is the same file
or pipe, both do, so that their lines stay in order. A terminal stays one: then
nothing is kept. It must never make the job wait for anything but its own
reader, nor outlive it because a grandchild still holds the pipe.
"""

from __future__ import annotations

import os
import select
from stat import S_ISCHR

from outboxd.producer.signals import ALL, CAUGHT, IGNORED_BY_PYTHON

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
else:
    import _signal as signals

STDOUT, STDERR = 1, 2
TAIL_BYTES_MAX, TAIL_LINES_MAX = 4096, 20
READ_BYTES = 65536
# More than a pipe holds: what the job wrote before its end is all within it.
DRAIN_BYTES_MAX = 2 * 1024 * 1024


class Output:
    """The pipe between a job and our stderr."""

    def __init__(self) -> None:
        self.descriptors = _to_be_piped()  # of the job, those that are to go into it
        self.read_end: int | None = None  # None: there is no pipe, or it is at its end
        self.write_end: int | None = None
        if self.descriptors:
            self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self._kept = b""
        self._passed_bytes = 0

    def close_write_end(self) -> None:
        """The job has it now."""
        if self.write_end is not None:
            os.close(self.write_end)
            self.write_end = None

    def pass_on(self) -> None:
        """Pass on what can be read now."""
        assert self.read_end is not None
        data = os.read(self.read_end, READ_BYTES)
        if data:
            self._passed_bytes += len(data)
            self._kept = (self._kept + data)[-TAIL_BYTES_MAX:]
            if _write(data):
                return
        # At its end; or nobody reads our stderr any more, which the job learns by
        # the closing of its own, as it would without us.
        os.close(self.read_end)
        self.read_end = None

    def drain(self) -> None:
        """What the job wrote before its end; a grandchild may write on, but not to us."""
        if self.read_end is None:
            return
        os.set_blocking(self.read_end, False)
        started_bytes = self._passed_bytes
        try:
            while self._passed_bytes - started_bytes < DRAIN_BYTES_MAX:
                self.pass_on()
                if self.read_end is None:
                    return
        except BlockingIOError:
            pass
        os.set_blocking(self.read_end, True)
        _leave_to_cat(self.read_end)
        self.read_end = None

    def last_lines(self) -> bytes | None:
        """The end of what was passed on; None where nothing was to be."""
        if not self.descriptors:
            return None
        lines = self._kept.rstrip(b"\n").split(b"\n")
        return b"\n".join(lines[-TAIL_LINES_MAX:])


def _to_be_piped() -> list[int]:
    try:
        error = os.fstat(STDERR)
    except OSError:
        return []  # it is closed, and stays so
    if S_ISCHR(error.st_mode):
        # What goes to the null device has no order to keep, but an end worth keeping.
        return [] if os.isatty(STDERR) else [STDERR]
    try:
        output = os.fstat(STDOUT)
    except OSError:
        return [STDERR]
    is_same = (output.st_dev, output.st_ino) == (error.st_dev, error.st_ino)
    return [STDOUT, STDERR] if is_same else [STDERR]


def _write(data: bytes) -> bool:
    """All of it to stderr; False where nobody reads that any more."""
    view = memoryview(data)
    # Signals that our own writing causes are none that somebody sent.
    signals.pthread_sigmask(signals.SIG_BLOCK, IGNORED_BY_PYTHON)
    try:
        while view:
            try:
                view = view[os.write(STDERR, view) :]
            except BlockingIOError:
                writable = select.poll()
                writable.register(STDERR, select.POLLOUT)
                writable.poll(1000)
    except BrokenPipeError:
        signals.sigtimedwait(IGNORED_BY_PYTHON, 0)
        return False
    except OSError:
        # A full disk, or a file as large as it may be: the job would have gone on too.
        signals.sigtimedwait(IGNORED_BY_PYTHON, 0)
    finally:
        signals.pthread_sigmask(signals.SIG_UNBLOCK, IGNORED_BY_PYTHON)
    return True


def _leave_to_cat(read_end: int) -> None:
    """Let what the job left running write on to our stderr when we are gone."""
    try:
        os.posix_spawn(
            "/bin/cat",
            ["cat"],
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, read_end, 0), (os.POSIX_SPAWN_DUP2, STDERR, 1)],
            setsigdef=ALL,
            setsigmask=(),
            setpgroup=0,
        )
    except OSError:
        _leave_to_a_child(read_end)  # a container may have no cat
    os.close(read_end)


def _leave_to_a_child(read_end: int) -> None:
    """The same where there is no cat."""
    try:
        if os.fork():
            return
    except OSError:
        return
    try:
        os.setpgid(0, 0)
        for number in CAUGHT:
            signals.signal(number, signals.SIG_DFL)
        while (data := os.read(read_end, READ_BYTES)) and _write(data):
            pass
    finally:
        os._exit(0)
