"""The spool as tmpfiles makes it: members hand in, and neither read nor disturb."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

AGENT, ALICE, CAROL, OUTSIDER = 64_201, 64_202, 64_203, 64_204
GROUP = AGENT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")


class Spool(NamedTuple):
    path: Path
    acls: bool


@pytest.fixture(scope="module", params=["with ACLs", "without ACLs"])
def spool(request, host, need_module):
    """The tree that `systemd-tmpfiles` makes from our file, for users of our own."""
    tmpfiles = need_module("systemd-tmpfiles", "systemd")
    acls = request.param == "with ACLs"
    name = "acl" if acls else "plain"
    lines = (host / "etc/tmpfiles.d/outboxd.conf").read_text()
    # Numbers for names: nobody of ours need be on the host that tests.
    lines = lines.replace("outboxd outboxd -", f"{AGENT} {GROUP} -")
    lines = lines.replace("user:outboxd:", f"user:{AGENT}:").replace("/outboxd", f"/{name}")
    if not acls:
        lines = "\n".join(line for line in lines.splitlines() if not line.startswith("a+")) + "\n"
    config = host / f"{name}.conf"
    config.write_text(lines)
    made = subprocess.run(
        [tmpfiles, "--create", f"--root={host}", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stderr) == (0, "")
    return Spool(host / "var/spool" / name, acls)


@pytest.fixture(scope="module")
def need_module():
    """`need`, for a fixture that lives as long as its module."""
    import shutil

    def check(tool: str, package: str) -> str:
        path = shutil.which(tool)
        if path is None:
            reason = f"{tool} is not installed (Debian package {package})"
            if os.environ.get("OUTBOXD_TEST_ALL") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return check


def as_user(user: int, script: str, spool: Spool, *, member: bool = True, umask: int = 0o022):
    """Run shell lines as this user, in the spool; its exit status."""
    return subprocess.run(
        ["sh", "-c", script],
        cwd=spool.path,
        user=user,
        group=user,
        extra_groups=[GROUP] if member else [],
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    ).returncode


def hand_in(user: int, name: str, spool: Spool, umask: int = 0o022) -> None:
    script = f"echo event of {name} > tmp/{name} && mv tmp/{name} new/{name}"
    assert as_user(user, script, spool, umask=umask) == 0


def test_a_member_hands_in_and_the_agent_takes_it(spool):
    hand_in(ALICE, "a", spool)
    assert as_user(AGENT, "grep event new/a && rm new/a", spool) == 0


def test_a_member_with_a_tight_umask_is_read_where_there_are_acls(spool):
    hand_in(ALICE, "tight", spool, umask=0o077)
    readable = as_user(AGENT, "cat new/tight", spool) == 0
    assert readable == spool.acls
    assert as_user(AGENT, "rm -f new/tight", spool) == 0


def test_the_agent_can_put_a_file_aside(spool):
    hand_in(ALICE, "bad", spool)
    assert as_user(AGENT, "mv new/bad rejected/bad", spool) == 0
    assert as_user(ALICE, "ls rejected", spool) != 0
    assert as_user(ALICE, "cat rejected/bad", spool) != 0


@pytest.mark.parametrize("directory", ["tmp", "new"])
def test_members_cannot_list_what_is_there(spool, directory):
    assert as_user(ALICE, f"ls {directory}", spool) != 0


def test_members_cannot_read_what_another_handed_in_though_they_guess_its_name(spool):
    hand_in(ALICE, "secret", spool, umask=0o027 if not spool.acls else 0o022)
    reads = as_user(CAROL, "cat new/secret", spool) == 0
    # Without ACLs the group's read permission is the agent's, so it is theirs too.
    assert reads == (not spool.acls)
    assert as_user(ALICE, "cat new/secret", spool) == 0  # its own it may


@pytest.mark.parametrize(
    "mischief",
    [
        "rm -f new/kept",
        "mv new/kept tmp/stolen",
        "echo x > tmp/over && mv -f tmp/over new/kept",
        "echo x >> new/kept",
        "rm -f tmp/writing",
        "rmdir new",
        "mv new old",
        "chmod 777 new",
        "mkdir extra",
    ],
)
def test_members_cannot_disturb_what_another_handed_in(spool, mischief):
    hand_in(ALICE, "kept", spool)
    assert as_user(ALICE, "echo event > tmp/writing", spool) == 0
    assert as_user(CAROL, mischief, spool) != 0
    assert as_user(AGENT, "rm new/kept tmp/writing", spool) == 0


def test_who_is_no_member_hands_in_nothing(spool):
    for script in ("echo x > tmp/x", "echo x > new/x", "ls new", "cat new/secret"):
        assert as_user(OUTSIDER, script, spool, member=False) != 0


def test_safecat_delivers(spool, need):
    need("safecat")
    assert as_user(ALICE, "echo event | safecat tmp new", spool) == 0
    assert as_user(AGENT, "grep -h event new/[0-9]*", spool) == 0
