"""What one file, one owner and `rejected/` may cost is bounded in bytes and time."""

from __future__ import annotations

import errno
import os

import pytest
from support.waiting import until

from outboxd.intake.admission import Shares
from outboxd.outbox.model import EntryChange
from outboxd.spool import content, prune, rejects
from outboxd.spool.rejects import FAULTS_BYTES_MAX, FAULTS_MAX, FAULTS_TOLD_MAX
from outboxd.spool.waiting import SpoolWaits

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to own files as several users")


async def test_of_a_file_of_bad_lines_a_hundred_are_explained_and_the_rest_is_refused(intake, line):
    async with intake(serve=False) as parts:
        text = line("first") + "\n" + "1\n" * 100_000 + line("last") + "\n"
        parts.put("flood", text)
        await parts.emptied()
        assert await parts.summaries() == ["first"]
        reason = parts.reason("flood")
        assert reason.count("an event is a JSON object") == FAULTS_TOLD_MAX
        assert f"from line {FAULTS_MAX + 3} on none was read" in reason
        kept = (parts.spool / "rejected" / "flood").read_text()
        assert kept == text.partition("\n")[2]


@pytest.mark.parametrize("event_bytes_max", [256 * 1024, 1000], ids=["small", "large"])
@pytest.mark.parametrize("bad", [150, 3000])
async def test_good_lines_behind_many_bad_ones_are_taken(intake, line, event_bytes_max, bad):
    async with intake(serve=False, event_bytes_max=event_bytes_max) as parts:
        parts.put("log", "started up\n" * bad + line("good") + "\n")
        await parts.emptied()
        assert await parts.summaries() == ["good"]
        assert f"and {bad - FAULTS_TOLD_MAX} lines more" in parts.reason("log")


async def test_of_a_file_of_long_bad_lines_fewer_are_looked_at(intake, line):
    async with intake(serve=False) as parts:
        bad = "x" * (FAULTS_BYTES_MAX // FAULTS_TOLD_MAX) + "\n"
        parts.put("long", bad * 200 + line("last") + "\n")
        await parts.emptied()
        assert await parts.summaries() == []
        assert "on none was read" in parts.reason("long")


@pytest.mark.parametrize("event_bytes_max", [256 * 1024, 1000], ids=["small", "large"])
async def test_of_a_file_that_is_good_for_the_most_part_every_good_line_is_taken(
    intake, line, event_bytes_max
):
    async with intake(serve=False, event_bytes_max=event_bytes_max) as parts:
        lines = [line(str(number)) if number % 2 else "1" for number in range(400)]
        parts.put("half", "\n".join(lines))
        await parts.emptied()
        assert parts.outbox.counts.pending == 200
        assert "and 100 lines more" in parts.reason("half")
        assert "none was read" not in parts.reason("half")


async def test_of_a_large_file_of_bad_lines_the_rest_is_refused_too(intake, line):
    async with intake(serve=False, event_bytes_max=1000) as parts:
        text = line("first") + "\n" + "1\n" * 100_000 + line("last") + "\n"
        parts.put("flood", text)
        await parts.emptied()
        assert await parts.summaries() == ["first"]
        assert parts.reason("flood").count("an event is a JSON object") == FAULTS_TOLD_MAX
        kept = (parts.spool / "rejected" / "flood").read_text()
        assert kept == text.partition("\n")[2]


async def test_the_control_explains_each_of_them(intake, monkeypatch):
    monkeypatch.setattr(content, "is_beyond_help", lambda bad, good, bad_bytes: False)
    async with intake(serve=False) as parts:
        parts.put("flood", "1\n" * 20_000)
        await parts.emptied()
        assert "and 19900 lines more" in parts.reason("flood")


@pytest.mark.long
async def test_a_hole_of_a_gigabyte_behind_a_good_line_costs_no_room(intake, line):
    async with intake(serve=False) as parts:
        path = parts.spool / "tmp" / "sparse"
        with path.open("w") as file:
            file.write(line("good") + "\n")
            file.truncate(1 << 30)
        os.utime(path, (1, 1))
        os.rename(path, parts.spool / "new" / "sparse")
        await parts.emptied()
        assert await parts.summaries() == ["good"]
        kept = (parts.spool / "rejected" / "sparse").stat()
        assert kept.st_size == rejects.FILE_KEPT_BYTES_MAX
        assert "as much of them as there is room for" in parts.reason("sparse")


@pytest.mark.parametrize("size", [20 << 20, 1 << 40], ids=["read", "refused unread"])
async def test_a_file_of_nothing_good_is_cut(intake, size):
    async with intake(serve=False) as parts:
        path = parts.spool / "tmp" / "hole"
        with path.open("w") as file:
            file.truncate(size)
        os.utime(path, (1, 1))
        os.rename(path, parts.spool / "new" / "hole")
        await parts.emptied()
        kept = (parts.spool / "rejected" / "hole").stat()
        assert kept.st_size == rejects.FILE_KEPT_BYTES_MAX
        assert f"its first {rejects.FILE_KEPT_BYTES_MAX} bytes are kept" in parts.reason("hole")


async def test_on_a_short_disk_bad_lines_are_told_and_not_kept(intake, line):
    async with intake(serve=False) as parts:
        parts.reader.disk_free_min = 1 << 60
        parts.put("mixed", line("good") + "\nnonsense\n")
        await parts.emptied()
        assert await parts.summaries() == ["good"]
        assert parts.rejected() == ["mixed.error"]
        assert "line 2, field -:" in parts.reason("mixed")


async def test_beyond_its_bounds_the_oldest_refused_files_go(intake, monkeypatch):
    monkeypatch.setattr(prune, "REJECTED_FILES_MAX", 10)
    async with intake(serve=False) as parts:
        for number in range(25):
            parts.put(f"{number:02}", "nonsense")
            await parts.emptied()
        left = [name for name in parts.rejected() if not name.endswith(".error")]
        assert left == [f"{number:02}" for number in range(25 - len(left), 25)]
        assert 9 <= len(left) <= 10
        told = f'spool_files_total{{result="pruned"}} {25 - len(left)}'
        assert told.encode() in parts.metrics.render()
        assert len(parts.rejected()) == 2 * len(left)


async def test_what_lay_there_at_the_start_counts(intake, monkeypatch):
    monkeypatch.setattr(prune, "REJECTED_BYTES_MAX", 64 * 1024)
    async with intake(serve=False) as parts:
        for number in range(8):
            parts.put(str(number), "x" * 4000)
        await parts.emptied()
    async with intake(serve=False) as parts:
        parts.put("8", "x" * 4000)
        await parts.emptied()
        assert "0" not in parts.rejected()
        assert "8" in parts.rejected()


@AS_ROOT
async def test_one_users_refused_files_push_out_no_other_users(intake, line, monkeypatch):
    monkeypatch.setattr(prune, "REJECTED_FILES_MAX", 10)
    async with intake(serve=False) as parts:
        owned_put(parts, "bobs", "nonsense", 64_302)
        owned_put(parts, "bobs-lines", line("good") + "\nnonsense", 64_302)
        await parts.emptied()
        for number in range(40):
            owned_put(parts, f"alices-{number:02}", "nonsense", 64_301)
            await parts.emptied()
        assert {"bobs", "bobs.error", "bobs-lines"} < set(parts.rejected())


def owned_put(parts, name, content, owner):
    path = parts.spool / "tmp" / name
    path.write_text(content)
    os.utime(path, (1, 1))
    os.chown(path, owner, owner)
    os.rename(path, parts.spool / "new" / name)


@AS_ROOT
async def test_a_file_of_another_owner_does_not_wait_for_a_flood(intake, line):
    """Of 3,000 files of one user and one of another's, that one is among the first 512."""
    async with intake(serve=False):
        pass
    async with intake(serve=False, spool=False) as parts:
        for number in range(3000):
            owned_put(parts, f"a{number:04}", line(str(number)), 64_301)
        owned_put(parts, "z", line("the other's"), 64_302)
    async with intake(serve=False) as parts:
        await parts.emptied()
        seen = [entry.body for entry in await parts.first_entries(512)]
        assert any(b"the other's" in body for body in seen)


@AS_ROOT
async def test_who_has_the_whole_of_a_share_keeps_no_other_owners_files_waiting(intake, line):
    # Who is refused for lack of room in all waits for an hour.
    pace = SpoolWaits(refused_min_s=3600.0, refused_max_s=3600.0, share_s=0.1)
    settings = {"events_max": 40, "shares": Shares(()), "pace": pace}
    async with intake(serve=False, **settings) as parts:
        for number in range(30):
            owned_put(parts, f"a{number:02}", line(f"a{number:02}"), 64_301)
        await until(lambda: parts.outbox.counts.pending == 20)
        for number in range(3):
            owned_put(parts, f"b{number}", line(f"b{number}"), 64_302)
            await until(lambda path=parts.spool / "new" / f"b{number}": not path.exists())
        waiting = len(parts.new())
        assert waiting == 10
        for entry in await parts.first_entries(15):
            await parts.outbox.change(lambda e, id=entry.id: e.change(EntryChange.DROP, id))
        await until(lambda: len(parts.new()) < waiting)


async def test_a_directory_that_cannot_be_moved_is_told_once_and_left_alone(intake, monkeypatch):
    monkeypatch.setattr(rejects, "_may_move", lambda folder, directory: False)
    written = []
    real = rejects._write_error

    def write(folder, target, text):
        written.append(target)
        real(folder, target, text)

    monkeypatch.setattr(rejects, "_write_error", write)
    async with intake(serve=False) as parts:
        (parts.spool / "new" / "theirs").mkdir()
        # The text is written in a thread; only then is the name to be tried again.
        await parts.until(lambda: written and "theirs" in parts.reader.waiting)
        until_s = [parts.reader.waiting._names["theirs"].until_s]
        # Tried again twice, each time later.
        for _ in range(2):
            await parts.until(lambda: parts.reader.waiting._names["theirs"].until_s > until_s[-1])
            until_s.append(parts.reader.waiting._names["theirs"].until_s)
        assert written == ["theirs"]
        assert "it stays in new/: remove it there" in parts.reason("theirs")
        # By then it had stood there for twice as long: the wait is as long as that.
        assert until_s[-1] - until_s[-2] > 1.5 * parts.reader._pace.trouble_s


async def test_a_mount_point_in_new_is_not_tried_without_end(intake, monkeypatch):
    real = os.rename

    def rename(source, target, **where):
        if source == "busy":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(source, target, **where)

    async with intake(serve=False) as parts:
        monkeypatch.setattr(os, "rename", rename)
        (parts.spool / "new" / "busy").mkdir()
        await parts.until(lambda: "busy" in parts.reader.waiting)
        until_s = parts.reader.waiting._names["busy"].until_s
        await parts.until(lambda: parts.reader.waiting._names["busy"].until_s > until_s + 0.15)
        assert parts.rejected() == []
