"""`outboxd exec` under a real cron daemon that runs a real crontab.

The daemon sees a `/etc/cron.d`, a spool and a `/run` of its own (a private
mount namespace), so that it neither runs this machine's jobs nor meets its cron.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

CRON = """
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/spool/cron
mkdir -m 1730 /var/spool/cron/crontabs
mount -t tmpfs -o mode=755 tmpfs /etc/cron.d
cp "$1" /etc/cron.d/job
chmod 644 /etc/cron.d/job
mount --bind /dev/null /etc/crontab
exec "$2" -f
"""


@pytest.fixture
def cron(place, need, tmp_path):
    """Start a cron daemon with this crontab."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a cron daemon a file system of its own")
    started = []
    program, unshare = need("cron"), need("unshare", "util-linux")

    def start(*jobs: str) -> subprocess.Popen[bytes]:
        crontab = tmp_path / "crontab"
        # A job of cron has next to no environment; what it needs stands in the crontab.
        settings = ['MAILTO=""', f"OUTBOXD_CONFIG={place.config}"]
        crontab.write_text("\n".join([*settings, *jobs]) + "\n")
        process = subprocess.Popen(
            [unshare, "-m", "sh", "-c", CRON, "sh", str(crontab), program],
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(PATIENCE_S)
        process.stderr.close()


def wait_for(condition, process, seconds: float):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "cron did not run the job"
        time.sleep(0.05)


def job(when: str, words: str, output: Path) -> str:
    return f"{when} root {sys.executable} -m outboxd {words} > {output} 2>&1; echo $? >> {output}"


def test_a_crontabs_failing_jobs_are_told_and_the_others_are_not(place, cron, tmp_path):
    # What is to run at boot runs when the daemon starts: no minute to wait for.
    outputs = [tmp_path / f"output{number}" for number in range(4)]
    process = cron(
        job("@reboot", "exec --cluster c -- sh -c 'echo it broke >&2; exit 3'", outputs[0]),
        job("@reboot", "exec --cluster c -- sh -c 'echo fine'", outputs[1]),
        job("@reboot", "exec --cluster c -- sh -c 'kill -9 $$'", outputs[2]),
        job("@reboot", "exec --timeout 1s -- sleep 50", outputs[3]),
    )
    endings = ("it broke\n3\n", "fine\n0\n", "137\n", "143\n")
    # Each ends with its exit status, written when all else is done.
    wait_for(lambda: all(_is_whole(each) for each in outputs), process, PATIENCE_S)
    assert [each.read_text() for each in outputs] == list(endings)
    events = {event["details"]["command"]: event["details"] for event in place.spooled()}
    assert len(events) == 3
    broke = events["sh -c 'echo it broke >&2; exit 3'"]
    assert (broke["exitCode"], broke["stderr"], broke["user"]) == (3, "it broke", "root")
    assert events["sh -c 'kill -9 $$'"]["signal"] == "SIGKILL"
    assert events["sleep 50"]["timeoutSeconds"] == 1.0


def _is_whole(output: Path) -> bool:
    return output.exists() and output.read_text()[-4:].strip("\n").split("\n")[-1].isdigit()


def test_a_job_on_the_minute_is_told_to_the_agent(place, agent, cron, full, tmp_path):
    if not full:
        pytest.skip("waits for the next full minute: --full")
    output = tmp_path / "output"
    process = cron(job("* * * * *", "exec --type nightly -- false", output))
    wait_for(lambda: output.exists() and output.read_text() == "1\n", process, 60 + PATIENCE_S)
    assert agent.events[0]["eventType"] == "nightly"
    assert agent.events[0]["details"]["exitCode"] == 1
