"""`outboxd exec` as a process: the job is as it would be alone, and its failure is told."""

from __future__ import annotations

import os
import pty
import pwd
import signal
import subprocess
import sys
import time

import pytest
from support.waiting import PATIENCE_S


def wait_for(path, process):
    """Until the job has made this file; the job tells so that it is ready."""
    for _ in range(9_000):
        if path.exists():
            return
        assert process.poll() is None, "the job ended early"
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


def test_a_job_that_succeeds_is_as_if_it_ran_alone(place):
    done = place.run("exec", "--", "sh", "-c", "cat; echo err >&2", input=b"in\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "err\n")
    assert place.spooled() == []


def test_a_failed_job_keeps_its_status_and_is_told(place):
    done = place.run(
        *("exec", "--cluster", "c", "--namespace", "n", "--service", "s", "--detail", "team=a"),
        *("--", "sh", "-c", "echo out; echo first >&2; echo 'the last' >&2; exit 3"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "first\nthe last\n")
    (event,) = place.spooled()
    details = event["details"]
    assert event["eventType"] == "job failed"
    assert event["severity"] == "error"
    assert event["scope"] == {"clusters": ["c"], "namespaces": ["n"], "servicesNames": ["s"]}
    assert "failed with exit code 3" in event["summary"]
    assert details.pop("durationSeconds") >= 0
    assert details == {
        "command": "sh -c 'echo out; echo first >&2; echo '\"'\"'the last'\"'\"' >&2; exit 3'",
        "exitCode": 3,
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "host": os.uname().nodename,
        "stderr": "first\nthe last",
        "team": "a",
    }


def test_the_event_goes_to_the_agent_where_there_is_one(place, agent):
    assert place.run("exec", "--", "false").returncode == 1
    assert agent.events[0]["details"]["command"] == "false"
    assert place.spooled() == []


def test_the_event_can_be_given_in_every_part(place):
    done = place.run(
        *("exec", "--on", "always", "--type", "T", "--summary", "S", "--severity", "WARNING"),
        *("--dedup-key", "K", "--ttl", "1h", "--detail", "command=hidden", "--", "true"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    (event,) = place.spooled()
    assert (event["eventType"], event["summary"], event["severity"]) == ("T", "S", "warning")
    assert (event["dedupKey"], event["ttlSeconds"]) == ("K", 3600.0)
    assert event["details"]["command"] == "hidden"


def test_success_is_told_only_on_request(place):
    place.run("exec", "--on", "failure", "--", "true")
    place.run("exec", "--on", "always", "--", "true")
    (event,) = place.spooled()
    assert (event["eventType"], event["severity"]) == ("job succeeded", "information")
    assert event["details"]["exitCode"] == 0


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV", "SIGPIPE"])
def test_a_job_that_a_signal_ended_gives_128_and_the_number(place, name):
    number = getattr(signal, name)
    done = place.run("exec", "--", "sh", "-c", f"kill -{number} $$")
    assert done.returncode == 128 + number
    assert place.spooled()[0]["details"]["signal"] == name
    assert f"ended by {name}" in place.spooled()[0]["summary"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("no-such-command", 127),
        ("/no/such/file", 127),
        ("", 127),
        ("/etc/passwd", 126),
        ("/etc", 126),
    ],
)
def test_what_cannot_be_started_has_a_shells_status_and_is_told(place, path, status):
    done = place.run("exec", "--", path)
    assert done.returncode == status
    assert done.stderr.startswith(f"outboxd: {path}: ")
    assert place.spooled()[0]["details"]["exitCode"] == status


def test_a_script_whose_interpreter_is_missing_is_told_from_one_that_is_not_there(place):
    script = place.directory / "script"
    script.write_text("#!/bin/sh\r\nexit 0\r\n")
    script.chmod(0o755)
    done = place.run("exec", "--", str(script))
    assert done.returncode == 127
    assert "its interpreter" in done.stderr
    assert "its interpreter" in place.spooled()[0]["summary"]


def test_a_script_without_a_first_line_is_run_by_a_shell_as_usual(place):
    script = place.directory / "script"
    script.write_text('echo "$1"; exit 4\n')
    script.chmod(0o755)
    done = place.run("exec", "--", str(script), "word")
    assert (done.returncode, done.stdout) == (4, "word\n")


def test_options_of_the_command_are_its_own_also_without_the_dashes(place):
    done = place.run("exec", "sh", "-c", 'echo "$@"', "sh", "--type", "--help", "--")
    assert (done.returncode, done.stdout) == (0, "--type --help --\n")


def test_stderr_is_kept_to_its_last_lines(place):
    script = "for i in $(seq 1000); do echo line $i of many >&2; done; exit 1"
    done = place.run("exec", "--", "sh", "-c", script)
    assert done.stderr.count("\n") == 1000
    kept = place.spooled()[0]["details"]["stderr"].split("\n")
    assert len(kept) == 20
    assert kept[-1] == "line 1000 of many"


def test_stderr_is_kept_to_some_kilobytes_whatever_is_in_it(place):
    script = "head -c 100000 /dev/urandom >&2; printf '\\000\\377end' >&2; exit 1"
    assert place.run("exec", "--", "sh", "-c", script).returncode == 1
    kept = place.spooled()[0]["details"]["stderr"]
    assert kept.endswith("\ufffd\ufffdend")
    assert len(kept) <= 4096


def test_no_output_leaves_stderr_alone(place):
    script = "import os, sys; sys.exit(3 if os.isatty(2) else 4)"
    ours, theirs = pty.openpty()
    with place.start("exec", "--no-output", "--", sys.executable, "-c", script, stderr=theirs) as p:
        assert p.wait(PATIENCE_S) == 3
    os.close(ours)
    os.close(theirs)
    assert "stderr" not in place.spooled()[0]["details"]


@pytest.mark.parametrize("locale", [{}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "POSIX"}, {"LC_ALL": "C"}])
def test_the_environment_is_as_it_was_in_the_locale_of_cron(place, locale):
    environment = {
        **locale,
        "PATH": os.environ["PATH"],
        "OUTBOXD_CONFIG": str(place.config),
        "ODD": "a\nb",
        **{name: value for name, value in os.environ.items() if name.startswith("PYTHON")},
    }
    done = place.run("exec", "--", "env", "-0", env=environment)
    seen = dict(each.split("=", 1) for each in done.stdout.split("\0") if each)
    assert seen == environment


def test_what_systemd_hands_to_exec_is_the_jobs(place):
    script = f"export LISTEN_FDS=1 LISTEN_PID=$$ WATCHDOG_PID=1; exec {sys.executable} -m outboxd"
    job = 'echo "$LISTEN_PID $WATCHDOG_PID $$"'
    done = subprocess.run(
        ["sh", "-c", f"{script} exec -- sh -c '{job}'"],
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    listen_pid, watchdog_pid, pid = done.stdout.split()
    assert listen_pid == pid, "sockets are for the process of this number alone"
    assert watchdog_pid == "1", "another's stays another's"


def test_the_job_inherits_no_ignored_signals(place):
    done = place.run("exec", "--", "grep", "SigIgn", "/proc/self/status")
    # Of the 31 standard ones; 32 and 33 belong to the C library, which sets them itself.
    assert int(done.stdout.split()[1], 16) & (1 << 31) - 1 == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_exec_reaches_the_job(place, number):
    ready = place.directory / "ready"
    script = f"trap 'echo caught; exit 9' {number}; touch {ready}; while :; do sleep 0.05; done"
    with place.start("exec", "--", "sh", "-c", script) as process:
        wait_for(ready, process)
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE_S)[0] == b"caught\n"
    assert process.returncode == 9
    assert place.spooled()[0]["details"]["exitCode"] == 9


def test_a_job_that_dies_of_a_signal_to_exec_is_told(place):
    ready = place.directory / "ready"
    with place.start("exec", "--", "sh", "-c", f"touch {ready}; exec sleep 60") as process:
        wait_for(ready, process)
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert place.spooled()[0]["details"]["signal"] == "SIGTERM"


def test_a_signal_that_was_ignored_stays_ignored(place):
    script = (
        f"trap '' HUP; exec {sys.executable} -m outboxd exec -- "
        "sh -c 'kill -HUP $PPID; kill -HUP $$; echo alive'"
    )
    done = subprocess.run(
        ["sh", "-c", script],
        env=place.environment,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_the_timeout_ends_the_whole_job(place):
    words = ("exec", "--timeout", "2s", "--", "sh", "-c", "sleep 600 & wait")
    process = place.start(*words, start_new_session=True)
    # Their end comes when the last of them has closed them.
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGTERM
    details = place.spooled()[0]["details"]
    assert (details["signal"], details["timeoutSeconds"]) == ("SIGTERM", 2.0)


def test_a_job_that_ignores_the_timeout_is_killed(place):
    # Ignored from its start on, however long that takes.
    program = f"trap '' TERM; exec {sys.executable} -m outboxd"
    done = subprocess.run(
        ["sh", "-c", f"{program} exec --timeout 100ms --kill-after 100ms -- sleep 600"],
        env=place.environment,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGKILL
    assert "timeout" in place.spooled()[0]["summary"]


def test_a_job_that_ends_in_time_is_left_alone(place):
    assert place.run("exec", "--timeout", "1h", "--", "sh", "-c", "exit 5").returncode == 5
    assert "timeoutSeconds" not in place.spooled()[0]["details"]


def test_a_grandchild_that_keeps_stderr_open_neither_hangs_exec_nor_loses_its_own(place):
    go, stderr = place.directory / "go", place.directory / "stderr"
    late = f"while [ ! -e {go} ]; do sleep 0.02; done; echo late >&2; touch {go}.done"
    script = f"({late}) >/dev/null & echo early >&2; exit 6"
    with stderr.open("wb") as file:
        process = place.start("exec", "--", "sh", "-c", script, stderr=file)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 6
    assert place.spooled()[0]["details"]["stderr"] == "early"
    go.touch()
    for _ in range(9_000):
        if stderr.read_text() == "early\nlate\n":
            return
        time.sleep(0.01)
    raise AssertionError(f"stderr is {stderr.read_text()!r}")


def test_a_grandchild_writes_on_where_there_is_no_cat(place, need):
    unshare = need("unshare", "util-linux")
    done, stderr = place.directory / "done", place.directory / "stderr"
    late = f"read go; echo late >&2; echo later >&2; touch {done}"
    script = f"exec 3<&0; ({late}) <&3 >/dev/null & echo early >&2; exit 6"
    hidden = 'mount --bind /dev/null /bin/cat; exec "$@"'
    command = [sys.executable, "-m", "outboxd", "exec", "--", "sh", "-c", script]
    with stderr.open("wb") as file:
        process = subprocess.Popen(
            [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", hidden, "sh", *command],
            env=place.environment,
            stdin=subprocess.PIPE,
            stderr=file,
        )
        assert process.wait(PATIENCE_S) == 6
        process.communicate(b"go\n")
    for _ in range(9_000):
        if done.exists() and stderr.read_text() == "early\nlate\nlater\n":
            return
        time.sleep(0.01)
    raise AssertionError(f"stderr is {stderr.read_text()!r}")


def test_where_no_event_can_be_stored_one_line_says_so_and_the_status_stays(place):
    place.spool.write_text("a file in its place")
    done = place.run("exec", "--", "sh", "-c", "exit 7")
    assert done.returncode == 7
    assert done.stderr.startswith("outboxd: no event about it could be stored: ")
    assert done.stderr.count("\n") == 1


def test_a_wrong_configuration_neither_fails_the_job_nor_loses_its_event(place):
    place.config.write_text(f'[intake]\nspool = "{place.spool}"\nnonsense')
    done = place.run("exec", "--", "sh", "-c", "echo out; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert done.stderr.startswith("outboxd: warning: ")
    assert place.spooled()[0]["details"]["exitCode"] == 7


@pytest.mark.parametrize(
    "option", [("--severity", "loud"), ("--type", "t" * 61), ("--dedup-key", ""), ("--ttl", "0s")]
)
def test_a_slip_in_an_option_does_not_hide_the_failure(place, option):
    done = place.run("exec", *option, "--", "sh", "-c", "exit 7")
    assert done.returncode == 7
    assert f"{option[0]} is left out" in done.stderr
    assert place.spooled()[0]["details"]["exitCode"] == 7


def test_output_too_large_for_an_event_is_left_out_of_it(place):
    with place.config.open("a") as file:
        file.write('event_bytes_max = "1KiB"\n')
    script = "head -c 3000 /dev/zero | tr '\\0' x >&2; exit 7"
    assert place.run("exec", "--", "sh", "-c", script).returncode == 7
    assert "stderr" not in place.spooled()[0]["details"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--"],
        ["--on", "sometimes", "--", "true"],
        ["--timeout", "soon", "--", "true"],
        ["--detail", "no-equals", "--", "true"],
        ["--nonsense", "--", "true"],
    ],
)
def test_a_wrong_command_line_is_64(place, words):
    assert place.run("exec", *words).returncode == 64


@pytest.mark.usefixtures("root")
def test_another_users_job_is_told_in_that_users_name(place, open_to_all):
    open_to_all()
    for part in ("tmp", "new"):
        (place.spool / part).mkdir(parents=True)
        (place.spool / part).chmod(0o733)
    done = place.run("exec", "--", "sh", "-c", "exit 8", as_nobody=True, cwd="/")
    assert done.returncode == 8
    assert place.spooled()[0]["details"]["user"] == pwd.getpwuid(65534).pw_name


def test_at_a_terminal_an_interrupt_comes_once(place):
    count = place.directory / "count"
    ready = place.directory / "ready"
    script = (
        f"trap 'echo x >> {count}' INT; touch {ready};"
        f" while [ ! -s {count} ]; do sleep 0.05; done; sleep 0.3; exit 3"
    )
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover
        words = [sys.executable, "-m", "outboxd", "exec", "--", "sh", "-c", script]
        os.execve(sys.executable, words, place.environment)
    for _ in range(9_000):
        if ready.exists():
            break
        time.sleep(0.01)
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    os.close(terminal)
    assert count.read_text() == "x\n"


def test_what_looks_like_a_secret_is_not_in_the_event(place):
    script = "echo 'Authorization: Bearer hunter2' >&2; exit 3"
    place.run("exec", "--", "sh", "-c", script, "--password=hunter2", "--token", "hunter2")
    (event,) = place.spooled()
    assert "hunter2" not in str(event)
    assert "--token" in event["details"]["command"]


def test_the_command_line_can_be_left_out(place):
    assert place.run("exec", "--no-command", "--", "sh", "-c", "exit 3 # private").returncode == 3
    (event,) = place.spooled()
    assert "command" not in event["details"]
    assert "private" not in str(event)
    assert event["summary"].startswith("the job failed with exit code 3")


def test_text_that_is_not_utf_8_is_stored_with_a_gap_and_a_warning(place):
    done = place.run("exec", "--summary", b"St\xf6rung", "--", "sh", "-c", "exit 3", b"\xff")
    assert done.returncode == 3
    (event,) = place.spooled()
    assert event["summary"] == "St\ufffdrung"
    assert event["details"]["command"].endswith("'\ufffd'")
    assert done.stderr.count("warning: summary: ") == 1
