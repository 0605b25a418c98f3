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
from support.outside import Agent, outboxd
from support.waiting import PATIENCE_S

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


def odd_files(directory: Path, secret: Path) -> list[str]:
    """One of each kind, made in a directory of its own; their names."""
    directory.mkdir()
    os.symlink(secret, directory / "link")
    os.symlink(secret.parent, directory / "link to a directory")
    os.symlink("/dev/zero", directory / "link to a device")
    os.symlink("nowhere", directory / "link to nothing")
    os.symlink("link to itself", directory / "link to itself")
    os.mkfifo(directory / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(directory / "socket"))
    os.mknod(directory / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.makedirs(directory / "directory" / "in" / "it")
    os.makedirs(directory / "empty")
    os.symlink(secret, directory / "directory" / "link")
    (directory / ("n" * 255)).symlink_to(secret)
    (directory / "-rf\n\x1b[2J").symlink_to(secret)
    os.symlink(os.fsencode(secret), os.fsencode(directory) + b"/\xff\xfe")
    names = os.listdir(directory)
    for name in names:
        os.chown(directory / name, ALICE, ALICE, follow_symlinks=False)
    return names


def taken_in(house: House, tmp_path: Path) -> list[str]:
    """What the odd files got the agent to do."""
    secret = tmp_path / "shadow"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    spool = house.agent.spool
    names = odd_files(spool.parent / "odd", secret)
    for name in names:  # whole: the agent takes each as soon as it is there
        os.rename(spool.parent / "odd" / name, spool / "new" / name)
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


# --- directories that the agent's user cannot move --------------------------------------------

SERVICE = 64_999  # of an agent that is not root, as the unit's is not
# That user may not be able to read the interpreter: all is loaded before.
AS_SERVICE = """
import importlib, os, pkgutil, sys
import outboxd
for found in pkgutil.walk_packages(outboxd.__path__, "outboxd."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from outboxd.cli.main import main
user, command = int(sys.argv[1]), sys.argv[5:]  # behind `python -m outboxd`
os.setgroups([]); os.setgid(user); os.setuid(user)
sys.exit(main(command))
"""
TRIED_FOR_EVER = """
import outboxd.spool.rejects as rejects
rejects._may_move = lambda folder, directory: True
"""


def work_for_directories(directory: Path, patch: str = "") -> list[str]:
    """What an agent goes on doing for directories of Alice's that only she can take away."""
    directory.mkdir()
    directory.chmod(0o755)
    os.chown(directory, SERVICE, SERVICE)
    (directory / "patch").mkdir()
    (directory / "patch" / "sitecustomize.py").write_text(patch)
    agent = Agent(
        directory,
        "http://127.0.0.1:9/",
        prefix=(sys.executable, "-c", AS_SERVICE, str(SERVICE)),
        environ={"PYTHONPATH": str(directory / "patch")},
    )
    agent.config.chmod(0o644)
    agent.start(ready=False)  # its notification is another user's to hear
    found = []
    try:
        agent.until(lambda: agent.answers() or None, agent.log_text)
        names = [f"theirs-{number}" for number in range(20)]
        for name in names:
            os.makedirs(agent.spool / "tmp" / name / "inside")
            os.chown(agent.spool / "tmp" / name, ALICE, ALICE)
            os.rename(agent.spool / "tmp" / name, agent.spool / "new" / name)
        texts = [agent.spool / "rejected" / f"{name}.error" for name in names]
        try:
            agent.until(lambda: all(map(Path.exists, texts)) or None, lambda: "texts are missing")
        except AssertionError as error:
            found.append(str(error))
        drop(agent, "good", json.dumps({"eventType": "t", "summary": "behind them"}).encode())
        agent.until(lambda: None if (agent.spool / "new/good").exists() else True, agent.log_text)
        before = (agent.spool / "rejected").stat().st_mtime_ns
        # As long as it waits before it tries again; the control, until it has.
        ends_s = time.monotonic() + (PATIENCE_S if patch else 6.0)
        while time.monotonic() < ends_s and not found:
            if (agent.spool / "rejected").stat().st_mtime_ns != before:
                found.append("texts are written anew")
            time.sleep(0.05)
    finally:
        agent.kill()
    return found


def test_a_directory_that_cannot_be_moved_is_told_once(only_full, as_root, public):
    assert work_for_directories(public / "x") == []


def test_without_a_look_at_its_rights_it_is_tried_for_ever(only_full, as_root, public):
    assert work_for_directories(public / "x", TRIED_FOR_EVER) != []


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
        timeout=PATIENCE_S,
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


# --- what is written by renaming it into its place --------------------------------------------

NOT_LOOKED_AT = """
import outboxd.files as files
files.check_replaceable = lambda path: None
"""


def taken_away(directory: Path, patch: str = "") -> list[str]:
    """What is no file and that root's commands, or a root's agent, put a file in the place of."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(patch)
    environ = {"PYTHONPATH": str(directory)}
    kinds = ("backup", "token", "textfile")
    odd = {
        f"{kind} {use}": directory / f"{kind}-{use}" for use in kinds for kind in ("device", "fifo")
    }
    for name, path in odd.items():
        is_device = name.startswith("device")
        kind = stat.S_IFCHR | 0o666 if is_device else stat.S_IFIFO | 0o666
        os.mknod(path, kind, os.makedev(1, 3) if is_device else 0)
    for kind in ("device", "fifo"):
        textfile = {"metrics": {"textfile": str(odd[f"{kind} textfile"])}}
        place = directory / kind
        place.mkdir()
        agent = Agent(place, "http://127.0.0.1:9/", extra=textfile, environ=environ)
        agent.start()
        try:
            for words in (
                ["backup", str(odd[f"{kind} backup"])],
                ["token", "new", "x", "--tokens-file", str(odd[f"{kind} token"])],
            ):
                outboxd(*words, "-c", str(agent.config), environ=environ)
            agent.until(lambda a=agent: "textfile" in a.log_text() or patch or None, agent.log_text)
            assert agent.answers()
        finally:
            agent.stop()  # which writes the text file once more
    return [name for name, path in odd.items() if stat.S_ISREG(path.lstat().st_mode)]


def test_no_device_and_no_fifo_is_replaced_by_a_file(only_full, as_root, tmp_path):
    assert taken_away(tmp_path / "x") == []


def test_without_a_look_at_it_a_device_is_gone(only_full, as_root, tmp_path):
    assert "device textfile" in taken_away(tmp_path / "x", NOT_LOOKED_AT)
