"""Odd files in the spool, and links where an outbox stands, reach nothing that is not theirs."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.agent import ENVIRON
from support.neighbour import ALICE, House, drop

SECRET = "root:of-a-file-that-only-root-reads"

KEPT_AS_THEY_ARE = """
import os
import outboxd.spool.rejects as rejects
def as_it_is(folder, name, identity, why, now_ms):
    target = rejects._free_name(folder, name)
    rejects._write_error(folder, target, why)
    os.rename(name, target, src_dir_fd=folder.new, dst_dir_fd=folder.rejected)
    return target
rejects.reject_whole = as_it_is
"""
FOLLOWED = """
import contextlib
import outboxd.outbox.sqlite.owner as owner
owner.as_owner = contextlib.contextmanager(lambda path: (yield))
"""


# --- the spool -----------------------------------------------------------------------------


def odd_files(spool: Path, secret: Path) -> list[str]:
    """One of each kind in `new/`; their names."""
    new = spool / "new"
    os.symlink(secret, new / "link")
    os.symlink(secret.parent, new / "link to a directory")
    os.symlink("/dev/zero", new / "link to a device")
    os.symlink("nowhere", new / "link to nothing")
    os.symlink("link to itself", new / "link to itself")
    os.mkfifo(new / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(new / "socket"))
    os.mknod(new / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.makedirs(new / "directory" / "in" / "it")
    os.makedirs(new / "empty")
    os.symlink(secret, new / "directory" / "link")
    (new / ("n" * 255)).symlink_to(secret)
    (new / "-rf\n\x1b[2J").symlink_to(secret)
    os.symlink(os.fsencode(secret), os.fsencode(new) + b"/\xff\xfe")
    names = os.listdir(new)
    for name in names:
        os.chown(new / name, ALICE, ALICE, follow_symlinks=False)
    return names


def taken_in(house: House, tmp_path: Path) -> list[str]:
    """What the odd files got the agent to do."""
    secret = tmp_path / "shadow"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    spool = house.agent.spool
    names = odd_files(spool, secret)
    drop(house.agent, "good", json.dumps({"eventType": "t", "summary": "behind them"}).encode())
    house.agent.await_taken()
    found = []
    rejected = sorted((spool / "rejected").iterdir())
    for path in rejected:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            found.append(f"{path.name}: what whoever looks there would open")
        elif stat.S_ISREG(mode) and SECRET in path.read_text(errors="replace"):
            found.append(f"{path.name}: another's file")
    texts = [path for path in rejected if path.name.endswith(".error")]
    if len(texts) != len(names):
        found.append(f"{len(texts)} texts for {len(names)} files")
    if SECRET in house.agent.log_text() or secret.read_text() != SECRET:
        found.append("the secret was read or written")
    time.sleep(0.3)  # nothing goes on for what was told
    if sorted((spool / "rejected").iterdir()) != rejected:
        found.append("it goes on")
    return found


def test_what_is_no_file_is_neither_read_nor_kept(make_house, tmp_path):
    with make_house() as house:
        assert taken_in(house, tmp_path) == []


def test_without_the_rule_it_is_seen(only_full, make_house, tmp_path):
    with make_house(patch=KEPT_AS_THEY_ARE) as house:
        assert taken_in(house, tmp_path) != []


# --- the outbox ------------------------------------------------------------------------------

READER = """
import contextlib, io, json, sys
from outboxd.cli.main import main
out = io.StringIO()
for words in json.loads(sys.stdin.read()):
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        with contextlib.suppress(SystemExit):
            main(words)
sys.stdout.write(out.getvalue())
"""


@pytest.fixture(scope="module")
def roots(as_root, tmp_path_factory) -> Path:
    """An outbox of root's, with a secret in it."""
    path = tmp_path_factory.mktemp("roots") / "outbox.db"
    event = {"eventType": "t", "summary": SECRET}
    make = (
        "import sys; from outboxd.outbox.sqlite.opening import open_outbox\n"
        "from outboxd.outbox.model import Incoming\n"
        "opened = open_outbox(sys.argv[1])\n"
        "opened.engine.accept([Incoming(body=sys.argv[2].encode(), event_type='t',"
        " severity='information', scope='', source='socket', received_at=1)])\n"
        "opened.close()\n"
    )
    subprocess.run([sys.executable, "-c", make, str(path), json.dumps(event)], check=True)
    path.chmod(0o600)
    return path


def led_astray(directory: Path, roots: Path, suffix: str, patch: str = "") -> list[str]:
    """What root's commands do where the agent's user has put a link beside its outbox."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(patch)
    state = directory / "state"
    state.mkdir()
    os.symlink(f"{roots}{suffix if suffix == '.lock' else ''}", state / f"outbox.db{suffix}")
    for path in (state, state / f"outbox.db{suffix}"):
        os.chown(path, ALICE, ALICE, follow_symlinks=False)
    config = directory / "config.toml"
    config.write_text(
        f'[outbox]\npath = "{state}/outbox.db"\n[intake]\nsocket = "{directory}/no"\n'
        f'spool = "{directory}/spool"\n'
    )
    before = {path: path.read_bytes() for path in roots.parent.iterdir()}
    commands = [["events"], ["status"], ["hold"], ["dead-letters", "list"], ["release"]]
    commands += [["backup", str(directory / "copy")], ["events", "--json"]]
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps([[*words, "-c", str(config)] for words in commands]),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**ENVIRON, "PYTHONPATH": str(directory)},
    )
    found = []
    if SECRET in done.stdout:
        found.append("read")
    if {path: path.read_bytes() for path in roots.parent.iterdir()} != before:
        found.append("written")
    if (directory / "copy").exists() and SECRET.encode() in (directory / "copy").read_bytes():
        found.append("copied")
    return found


@pytest.mark.parametrize("suffix", ["", "-wal", ".lock"])
def test_root_follows_no_link_in_the_place_of_an_outbox(roots, make_house, suffix, tmp_path):
    tmp_path.chmod(0o755)
    assert led_astray(tmp_path / "x", roots, suffix) == []


def test_without_the_rule_root_is_led_astray(only_full, roots, tmp_path):
    assert led_astray(tmp_path / "x", roots, "", FOLLOWED) != []
