"""Signals and `outboxd exec`: each that is sent reaches the job once, as it would without us.

What counts is a job that writes each signal it gets into a file, and the test's
own list of what it sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

from outboxd.producer.build import build

# The rest cannot be caught, is the children's, or says that the program itself is at fault.
NOT_SENT = {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS),
    *(signal.SIGFPE, signal.SIGILL, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP),
}
# Marks the end of what a test sent. Of several that wait for a process it is told of the
# lower numbers first: nothing else can come behind this one.
LAST = signal.SIGRTMAX
# The numbers of poll and ppoll, on x86-64 and on others, in which exec waits.
POLL = ("7", "271") if os.uname().machine == "x86_64" else ("73", "168")
SENT = sorted(signal.valid_signals() - NOT_SENT - {LAST})
COUNTER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
seen = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(seen, b"ready\\n")
# Not by handlers: Python calls one for several signals of a number. It ends by itself,
# where nobody is left to end it.
while told := signal.sigtimedwait(signal.valid_signals(), 120):
    os.write(seen, b"%d\\n" % told.si_signo)
"""


class Counter:
    """A job that counts, run by exec."""

    def __init__(self, program: Path, place, *before: str, own_session: bool = True) -> None:
        self.file = place.directory / f"seen{len(list(place.directory.glob('seen*')))}"
        job = [*before, sys.executable, "-c", COUNTER, str(self.file)]
        self.process = subprocess.Popen(
            [program, "exec", "--", *job],
            env=place.environment,
            start_new_session=own_session,
            stderr=subprocess.DEVNULL,
        )
        self.wait_for(0)

    def wait_for(self, count: int) -> list[int]:
        """Until it has seen so many."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            lines = self.file.read_text().splitlines() if self.file.exists() else []
            if len(lines) > count:
                return [int(line) for line in lines[1:]]
            time.sleep(0.002)
        raise AssertionError(f"{lines}, {count} expected")

    def settle(self) -> None:
        """Until exec is done with all that was sent, and waits: then it passes nothing on."""
        deadline = time.monotonic() + PATIENCE_S
        syscall = Path(f"/proc/{self.process.pid}/syscall")
        while syscall.read_text().split()[0] not in POLL:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def seen_at_last(self, count: int) -> list[int]:
        """What it saw, one too many included."""
        self.wait_for(count)
        self.settle()
        os.kill(self.process.pid, LAST)
        deadline = time.monotonic() + PATIENCE_S
        while (seen := self.wait_for(count))[-1:] != [LAST]:
            assert time.monotonic() < deadline, seen
        return seen[:-1]

    def pids(self) -> list[int]:
        """All processes of its session, exec's own first, as systemd would go through them."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.process.pid:
                        found.append(int(entry.name))
        return sorted(found)

    def _jobs(self) -> list[int]:
        """The job itself, where it has left the session."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if os.fsencode(self.file) in words:
                        found.append(int(entry.name))
        return found

    def end(self) -> None:
        for pid in [*(self.pids() or [self.process.pid]), *self._jobs()]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """`outboxd` as it is installed on a host."""
    path = tmp_path_factory.mktemp("installed") / "outboxd"
    build(path, sys.prefix)
    return path


@contextlib.contextmanager
def in_one_go():
    """What is sent here is sent as by a program that nothing interrupts between two calls:
    on a busy machine others' turns would come there, and the second be one of its own."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


@pytest.fixture
def counter(program, place):
    """Starts jobs that count, under exec as it is installed, or `changed`; ends them."""
    started = []

    def start(*before: str, changed: str = "", **options) -> Counter:
        run = program
        if changed:
            run = place.directory / "outboxd"
            run.write_text(changed)
            run.chmod(0o755)
        started.append(Counter(run, place, *before, **options))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_each_signal_to_exec_alone_reaches_the_job_once(counter):
    job = counter()
    sent = []
    for number in [*SENT, signal.SIGTSTP]:
        os.kill(job.process.pid, number)
        sent.append(number)
        job.wait_for(len(sent))
        if number == signal.SIGTSTP:
            job.settle()
            os.kill(job.process.pid, signal.SIGCONT)
            sent.append(signal.SIGCONT)
            job.wait_for(len(sent))
    assert job.seen_at_last(len(sent)) == sent


def test_each_signal_to_the_whole_group_reaches_the_job_once(counter):
    job = counter()
    sent = []
    for number in SENT:
        os.killpg(job.process.pid, number)
        sent.append(number)
        job.wait_for(len(sent))
        job.settle()
    assert job.seen_at_last(len(sent)) == sent


def test_a_signal_to_each_process_in_turn_reaches_the_job_once(counter):
    """As systemd ends the control group of a service."""
    job = counter()
    sent = []
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGHUP, signal.SIGTERM):
        pids = job.pids()
        with in_one_go():
            for pid in pids:
                os.kill(pid, number)
        sent.append(number)
        job.wait_for(len(sent))
        job.settle()
    assert job.seen_at_last(len(sent)) == sent


def test_to_exec_and_then_to_the_group_as_timeout_sends_it_is_one(counter):
    job = counter()
    sent = []
    for number in (signal.SIGTERM, signal.SIGRTMIN, signal.SIGHUP, signal.SIGTERM):
        with in_one_go():
            os.kill(job.process.pid, number)
            os.killpg(job.process.pid, number)
        sent.append(number)
        job.wait_for(len(sent))
        job.settle()
    # A real-time signal is queued, each instance: two were sent, one of them to all.
    assert [each for each in job.seen_at_last(len(sent)) if each != signal.SIGRTMIN] == [
        each for each in sent if each != signal.SIGRTMIN
    ]


HELD_UP_WHILE_THE_WITNESS_IS_RENEWED = f"""#!{sys.executable}
import os, signal, sys, time
from outboxd.producer import job
renew, is_with_witness = job.Witness.renew, job.Job._is_with_witness
def renewed(self):
    job.Witness.renew = renew
    os.killpg(0, signal.SIGHUP)
    return renew(self)
def later(self):
    time.sleep(job.GROUP_GRACE_S * 3)
    return is_with_witness(self)
job.Witness.renew, job.Job._is_with_witness = renewed, later
from outboxd.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_what_comes_to_all_while_exec_is_held_up_reaches_the_job_once(counter):
    """A busy machine gives its turn to others, just when it is told of another signal."""
    job = counter(changed=HELD_UP_WHILE_THE_WITNESS_IS_RENEWED)
    os.killpg(job.process.pid, signal.SIGTERM)
    # Each once; a job that had no turn between the two is told of the lower number first.
    assert sorted(job.seen_at_last(2)) == [signal.SIGHUP, signal.SIGTERM]


HELD_UP_WHILE_IT_LOOKS_AT_THE_WITNESS = f"""#!{sys.executable}
import os, signal, sys, time
from outboxd.producer import job
pending = job.Witness.pending
def looked(self):
    job.Witness.pending = pending
    found = pending(self)
    os.killpg(0, signal.SIGTERM)
    time.sleep(job.GROUP_GRACE_S * 3)
    return found
job.Witness.pending = looked
from outboxd.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_what_comes_to_exec_first_and_to_all_while_it_is_held_up_reaches_the_job_once(counter):
    """As from timeout(1), when exec looks between the two and then has no turn for a while."""
    job = counter(changed=HELD_UP_WHILE_IT_LOOKS_AT_THE_WITNESS)
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.seen_at_last(1) == [signal.SIGTERM]


def uninterrupted():
    """In a child: it sends in one go, and what it starts is a process like any other."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


@pytest.mark.long
def test_timeout_of_coreutils_sends_the_job_one_signal(program, place):
    for round in range(3):
        file = place.directory / f"count{round}"
        script = f"trap 'echo x >> {file}' TERM; echo ready > {file}; while :; do sleep 0.01; done"
        with subprocess.Popen(
            ["timeout", "-k", "600", "600", program, "exec", "--", "sh", "-c", script],
            env=place.environment,
            stderr=subprocess.DEVNULL,
            preexec_fn=uninterrupted,
        ) as process:
            wait_until(file, "ready\n")
            process.send_signal(signal.SIGALRM)  # its own time is up
            wait_until(file, "ready\nx\n")
            time.sleep(0.5)  # for one too many
            process.send_signal(signal.SIGALRM)  # and that of -k
            process.wait(PATIENCE_S)
        assert process.returncode in (137, -signal.SIGKILL)  # timeout is in that group too
        assert file.read_text() == "ready\nx\n"


def test_real_time_signals_are_counted(counter):
    job = counter()
    for _ in range(50):
        os.kill(job.process.pid, signal.SIGRTMIN + 3)
    assert job.seen_at_last(50) == [signal.SIGRTMIN + 3] * 50


def test_a_job_that_left_the_group_hears_of_what_was_sent_to_exec(counter):
    job = counter("setsid")
    os.killpg(job.process.pid, signal.SIGHUP)
    assert job.seen_at_last(1) == [signal.SIGHUP]


def test_signals_by_the_program_name_are_passed_on(counter):
    """As `pkill -f 'outboxd exec'` sends them: to no process but ours."""
    job = counter()
    ours = [
        pid for pid in job.pids() if b"outboxd\0exec" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert ours == [job.process.pid]
    os.kill(ours[0], signal.SIGTERM)
    assert job.seen_at_last(1) == [signal.SIGTERM]


def test_exec_that_is_killed_leaves_no_process_of_its_own(counter):
    job = counter()
    helpers = [pid for pid in job.pids() if Path(f"/proc/{pid}/comm").read_text() == "cat\n"]
    assert helpers
    os.kill(job.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}/status").exists() and pid in job.pids() for pid in helpers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ----- masks and dispositions

STATES = ["grep", "-E", "Sig(Blk|Ign)|ShdPnd", "/proc/self/status"]


def state(words, environment, prepare):
    done = subprocess.run(
        words,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=prepare,
        timeout=PATIENCE_S,
    )
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("words", [[], ["--timeout", "1h"], ["--no-output"]])
def test_a_mask_that_the_caller_left_is_the_jobs(program, place, words):
    def block():
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())

    alone = state(STATES, place.environment, block)
    assert state([program, "exec", *words, "--", *STATES], place.environment, block) == alone


@pytest.mark.parametrize("words", [[], ["--timeout", "1h"], ["--no-output"]])
def test_what_the_caller_ignores_stays_ignored(program, place, words):
    def ignore():
        for number in set(SENT) - {signal.SIGPIPE, signal.SIGXFSZ} | {signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)

    alone = state(STATES, place.environment, ignore)
    assert state([program, "exec", *words, "--", *STATES], place.environment, ignore) == alone


@pytest.mark.parametrize("trap", ["true", "trap '' PIPE", "trap '' PIPE HUP XCPU"])
def test_a_broken_pipe_that_the_caller_ignores_too(program, place, trap):
    """As under systemd, which ignores SIGPIPE for its services."""

    def under_shell(*words):
        script = f'{trap}; "$@"; exit $?'
        return state(["sh", "-c", script, "sh", *words], place.environment, None)

    assert under_shell(program, "exec", "--", *STATES) == under_shell(*STATES)


def test_a_blocked_child_signal_does_not_hang_exec(program, place):
    def block():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    done = subprocess.run(
        [program, "exec", "--", "sh", "-c", "exit 3"],
        env=place.environment, preexec_fn=block, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    done = subprocess.run(
        [program, "exec", "--timeout", "200ms", "--kill-after", "300ms", "--", "sleep", "50"],
        env=place.environment, preexec_fn=block, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode in (128 + signal.SIGTERM, 128 + signal.SIGKILL)


def test_an_ignored_child_signal_does_not_lose_the_status(program, place):
    done = subprocess.run(
        [program, "exec", "--", "sh", "-c", "exit 3"],
        env=place.environment,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 3


def test_somebodys_alarm_is_the_jobs_and_not_the_timeout(program, place):
    file = place.directory / "alarmed"
    script = (
        f"trap 'echo x >> {file}; exit 5' ALRM; echo ready > {file}; while :; do sleep 0.01; done"
    )
    with subprocess.Popen(
        [program, "exec", "--timeout", "1h", "--", "sh", "-c", script], env=place.environment
    ) as process:
        wait_until(file, "ready\n")
        process.send_signal(signal.SIGALRM)
        assert process.wait(PATIENCE_S) == 5
    assert file.read_text() == "ready\nx\n"


@pytest.mark.parametrize("limit", range(4, 14))
def test_where_there_are_few_descriptors_left_the_job_runs_all_the_same(program, place, limit):
    done = subprocess.run(
        [
            "sh",
            "-c",
            f'ulimit -n {limit}; exec "$@"',
            "sh",
            program,
            "exec",
            "--",
            "sh",
            "-c",
            "exit 3",
        ],
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 3
    # Told by an event, or by a word that there will be none.
    told = "no event will tell how it ends" in done.stderr
    assert len(place.spooled()) == (0 if told else 1), done.stderr


# ----- as process 1


def test_as_process_1_it_reaps_orphans_and_passes_signals_on(program, place, need):
    if os.geteuid() != 0:
        pytest.skip("only root can make a namespace of processes")
    unshare = need("unshare", "util-linux")
    # Whom nobody reaps stays in /proc.
    orphans = place.directory / "orphans"
    script = (
        f"for i in 1 2 3; do (sleep 0.1 & echo $! >> {orphans}); done;"
        f" for pid in $(cat {orphans}); do while [ -e /proc/$pid ]; do sleep 0.02; done; done;"
        " echo end"
    )
    start = (unshare, "-pf", "--kill-child", "--mount-proc")
    done = subprocess.run(
        [*start, program, "exec", "--", "sh", "-c", script],
        env=place.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.stdout == "end\n"


# ----- at a terminal


class Terminal:
    """An interactive shell with job control at a terminal, and who types there."""

    def __init__(self, environment) -> None:
        self.pid, self.end = pty.fork()
        if self.pid == 0:  # pragma: no cover
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self.shown = b""

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def wait_for(self, text: str) -> None:
        """Until this is shown, behind what was waited for before."""
        deadline = time.monotonic() + PATIENCE_S
        while text.encode() not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.end], [], [], 1)[0]:
                self.shown += os.read(self.end, 65536)
        self.shown = self.shown.partition(text.encode())[2]

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.end)


@pytest.fixture
def terminal(place):
    opened = Terminal({**place.environment, "PS1": "PROMPT> ", "TERM": "dumb"})
    opened.wait_for("PROMPT> ")
    yield opened
    opened.close()


def test_at_a_terminal_ctrl_c_ctrl_z_and_fg_work_and_each_comes_once(program, place, terminal):
    file = place.directory / "count"
    script = (
        f"trap 'echo int >> {file}' INT; trap 'echo cont >> {file}' CONT;"
        f" trap 'echo winch >> {file}' WINCH;"
        f" echo started; while [ ! -e {file}.end ]; do sleep 0.02; done; echo fin''ished; exit 4"
    )
    terminal.type(f'{program} exec -- sh -c "{script}"\n')
    terminal.wait_for("\nstarted")
    terminal.type("\x03")
    wait_until(file, "int\n")
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.wait_for("PROMPT> ")
    terminal.type("fg\n")
    wait_until(file, "int\ncont\n")
    # One change, and so one signal; stty makes two of it.
    fcntl.ioctl(terminal.end, termios.TIOCSWINSZ, struct.pack("4H", 30, 90, 0, 0))
    wait_until(file, "int\ncont\nwinch\n")
    time.sleep(0.1)
    Path(f"{file}.end").touch()
    terminal.wait_for("finished")
    terminal.wait_for("PROMPT> ")
    terminal.type("echo status $?\n")
    terminal.wait_for("status 4")
    assert file.read_text() == "int\ncont\nwinch\n"


HELD_BEFORE_ITS_LOOK_AT_THE_JOB = """
import os, sys, time
from outboxd.producer import job
hold, held, has_ended = sys.argv.pop(1), sys.argv.pop(1), job.Job._has_ended
def later(self):
    while os.path.exists(hold):
        open(held, "w").close()
        time.sleep(0.01)
    return has_ended(self)
job.Job._has_ended = later
from outboxd.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_at_a_terminal_one_ctrl_z_wants_one_fg_whatever_is_seen_first(place, terminal):
    """Here that the job has stopped, and only then the signal that came to all."""
    script, file = place.directory / "held.py", place.directory / "seen"
    hold, held = place.directory / "hold", place.directory / "held"
    script.write_text(HELD_BEFORE_ITS_LOOK_AT_THE_JOB)
    job = (
        f"trap 'echo int >> {file}' INT; trap 'echo cont >> {file}' CONT; echo beg''un;"
        f" while [ ! -e {file}.end ]; do sleep 0.02; done; echo fin''ished; exit 4"
    )
    terminal.type(f'{sys.executable} {script} {hold} {held} exec -- sh -c "{job}"\n')
    terminal.wait_for("begun")
    hold.touch()
    terminal.type("\x03")
    wait_until(file, "int\n")
    wait_until(held, "")
    terminal.type("\x1a")
    terminal.wait_for("^Z")
    hold.unlink()
    terminal.wait_for("Stopped")
    terminal.wait_for("PROMPT> ")
    terminal.type("fg\n")
    wait_until(file, "int\ncont\n")
    Path(f"{file}.end").touch()
    terminal.wait_for("finished")
    terminal.wait_for("PROMPT> ")
    terminal.type("echo status $?\n")
    terminal.wait_for("status 4")


def test_at_a_terminal_a_job_that_stops_itself_gives_the_shell_back(program, terminal):
    terminal.type(f"{program} exec -- sh -c 'kill -STOP $$; echo a''gain'\n")
    terminal.wait_for("Stopped")
    terminal.wait_for("PROMPT> ")
    terminal.type("fg\n")
    terminal.wait_for("again")
    terminal.wait_for("PROMPT> ")


def test_at_a_terminal_the_job_reads_from_it(program, terminal):
    terminal.type(f"{program} exec -- sh -c 'echo as''king; read line; echo got-$line'\n")
    terminal.wait_for("asking")
    terminal.type("words\n")
    terminal.wait_for("got-words")


def wait_until(seen, expected: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (text := seen.read_text() if seen.exists() else None) != expected:
        assert time.monotonic() < deadline, text
        time.sleep(0.01)
