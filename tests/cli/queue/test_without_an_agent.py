"""The queue tools on the outbox's file, while no agent runs."""

from __future__ import annotations

import os
import socket

import pytest

from outboxd.cli import wait

UNKNOWN = "01900000-0000-7000-8000-000000000000"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def left(world):
    """What a stopped agent left behind: one of each state."""
    ids = {"delivered": world.add("got through")}
    assert world.run("wait", ids["delivered"]).code == 0
    for name in ("dead", "dropped", "retried"):
        ids[name] = world.dead(f"refused, {name}", details={"n": 1.5})
    world.run("hold")
    ids["pending"] = world.add("still waiting", scope={"clusters": ["prod"]})
    world.run("release")
    world.faults(outage=True)
    ids["late"] = world.add("during the outage")
    world.stop_agent()
    world.faults(outage=False)
    return ids


def test_status_reads_the_file_and_says_that_no_agent_runs(world, left):
    done = world.run("status")
    assert done.code == 0
    assert "no agent is running" in done.out
    status = world.run("status", "--json").json
    assert status["intake"] == {"accepting": False, "reason": "no agent is running"}
    assert status["outbox"]["dead"] == len(world.run("dead-letters", "--json").lines) >= 1
    assert status["destination"]["state"] == "untried"
    assert status["disk"]["freeBytes"] > 0


def test_status_check_is_critical(world, left):
    done = world.run("status", "--check")
    assert (done.code, done.out.count("\n")) == (2, 1)
    assert "no agent" in done.out


def test_events_are_listed_filtered_and_shown(world, left):
    entries = world.run("events", "--state", "dead", "--json").lines
    assert left["dead"] in {entry["id"] for entry in entries}
    assert {entry["state"] for entry in entries} == {"dead"}
    (entry,) = world.run("events", "--cluster", "prod", "--json").lines
    assert entry["id"] == left["pending"]
    shown = world.run("events", "show", left["late"])
    assert "no agent is running" in shown.out or "delivered" in shown.out
    whole = world.run("events", "show", left["dead"], "--json").json
    assert whole["sentBody"]["summary"] == "refused, dead"
    assert whole["attempts"][0]["status"] == 400


def test_wait_looks_once(world, left):
    assert world.run("wait", left["delivered"]).code == 0
    assert world.run("wait", left["dead"]).code == 1
    late = world.run("wait", left["late"], "--timeout", "60s")
    assert late.code == 69
    assert "no agent is running" in late.err
    assert world.run("wait", UNKNOWN).code == 65


def test_hold_release_retry_and_drop_change_the_file(world, left):
    assert world.run("hold", "--reason", "while away").code == 0
    destination = world.run("status", "--json").json["destination"]
    assert destination["state"] == "held"
    assert "while away" in destination["reason"]
    assert world.run("hold", left["late"]).code == 0
    assert world.run("events", "show", left["late"], "--json").json["held"] is True
    assert world.run("release", left["late"]).code == 0
    assert world.run("dead-letters", "retry", left["retried"]).code == 0
    assert world.run("events", "show", left["retried"], "--json").json["state"] == "pending"
    assert world.run("dead-letters", "drop", left["dropped"]).code == 0
    assert world.run("events", "show", left["dropped"]).code == 65
    exported = world.run("dead-letters", "export")
    assert [line["summary"] for line in exported.lines] == ["refused, dead"]
    for words in (("hold",), ("release",), ("dead-letters", "retry")):
        assert world.run(*words, UNKNOWN).code == 65
        assert world.run(*words, left["delivered"]).code == 65


def test_check_notes_that_no_agent_runs_and_tells_how_many_wait(world, left):
    done = world.run("check")
    assert done.code == 0, done
    assert "none is running" in done.out
    assert "wait in the outbox" in done.out


@root_only
def test_another_user_is_refused_with_77(world, left):
    world.outbox.chmod(0o600)
    for words in (("status",), ("events",), ("wait", UNKNOWN), ("hold",), ("check",)):
        done = world.run(*words, nobody=True)
        assert done.code == 77, done
    assert world.run("status", "--check", nobody=True).code == 2


def test_an_agent_that_starts_again_keeps_the_hold_and_goes_on_when_released(world, left):
    # Done above as well; here again, for a run in which that was another process's part.
    world.run("hold")
    world.run("dead-letters", "retry", left["retried"])
    world.start_agent()
    assert world.run("status", "--json").json["destination"]["state"] == "held"
    assert world.run("release").code == 0
    for name in ("pending", "late", "retried"):
        assert world.run("wait", left[name]).code == 0
    world.stop_agent()


class TestBeforeTheFirstStart:
    """There is no outbox yet, and looking at it makes none."""

    @pytest.fixture(autouse=True)
    def elsewhere(self, world, left, monkeypatch, tmp_path):
        config = tmp_path / "config.toml"
        text = world.config.read_text().replace('"outbox.db"', '"new/outbox.db"')
        config.write_text(text.replace('"outboxd.sock"', '"new.sock"'))
        (tmp_path / "key").write_text("any-key")
        monkeypatch.setattr(world, "config", config)
        yield
        assert not (tmp_path / "new").exists()

    def test_there_is_nothing_to_see(self, world):
        done = world.run("status")
        assert done.code == 0
        assert "no agent is running" in done.out
        done = world.run("events", "--json")
        assert (done.code, done.out) == (0, "")

    def test_nothing_can_be_changed(self, world):
        for words in (("hold",), ("release",), ("wait", UNKNOWN), ("events", "show", UNKNOWN)):
            done = world.run(*words)
            assert done.code == 69, done
            assert "no agent is running" in done.err

    def test_a_socket_named_alone_means_that_agent(self, world, tmp_path, monkeypatch):
        monkeypatch.setitem(world.environment, "HOME", str(tmp_path))
        done = world.run("events", "--socket", str(tmp_path / "none.sock"))
        assert done.code == 0, "with a configuration, its file is read"


def test_check_tells_a_wrong_configuration_from_an_endpoint_out_of_reach(world, left):
    text = world.config.read_text()
    try:
        world.config.write_text(text.replace("endpoint", "endpiont"))
        wrong = world.run("check")
        assert wrong.code == 78
        assert "did you mean" in wrong.out
        assert world.run("status").code == 78
        world.config.write_text(text.replace(world.url, "http://127.0.0.1:1"))
        assert world.run("check").code == 69
        world.config.write_text(text.replace(world.url, "https://no-such-host.invalid"))
        nowhere = world.run("check")
        assert nowhere.code == 69
        assert "cannot be resolved" in nowhere.out
        world.config.write_text(text.replace('api_key_file = "key"\n', ""))
        keyless = world.run("check")
        assert keyless.code == 78
        assert "there is none" in keyless.out
    finally:
        world.config.write_text(text)


@pytest.fixture
def hanging_agent(world, left):
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(world.socket))
        hangs.listen()  # the kernel takes the connection, and nobody answers
        yield
    world.socket.unlink()


@pytest.mark.usefixtures("hanging_agent")
def test_wait_ends_in_its_time_where_an_agent_hangs(world):
    done = world.run("wait", UNKNOWN, "--timeout", "100ms", fresh=True)
    assert (done.code, done.out) == (69, "")
    assert f"did not answer in {wait.LOOK_MIN_S:.3g} seconds" in done.err


@pytest.mark.usefixtures("hanging_agent")
def test_monitoring_hears_of_an_agent_that_hangs_before_it_gives_up_itself(world, full):
    if not full:
        pytest.skip("waits five seconds: --full")
    done = world.run("status", "--check", fresh=True)
    assert done.code == 2
    assert "did not answer in 5 seconds" in done.out
