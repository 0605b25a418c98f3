"""Copies of an outbox: whole while it is in use, and known for what they are."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from outboxd.clock import FakeClock
from outboxd.errors import OutboxDamaged, OutboxUnusable, Unavailable
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite import engine as engine_room
from outboxd.outbox.sqlite.copying import seal
from outboxd.outbox.sqlite.opening import Opened, open_offline, open_outbox


def keep(opened: Opened, *items):
    with opened.engine.transaction():
        return opened.engine.accept(items)


def copy_of(opened: Opened, to: str, meanwhile=lambda outbox: None) -> None:
    """Read a copy to its end; `meanwhile` is done after each part."""

    file = Path(to).open("wb")  # noqa: SIM115

    async def main():
        outbox = await Outbox.start(opened.engine)
        _, parts = await opened.copied(outbox)
        try:
            with file:
                async for chunk in parts:
                    file.write(chunk)
                    waits = meanwhile(outbox)
                    if waits is not None:
                        await waits
        finally:
            await outbox.stop()

    asyncio.run(main())


def possible_duplicates(engine):
    found = engine.fetch(1000, (), "mixed", 0.0, 300.0).entries
    return {claimed.seq for claimed in found if claimed.possible_duplicate}


def test_a_copy_made_while_events_come_in_is_whole(path, tmp_path, event, monkeypatch):
    monkeypatch.setattr(engine_room, "COPY_CHUNK_BYTES", 4096)
    monkeypatch.setattr(engine_room, "WAL_BYTES_MAX", 1)  # or each commit would be tidied
    opened = open_outbox(path)
    receipts = keep(opened, *[event(f"n{i}" + "x" * 300) for i in range(500)])
    to = str(tmp_path / "copy.db")
    taken = []

    async def take(outbox):
        taken.extend(await outbox.accept([event("while it is copied")]))

    copy_of(opened, to, take)
    opened.lock.release()
    assert len(taken) > 20, "the copy was read in parts, and events came in between"
    assert seal(to) == 500
    with open_offline(to) as engine:
        assert [engine.get(receipt.id).id for receipt in receipts]
    with open_offline(path) as engine:
        assert engine.counts().pending == 500 + len(taken)


def test_a_copy_that_takes_too_long_is_given_up(path, tmp_path, event, monkeypatch):
    monkeypatch.setattr(engine_room, "COPY_CHUNK_BYTES", 4096)
    monkeypatch.setattr(engine_room, "COPY_WAL_BYTES_MAX", 256 * 1024)
    opened = open_outbox(path)
    keep(opened, *[event(f"n{i}") for i in range(500)])

    async def much(outbox):
        await outbox.accept([event("x" * 3000) for _ in range(200)])

    with pytest.raises(Unavailable, match="too long"):
        copy_of(opened, str(tmp_path / "copy.db"), much)


def test_a_backup_that_is_put_back_is_told_and_its_entries_are_doubtful(path, tmp_path, event):
    opened = open_outbox(path)
    keep(opened, event("a"), event("b"))
    to = str(tmp_path / "copy.db")
    copy_of(opened, to)
    opened.lock.release()
    seal(to)
    again = open_outbox(to)
    assert "a backup of" in again.put_back
    keep(again, event("new"))
    assert possible_duplicates(again.engine) == {1, 2}
    again.close()
    once_more = open_outbox(to)
    assert once_more.put_back == "", "it is told once"
    assert possible_duplicates(once_more.engine) == {1, 2}, "and stays true"
    once_more.close()


def test_a_file_without_its_log_is_told(path, tmp_path, event):
    """What `cp outbox.db` makes of an outbox that is in use."""
    opened = open_outbox(path)
    keep(opened, event("in the file"))
    opened.engine.checkpoint()
    keep(opened, event("in the log"))
    to = str(tmp_path / "alone.db")
    shutil.copy(path, to)
    for _ in range(2):
        with open_offline(to) as engine:
            assert "without its log" in engine.put_back, "a command leaves it to be told"
    again = open_outbox(to)
    assert "without its log" in again.put_back
    assert possible_duplicates(again.engine) == {1}
    again.close()
    once_more = open_outbox(to)
    assert once_more.put_back == ""
    once_more.close()
    opened.close()


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("by_command", [True, False])
def test_an_outbox_that_stayed_where_it_was_is_no_copy(path, event, closes, by_command):
    """The negative control: neither an end in order, nor a kill, nor a command between."""
    opened = open_outbox(path)
    keep(opened, event())
    if closes:
        opened.close()
    else:  # no farewell: the files are put back as they stood
        files = {name: Path(name).read_bytes() for name in (path, path + "-wal")}
        opened.close()
        for name, content in files.items():
            Path(name).write_bytes(content)
    if by_command:
        with open_offline(path) as engine:
            assert engine.put_back == ""
    again = open_outbox(path)
    assert again.put_back == ""
    assert possible_duplicates(again.engine) == set()
    again.close()


def test_both_files_copied_together_are_no_copy_either(path, tmp_path, event):
    opened = open_outbox(path)
    keep(opened, event("a"), event("b"))
    to = str(tmp_path / "both.db")
    for suffix in ("", "-wal"):
        shutil.copy(path + suffix, to + suffix)
    opened.close()
    again = open_outbox(to)
    assert (again.put_back, again.engine.counts().pending) == ("", 2)
    again.close()


def test_a_copy_that_is_cut_short_is_no_backup(path, tmp_path, event):
    opened = open_outbox(path)
    keep(opened, *[event(f"n{i}") for i in range(300)])
    to = str(tmp_path / "copy.db")
    copy_of(opened, to)
    os.truncate(to, os.path.getsize(to) - 8192)
    with pytest.raises((OutboxDamaged, OutboxUnusable), match=r"not whole|malformed"):
        seal(to)


async def test_pages_that_are_free_go_back_to_the_file_system(path, event, delivered):
    opened = open_outbox(path, FakeClock())
    outbox = await Outbox.start(opened.engine)
    for start in range(0, 4000, 500):
        await outbox.accept([event("x" * 3000) for _ in range(500)])
        await outbox.exchange([delivered(start + n + 1) for n in range(500)], ())
    jobs = {job.name: job.run for job in opened.jobs(outbox)}
    await outbox.read(lambda _: opened.engine.empty_log())
    before = outbox.sizes().stored
    assert before > 12_000_000
    await outbox.change(lambda engine: engine.prune(0, 10_000, 1 << 60))
    rounds = 0
    while outbox.sizes().stored > 2_000_000:
        await jobs["give_back"]()
        await outbox.read(lambda _: opened.engine.empty_log())
        rounds += 1
        assert rounds < 6, "12 MB within half a minute"
    await outbox.stop()
