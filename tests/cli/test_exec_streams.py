"""A job's standard streams under `outboxd exec`: in order, and what is a terminal stays one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from support.waiting import PATIENCE_S

ORDER = "for i in $(seq 300); do echo out $i; echo err $i >&2; done; exit 3"
IN_ORDER = "".join(f"out {i}\nerr {i}\n" for i in range(1, 301))


def test_both_streams_into_one_pipe_keep_their_order(place):
    process = place.start("exec", "--", "sh", "-c", ORDER, stderr=subprocess.STDOUT)
    assert process.communicate(timeout=PATIENCE_S)[0].decode() == IN_ORDER
    assert process.returncode == 3
    assert place.spooled()[0]["details"]["stderr"].endswith("out 300\nerr 300")


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_both_streams_into_one_file_keep_their_order(place, mode):
    path = place.directory / "log"
    path.write_text("before\n")
    with path.open(mode) as file:
        process = place.start("exec", "--", "sh", "-c", ORDER, stdout=file, stderr=file)
        process.communicate(timeout=PATIENCE_S)
    assert path.read_text() == ("before\n" if mode == "ab" else "") + IN_ORDER


def test_two_pipes_stay_two(place):
    done = place.run("exec", "--", "sh", "-c", ORDER)
    assert done.stdout.startswith("out 1\nout 2\n")
    assert done.stderr.startswith("err 1\nerr 2\n")


ARE_TERMINALS = "import os, sys; sys.exit(10 + sum(os.isatty(n) << n for n in range(3)))"


@pytest.mark.parametrize(
    ("streams", "expected"),
    [(("stdin", "stdout", "stderr"), 7), (("stdout",), 2), (("stderr",), 4), (("stdin",), 1)],
)
def test_what_is_a_terminal_stays_one(place, streams, expected):
    ours, theirs = pty.openpty()
    options = dict.fromkeys(streams, theirs)
    options = {"stdin": subprocess.DEVNULL, **options}
    process = place.start("exec", "--", sys.executable, "-c", ARE_TERMINALS, **options)
    process.communicate(timeout=PATIENCE_S)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 10 + expected


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_stays_closed(place, closed):
    script = f"exec {closed}; exec {sys.executable} -m outboxd exec -- sh -c '{OPEN}'"
    done = subprocess.run(
        ["sh", "-c", script],
        env=place.environment,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    alone = subprocess.run(
        ["sh", "-c", f"exec {closed}; sh -c '{OPEN}'"],
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == alone.returncode


OPEN = "s=40; for n in 0 1 2; do [ -e /proc/self/fd/$n ] && s=$((s + (1 << n))); done; exit $s"


def test_other_descriptors_are_the_jobs(place):
    read_end, write_end = os.pipe()
    process = place.start(
        "exec", "--", "sh", "-c", f"echo through >/proc/self/fd/{write_end}", pass_fds=(write_end,)
    )
    os.close(write_end)
    process.communicate(timeout=PATIENCE_S)
    assert os.read(read_end, 100) == b"through\n"
    os.close(read_end)


def test_umask_directory_and_arguments_are_the_jobs(place):
    odd = b"St\xf6rung\n \t'\""
    before = os.umask(0o027)
    try:
        done = place.run(
            *("exec", "--", "sh", "-c", 'umask; pwd; printf %s "$1" | od -An -tx1', "sh", odd),
            cwd="/usr",
        )
    finally:
        os.umask(before)
    umask, directory, *argument = done.stdout.split()
    assert (umask, directory) == ("0027", "/usr")
    assert bytes.fromhex("".join(argument)) == odd


def test_a_reader_that_went_away_ends_the_job_as_it_would_alone(place):
    process = place.start("exec", "--", "sh", "-c", "yes >&2", stderr=subprocess.PIPE)
    process.stderr.read(10)
    process.stderr.close()
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 128 + 13


def buffered(place):
    """The environment of a host's `outboxd`, whose interpreter heeds none of Python's."""
    return {k: v for k, v in place.environment.items() if k != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("full", ["2>/dev/full", ">/dev/full 2>&1"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("exec -- sh -c 'exit 3'", 3),
        ("exec --on always -- true", 0),
        ("exec -- /no/such/file", 127),
        ("exec", 64),
        ("emit deploy v2", 0),
    ],
)
def test_a_log_on_a_full_disk_changes_no_status(place, words, status, full):
    # Something is to be told: of the configuration, or of the command line.
    place.config.write_text(place.config.read_text() + "typo = 1\n")
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m outboxd {words} {full}"],
        env=buffered(place),
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == status
    assert len(place.spooled()) == (status != 64)


def test_the_jobs_own_status_is_given_where_its_event_and_the_log_have_no_room(place):
    place.spool.write_text("a file in its place")
    script = f"{sys.executable} -m outboxd exec -- sh -c 'exit 3' 2>/dev/full"
    done = subprocess.run(
        ["sh", "-c", script], env=buffered(place), timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 3
