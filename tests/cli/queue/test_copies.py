"""Backups, copies without a log, and links in the place of the outbox, by the commands."""

from __future__ import annotations

import os
import socket
import stat

import pytest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(autouse=True)
def fresh(world):
    """Each test begins with no agent and no outbox."""
    world.stop_agent()
    for file in world.directory.glob("outbox.db*"):
        file.unlink()
    yield
    world.stop_agent()


def test_a_backup_of_the_file_goes_back_and_an_agent_says_what_it_found(world, tmp_path):
    world.start_agent()
    world.run("hold")
    id = world.add("waits in the backup")
    world.stop_agent()
    world.run("release")
    copy = tmp_path / "copy.db"
    done = world.run("backup", str(copy))
    assert done.code == 0, done
    assert world.run("events", "show", id, "--json").json["state"] == "pending"
    world.outbox.rename(tmp_path / "original.db")
    copy.rename(world.outbox)
    told = world.run("events", "show", id)
    assert told.code == 0
    assert "a backup of" in told.err
    world.start_agent()
    assert world.run("wait", id).code == 0
    entry = world.run("events", "show", id, "--json").json
    assert entry["sentBody"]["details"]["possibleDuplicate"] is True
    assert "outbox.put_back" in (world.directory / "agent.log").read_text()


def test_a_file_copied_without_its_log_is_told_by_command_and_agent(world, tmp_path):
    world.start_agent()
    world.run("hold")
    world.add("in the log alone")
    alone = tmp_path / "alone.db"
    alone.write_bytes(world.outbox.read_bytes())
    world.run("release")
    world.stop_agent()
    world.outbox.rename(tmp_path / "original.db")
    alone.rename(world.outbox)
    assert "without its log" in world.run("events").err
    (world.directory / "agent.log").unlink()
    world.start_agent()
    assert "without its log" in (world.directory / "agent.log").read_text()
    world.stop_agent()
    assert "without its log" not in world.run("events").err, "the agent has told it"


def test_a_backup_takes_the_place_of_an_older_one_and_of_nothing_else(world, tmp_path):
    world.start_agent()
    world.stop_agent()
    theirs = {
        "text": b"root:x:0:0:root:/root:/bin/bash\n",
        "of_another_program": b"SQLite format 3\0" + bytes(84),
        "short": b"SQLite format 3\0",
    }
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
        done = world.run("backup", str(tmp_path / name))
        assert done.code == 64, done
        assert "no copy of an outbox" in done.err
        assert (tmp_path / name).read_bytes() == content
    (tmp_path / "empty").touch()
    for _ in range(2):
        assert world.run("backup", str(tmp_path / "empty")).code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*theirs, "empty"])


def test_a_backup_that_cannot_be_written_says_whose_fault_it_is(world, tmp_path):
    world.start_agent()
    world.stop_agent()
    (tmp_path / "file").touch()
    for path in ("none/copy", "file/copy", "x" * 300):
        done = world.run("backup", str(tmp_path / path))
        assert (done.code, done.out) == (64, ""), done
    full = world.run("backup", "/dev/full")
    assert full.code == 64, full


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_regular_file_is_no_outbox_and_nothing_is_made_beside_it(world, tmp_path, kind):
    path = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("no right to make a device")
    world.write_config()
    config = world.config.read_text().replace('path = "outbox.db"', f'path = "{tmp_path}/odd"')
    world.config.write_text(config)
    try:
        for words in (["run"], ["events"], ["hold"], ["check"]):
            done = world.run(*words)
            assert done.code == 78, done
            assert "no regular file" in done.out + done.err
    finally:
        world.write_config()
    assert list(tmp_path.iterdir()) == [path]


@root_only
@pytest.mark.parametrize("suffix", ["", "-wal", ".lock", ".recovery", ".suspect"])
def test_root_follows_no_link_that_the_agents_user_has_put_there(world, suffix):
    """What root alone may read or write stays so, whatever stands beside the outbox."""
    world.start_agent()
    world.dead("a dead letter")
    world.stop_agent()
    place = world.directory / f"links{suffix}"  # where the other user comes in
    theirs, secret = place / "theirs", place / "secret.db"
    theirs.mkdir(parents=True)
    secret.write_bytes(world.outbox.read_bytes() if not suffix else b"only root's")
    secret.chmod(0o600)
    before = secret.read_bytes()
    outbox = theirs / "outbox.db"
    if suffix:
        outbox.write_bytes(world.outbox.read_bytes())
        os.chown(outbox, 65534, 65534)
    link = theirs / f"outbox.db{suffix}"
    link.symlink_to(secret)
    os.lchown(link, 65534, 65534)
    os.chown(theirs, 65534, 65534)
    world.write_config()
    config = world.config.read_text().replace('path = "outbox.db"', f'path = "{outbox}"')
    world.config.write_text(config)
    done = world.run("dead-letters", "drop", "--all", "--yes")
    world.write_config()
    assert "no outbox at" not in done.err, "the other user has to see it"
    # A note that cannot be read says nothing; everything else is refused.
    assert (done.code == 0) == (suffix == ".suspect"), done
    assert secret.read_bytes() == before
    made = [file for file in theirs.iterdir() if not file.is_symlink()]
    assert all(file.stat().st_uid == 65534 for file in made), "what root made is the agent's"
