"""A file that someone still writes to, opened in `new/` itself or renamed too early.

Of its own files and as root the agent learns it from the system; of other
users' files from what it saw. Both ways are tried here, and the control, where
neither is there, loses lines.
"""

from __future__ import annotations

import os
import signal

import pytest

from outboxd.clock import Clock
from outboxd.spool import files as spoolfiles
from outboxd.spool import watch as spoolwatch
from outboxd.spool.files import has_writer

LINES = 30


@pytest.fixture(params=["the system tells", "only seen"])
def known(request, monkeypatch):
    if request.param == "only seen":
        monkeypatch.setattr(spoolfiles, "has_writer", lambda descriptor: None)


async def looked_at_again(parts, name, times=3):
    """Until it was looked at so many times more."""
    for _ in range(times):
        before = parts.reader.waiting._names.get(name)
        parts.reader.watch.names[name] = None
        parts.reader._wake.set()
        await parts.until(lambda before=before: parts.reader.waiting._names.get(name) != before)


async def write_slowly(parts, line, path):
    """Thirty lines, each flushed; the agent looks between them."""
    with path.open("w") as file:
        for number in range(LINES):
            file.write(line(str(number)) + "\n")
            file.flush()
            if number % 10 == 0:
                await parts.until(lambda: path.name in parts.reader.waiting or not parts.new())
                if not parts.new():
                    continue  # the control
                await looked_at_again(parts, path.name)


async def test_a_file_written_slowly_in_new_is_taken_when_it_is_closed(intake, line, known):
    async with intake(serve=False) as parts:
        await write_slowly(parts, line, parts.spool / "new" / "slow")
        await parts.emptied()
        assert await parts.summaries() == [str(number) for number in range(LINES)]
        assert parts.rejected() == []


async def test_the_control_without_either_loses_lines(intake, line, monkeypatch):
    monkeypatch.setattr(spoolfiles, "has_writer", lambda descriptor: None)
    monkeypatch.setattr(spoolwatch.SpoolWatch, "is_written", lambda watch, name, size: False)
    async with intake(serve=False) as parts:
        await write_slowly(parts, line, parts.spool / "new" / "slow")
        await parts.emptied()
        assert len(await parts.summaries()) < LINES


async def test_a_program_that_begins_to_write_late_is_waited_for(intake, line, known, monkeypatch):
    monkeypatch.setattr(spoolwatch, "CREATED_S", 0.0)
    async with intake(serve=False) as parts:
        with (parts.spool / "new" / "late").open("w") as file:
            await parts.until(lambda: "late" in parts.reader.waiting)
            # So long that an empty file that nobody writes to would be refused.
            parts.reader.waiting._clock = Later(parts.clock, 60)
            await looked_at_again(parts, "late")
            file.write(line("late"))
        await parts.emptied()
        assert await parts.summaries() == ["late"]


class StoppedWallClock(Clock):
    """The system's clock, but for the time of day."""

    def __init__(self, wall_ms):
        self._wall_ms = wall_ms

    def wall_ms(self):
        return self._wall_ms


class Later:
    """A clock, set off."""

    def __init__(self, clock, seconds):
        self._clock, self._seconds = clock, seconds

    def monotonic_s(self):
        return self._clock.monotonic_s() + self._seconds

    def wall_ms(self):
        return self._clock.wall_ms() + self._seconds * 1000


async def test_a_file_renamed_while_it_is_written_is_waited_for(intake, line):
    async with intake(serve=False) as parts:
        path = parts.spool / "tmp" / "early"
        with path.open("w") as file:
            file.write(line("first") + "\n")
            file.flush()
            os.rename(path, parts.spool / "new" / "early")
            await parts.until(lambda: "early" in parts.reader.waiting)
            file.write(line("second") + "\n")
        await parts.emptied()
        assert await parts.summaries() == ["first", "second"]


async def test_a_large_file_written_slowly_is_waited_for(intake, line, known):
    async with intake(serve=False, event_bytes_max=1000) as parts:
        path = parts.spool / "new" / "large"
        with path.open("w") as file:
            for number in range(100):
                file.write(line(str(number)) + "\n")
                file.flush()
            await parts.until(lambda: "large" in parts.reader.waiting)
            await looked_at_again(parts, "large")
            file.write(line("last") + "\n")
        await parts.emptied()
        assert parts.outbox.counts.pending == 101


async def test_a_delivery_by_link_is_taken_though_nobody_closes_it(intake, line, known):
    async with intake(serve=False) as parts:
        path = parts.spool / "tmp" / "linked"
        path.write_text(line("linked"))
        os.link(path, parts.spool / "new" / "linked")
        path.unlink()
        await parts.emptied()
        assert await parts.summaries() == ["linked"]


async def test_what_lay_there_and_changed_just_now_is_given_time_at_the_start(
    intake, line, monkeypatch
):
    monkeypatch.setattr(spoolfiles, "has_writer", lambda descriptor: None)
    async with intake(serve=False):
        pass  # makes the directories
    async with intake(serve=False, spool=False) as parts:
        parts.put("fresh", line("fresh"), age_s=0)
        parts.put("old", line("old"))
        began_ms = parts.clock.wall_ms()
    # However long the start takes, it was changed just before.
    async with intake(serve=False, clock=StoppedWallClock(began_ms)) as parts:
        await parts.emptied()
        # By their names it would have been the first.
        assert await parts.summaries() == ["old", "fresh"]


def test_who_may_ask_the_system_is_told_and_others_are_not(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    reader = os.open(path, os.O_RDONLY)
    with path.open("a"):
        assert has_writer(reader) is True
    assert has_writer(reader) is False
    # Who opens it now waits for nobody: the lease was given back.
    with path.open("a"):
        pass
    os.close(reader)
    if os.geteuid() != 0:
        return
    path.chmod(0o644)
    os.chmod(tmp_path, 0o755)
    reader = os.open(path, os.O_RDONLY)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        os._exit(7 if has_writer(reader) is None else 1)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_lease_that_is_broken_ends_nobody(tmp_path):
    """Whoever opens the file for writing at that moment makes the kernel send a signal."""
    path = tmp_path / "file"
    path.write_text("x")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        reader = os.open(path, os.O_RDONLY)
        for _ in range(20_000):
            has_writer(reader)
        os._exit(7)
    ended = (0, 0)
    while ended == (0, 0):
        with path.open("a"):
            pass
        ended = os.waitpid(child, os.WNOHANG)
    assert os.waitstatus_to_exitcode(ended[1]) == 7
