"""`check` speaks for the agent: whatever the caller may see, and whoever the agent is."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from support.outside import Agent, answer, outboxd

from outboxd.cli import check_local
from outboxd.config.load import load
from outboxd.config.sections import Config
from outboxd.findings import BAD


def check(agent: Agent, *words: str, **how) -> tuple[int, dict[str, dict]]:
    """The exit code, and the findings that are not ok, by name."""
    done = outboxd("check", "--json", "-c", str(agent.config), *words, **how)
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert findings, done.stderr
    return done.returncode, {f["name"]: f for f in findings if f["level"] != "ok"}


def valid(komodor) -> None:
    komodor.respond = lambda arrival: answer(200, '{"valid": true}')


def test_a_running_agent_says_of_its_own_key_whether_it_is_good(make_agent, komodor, tmp_path):
    valid(komodor)
    agent = make_agent()  # its key is in its own environment
    assert check(agent, environ={"KOMODOR_API_KEY": ""}) == (0, {})
    assert {a.headers.get("x-api-key") for a in komodor.arrivals} == {"test-key"}

    komodor.respond = lambda arrival: answer(401)
    code, found = check(agent, environ={"KOMODOR_API_KEY": ""})
    assert (code, set(found)) == (77, {"API key"})
    agent.stop()

    agent = make_agent(environ={"KOMODOR_API_KEY": ""})
    valid(komodor)
    code, found = check(agent, environ={"KOMODOR_API_KEY": "the caller's own"})
    assert code == 78
    assert found["API key"]["told"] == "there is none"


@pytest.mark.parametrize("content", ["", "two words\n"])
def test_a_key_file_without_a_key_is_a_fault(make_agent, komodor, tmp_path, content):
    valid(komodor)
    (tmp_path / "key").write_text(content)
    agent = make_agent(environ={"KOMODOR_API_KEY": ""}, komodor={"api_key_file": "key"})
    assert check(agent)[0] == 78
    (tmp_path / "key").write_text("good\n")
    agent.await_log("key.changed")
    assert check(agent)[0] == 0


def test_a_running_agent_with_another_configuration_is_found(make_agent, komodor):
    valid(komodor)
    agent = make_agent()
    text = agent.config.read_text()
    for more, says in (
        ('[log]\nlevel = "warning"\n', "systemctl reload"),
        ('[http]\nlisten = "127.0.0.1:0"\n', "systemctl restart"),
    ):
        agent.config.write_text(text + more)
        code, found = check(agent)
        assert code == 78
        assert says in found["agent's file"]["hint"]
    agent.config.write_text(text)
    assert check(agent)[0] == 0
    other = agent.config.with_name("other.toml")
    other.write_text(text.replace(komodor.url, "http://127.0.0.1:9/mgmt/v1/events"))
    done = outboxd("check", "-c", str(other))
    assert done.returncode == 78
    assert b"another configuration" in done.stdout


def test_a_taken_port_and_a_text_file_nowhere_are_found_with_and_without_an_agent(
    make_agent, komodor, tmp_path
):
    valid(komodor)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        agent = make_agent(
            http={"listen": listen}, metrics={"textfile": str(tmp_path / "no/outboxd.prom")}
        )
        agent.await_log("upkeep.failed")
        code, found = check(agent)
        assert (code, set(found)) == (78, {"page", "textfile"})
        agent.stop()
        code, found = check(agent)
        assert (code, set(found)) == (78, {"page", "textfile", "agent"})
        assert found["agent"]["level"] == "note", "none is running"


def config_in(directory: Path) -> Config:
    file = directory / "c.toml"
    file.write_text(
        '[intake]\nsocket = "s"\nspool = "spool"\n[outbox]\npath = "o.db"\n'
        '[metrics]\ntextfile = "t.prom"\n'
    )
    return load(str(file))


def faults_in(directory: Path) -> set[tuple[str, int]]:
    config = config_in(directory)
    found = [*check_local.directories(config, None), *check_local.side_parts(config, False)]
    return {(each.name, each.exit_code) for each in found if each.level == BAD}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s", "socket"),
        ("spool", "spool"),
        ("spool/tmp", "spool"),
        ("spool/new", "spool"),
        ("spool/rejected", "spool"),
        ("o.db-wal", "outbox"),
        ("o.db.lock", "outbox"),
        ("t.prom", "textfile"),
    ],
)
def test_whatever_stands_where_the_agent_wants_something_else_is_a_fault(tmp_path, path, name):
    assert faults_in(tmp_path) == set(), "control: with nothing there all is well"
    in_the_way = tmp_path / path
    in_the_way.parent.mkdir(exist_ok=True)
    if name in ("outbox", "textfile"):
        in_the_way.mkdir()
    else:
        in_the_way.symlink_to("nowhere")
    assert faults_in(tmp_path) == {(name, 78)}


def test_an_agent_that_a_file_in_its_sockets_place_would_stop_is_not_well(
    make_agent, komodor, tmp_path
):
    valid(komodor)
    agent = make_agent()
    agent.stop()
    assert check(agent)[0] == 0
    agent.socket.write_text("a note that somebody left here")
    code, found = check(agent)
    assert (code, found["socket"]["exitCode"]) == (78, 78)


def test_a_proxys_password_that_all_may_read_is_found(make_agent, komodor):
    valid(komodor)
    agent = make_agent(start=False)
    text = agent.config.read_text()
    agent.config.write_text(
        text.replace("[komodor]\n", '[komodor]\nproxy = "http://me:secret@127.0.0.1:9"\n')
    )
    agent.config.chmod(0o644)
    told = outboxd("check", "--here", "-c", str(agent.config)).stdout.decode()
    assert "anyone may read the proxy's password" in told
    assert "secret" not in told
    agent.config.chmod(0o600)
    told = outboxd("check", "--here", "-c", str(agent.config)).stdout.decode()
    assert "anyone may read" not in told
