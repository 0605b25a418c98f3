"""What stands where an outbox should: each its clear message, and nobody's data eaten."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from outboxd.errors import (
    EX_CONFIG,
    EX_NOPERM,
    OutboxDamaged,
    OutboxdError,
    OutboxUnusable,
    Unavailable,
)
from outboxd.outbox.model import Incoming
from outboxd.outbox.sqlite.connection import suspect
from outboxd.outbox.sqlite.opening import open_offline, open_outbox

ITEM = Incoming(b'{"eventType":"a","summary":"b"}', "a", "warning", "", "socket", 1)


def fill(path: str, count: int = 3) -> list[str]:
    """Make an outbox with some events; their ids."""
    opened = open_outbox(path)
    with opened.engine.transaction():
        receipts = opened.engine.accept([ITEM] * count)
    opened.close()
    return [receipt.id for receipt in receipts]


def test_a_missing_directory_is_made(tmp_path: Path):
    open_outbox(str(tmp_path / "a" / "b" / "outbox.db")).close()
    assert (tmp_path / "a" / "b" / "outbox.db").exists()


def test_a_link_to_an_outbox_is_followed_and_recovered_where_it_leads(tmp_path: Path):
    real = str(tmp_path / "disk" / "outbox.db")
    ids = fill(real)
    link = str(tmp_path / "outbox.db")
    os.symlink(real, link)
    with open(real, "r+b") as file:
        file.write(b"?" * 16)
    opened = open_outbox(link)
    assert [opened.engine.get(id).state for id in ids] == ["pending"] * 3
    opened.close()
    assert os.path.islink(link)
    assert len(list(Path(real).parent.glob("*.damaged-*"))) == 1


def test_a_fresh_empty_file_is_fine(path: str):
    Path(path).touch()
    opened = open_outbox(path)
    assert opened.recovery is None
    opened.close()


def test_an_outbox_that_was_emptied_is_told_and_counted(path: str):
    fill(path)
    Path(path + ".ballast").write_bytes(bytes(10))
    os.truncate(path, 0)
    opened = open_outbox(path)
    assert opened.recovery is not None
    assert "emptied" in opened.recovery.found
    assert opened.engine.damage().lost == 1
    opened.close()


def test_an_emptied_file_beside_a_full_log_is_salvaged_from_the_log(tmp_path: Path):
    path = str(tmp_path / "outbox.db")
    opened = open_outbox(path)
    with opened.engine.transaction():
        receipts = opened.engine.accept([ITEM] * 3)
    log = Path(path + "-wal").read_bytes()
    opened.close()
    Path(path).write_bytes(b"")
    Path(path + "-wal").write_bytes(log)
    opened = open_outbox(path)
    assert [opened.engine.get(receipt.id).state for receipt in receipts] == ["pending"] * 3
    assert opened.engine.damage() == (3, 0)
    opened.close()


@pytest.mark.parametrize("content", [b"dear diary\n" * 500, bytes(5000), b"x"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: str, content: bytes):
    Path(path).write_bytes(content)
    for _ in range(2):
        with pytest.raises(OutboxUnusable, match="no database at all") as caught:
            open_outbox(path)
        assert caught.value.exit_code == EX_CONFIG
    assert Path(path).read_bytes() == content
    assert not list(Path(path).parent.glob("*.damaged-*"))


def test_another_programs_database_is_refused_and_left_alone(path: str):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE diary (text)")
    db.execute("INSERT INTO diary VALUES ('dear')")
    db.commit()
    db.close()
    before = Path(path).read_bytes()
    for opening in (open_outbox, lambda path: open_offline(path).__enter__()):
        with pytest.raises(OutboxUnusable, match="another program"):
            opening(path)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("at", [0, 16, 18, 19, 20, 21, 44, 56, 60, 68, 75])
def test_an_outbox_with_a_damaged_header_is_salvaged_whole(path: str, at: int):
    ids = fill(path)
    with open(path, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))
    opened = open_outbox(path)
    assert opened.recovery is not None
    assert [opened.engine.get(id).state for id in ids] == ["pending"] * 3
    assert opened.engine.damage() == (3, 0)
    opened.close()


def test_a_directory_in_its_place_is_refused(path: str):
    os.mkdir(path)
    with pytest.raises(OutboxUnusable, match="is a directory") as caught:
        open_outbox(path)
    assert caught.value.exit_code == EX_CONFIG


def test_an_outbox_of_a_newer_version_is_refused_and_left_alone(path: str):
    fill(path)
    db = sqlite3.connect(path)
    db.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('outboxd', '9999_future', '')"
    )
    db.commit()
    db.close()
    with pytest.raises(
        OutboxUnusable, match="newer version of outboxd \\(9999_future\\)"
    ) as caught:
        open_outbox(path)
    assert caught.value.exit_code == EX_CONFIG
    assert not list(Path(path).parent.glob("*.damaged-*"))


def test_a_flipped_bit_in_a_migrations_name_is_damage_and_no_newer_version(path: str):
    ids = fill(path)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(b"0001_entries", b"0001_entrier"))
    opened = open_outbox(path)
    assert opened.engine.damage() == (3, 0)
    assert opened.engine.get(ids[0]).state == "pending"
    opened.close()


def test_a_flipped_bit_in_a_tables_definition_is_damage(path: str):
    fill(path)
    data = Path(path).read_bytes()
    Path(path).write_bytes(
        data.replace(b"state = 'pending' AND held = 0", b"state = 'pending' AND held = 1")
    )
    opened = open_outbox(path)
    assert opened.engine.damage() == (3, 0)
    opened.close()


AS_NOBODY = """
import os, sys
from outboxd.outbox.sqlite.opening import open_outbox
from outboxd.errors import OutboxdError
os.setuid(65534)
try:
    open_outbox(sys.argv[1])
except OutboxdError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("kept_back", ["", ".lock", "directory"])
def test_without_permission_the_exit_code_says_so(path: str, tmp_path: Path, kept_back: str):
    fill(path)
    for parent in (tmp_path, *tmp_path.parents):
        if str(parent).startswith("/tmp/") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755 if kept_back == "directory" else 0o777)
    for suffix in ("", ".lock"):
        os.chmod(path + suffix, 0o600 if suffix == kept_back else 0o666)
    if kept_back == "directory":
        os.unlink(path + ".lock")
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == EX_NOPERM, done.stderr
    assert "Permission denied" in done.stdout


def test_damage_seen_while_running_is_recovered_from_at_the_next_start(path: str):
    ids = fill(path)
    suspect(path, "it looked odd")
    opened = open_outbox(path)
    assert opened.recovery is not None
    assert opened.recovery.found == "it looked odd"
    assert [opened.engine.get(id).state for id in ids] == ["pending"] * 3
    opened.close()
    again = open_outbox(path)
    assert again.recovery is None
    again.close()


def test_a_command_leaves_a_damaged_outbox_to_the_agent(path: str):
    fill(path)
    with open(path, "r+b") as file:
        file.write(b"?" * 16)
    before = Path(path).read_bytes()
    with pytest.raises(OutboxDamaged, match="start the agent"), open_offline(path):
        pass
    assert Path(path).read_bytes() == before


def test_a_command_says_that_there_is_no_outbox(path: str):
    with pytest.raises(Unavailable, match="no outbox"), open_offline(path):
        pass
    assert not os.path.exists(path)


def test_a_damaged_note_of_a_recovery_stops_the_start_and_eats_nothing(path: str):
    fill(path)
    Path(path + ".recovery").write_text("?")
    with pytest.raises(OutboxdError, match="recovery is damaged"):
        open_outbox(path)
    assert Path(path).exists()


# What SQLite writes first, in the main file of an outbox that is being made.
FIRST_OLD_PAGE = bytes.fromhex(
    "53514c69746520666f726d6174203300100001010040202000000001000000010000000000000000"
    "00000000000000000000000100000000000000000000000100000000000000000000000000000000"
    "00000000000000000000000000000001002e63010d00000000100000"
).ljust(4096, b"\0")
FIRST_PAGE = (FIRST_OLD_PAGE[:16] + b"\x08\x00" + FIRST_OLD_PAGE[18:])[:2048]


@pytest.mark.parametrize("with_journal", [False, True])
@pytest.mark.parametrize(
    "left",
    [
        *(bytes(512), bytes(3072), bytes(4096)),
        *(FIRST_PAGE[:512], FIRST_PAGE[:1536], FIRST_OLD_PAGE[:512], FIRST_OLD_PAGE[:3584]),
    ],
    ids=[
        *("a sector of zeros", "zeros", "a page of zeros"),
        *("its first sector", "all but one", "an old one's", "all but one of an old one's"),
    ],
)
def test_a_part_of_the_first_page_is_a_start_cut_short(path, with_journal, left):
    """What a power cut can leave while the file is made; found among its images."""
    Path(path).write_bytes(left)
    if with_journal:
        Path(path + "-journal").write_bytes(
            bytes.fromhex("d9d505f920a163d700000000be9ad920000000000000020000001000") + bytes(484)
        )
    opened = open_outbox(path)
    assert opened.recovery is None
    assert opened.engine.counts() == (0, 0, 0, 0)
    opened.close()


@pytest.mark.parametrize("cut_at", [600, 2048])
def test_a_stump_of_somebody_elses_database_is_left_alone(path, cut_at):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    os.truncate(path, cut_at)
    stump = Path(path).read_bytes()
    with pytest.raises(OutboxUnusable, match="no outbox"):
        open_outbox(path)
    assert Path(path).read_bytes() == stump
