"""A command run as a child, with everything about it left as it would be.

It gets our standard streams, environment, working directory, umask, signal mask
and dispositions, and every signal that we get. Signals are passed on from the
handler itself, so that they arrive also while we wait to write. It must never
make the job wait, and runs it even where it cannot watch it.
"""

from __future__ import annotations

import os
import select
import sys
from time import monotonic, sleep

from outboxd.producer.messages import say
from outboxd.producer.output import READ_BYTES, Output
from outboxd.producer.signals import ALL, CAUGHT, Witness, ignored_by_caller, restore

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
    from collections.abc import Callable, Sequence
    from typing import NoReturn
else:
    import _signal as signals

EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127
ENOEXEC = 8
# A signal to the whole group reaches us and the witness at the same time; systemd sends one
# to each process of a control group, one after the other.
GROUP_GRACE_S, GROUP_REST_S = 0.05, 0.002
MEANWHILE_AFTER_S = 1.0
COERCED_LOCALES = (b"C.UTF-8", b"C.utf8", b"UTF-8")


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
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """`meanwhile` is called once, while the job runs, if it runs for a second."""
        self._argv = list(argv)
        self._meanwhile = meanwhile
        self._keep_stderr = keep_stderr
        self._timeout_s = timeout_s
        self._kill_after_s = kill_after_s
        self._ignored = ignored_by_caller()
        self._mask = signals.pthread_sigmask(signals.SIG_BLOCK, ())
        self._is_at_terminal = _terminal_group() == os.getpgrp()
        # A job with a timeout has a process group of its own, so that all of it can
        # be ended; but at a terminal that would cut it off from its input.
        self._own_group = timeout_s is not None and not self._is_at_terminal
        self._pid: int | None = None
        self._witness: Witness | None = None
        self._output: Output | None = None
        self._woken = -1  # where each signal that arrives leaves its number
        self._left: list[int] = []  # that have arrived, and are seen to next
        self._due: frozenset[int] = frozenset()  # sent to all, and not yet arrived here
        self._due_until_s = 0.0
        self._is_taking_signals = False
        self._is_writing = False
        self._alarm_at_s: float | None = None
        self._timed_out = False
        self._wait_status = 0

    def run(self) -> Ending:
        """Run it to its end."""
        # Until there is somebody to pass them on to, signals wait.
        signals.pthread_sigmask(signals.SIG_SETMASK, ALL)
        started_s = monotonic()
        try:
            # Before any other descriptor, which could be given the number of a closed stream.
            self._output = Output() if self._keep_stderr else None
            self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            failed, failure = os.pipe2(os.O_CLOEXEC)
            ready, readiness = os.pipe2(os.O_CLOEXEC)
            self._catch_signals(wake)
            self._pid = os.fork()
        except OSError as scarce:
            # No descriptors or no processes left, for us: it may still do for the job itself.
            say(f"{scarce.strerror}: the job runs, and no event will tell how it ends")
            try:
                _become_job(self._argv, self._ignored, self._mask)
            except OSError as unfit:
                return _not_started(unfit, self._argv[0])
        if self._pid == 0:
            os.close(readiness)
            self._be_the_job(ready, failure)
        os.close(failure)
        os.close(ready)
        if self._output is not None:
            self._output.close_write_end()
        if self._own_group:
            os.setpgid(self._pid, 0)
        self._witness = Witness(self._pid if self._own_group else os.getpgrp())
        os.close(readiness)  # the job waits for that: whatever it sees, the witness sees too
        signals.pthread_sigmask(signals.SIG_SETMASK, ())
        error = _read_failure(failed)
        if error is None and self._timeout_s is not None:
            self._set_alarm(self._timeout_s)
        self._attend()
        self._witness.end()
        duration_s = monotonic() - started_s
        if error is not None:
            return _not_started(error, self._argv[0])
        if self._output is not None:
            self._output.drain()
        code = os.waitstatus_to_exitcode(self._wait_status)
        return Ending(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            duration_s=duration_s,
            timed_out=self._timed_out,
            stderr=self._output.last_lines() if self._output is not None else None,
        )

    def _catch_signals(self, wake: int) -> None:
        signals.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in CAUGHT - self._ignored:
            signals.signal(number, self._on_signal)
        signals.signal(signals.SIGCHLD, self._on_signal)
        if self._timeout_s is not None:
            signals.signal(signals.SIGALRM, self._on_signal)

    def _be_the_job(self, ready: int, failure: int) -> NoReturn:
        """In the child: once `ready` ends become the job, or say on `failure` which error kept
        it from that."""
        try:
            os.read(ready, 1)
            if self._output is not None and self._output.write_end is not None:
                for descriptor in self._output.descriptors:
                    os.dup2(self._output.write_end, descriptor)
            _take_over_from(os.getppid())
            _become_job(self._argv, self._ignored, self._mask)
        except OSError as error:
            os.write(failure, str(error.errno).encode())
        finally:
            os._exit(EXIT_NOT_FOUND)

    def _attend(self) -> None:
        """Pass its output through, and signals on, until it ends."""
        waiting = select.poll()
        waiting.register(self._woken, select.POLLIN)
        output = self._output.read_end if self._output is not None else None
        if output is not None:
            waiting.register(output, select.POLLIN)
        meanwhile_at_s = monotonic() + MEANWHILE_AFTER_S
        while not self._has_ended():
            left_s = None
            if self._meanwhile is not None:
                left_s = meanwhile_at_s - monotonic()
                if left_s <= 0:
                    call, self._meanwhile, left_s = self._meanwhile, None, None
                    call()
            for descriptor, _ in waiting.poll(left_s and left_s * 1000):
                if descriptor == self._woken:
                    self._take_signals()
                    continue
                assert self._output is not None
                self._is_writing = True
                self._output.pass_on()
                self._is_writing = False
                if self._output.read_end is None:
                    waiting.unregister(descriptor)

    def _has_ended(self) -> bool:
        """Whether the job has; other children that ended are reaped, which as process 1 are
        all that have lost their parent."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                self._pid = None  # reaped by nobody we know: there is no status to be had
                return True
            if ended is None:
                break
            pid = ended.si_pid
            if pid == self._pid:
                # Before it is reaped: from then on its number may be another process's.
                self._pid = None
                _, self._wait_status = os.waitpid(pid, 0)
                if self._alarm_at_s is not None:
                    signals.setitimer(signals.ITIMER_REAL, 0)
                return True
            if self._witness is not None and pid == self._witness.pid:
                self._witness.end()  # not made anew: what ended it would end the next one
            else:
                os.waitpid(pid, 0)
        if self._is_at_terminal:
            self._stop_with_job()
        return False

    def _stop_with_job(self) -> None:
        """Where the job stopped itself, the shell that waits for us must see that."""
        assert self._pid is not None
        stopped = os.WSTOPPED | os.WNOHANG
        if os.waitid(os.P_PID, self._pid, stopped | os.WNOWAIT) is None:
            return
        # What stopped it may have been sent to us, too. Then we stop by that, and not once
        # more when we come to it after both were continued.
        sleep(GROUP_REST_S)
        self._take_signals()
        if os.waitid(os.P_PID, self._pid, stopped) is not None:
            os.kill(os.getpid(), signals.SIGSTOP)

    def _on_signal(self, number: int, frame: object) -> None:
        """Mostly what it leaves in the pipe wakes us; but writing may last as long as our reader
        likes."""
        if self._is_writing:
            self._take_signals()

    def _take_signals(self) -> None:
        """See to every signal that has arrived. Where one interrupts this, it is seen to by
        the call that it interrupted."""
        if self._is_taking_signals or self._witness is None:
            return
        self._is_taking_signals = True
        try:
            while numbers := self._arrived():
                self._pass_on(numbers)
        finally:
            self._is_taking_signals = False

    def _arrived(self) -> list[int]:
        """The signals since the last call, each as often as it came, but for our own."""
        left, self._left = self._left, []
        try:
            numbers = list(os.read(self._woken, READ_BYTES))
        except BlockingIOError:
            return left
        if signals.SIGALRM in numbers and self._is_time_up():
            numbers.remove(signals.SIGALRM)
            self._time_is_up()
        numbers = [n for n in numbers if n != signals.SIGCHLD and n not in self._ignored]
        return left + numbers

    def _pass_on(self, numbers: list[int]) -> None:
        """Give the job those that it does not have already.

        Each look at the witness comes behind one at our own signals: what was sent to all is
        pending there before we can know of it.
        """
        assert self._witness is not None
        started_s = monotonic()
        due = self._due if started_s < self._due_until_s else frozenset()
        while True:
            # Before the look: whoever is held up behind it has not looked for long enough.
            is_last_look = monotonic() >= started_s + GROUP_GRACE_S
            sent_to_all = self._witness.pending() | due
            if sent_to_all.issuperset(numbers) or is_last_look:
                break
            sleep(0.001)
            numbers += self._arrived()
        if not sent_to_all.isdisjoint(numbers):
            sleep(GROUP_REST_S)  # we may be the last of the group to get it
            numbers += self._arrived()
            sent_to_all |= self._witness.renew()
            # Of what has come since, the former witness had these too; the others are
            # looked for with the next one.
            late = self._arrived()
            numbers += [number for number in late if number in sent_to_all]
            self._left = [number for number in late if number not in sent_to_all]
            # What only the former witness had is still to arrive here.
            self._due = sent_to_all.difference(numbers)
            self._due_until_s = monotonic() + GROUP_GRACE_S
            if not self._is_with_witness():
                sent_to_all = frozenset()
        for number in numbers:
            if number not in sent_to_all:
                self._signal(number)
        if signals.SIGTSTP in numbers:
            self._stop()

    def _is_with_witness(self) -> bool:
        """Whether the job is in the group that we started it in, and had what went to all."""
        if self._pid is None:
            return False
        try:
            group = os.getpgid(self._pid)
        except OSError:
            return False
        return group == (self._pid if self._own_group else os.getpgrp())

    def _stop(self) -> None:
        """Stop as without a handler: not at all where no shell could continue us."""
        signals.signal(signals.SIGTSTP, signals.SIG_DFL)
        os.kill(os.getpid(), signals.SIGTSTP)
        signals.signal(signals.SIGTSTP, self._on_signal)

    def _set_alarm(self, seconds: float) -> None:
        seconds = max(seconds, 0.001)
        self._alarm_at_s = monotonic() + seconds
        signals.setitimer(signals.ITIMER_REAL, seconds)

    def _is_time_up(self) -> bool:
        """Whether an alarm is our own, and not somebody's signal."""
        return self._alarm_at_s is not None and monotonic() >= self._alarm_at_s - 0.001

    def _time_is_up(self) -> None:
        if self._timed_out:
            self._signal(signals.SIGKILL)
            return
        self._timed_out = True
        self._signal(signals.SIGTERM)
        self._signal(signals.SIGCONT)  # a stopped job would not notice
        self._set_alarm(self._kill_after_s)

    def _signal(self, number: int) -> None:
        if self._pid is None:
            return
        try:
            if self._own_group and self._timed_out:
                os.killpg(self._pid, number)
            else:
                os.kill(self._pid, number)
        except OSError:
            pass  # it has just ended, or became another user: then it hears of nobody


def _become_job(argv: list[str], ignored: frozenset[int], mask: set[int]) -> NoReturn:
    """Replace this process by the job. Raises the OSError that keeps it from that."""
    _restore_locale()
    restore(ignored, mask)
    program = os.fsencode(argv[0])
    error: OSError = FileNotFoundError(2, "No such file or directory")
    for path in _candidates(program):
        try:
            os.execv(path, argv)
        except (FileNotFoundError, NotADirectoryError) as missing:
            if b"/" in program:
                error = missing
        except PermissionError as denied:
            error = denied  # as a shell does: another directory may have one
        except OSError as other:
            if other.errno != ENOEXEC:
                raise
            # A script without a first line; a shell runs it itself.
            os.execv("/bin/sh", ["sh", os.fsdecode(path), *argv[1:]])
    raise error


def _candidates(program: bytes) -> list[bytes]:
    """The files that a program's name may mean, as execvp(3) looks for them."""
    if b"/" in program or not program:
        return [program] if program else []
    directories = os.environb.get(b"PATH", b"/bin:/usr/bin").split(b":")
    return [(directory or b".") + b"/" + program for directory in directories]


def _restore_locale() -> None:
    """In the C locale, which cron has, the interpreter sets LC_CTYPE in its own environment to
    one of these (PEP 538); the job must have what was given. All else is as it was given to us.
    """
    if not sys.flags.utf8_mode or os.environb.get(b"LC_CTYPE") not in COERCED_LOCALES:
        return
    try:
        with open("/proc/self/environ", "rb") as file:
            given = file.read().split(b"\0")
    except OSError:
        given = []  # there is no /proc: mostly nothing was given
    for each in given:
        if each.startswith(b"LC_CTYPE="):
            os.putenv(b"LC_CTYPE", each.partition(b"=")[2])
            return
    os.unsetenv("LC_CTYPE")


def _take_over_from(pid: int) -> None:
    """systemd says whom sockets and watchdog are for; where that was `exec` it is the job now."""
    for name in (b"LISTEN_PID", b"WATCHDOG_PID"):
        if os.environb.get(name) == b"%d" % pid:
            os.putenv(name, b"%d" % os.getpid())


def _read_failure(failed: int) -> OSError | None:
    """Why the child could not become the job; None once it has."""
    text = os.read(failed, 32)
    os.close(failed)
    return OSError(int(text), os.strerror(int(text))) if text else None


def _not_started(error: OSError, program: str) -> Ending:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Ending(exit_code=EXIT_NOT_EXECUTABLE, error=error.strerror or str(error))
    # The kernel says the same of a script whose first line ends with a carriage return.
    is_there = "/" in program and os.path.exists(program)
    told = "it is there, and its interpreter (its first line) is not" if is_there else None
    return Ending(exit_code=EXIT_NOT_FOUND, error=told or "command not found")


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
