"""A command run as a child, with everything about it left as it would be.

It gets our standard streams, our environment and every signal that we get; of
its stderr a copy of the end is kept while it passes through. Signals are passed on
from the handler itself, so that they arrive also while we wait to write. It
must never make the job wait, nor outlive it because a grandchild still holds
its stderr. It uses the C cores of `signal` and `select` alone, to start at once.
"""

# ruff: noqa: SIM105 (contextlib brings half a dozen modules that a cron job would wait for)

from __future__ import annotations

import os
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
    from collections.abc import Sequence
else:
    import _signal as signals

STDERR = 2
TAIL_BYTES_MAX, TAIL_LINES_MAX = 4096, 20
READ_BYTES = 65536
# More than a pipe holds: what the job wrote before its end is all within it.
DRAIN_BYTES_MAX = 2 * 1024 * 1024
EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127

# Everything that would end us and leave the job alone behind.
FORWARDED = (
    signals.SIGTERM,
    signals.SIGINT,
    signals.SIGHUP,
    signals.SIGQUIT,
    signals.SIGUSR1,
    signals.SIGUSR2,
    signals.SIGALRM,
)
# A terminal sends these to its whole foreground group, so the job has them already.
OF_TERMINAL = (signals.SIGINT, signals.SIGQUIT)
# The interpreter ignores these at its start; the job must not inherit that.
IGNORED_BY_PYTHON = (signals.SIGPIPE, signals.SIGXFSZ)


class Ending:
    """How a job ended."""

    __slots__ = ("duration_s", "error", "exit_code", "signal", "stderr", "timed_out")

    def __init__(
        self,
        exit_code: int | None = None,
        signal: int | None = None,
        error: str | None = None,
        duration_s: float = 0.0,
        timed_out: bool = False,
        stderr: bytes | None = None,
    ) -> None:
        self.exit_code = exit_code  # its own, or 126 and 127 where it could not start
        self.signal = signal  # the number of the signal that ended it
        self.error = error  # why it could not start
        self.duration_s = duration_s
        self.timed_out = timed_out
        self.stderr = stderr  # its last lines; None where they were not kept

    @property
    def status(self) -> int:
        """The exit status that a shell would give."""
        if self.signal is not None:
            return 128 + self.signal
        return self.exit_code or 0

    @property
    def failed(self) -> bool:
        return self.status != 0


class Job:
    """One run of a command."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        keep_stderr: bool = True,
        timeout_s: float | None = None,
        kill_after_s: float = 10.0,
    ) -> None:
        self._argv = list(argv)
        self._timeout_s = timeout_s
        self._kill_after_s = kill_after_s
        self._pid: int | None = None
        self._early: list[int] = []  # signals from before the job had started
        self._timed_out = False
        # A job with a timeout has a process group of its own, so that all of it can
        # be ended; but at a terminal that would cut it off from its input.
        self._own_group = timeout_s is not None and _terminal_group() is None
        self._tail = _Tail() if keep_stderr and _is_open(STDERR) else None
        self._wait_status = 0

    def run(self) -> Ending:
        """Run it to its end."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signals.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._catch_signals()
        started_s = monotonic()
        try:
            stderr = self._start()
        except OSError as error:
            return self._not_started(error)
        if self._timeout_s is not None:
            signals.setitimer(signals.ITIMER_REAL, max(self._timeout_s, 0.001))
        self._attend(woken, stderr)
        duration_s = monotonic() - started_s
        if stderr is not None and self._tail is not None and not self._tail.ended:
            self._drain(stderr)
        code = os.waitstatus_to_exitcode(self._wait_status)
        return Ending(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            duration_s=duration_s,
            timed_out=self._timed_out,
            stderr=self._tail.last_lines() if self._tail is not None else None,
        )

    def _catch_signals(self) -> None:
        for number in FORWARDED:
            # What was ignored when we started (nohup, a shell's background) stays ignored, by us
            # and by the job.
            if signals.getsignal(number) != signals.SIG_IGN:
                signals.signal(number, self._forward)
        if self._timeout_s is not None:
            signals.signal(signals.SIGALRM, self._time_is_up)
        signals.signal(signals.SIGCHLD, _wake_up)

    def _start(self) -> int | None:
        """Start it; gives the end of the pipe at which its stderr comes out."""
        if self._tail is None:
            self._spawn([])
            return None
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            self._spawn([(os.POSIX_SPAWN_DUP2, write_end, STDERR)])
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return read_end

    def _spawn(self, file_actions: list[tuple[int, int, int]]) -> None:
        argv = self._argv
        try:
            self._pid = self._spawn_program(argv[0], argv, file_actions)
        except OSError as error:
            if error.errno != 8:  # ENOEXEC: a script without a first line; a shell runs it itself
                raise
            import shutil

            script = shutil.which(argv[0]) or argv[0]
            self._pid = self._spawn_program("/bin/sh", ["sh", script, *argv[1:]], file_actions)
        for number in self._early:
            self._signal(number)

    def _spawn_program(
        self, path: str, argv: list[str], file_actions: list[tuple[int, int, int]]
    ) -> int:
        environment = _environment()
        if self._own_group:
            return os.posix_spawnp(
                path,
                argv,
                environment,
                file_actions=file_actions,
                setsigdef=IGNORED_BY_PYTHON,
                setpgroup=0,
            )
        return os.posix_spawnp(
            path, argv, environment, file_actions=file_actions, setsigdef=IGNORED_BY_PYTHON
        )

    def _not_started(self, error: OSError) -> Ending:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        return Ending(
            exit_code=EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE,
            error="command not found" if missing else (error.strerror or str(error)),
        )

    def _attend(self, woken: int, stderr: int | None) -> None:
        """Pass its stderr through until it ends."""
        waiting = select.poll()
        waiting.register(woken, select.POLLIN)
        if stderr is not None:
            waiting.register(stderr, select.POLLIN)
        while not self._has_ended():
            for descriptor, _ in waiting.poll():
                if descriptor == woken:
                    _empty(woken)
                elif self._tail is not None and not self._tail.pass_on(descriptor):
                    waiting.unregister(descriptor)
                    os.close(descriptor)

    def _has_ended(self) -> bool:
        assert self._pid is not None
        pid = self._pid
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._pid = None  # reaped by nobody we know: there is no status to be had
            return True
        if ended is None:
            return False
        # Before it is reaped: from then on its number may be another process's.
        self._pid = None
        _, self._wait_status = os.waitpid(pid, 0)
        if self._timeout_s is not None:
            signals.setitimer(signals.ITIMER_REAL, 0)
        return True

    def _drain(self, stderr: int) -> None:
        """What it wrote before its end; a grandchild may write on, but not to us."""
        assert self._tail is not None
        os.set_blocking(stderr, False)
        passed_bytes = 0
        try:
            while passed_bytes < DRAIN_BYTES_MAX:
                before = self._tail.passed_bytes
                if not self._tail.pass_on(stderr):
                    os.close(stderr)
                    return
                passed_bytes += self._tail.passed_bytes - before
        except BlockingIOError:
            pass
        os.set_blocking(stderr, True)
        _leave_to_cat(stderr)

    def _forward(self, number: int, frame: object) -> None:
        if self._pid is None:
            self._early.append(number)
        elif number not in OF_TERMINAL or _terminal_group() != os.getpgrp():
            self._signal(number)

    def _time_is_up(self, number: int, frame: object) -> None:
        if self._pid is None:
            return
        if self._timed_out:
            self._signal(signals.SIGKILL)
            return
        self._timed_out = True
        self._signal(signals.SIGTERM)
        self._signal(signals.SIGCONT)  # a stopped job would not notice
        signals.setitimer(signals.ITIMER_REAL, max(self._kill_after_s, 0.001))

    def _signal(self, number: int) -> None:
        if self._pid is None:
            return
        try:
            os.kill(-self._pid if self._own_group else self._pid, number)
        except OSError:
            pass  # it has just ended, or became another user: then it hears of nobody


class _Tail:
    """What passes through to our own stderr, and its last lines."""

    def __init__(self) -> None:
        self.ended = False
        self.passed_bytes = 0
        self._kept = b""

    def pass_on(self, descriptor: int) -> bool:
        """Pass on what can be read now; False at the end."""
        data = os.read(descriptor, READ_BYTES)
        if data:
            self.passed_bytes += len(data)
            self._kept = (self._kept + data)[-TAIL_BYTES_MAX:]
            if _write(data):
                return True
        # At its end; or nobody reads our stderr any more, which the job learns by
        # the closing of its own, as it would without us.
        self.ended = True
        return False

    def last_lines(self) -> bytes:
        lines = self._kept.rstrip(b"\n").split(b"\n")
        return b"\n".join(lines[-TAIL_LINES_MAX:])


def _write(data: bytes) -> bool:
    """All of it to stderr; False where nobody reads that any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(STDERR, view) :]
        except BlockingIOError:
            writable = select.poll()
            writable.register(STDERR, select.POLLOUT)
            writable.poll(1000)
        except BrokenPipeError:
            return False
        except OSError:
            return True  # a full disk, say: the job would have gone on too
    return True


def _leave_to_cat(stderr: int) -> None:
    """Let what the job left running write on to our stderr when we are gone."""
    try:
        os.posix_spawn(
            "/bin/cat",
            ["cat"],
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, stderr, 0), (os.POSIX_SPAWN_DUP2, STDERR, 1)],
            setsigdef=IGNORED_BY_PYTHON,
            setpgroup=0,
        )
    except OSError:
        pass
    os.close(stderr)


def _environment() -> dict[bytes, bytes]:
    """The environment as we got it. In the C locale, which cron has, the interpreter
    adds a variable to its own; the job must not see that."""
    environment = dict(os.environb)
    if environment.get(b"LC_CTYPE") == b"C.UTF-8":
        try:
            with open("/proc/self/environ", "rb") as file:
                given = file.read().split(b"\0")
        except OSError:
            return environment
        if not any(each.startswith(b"LC_CTYPE=") for each in given):
            del environment[b"LC_CTYPE"]
    return environment


def _terminal_group() -> int | None:
    """The foreground process group of our terminal; None where there is no terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return None
    finally:
        os.close(terminal)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _empty(descriptor: int) -> None:
    try:
        while len(os.read(descriptor, READ_BYTES)) == READ_BYTES:
            pass
    except BlockingIOError:
        pass


def _wake_up(number: int, frame: object) -> None:
    """That there is a handler is enough: it makes the wake-up pipe readable."""
