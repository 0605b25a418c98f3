"""Where commands look for their configuration, their streams and their exit codes."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from support.outside import CREATED, answer, outboxd
from support.waiting import PATIENCE_S

NOBODY = pwd.getpwnam("nobody").pw_uid
# The interpreter may lie where that user, who has no account, cannot read.
AS_HOMELESS = """
import os, sys
import outboxd.producer.emit_command, outboxd.producer.hand_in, pwd
import outboxd.cli.events, outboxd.cli.hold, outboxd.cli.offline, outboxd.cli.status
import outboxd.cli.wait, outboxd.cli.watch, outboxd.outbox.sqlite.opening
from outboxd.cli.main import main
os.setgroups([]); os.setgid(54321); os.setuid(54321)
sys.exit(main(sys.argv[1:]))
"""


def bare(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command with nothing in its environment but what is given."""
    return subprocess.run(
        [sys.executable, "-m", "outboxd", *words],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def homeless(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of a user who has no account, as a container gives its processes a number."""
    for each in (directory, *directory.parents[:-2]):  # up to /tmp: that user comes in
        each.chmod(each.stat().st_mode | 0o711)
    directory.chmod(0o777)
    return subprocess.run(
        [sys.executable, "-c", AS_HOMELESS, *words],
        env={"PATH": os.environ["PATH"]},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def spooled(directory: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((directory / "new").iterdir())]


def test_c_goes_before_the_environment_and_that_before_the_defaults(tmp_path):
    places = {name: tmp_path / name for name in ("option", "environment", "home")}
    for place in places.values():
        place.mkdir()
        (place / "c.toml").write_text(f'[intake]\nspool = "{place}/spool"\nsocket = "{place}/s"\n')
    option, environment = str(places["option"] / "c.toml"), str(places["environment"] / "c.toml")
    home = {"HOME": str(places["home"])}
    bare("emit", "t", "1", "--cluster", "c", "-c", option, OUTBOXD_CONFIG=environment, **home)
    bare("emit", "t", "2", "--cluster", "c", OUTBOXD_CONFIG=environment, **home)
    if not os.path.exists("/etc/outboxd/config.toml"):
        bare("emit", "t", "3", "--cluster", "c", **home)
        default = places["home"] / ".local/state/outboxd/spool"
        assert [event["summary"] for event in spooled(default)] == ["3"]

    assert [event["summary"] for event in spooled(places["option"] / "spool")] == ["1"]
    assert [event["summary"] for event in spooled(places["environment"] / "spool")] == ["2"]


def test_a_relative_xdg_directory_is_ignored_as_its_specification_says(tmp_path):
    result = bare("emit", "t", "s", HOME=str(tmp_path), XDG_STATE_HOME="here", XDG_RUNTIME_DIR="x")

    assert result.returncode == 0
    assert len(spooled(tmp_path / ".local/state/outboxd/spool")) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.skipif(os.path.exists("/var/spool/outboxd"), reason="this host has such an agent")
def test_a_user_without_a_home_hands_in_to_the_packaged_agent(tmp_path):
    result = homeless(tmp_path, "emit", "t", "s")

    assert result.returncode == 75, "there is none on this host"
    assert "$HOME" in result.stderr
    assert "/run/outboxd/outboxd.sock" in result.stderr
    assert "/var/spool/outboxd" in result.stderr
    assert list(tmp_path.iterdir()) == [], "and no directory called ~ is made"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_user_without_a_home_is_one_as_others_where_the_configuration_names_the_places(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(f'[intake]\nsocket = "{tmp_path}/none.sock"\nspool = "{tmp_path}/spool"\n')
    result = homeless(tmp_path, "emit", "t", "s", "--cluster", "c", "-c", str(config))

    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    assert len(spooled(tmp_path / "spool")) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_user_without_a_home_asks_the_agent_whose_socket_it_names(agent, tmp_path):
    id = agent.accept()
    os.chmod(agent.socket, 0o666)
    for directory in (agent.directory, *agent.directory.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o711)
    at = ("--socket", str(agent.socket))
    assert "the agent at" in homeless(tmp_path, "status", *at).stdout
    assert homeless(tmp_path, "status", "--check", *at).returncode in (0, 1)
    assert homeless(tmp_path, "events", *at).returncode == 0
    assert homeless(tmp_path, "wait", id, *at).returncode == 65, "another user's is none"
    assert homeless(tmp_path, "hold", *at).returncode == 77
    nobody = homeless(tmp_path, "events", "--socket", str(tmp_path / "none"))
    assert nobody.returncode == 69
    assert homeless(tmp_path, "events").returncode == 78


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_root_changes_while_no_agent_runs_the_agents_user_can_open(agent):
    agent.accept()
    agent.stop()
    for path in agent.directory.glob("outbox.db*"):
        os.chown(path, NOBODY, NOBODY)
    (agent.directory / "outbox.db.lock").unlink()
    held = outboxd("hold", "--reason", "as root", "-c", str(agent.config))

    assert held.returncode == 0, held.stderr
    owners = {path.stat().st_uid for path in agent.directory.glob("outbox.db*")}
    assert owners == {NOBODY}


def test_streams_and_codes_of_the_queue_tools(agent, komodor):
    configuration = ("-c", str(agent.config))
    komodor.respond = lambda _: answer(400, "no")
    emitted = outboxd("emit", "t", "refused", *configuration)
    id = emitted.stdout.decode().strip()
    assert emitted.returncode == 0
    assert emitted.stdout.count(b"\n") == 1
    assert b"every service" in emitted.stderr  # no scope: a warning, and not on stdout
    assert outboxd("emit", "--json", "/none", *configuration).returncode == 64

    waited = outboxd("wait", id, *configuration)
    assert (waited.returncode, waited.stdout) == (1, b"")
    assert outboxd("wait", "no-such-id", *configuration).returncode == 65

    exported = outboxd("dead-letters", "export", *configuration)
    (line,) = exported.stdout.splitlines()
    assert json.loads(line)["summary"] == "refused"
    komodor.respond = lambda _: CREATED
    _, taken = agent.request("POST", "/v1/events/batch", exported.stdout)
    (result,) = taken["results"]
    assert result["status"] == "accepted"
    agent.await_entry(result["id"], state="delivered")
    assert outboxd("wait", result["id"], *configuration).returncode == 0

    shown = outboxd("status", "--json", *configuration)
    assert json.loads(shown.stdout).keys() >= agent.status().keys() - {"rate", "now"}
    checked = outboxd("status", "--check", *configuration)
    assert checked.returncode == 1, "a dead letter is younger than 24 hours"
    assert b"1 dead letter" in checked.stdout
    assert outboxd("hold", *configuration).returncode == 0
    assert outboxd("status", "--check", *configuration).returncode == 2
    pending = outboxd("emit", "t", "waits", *configuration).stdout.decode().strip()
    assert outboxd("wait", pending, "--timeout", "50ms", *configuration).returncode == 69
    agent.stop()
    assert outboxd("status", "--check", *configuration).returncode == 2
    assert outboxd("wait", pending, *configuration).returncode == 69


def test_numbers_that_no_machine_holds_pass_through_the_tools(agent):
    digits = b"7" * 6000
    body = b'{"eventType":"t","summary":"big","details":{"n":%s}}' % digits
    id = outboxd("emit", "--json", "-", "-c", str(agent.config), stdin=body).stdout.strip()
    for words in (("events", "--json"), ("events", "show", "--json", id), ("events", "show", id)):
        shown = outboxd(*words, "-c", str(agent.config))
        assert shown.returncode == 0, shown.stderr
        assert digits in shown.stdout.replace(b"\n", b"")
