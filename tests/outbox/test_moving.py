"""A move from one outbox to another: all of it, once, and whatever cuts it off."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.moves import Mover, fill, incoming, seen

from outboxd.cli.main import main
from outboxd.errors import OutboxUnusable
from outboxd.outbox.model import State
from outboxd.outbox.sqlite.engine import SqliteEngine
from outboxd.outbox.sqlite.opening import open_offline, open_outbox, open_to_leave


@pytest.fixture
def filled(tmp_path) -> str:
    path = str(tmp_path / "from.db")
    engine = SqliteEngine(path)
    fill(engine)
    engine.close()
    return path


@pytest.fixture
def to(tmp_path) -> str:
    return str(tmp_path / "new" / "to.db")


def what(path: str) -> dict[str, object]:
    with open_to_leave(path) as engine:
        return seen(engine)


def test_all_is_there_afterwards_and_counted(filled, to, capsys):
    assert main(["move", filled, to]) == 0
    told = capsys.readouterr().out
    assert "moved 29 entries (23 pending, 1 of them held; 5 delivered; 1 dead)" in told
    assert "2 were in flight" in told
    assert what(to) == what(filled), "but for the mark the old one has what it had"
    with open_offline(to) as engine:
        before = max(entry.seq for entry in engine.entries_after(-1, 1000, 1 << 40))
        doubtful = [e for e in engine.entries_after(-1, 1000, 1 << 40) if e.possible_duplicate]
        assert len(doubtful) == 3, "two that were in flight, and one from before"
        with engine.transaction():
            (again,) = engine.accept([incoming("x", 1, producer="token:b", dedup_key="pruned")])
            (fresh,) = engine.accept([incoming("y", 1)])
        assert (again.status, again.state) == ("duplicate", State.DELIVERED)
        assert engine.get(fresh.id).seq > before
    opened = open_outbox(to)
    assert opened.recovery is None
    opened.close()


def test_nobody_opens_the_one_that_was_left_and_a_second_run_does_nothing(filled, to, capsys):
    assert main(["move", filled, to]) == 0
    with pytest.raises(OutboxUnusable, match=r"was moved to .*to\.db"):
        open_outbox(filled)
    with pytest.raises(OutboxUnusable, match="was moved"), open_offline(filled):
        pass
    assert main(["move", filled, to]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["move", filled, to + "2"]) == 78
    assert main(["move", "--give-up", filled]) == 78


def test_back_again_into_a_new_file(filled, to, tmp_path):
    assert main(["move", filled, to]) == 0
    back = str(tmp_path / "back.db")
    assert main(["move", to, back]) == 0
    assert what(back) == what(filled)


def test_what_cannot_be_is_said_and_changes_nothing(filled, to, tmp_path, capsys):
    assert main(["move", filled, filled]) == 64
    assert main(["move", filled]) == 64
    assert main(["move", str(tmp_path / "none.db"), to]) == 69
    used = str(tmp_path / "used.db")
    engine = SqliteEngine(used)
    with engine.transaction():
        engine.accept([incoming("there already", 1)])
    engine.close()
    capsys.readouterr()
    assert main(["move", filled, used]) == 78
    assert "is not empty" in capsys.readouterr().err
    opened = open_outbox(filled)
    try:
        assert main(["move", filled, to]) == 75
    finally:
        opened.close()


def test_a_damaged_outbox_is_not_made_to_look_whole(filled, to, capsys):
    engine = SqliteEngine(filled)
    engine.connection.execute("UPDATE bodies SET body = replace(body, 'event 20', 'event 99')")
    engine.close()
    assert main(["move", filled, to]) != 0
    assert "damaged" in capsys.readouterr().err


@pytest.fixture(scope="module")
def mover():
    mover = Mover()
    yield mover
    mover.close()


def copied(path: str, directory: Path) -> str:
    directory.mkdir()
    for file in Path(path).parent.glob(Path(path).name + "*"):
        shutil.copy(file, directory)
    return str(directory / Path(path).name)


def test_cut_off_at_each_commit_it_goes_on_where_it_stopped(filled, tmp_path, mover, full):
    whole = copied(filled, tmp_path / "whole")
    assert mover.move(whole, str(tmp_path / "wanted.db")) == 0
    wanted = what(str(tmp_path / "wanted.db"))
    dies_at = 0
    while True:
        dies_at += 1 if full else 8
        source = copied(filled, tmp_path / str(dies_at))
        target = str(tmp_path / str(dies_at) / "to.db")
        if mover.move(source, target, dies_at) == 0:
            break
        usable = [path for path in (source, target) if os.path.exists(path) and is_usable(path)]
        # Until the first mark is written all is as it was; from the last one on all is moved.
        assert usable in ([], [source], [target])
        assert mover.move(source, target) == 0
        assert what(target) == wanted
        assert is_usable(target)
        assert not is_usable(source)
    assert dies_at > 12


def is_usable(path: str) -> bool:
    """Whether an agent opens it, and it has events."""
    try:
        opened = open_outbox(path)
    except OutboxUnusable:
        return False
    try:
        return bool(opened.engine.seq_range())
    finally:
        opened.close()


def test_a_move_that_was_cut_off_can_be_given_up(filled, to, tmp_path, mover, capsys):
    before = what(filled)
    assert mover.move(filled, to, 9) == -9
    with pytest.raises(OutboxUnusable, match="was cut off"):
        open_outbox(filled)
    with pytest.raises(OutboxUnusable, match="was cut off"):
        open_outbox(to)
    assert main(["move", filled, str(tmp_path / "another.db")]) == 78
    assert main(["move", "--give-up", filled]) == 0
    assert is_usable(filled)
    assert not is_usable(to)
    assert main(["move", filled, to]) == 78, "what a given up move left is no empty outbox"
    after = what(filled)
    assert after["counts"] == before["counts"]


def test_a_move_that_does_not_mark_the_old_one_would_deliver_twice(filled, to, monkeypatch):
    """The control: what refuses both is the marks, and nothing else."""
    monkeypatch.setattr(SqliteEngine, "set_move_note", lambda self, note: None)
    assert main(["move", filled, to]) == 0
    assert is_usable(filled)
    assert is_usable(to)


def test_a_copy_that_loses_an_entry_is_caught(filled, to, monkeypatch, capsys):
    """The control of the comparison."""
    put_in = SqliteEngine.put_in
    monkeypatch.setattr(
        SqliteEngine, "put_in", lambda self, entries, ids: put_in(self, entries[:-1], ids)
    )
    assert main(["move", filled, to]) == 70
    assert "do not agree" in capsys.readouterr().err
    assert not is_usable(to)
