"""One agent an outbox, shown with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outboxd.errors import EX_TEMPFAIL, OutboxLocked
from outboxd.outbox.sqlite import opening
from outboxd.outbox.sqlite.lock import OutboxLock
from outboxd.outbox.sqlite.opening import open_offline, open_outbox

HOLD = """
import sys, time
from outboxd.outbox.sqlite.opening import open_outbox
opened = open_outbox(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_has_it(path: str, holder: subprocess.Popen[str]):
    for opens in (open_outbox, lambda path: open_offline(path).__enter__()):
        with pytest.raises(OutboxLocked, match=f"process {holder.pid}") as caught:
            opens(path)
        assert caught.value.pid == holder.pid
        assert caught.value.exit_code == EX_TEMPFAIL


def test_who_has_it_for_a_moment_is_waited_for(path: str, monkeypatch: pytest.MonkeyPatch):
    open_outbox(path).close()
    held = [OutboxLock(path)]

    def attempt(path: str) -> OutboxLock:
        try:
            return OutboxLock(path)
        except OutboxLocked:
            held.pop().release()
            raise

    monkeypatch.setattr(opening, "OutboxLock", attempt)
    with open_offline(path) as engine:
        assert engine.counts().pending == 0
    assert held == []


def test_a_second_process_changes_nothing(path: str, holder: subprocess.Popen[str]):
    before = {file.name: file.read_bytes() for file in Path(path).parent.iterdir()}
    with pytest.raises(OutboxLocked):
        open_outbox(path)
    assert {file.name: file.read_bytes() for file in Path(path).parent.iterdir()} == before


def test_the_lock_of_a_killed_process_is_stale_and_taken_over(
    path: str, holder: subprocess.Popen[str]
):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert Path(path + ".lock").read_text() == f"{holder.pid}\n"
    opened = open_outbox(path)
    assert Path(path + ".lock").read_text() == f"{os.getpid()}\n"
    opened.close()


@pytest.mark.parametrize("content", [b"", b"4711\n", b"no number", b"\xff" * 100])
def test_whatever_a_stale_lock_file_says_means_nothing(path: str, content: bytes):
    Path(path + ".lock").write_bytes(content)
    open_outbox(path).close()


def test_a_symlink_in_the_place_of_the_lock_is_not_followed(path: str, tmp_path: Path):
    target = tmp_path / "target"
    target.write_text("mine")
    os.symlink(target, path + ".lock")
    with pytest.raises(Exception, match="cannot open"):
        open_outbox(path)
    assert target.read_text() == "mine"
