"""The contract of the spool, on real files."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from outboxd import slices
from outboxd.clock import Clock
from outboxd.spool import reader


class SteppedClock(Clock):
    """The system's clock, set off by some seconds."""

    def __init__(self, offset_s):
        self.offset_s = offset_s

    def wall_ms(self):
        return super().wall_ms() + round(self.offset_s * 1000)


async def test_a_file_renamed_into_new_is_taken_and_gone(intake, line):
    async with intake(serve=False) as parts:
        parts.put("one.json", line("one"))
        await parts.emptied()
        (entry,) = await parts.entries()
        assert entry.source == "spool"
        assert json.loads(entry.body)["summary"] == "one"
        assert parts.rejected() == []
        assert parts.outbox.spool_progress == {}


def test_a_spool_that_was_idle_for_long_takes_the_next_file_at_once(intake, line, monkeypatch):
    # However long nothing came in is no work that others must be given the time of.
    later_s = 0.0
    pauses_s = []

    async def noted(delay_s):
        pauses_s.append(delay_s)

    monkeypatch.setattr(slices, "PAUSE_MAX_S", float("inf"))
    monkeypatch.setattr(slices, "perf_counter", lambda: time.perf_counter() + later_s)
    monkeypatch.setattr(slices, "asyncio", SimpleNamespace(sleep=noted))

    async def main():
        nonlocal later_s
        async with intake(serve=False) as parts:
            parts.put("one.json", line("one"))
            await parts.emptied()
            later_s += 3600
            parts.put("two.json", line("two"))
            await parts.emptied()
            assert await parts.summaries() == ["one", "two"]
            assert max(pauses_s, default=0.0) < 60

    asyncio.run(main())


def test_a_defect_while_a_file_is_read_ends_neither_the_reader_nor_the_file(
    intake, line, monkeypatch
):
    log = MagicMock()
    monkeypatch.setattr(reader, "_log", log)

    async def main():
        async with intake(serve=False) as parts:
            read_content, defects = reader.read_content, [RuntimeError("a defect")]

            async def read(*arguments):
                if defects:
                    raise defects.pop()
                return await read_content(*arguments)

            monkeypatch.setattr(reader, "read_content", read)
            parts.put("one.json", line("one"))
            await parts.emptied()
            assert await parts.summaries() == ["one"]
            assert not defects

    asyncio.run(main())
    (told,) = log.error.call_args_list
    assert "a defect" in told.kwargs["error"]
    assert isinstance(told.kwargs["exc_info"], RuntimeError)


def test_no_pause_between_slices_is_long_whatever_was_counted_as_work(monkeypatch):
    pauses_s = []

    async def noted(delay_s):
        pauses_s.append(delay_s)

    times_s = iter([0.0, 3600.0, 3600.0])
    monkeypatch.setattr(slices, "perf_counter", lambda: next(times_s))
    monkeypatch.setattr(slices, "asyncio", SimpleNamespace(sleep=noted))
    asyncio.run(slices.Slices().pause())
    assert pauses_s == [slices.PAUSE_MAX_S]


async def test_what_waited_while_no_agent_ran_is_taken_at_the_start(intake, line):
    async with intake(serve=False):
        pass
    async with intake(serve=False, spool=False) as parts:
        for number in range(600):
            parts.put(f"{number:04}", line(str(number)))
    async with intake(serve=False) as parts:
        await parts.emptied()
        assert await parts.summaries() == [str(number) for number in range(600)]


async def test_an_event_printed_over_many_lines_is_one_event(intake, event):
    async with intake(serve=False) as parts:
        parts.put("pretty.json", json.dumps(event("pretty", details={"a": [1, 2]}), indent=4))
        await parts.emptied()
        assert await parts.summaries() == ["pretty"]


async def test_json_lines_are_taken_in_order_and_blank_lines_do_not_matter(intake, line):
    async with intake(serve=False) as parts:
        parts.put("lines", "\r\n".join([line("a"), "", line("b"), "  ", line("c"), ""]))
        await parts.emptied()
        assert await parts.summaries() == ["a", "b", "c"]


async def test_good_lines_are_taken_and_only_the_others_lie_in_rejected(intake, line):
    async with intake(serve=False) as parts:
        bad = '{"eventType": "a", "summary": "b", "severity": "grave"}'
        parts.put("mixed", "\n".join([line("a"), bad, line("b"), "nonsense"]))
        await parts.emptied()
        assert await parts.summaries() == ["a", "b"]
        assert parts.rejected() == ["mixed", "mixed.error"]
        assert (parts.spool / "rejected" / "mixed").read_text() == bad + "\nnonsense\n"
        reason = parts.reason("mixed")
        assert "line 2, field $.severity:" in reason
        assert "line 4, field -:" in reason
        assert "2 of its lines were taken" in reason
        assert f"uid {os.getuid()}" in reason
        assert parts.outbox.spool_progress == {}


async def test_moving_a_rejected_file_back_makes_no_second_event_of_the_good_lines(intake, line):
    async with intake(serve=False) as parts:
        parts.put("mixed", "\n".join([line("a"), "nonsense"]))
        await parts.emptied()
        os.rename(parts.spool / "rejected" / "mixed", parts.spool / "new" / "mixed")
        await parts.until(lambda: "mixed~2" in parts.rejected())
        assert await parts.summaries() == ["a"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("nonsense", "line 1, field -:"),
        ('{"eventType": "a"}', "line 1, field $.summary:"),
        ('{\n"eventType": "a",\n"summery": "b"\n}', "line 1, field $.summery:"),
        ('{\n"eventType": "a",\n"summary": "b",', "line 1, field -:"),
        ("[1,\n2]", "line 1"),
        (b"\xff\xfe\x00", "UTF-8"),
        ('\ufeff{"eventType": "a", "summary": "b"}', "line 1"),
        ("[" * 100_000, "line 1"),
        ('{"eventType": "a", "summary": "\\ud800"}', "line 1"),
    ],
)
async def test_what_is_no_event_lies_whole_in_rejected_beside_its_reason(intake, content, expected):
    async with intake(serve=False) as parts:
        data = content if isinstance(content, bytes) else content.encode()
        parts.put("bad", data)
        await parts.emptied()
        assert parts.rejected() == ["bad", "bad.error"]
        assert (parts.spool / "rejected" / "bad").read_bytes() == data
        assert expected in parts.reason("bad")
        assert await parts.entries() == []


async def test_a_name_that_lies_in_rejected_already_is_not_overwritten(intake):
    async with intake(serve=False) as parts:
        for content in ("first", "second", "third"):
            parts.put("bad", content)
            await parts.emptied()
        names = ["bad", "bad~2", "bad~3"]
        assert parts.rejected() == sorted([*names, *(name + ".error" for name in names)])
        contents = [(parts.spool / "rejected" / name).read_text() for name in names]
        assert contents == ["first", "second", "third"]


async def test_hidden_names_are_left_alone(intake, line):
    async with intake(serve=False) as parts:
        parts.put(".hidden", line("hidden"))
        parts.put("seen", line("seen"))
        await parts.until(lambda: parts.new() == [".hidden"])
        await parts.until(lambda: parts.reader.idle)
        assert await parts.summaries() == ["seen"]


async def test_a_young_file_that_does_not_parse_is_waited_for(intake, line):
    async with intake(serve=False) as parts:
        text = line("whole")
        # Of the future: young until it has been seen for a while, whenever it is looked at.
        path = parts.put("growing", text[:20], age_s=-60)
        await parts.until(lambda: "growing" in parts.reader.waiting)
        with path.open("a") as file:
            file.write(text[20:])
        await parts.emptied()
        assert await parts.summaries() == ["whole"]
        assert parts.rejected() == []


async def test_a_young_file_that_never_parses_is_refused_in_the_end(intake):
    async with intake(serve=False) as parts:
        parts.put("cut", '{"eventType": "a', age_s=0)
        parts.put("empty", "", age_s=0)
        await parts.emptied()
        assert parts.rejected() == ["cut", "cut.error", "empty", "empty.error"]


async def test_a_file_from_the_future_is_not_waited_for_for_ever(intake):
    async with intake(serve=False) as parts:
        parts.put("future", "nonsense", age_s=-86400)
        await parts.emptied()
        assert parts.rejected() == ["future", "future.error"]


async def test_what_is_no_regular_file_is_moved_unread(intake, line, tmp_path):
    async with intake(serve=False) as parts:
        new = parts.spool / "new"
        secret = tmp_path / "secret"
        secret.write_text(line("secret"))
        os.symlink(secret, new / "symlink")
        os.symlink(tmp_path / "nowhere", new / "dangling")
        os.mkfifo(new / "fifo")
        (new / "directory").mkdir()
        (new / "directory" / "inside").write_text(line("inside"))
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(new / "socket"))
        bound.close()
        kinds = ["dangling", "directory", "fifo", "socket", "symlink"]
        if os.geteuid() == 0:
            os.mknod(new / "device", 0o20600, os.makedev(1, 5))
            kinds.insert(1, "device")
        parts.put("good", line("good"))
        await parts.emptied()
        expected = sorted([*kinds, *(kind + ".error" for kind in kinds)])
        assert parts.rejected() == expected
        assert "a FIFO; not read" in parts.reason("fifo")
        assert "symbolic link" in parts.reason("symlink")
        assert f"it led to {secret}" in parts.reason("symlink")
        # Nothing that an administrator's `cat` would follow or wait on.
        for kind in set(kinds) - {"directory"}:
            found = (parts.spool / "rejected" / kind).lstat()
            assert (stat.S_ISREG(found.st_mode), found.st_size) == (True, 0), kind
        assert secret.exists()
        assert await parts.summaries() == ["good"]


async def test_a_sparse_terabyte_is_refused_unread(intake, line):
    async with intake(serve=False) as parts:
        path = parts.spool / "tmp" / "sparse"
        with path.open("wb") as file:
            file.truncate(1 << 40)
        os.rename(path, parts.spool / "new" / "sparse")
        parts.put("good", line("good"))
        await parts.emptied()
        assert "bytes" in parts.reason("sparse")
        assert await parts.summaries() == ["good"]


async def test_a_second_name_is_waited_for_and_the_file_then_taken(intake, line):
    async with intake(serve=False) as parts:
        path = parts.spool / "tmp" / "linked"
        path.write_text(line("linked"))
        os.link(path, parts.spool / "new" / "linked")
        await parts.until(lambda: "linked" in parts.reader.waiting)
        path.unlink()
        await parts.emptied()
        assert await parts.summaries() == ["linked"]


async def test_a_second_name_that_stays_is_refused_unread(intake, line, tmp_path):
    async with intake(serve=False) as parts:
        path = tmp_path / "victim"
        path.write_text(line("victim"))
        os.link(path, parts.spool / "new" / "linked")
        await parts.emptied()
        assert "more than one name" in parts.reason("linked")
        assert await parts.entries() == []
        assert path.read_text() == line("victim")


async def test_safecat_delivers(intake, line, need):
    safecat = need("safecat")
    async with intake(serve=False) as parts:
        for number in range(3):
            await asyncio.to_thread(
                subprocess.run,
                [safecat, parts.spool / "tmp", parts.spool / "new"],
                input=line(str(number)).encode(),
                check=True,
                stdout=subprocess.DEVNULL,
            )
        await parts.emptied()
        assert sorted(await parts.summaries()) == ["0", "1", "2"]


def write(path, content):
    with open(path, "w") as file:
        file.write(content)


async def test_odd_bytes_and_long_names_are_no_obstacle(intake, line):
    async with intake(serve=False) as parts:
        new = os.fsencode(parts.spool / "new")
        names = [b"\xff\xfe\n\x1b[31m", "wärme €".encode(), b"x" * 255, b"-rf", b" "]
        for number, name in enumerate(names):
            for content in (line(str(number)), "nonsense"):
                source = os.fsencode(parts.spool / "tmp" / "t")
                write(source, content)
                os.utime(source, (1, 1))
                os.rename(source, os.path.join(new, name))
                await parts.emptied()
        assert sorted(await parts.summaries()) == ["0", "1", "2", "3", "4"]
        rejected = os.listdir(os.fsencode(parts.spool / "rejected"))
        assert len(rejected) == 2 * len(names)
        assert all(len(name) <= 255 for name in rejected)
        texts = [name for name in rejected if name.endswith(b".error")]
        assert {name[: -len(b".error")] for name in texts} == set(rejected) - set(texts)
        assert (
            b"\x1b"
            not in (parts.spool / "rejected" / os.fsdecode(names[0] + b".error")).read_bytes()
        )


async def test_the_same_name_with_other_content_or_time_is_a_new_file(intake, line):
    async with intake(serve=False) as parts:
        for content, age_s in ((line("a"), 10), (line("b"), 10), (line("b"), 20)):
            parts.put("status", content, age_s)
            await parts.emptied()
        assert await parts.summaries() == ["a", "b", "b"]


async def test_a_file_read_again_after_a_crash_before_its_unlink_makes_no_second_event(
    intake, line
):
    content = "\n".join([line("a"), line("b")])
    async with intake(serve=False) as parts:

        async def no_forgetting(keys):
            """As if the process had died here."""

        parts.outbox.forget_spool = no_forgetting
        path = parts.put("file", content)
        times = os.stat(path)
        await parts.until(lambda: not parts.new())
    # The unlink had not reached the disk.
    path.write_text(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    async with intake(serve=False) as parts:
        assert len(parts.outbox.spool_progress) == 1
        await parts.emptied()
        assert await parts.summaries() == ["a", "b"]
        await parts.until(lambda: not parts.outbox.spool_progress)


async def test_progress_of_a_file_that_is_gone_is_forgotten_at_the_start(intake, line):
    from outboxd.outbox.model import SpoolMark

    async with intake(serve=False, spool=False) as parts:
        await parts.outbox.accept([], SpoolMark("gone", 3))
    async with intake(serve=False) as parts:
        await parts.until(lambda: not parts.outbox.spool_progress)
    async with intake(serve=False, spool=False) as parts:
        assert parts.outbox.spool_progress == {}


async def test_with_a_full_outbox_files_stay_and_are_taken_when_there_is_room(intake, line):
    async with intake(serve=False, events_max=3) as parts:
        parts.put("a", "\n".join(line(str(number)) for number in range(5)))
        parts.put("b", line("5"))
        await parts.until(lambda: parts.outbox.counts.pending == 3)
        assert parts.new() == ["a", "b"]
        for _ in range(2):
            for entry in await parts.entries():
                await parts.drop(entry.id)
            await parts.until(lambda: parts.outbox.counts.pending == 3 or not parts.new())
        await parts.emptied()
        assert parts.rejected() == []
        assert parts.metrics.render().count(b'events_accepted_total{source="spool"} 6') == 1


async def test_with_a_short_disk_files_stay_until_there_is_room(intake, line):
    async with intake(serve=False, free_bytes=0) as parts:
        parts.put("a", line("a"))
        await parts.until(lambda: parts.reader.refused)
        assert parts.new() == ["a"]
        parts.free["bytes"] = 1 << 40
        await parts.emptied()
        assert await parts.summaries() == ["a"]


async def test_a_commit_that_finds_the_disk_full_keeps_the_file(intake, line):
    from outboxd.errors import DiskShort

    async with intake(serve=False) as parts:
        real = parts.outbox.accept
        failures = 2

        def fail(items, *marks):
            nonlocal failures
            if not failures:
                return real(items, *marks)
            failures -= 1
            future = asyncio.get_running_loop().create_future()
            future.set_exception(DiskShort("no room"))
            return future

        parts.outbox.accept = fail
        parts.put("a", line("a"))
        await parts.emptied()
        assert await parts.summaries() == ["a"]


async def test_a_rejected_directory_without_room_costs_no_good_line(intake, line, monkeypatch):
    import errno

    from outboxd.spool import rejects

    real = rejects._write_all
    failures = 3

    def fail(descriptor, data):
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, data)

    monkeypatch.setattr(rejects, "_write_all", fail)
    async with intake(serve=False) as parts:
        parts.put("mixed", "\n".join([line("a"), "nonsense", line("b")]))
        parts.put("other", line("c"))
        await parts.emptied()
        assert sorted(await parts.summaries()) == ["a", "b", "c"]
        assert parts.rejected() == ["mixed", "mixed.error"]


async def test_a_large_file_is_taken_in_portions_and_its_bad_lines_told(intake, line):
    async with intake(serve=False, event_bytes_max=1000) as parts:
        lines = [line(str(number)) for number in range(3000)]
        lines[1500] = "nonsense"
        lines[2000] = line("x" * 1001)
        parts.put("large", "\n".join(lines))
        parts.put("small", line("small"))
        await parts.emptied()
        summaries = await parts.until(parts.summaries)
        assert parts.outbox.counts.pending == 2999
        assert summaries
        text = (parts.spool / "rejected" / "large").read_text()
        assert sorted(text.splitlines()) == sorted(["nonsense", lines[2000]])
        reason = parts.reason("large")
        assert "line 1501, field -:" in reason
        assert "line 2001, field -:" in reason
        assert parts.outbox.spool_progress == {}


async def test_a_large_file_goes_on_where_the_full_outbox_stopped_it(intake, line):
    text = "\n".join(line(str(number)) for number in range(1200))
    async with intake(serve=False, event_bytes_max=1000, events_max=700) as parts:
        parts.put("large", text)
        await parts.until(lambda: parts.outbox.counts.pending == 700)
        assert parts.new() == ["large"]
    async with intake(serve=False, event_bytes_max=1000) as parts:
        await parts.emptied()
        seen = [json.loads(entry.body)["summary"] for entry in await parts.entries()]
        assert parts.outbox.counts.pending == 1200
        assert seen == [str(number) for number in range(200, 1200)]
        assert parts.outbox.spool_progress == {}


async def test_large_files_of_nothing_and_of_one_endless_line_are_rejected(intake):
    async with intake(serve=False, event_bytes_max=1000) as parts:
        parts.put("blank", "\n" * 5000)
        parts.put("endless", "x" * 3_000_000)
        await parts.emptied()
        assert "there is no event in it" in parts.reason("blank")
        assert "longer than" in parts.reason("endless")
        assert (parts.spool / "rejected" / "endless").stat().st_size == 3_000_000


async def test_a_large_file_that_may_still_grow_is_waited_for(intake, line):
    async with intake(serve=False, event_bytes_max=1000) as parts:
        text = "\n".join(line(str(number)) for number in range(100))
        path = parts.put("large", text[:-5], age_s=-60)
        await parts.until(lambda: "large" in parts.reader.waiting)
        assert await parts.entries() == []
        with path.open("a") as file:
            file.write(text[-5:])
        await parts.emptied()
        assert parts.outbox.counts.pending == 100
        assert parts.rejected() == []


async def test_files_that_vanish_or_change_while_looked_at_do_no_harm(intake, line):
    from outboxd.spool import files as spoolfiles

    async with intake(serve=False) as parts:
        for number in range(200):
            path = parts.put(f"f{number}", line(str(number)))
            if number % 2:
                path.unlink(missing_ok=True)
        await parts.emptied()
        parts.put("last", line("last"))
        await parts.emptied()
        assert "last" in await parts.summaries()
        assert parts.rejected() == []
    new = os.open(parts.spool / "new", os.O_RDONLY)
    assert spoolfiles.look_at(new, "nothing", 100).verdict is spoolfiles.LookResult.GONE
    os.close(new)


async def test_a_file_that_took_the_name_meanwhile_is_not_unlinked(intake, line, monkeypatch):
    from outboxd.spool.files import SpoolFolder

    async with intake(serve=False) as parts:
        real = SpoolFolder.remove
        replaced = False

        def replace_first(folder, taken):
            nonlocal replaced
            if not replaced:
                replaced = True
                parts.put("status", line("second"))
            return real(folder, taken)

        monkeypatch.setattr(SpoolFolder, "remove", replace_first)
        parts.put("status", line("first"))
        await parts.emptied()
        assert await parts.summaries() == ["first", "second"]


async def test_what_inotify_misses_the_rescan_finds(intake, line):
    from outboxd.spool.waiting import SpoolWaits

    async with intake(serve=False, pace=SpoolWaits(rescan_s=0.1)) as parts:
        parts.reader.watch.stop()
        await parts.until(lambda: parts.reader.idle)
        parts.put("missed", line("missed"))
        await parts.emptied()
        assert await parts.summaries() == ["missed"]


async def test_a_spool_that_was_replaced_is_opened_anew(intake, line):
    from outboxd.spool.waiting import SpoolWaits

    async with intake(serve=False, pace=SpoolWaits(rescan_s=0.1)) as parts:
        os.rename(parts.spool, parts.path / "old")
        await parts.until((parts.spool / "new").is_dir)
        parts.put("after", line("after"))
        await parts.emptied()
        assert await parts.summaries() == ["after"]


async def test_a_spool_that_cannot_be_made_is_a_configuration_error(intake, tmp_path):
    from outboxd.errors import ConfigError

    (tmp_path / "spool").write_text("in the way")
    with pytest.raises(ConfigError, match="spool"):
        async with intake(serve=False):
            pass


async def test_the_directories_are_made_for_the_group_to_hand_in(intake):
    before = os.umask(0o077)
    try:
        async with intake(serve=False) as parts:
            modes = {
                name: (parts.spool / name).stat().st_mode & 0o777
                for name in (".", "tmp", "new", "rejected")
            }
    finally:
        os.umask(before)
    assert modes == {".": 0o755, "tmp": 0o770, "new": 0o770, "rejected": 0o750}


async def test_thousands_of_files_are_taken_while_the_socket_is_served(intake, line, event, full):
    count = 20_000 if full else 2_000
    async with intake(serve=False, spool=False) as parts:
        os.makedirs(parts.spool / "new")
        for number in range(count):
            (parts.spool / "new" / f"{number:06}").write_text(line(str(number)))
    async with intake() as parts:
        served = 0
        while parts.outbox.counts.pending < count:
            assert (await parts.post(event()))[0] == 201
            served += 1
        await parts.emptied(120.0)
        assert parts.outbox.counts.pending == count + served
        assert served > 2
        assert parts.outbox.spool_progress == {}
