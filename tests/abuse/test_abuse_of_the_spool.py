"""One user's files cost the others nothing: not intake, not the disk, not their own files' turn."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone

FUNCTIONS = runpy.run_path(str(Path(__file__).with_name("attacks_on_the_spool.py")))
ATTACKS = [name for name, each in FUNCTIONS.items() if callable(each) and not name.startswith("_")]
REJECTED_BYTES_MAX = 256 << 20
OTHER = 64_302


def rejected_bytes(spool):
    total = 0
    for path in (spool / "rejected").rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


def attack(abuse, name, seconds=2.5):
    # As this process, which is root and gives the files to another user.
    return abuse.attack(
        FUNCTIONS[name], target=str(abuse.agent.spool), seconds=seconds, users=(None,)
    )


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_files_of_one_user_keep_nobody_waiting(attacked, name):
    with attacked() as abuse:
        report = attack(abuse, name)
        print(name, report, f"{rejected_bytes(abuse.agent.spool) >> 20} MiB rejected")
        assert report.faults() == []
        if name == "sparse_files":
            abuse.agent.await_taken()
        assert rejected_bytes(abuse.agent.spool) < REJECTED_BYTES_MAX * 1.1
        assert abuse.agent.answers()


CONTROLS = {
    # A third of a file's lines explained, and no slices of time.
    "_few_short_bad_lines": """
import outboxd.spool.content as content, outboxd.spool.rejects as rejects
from outboxd.slices import Slices
content.is_beyond_help = lambda bad, good, bad_bytes: bad > 40_000
content.FAULTS_TOLD_MAX = 1 << 60
async def never(self): pass
Slices.pause = never
""",
    # All of a hole is kept.
    "sparse_files": """
import outboxd.spool.rejects as rejects, outboxd.spool.prune as prune
rejects.FILE_KEPT_BYTES_MAX = prune.REJECTED_BYTES_MAX = 1 << 40
""",
}


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_without_the_limit_the_attack_is_noticed(attacked, name):
    with attacked(CONTROLS[name]) as abuse:
        report = attack(abuse, name)
        if name == "sparse_files":
            abuse.agent.await_taken()
        print(name, report, f"{rejected_bytes(abuse.agent.spool) >> 20} MiB rejected")
        assert report.faults() or rejected_bytes(abuse.agent.spool) > REJECTED_BYTES_MAX * 1.1


def test_another_users_file_is_taken_within_seconds_of_a_flood(attacked):
    with attacked() as abuse:
        spool = abuse.agent.spool
        flood = threading.Thread(target=FUNCTIONS["many_files"], args=(str(spool), 6.0))
        flood.start()
        try:
            slowest_s = max(other_taken_s(spool, number) for number in range(5))
        finally:
            flood.join()
        print(f"slowest {slowest_s:.2f} s, {len(os.listdir(spool / 'new'))} of the flood wait")
        assert slowest_s < 2.0


def other_taken_s(spool, number):
    """Seconds until the other user's file is taken."""
    temporary = spool / "tmp" / f"other-{number}"
    temporary.write_text(json.dumps({"eventType": "other", "summary": str(number)}))
    os.chown(temporary, OTHER, OTHER)
    path = spool / "new" / temporary.name
    began_s = time.monotonic()
    os.rename(temporary, path)
    while path.exists():
        assert time.monotonic() - began_s < 30
        time.sleep(0.005)
    return time.monotonic() - began_s
