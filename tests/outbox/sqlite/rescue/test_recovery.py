"""Damage to the outbox's files: nothing is lost silently, and the agent goes on."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.waiting import PATIENCE_S

from outboxd.outbox.model import DestinationHold, Incoming
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.opening import Opened, open_outbox
from outboxd.outbox.sqlite.rescue import diagnosis, recovery
from outboxd.outbox.sqlite.rescue.pages import PAGE_SIZES


def _load() -> ModuleType:
    file = Path(__file__).parents[1] / "damaged_outbox.py"
    spec = importlib.util.spec_from_file_location("damaged_outbox", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["damaged_outbox"] = module
    spec.loader.exec_module(module)
    return module


damaged = _load()
SEED = 20  # of the controls, which must find what they look for
KINDS = ("bit", "bit", "bit", "page", "zero")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    """Killed with a log beside the database; with all in the log; with none in it.
    Files of this version, and then of those that had larger pages."""
    return [
        damaged.build(tmp_path_factory.mktemp("built"), 200, checkpoint_at, page_bytes)
        for page_bytes in PAGE_SIZES
        for checkpoint_at in (100, 0, 200)
    ]


def files_of(path: Path) -> list[Path]:
    both = (path, Path(f"{path}-wal"))
    return [file for file in both if file.exists() and file.stat().st_size > 4096]


def takes_events(opened: Opened) -> bool:
    """Whether an event is kept, with a seq and id of its own."""
    engine = opened.engine
    item = Incoming(b'{"eventType":"a","summary":"after"}', "a", "warning", "", "socket", 1)
    engine.begin()
    (receipt,) = engine.accept([item])
    engine.commit()
    return engine.get(receipt.id).state == "pending"


def finish(opened: Opened) -> None:
    """What the agent does in the background, here and now."""
    for rescue in opened.rescues:
        for portion in rescue.work:
            if portion is not None:
                with opened.engine.transaction():
                    portion(opened.engine)


def run_flips(
    built,
    directory: Path,
    count: int,
    kinds=KINDS,
    which=(0, 1, 2, 3, 4, 5),
    only="",
    seed: int = SEED,
) -> list[str]:
    """Do damage `count` times; what was silent or wrong, each with how to replay it."""
    random_ = random.Random(seed)
    trouble = []
    for number in range(count):
        outbox = built[which[number % len(which)]]
        path = outbox.copied_to(directory / str(number))
        files = [file for file in files_of(path) if file.name.endswith(only)]
        what = damaged.flip(
            random_.choice(files), random_.choice(kinds), random_, outbox.page_bytes
        )
        try:
            opened, missing, wrong = damaged.open_and_check(path, outbox)
            if opened.rescues:
                finish(opened)
                opened.close()
                opened, missing, wrong = damaged.open_and_check(path, outbox)
            lost = opened.engine.damage().lost
            if len(missing) > lost:
                wrong.append(f"{len(missing)} receipts missing, {lost} counted")
            if not takes_events(opened):
                wrong.append("takes no events")
            opened.close()
        except Exception as error:
            wrong = [repr(error)]
        trouble += [f"seed {seed} number {number}: {what}: {each}" for each in wrong]
        shutil.rmtree(path.parent)
    return trouble


def test_damage_that_sqlite_can_only_quote_is_damage(built, tmp_path: Path):
    """A flipped bit in a table's definition; found among random ones."""
    path = built[0].copied_to(tmp_path / "quoted")
    data = bytearray(path.read_bytes())
    at = data.index(b"WITHOUT ROWID") + len(b"WITHOUT R")
    data[at] |= 0x80  # an O that is no text any more
    path.write_bytes(data)
    opened = open_outbox(str(path))
    assert opened.recovery is not None
    finish(opened)
    for id in built[0].receipts:
        opened.engine.get(id)
    opened.close()


@pytest.mark.timeout(900)
def test_flips_of_bits_and_pages_are_never_silent(built, tmp_path: Path, full: bool, seed: int):
    assert run_flips(built, tmp_path, 600 if full else 24, seed=seed) == []


def test_damage_to_the_log_alone_loses_next_to_nothing(
    built, tmp_path: Path, full: bool, seed: int
):
    """Older images of its pages are there, and single bits are put right."""
    random_ = random.Random(seed)
    lost = 0
    for number in range(60 if full else 6):
        outbox = built[number % 2]
        path = outbox.copied_to(tmp_path / str(number))
        damaged.flip(Path(f"{path}-wal"), "bit", random_, built[0].page_bytes)
        opened, missing, wrong = damaged.open_and_check(path, outbox)
        assert opened.recovery is not None
        assert wrong == []
        lost += len(missing)
        opened.close()
    assert lost <= number / 6


def test_control_without_the_look_at_the_log_receipts_vanish_silently(
    built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(diagnosis, "before_opening", lambda *_: "")
    assert run_flips(built, tmp_path, 6, ("bit", "page"), (0, 1), "-wal")


def test_control_without_the_rows_checksums_wrong_content_passes(
    built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(diagnosis, "_all_rows", lambda _: "")
    outbox = built[2]
    path = outbox.copied_to(tmp_path / "x")
    change_in(path, b"event 33", b"event 34")
    opened, missing, wrong = damaged.open_and_check(path, outbox)
    assert wrong or missing
    opened.close()


def change_in(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_a_bit_in_unused_space_harms_nothing(built, tmp_path: Path):
    path = built[2].copied_to(tmp_path / "x")
    # The table of set-aside rows is empty: the middle of its page is unused.
    with sqlite3.connect(path) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'damaged'").fetchone()
    db.close()
    with open(path, "r+b") as file:
        file.seek((root - 1) * built[0].page_bytes + 1000)
        file.write(b"\x10")
    opened, missing, wrong = damaged.open_and_check(path, built[2])
    assert (opened.recovery, missing, wrong) == (None, set(), [])
    opened.close()


def test_a_damaged_state_comes_back_as_pending_and_is_marked(built, tmp_path: Path):
    path = built[2].copied_to(tmp_path / "x")
    change_in(path, b'"unavailable",503', b'"unavailable",504')
    opened, missing, wrong = damaged.open_and_check(path, built[2])
    assert (missing, wrong) == (set(), [])
    assert opened.recovery is not None
    assert opened.recovery.salvaged == 200
    assert opened.engine.damage() == (200, 0)
    opened.close()


def test_a_lost_entry_is_made_again_from_its_body_with_its_own_id(built, tmp_path: Path):
    path = built[2].copied_to(tmp_path / "x")
    seq = 199
    id = next(id for id, said in built[2].receipts.items() if said["seq"] == seq)
    # The id stands in the entry, in the index of ids and in the dedup window.
    data = path.read_bytes()
    at = data.index(id.encode() + b"pending")
    path.write_bytes(data[:at] + b"?" * 36 + data[at + 36 :])
    opened, missing, wrong = damaged.open_and_check(path, built[2])
    assert (missing, wrong) == (set(), [])
    entry = opened.engine.get(id)
    assert (entry.state, entry.possible_duplicate, entry.seq) == ("pending", True, seq)
    opened.close()


def test_dedup_window_spool_progress_hold_and_counts_survive(built, tmp_path: Path):
    path = built[2].copied_to(tmp_path / "x")
    first = open_outbox(str(path))
    with first.engine.transaction():
        first.engine.set_destination_hold(DestinationHold("maintenance", "root", 5))
        first.engine.add_damage(3, 4)
    before = first.engine.connection.execute("SELECT key, seq, id FROM dedup").fetchall()
    progress = first.engine.spool_progress()
    first.close()
    assert len(before) == 67
    change_in(path, b"event 33", b"event 34")
    opened = open_outbox(str(path))
    engine = opened.engine
    assert engine.connection.execute("SELECT key, seq, id FROM dedup").fetchall() == before
    assert engine.spool_progress() == progress
    assert engine.destination_hold() == DestinationHold("maintenance", "root", 5)
    assert engine.damage() == (3 + 199, 4 + 1)
    opened.close()


def test_what_was_in_flight_is_marked_though_the_note_of_it_is_damaged(built, tmp_path: Path):
    path = built[2].copied_to(tmp_path / "x")
    change_in(path, b"sending[", b"sending{")
    opened = open_outbox(str(path))
    doubted = opened.engine.connection.execute(
        "SELECT min(possible_duplicate) FROM entries WHERE state = 'pending'"
    ).fetchone()
    assert doubted == (1,)
    opened.close()


def test_the_damaged_files_are_set_aside_with_their_date_and_never_overwritten(
    built, tmp_path: Path
):
    path = built[0].copied_to(tmp_path / "x")
    for _ in range(2):
        with open(path, "r+b") as file:
            file.seek(0)
            file.write(b"?" * 16)
        damaged_bytes = path.read_bytes()
        Path(f"{path}-wal").unlink(missing_ok=True)
        opened = open_outbox(str(path))
        assert opened.recovery is not None
        assert Path(opened.recovery.set_aside[0]).read_bytes() == damaged_bytes
        opened.close()
    assert len(list(path.parent.glob("outbox.db.damaged-*"))) == 2
    assert not Path(f"{path}.recovery").exists()


KILLED = """
import os, signal, sys
from outboxd.outbox.sqlite.rescue import recovery
from outboxd.outbox.sqlite.opening import open_outbox
recovery.FOREGROUND_S = 1e9  # each run comes to the same lines, however long it takes
path, step = sys.argv[1], int(sys.argv[2])
seen = 0
def tracer(frame, event, arg):
    global seen
    if frame.f_code.co_filename.endswith("recovery.py"):
        def lines(frame, event, arg):
            global seen
            if event == "line":
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)
            return lines
        return lines
sys.settrace(tracer)
opened = open_outbox(path)
sys.settrace(None)
print(seen)
opened.close()
"""


@pytest.mark.timeout(900)
def test_a_start_killed_at_any_line_of_the_recovery_is_repeated_without_loss(
    built, tmp_path: Path, full: bool, seed: int
):
    outbox = built[0]
    source = outbox.copied_to(tmp_path / "source")
    with open(source, "r+b") as file:
        file.seek(18)
        file.write(b"\x09\x09")
    wal = Path(f"{source}-wal")
    data = bytearray(wal.read_bytes())
    data[len(data) // 2] ^= 1
    wal.write_bytes(data)

    def run(directory: Path, step: int) -> subprocess.CompletedProcess[str]:
        shutil.copytree(source.parent, directory)
        command = [sys.executable, "-c", KILLED, str(directory / source.name), str(step)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)

    lines = int(run(tmp_path / "all", 0).stdout)
    steps = random.Random(seed).sample(range(1, lines), 60 if full else 4)
    for step in steps:
        directory = tmp_path / str(step)
        killed = run(directory, step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        opened, missing, wrong = damaged.open_and_check(directory / source.name, outbox)
        finish(opened)
        assert (step, missing, wrong) == (step, set(), [])
        assert (step, opened.engine.damage()) == (step, (200, 0))
        opened.close()
        assert len(list(directory.glob("*.damaged-*-wal"))) == 1
        shutil.rmtree(directory)


def test_what_takes_long_is_salvaged_while_the_agent_takes_events(
    built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recovery, "FOREGROUND_S", 0.0)
    path = built[2].copied_to(tmp_path / "x")
    change_in(path, b"event 33", b"event 34")
    opened, missing, _ = damaged.open_and_check(path, built[2])
    assert opened.recovery is not None
    assert not opened.recovery.is_finished
    assert len(missing) == 200
    assert takes_events(opened)

    async def main() -> None:
        outbox = await Outbox.start(opened.engine)
        assert await opened.salvage(outbox) == (199, 1)
        assert outbox.damage == (199, 1)
        assert sum(outbox.counts[:3]) == 200
        assert outbox.counts.pending > 1
        await outbox.stop()
        opened.lock.release()

    asyncio.run(main())
    again, missing, wrong = damaged.open_and_check(path, built[2])
    assert (again.recovery, len(missing), wrong) == (None, 1, [])
    again.close()


def test_a_restart_in_the_middle_of_the_background_salvage_goes_on(
    built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = built[2].copied_to(tmp_path / "x")
    change_in(path, b"event 33", b"event 34")
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "FOREGROUND_S", 0.0)
        opened = open_outbox(str(path))
        assert takes_events(opened)
        opened.close()
    again, missing, wrong = damaged.open_and_check(path, built[2])
    finish(again)
    assert (len(missing), wrong, again.engine.damage()) == (1, [], (199, 1))
    again.close()
