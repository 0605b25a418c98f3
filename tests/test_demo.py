"""The demo as its users run it: real processes, counted from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

from outboxd.cli.demo import Demo
from outboxd.cli.play import EXIT_LOST

DEMO = (sys.executable, "-m", "outboxd", "demo")
WHOLE_S = 2 * PATIENCE_S


@pytest.fixture
def short_directory():
    """A place whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="demo-test-") as directory:
        yield Path(directory)


def environment(directory: Path) -> dict[str, str]:
    # What is set for another agent, and a proxy, must not lead the demo astray.
    return {
        **os.environ,
        "TMPDIR": str(directory),
        "OUTBOXD_CONFIG": "/nowhere/config.toml",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }


def processes_in(directory: Path) -> list[str]:
    """Processes whose working directory is below this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(directory):
                found.append(process.name)
        except OSError:
            continue
    return found


def counts(output: str) -> dict[str, int]:
    return {
        name: int(count)
        for name, count in re.findall(
            r"^  (accepted|delivered|lost|duplicated) +(\d+)", output, re.MULTILINE
        )
    }


def test_the_demo_loses_nothing_and_leaves_nothing_behind(short_directory):
    done = subprocess.run(
        DEMO,
        env=environment(short_directory),
        capture_output=True,
        text=True,
        timeout=WHOLE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = counts(done.stdout)
    assert found["accepted"] == found["delivered"] > 200
    assert found["lost"] == 0
    assert "pending" in done.stdout
    assert "\x1b" not in done.stdout, "no colours where there is no terminal"
    assert list(short_directory.iterdir()) == []
    assert processes_in(short_directory) == []


def test_behind_a_gateway_that_is_killed_nothing_is_lost_either(short_directory):
    done = subprocess.run(
        (*DEMO, "--gateway"),
        env=environment(short_directory),
        capture_output=True,
        text=True,
        timeout=WHOLE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = counts(done.stdout)
    assert found["accepted"] == found["delivered"] > 300
    assert found["lost"] == 0
    for told in ("two hosts know nothing but the gateway", "killed with SIGKILL"):
        assert told in done.stdout
    assert list(short_directory.iterdir()) == []
    assert processes_in(short_directory) == []


@pytest.mark.long
def test_kept_it_can_be_played_with_and_stopped_as_it_says(short_directory):
    done = subprocess.run(
        (*DEMO, "--keep"),
        env=environment(short_directory),
        capture_output=True,
        text=True,
        timeout=WHOLE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        url = re.search(r"stands in for Komodor: (\S+)", done.stdout)[1]
        emit = re.search(r"(outboxd emit .*)", done.stdout)[1]
        config = re.search(r"outboxd status -c (\S+)", done.stdout)[1]
        run = f"{sys.executable} -m {emit}"
        emitted = subprocess.run(
            run, shell=True, capture_output=True, text=True, timeout=PATIENCE_S
        )
        id = emitted.stdout.strip()
        wait = (sys.executable, "-m", "outboxd", "wait", id, "-c", config)
        assert subprocess.run(wait, timeout=WHOLE_S).returncode == 0
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/v1/events/{id}") as answer:
            assert json.load(answer)["summary"] == "v2 is out"
    finally:
        stop = re.search(r"(kill \d+ \d+); (rm -r \S+)", done.stdout)
        subprocess.run(stop[1], shell=True, check=True)
        while processes_in(short_directory):
            pass  # bounded by the test's own timeout
        subprocess.run(stop[2], shell=True, check=True)
    assert list(short_directory.iterdir()) == []


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM]
)
def test_a_signal_ends_it_with_all_that_it_started(short_directory, number):
    demo = subprocess.Popen(
        DEMO, env=environment(short_directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for line in demo.stdout:
        if b"an agent runs" in line:
            demo.send_signal(number)
            break
    _, errors = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 130
    assert errors == b""
    assert processes_in(short_directory) == []
    assert list(short_directory.iterdir()) == []


class StageWith:
    """A stage whose sandbox has received these numbers."""

    def __init__(self, *numbers: str) -> None:
        self._numbers = numbers

    def received(self):
        return [{"eventType": "demo", "details": {"number": each}} for each in self._numbers]


def test_an_event_with_a_receipt_that_never_arrived_is_counted_lost(capsys):
    demo = Demo(StageWith("1", "3", "3"))
    demo._accepted = Counter(socket=3)
    demo._numbers = {"1", "2", "3"}
    assert demo.account() == EXIT_LOST
    assert counts(capsys.readouterr().out) == {
        "accepted": 3,
        "delivered": 2,
        "lost": 1,
        "duplicated": 1,
    }
