"""Stop, reload and the line for the service manager, on real agents."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading

import pytest
from support.agent import ENVIRON
from support.outside import CREATED, outboxd
from support.waiting import PATIENCE_S

NO_KEY = {"KOMODOR_API_KEY": ""}


def test_a_stop_takes_events_until_what_flies_has_landed(make_agent, komodor):
    agent = make_agent(delivery={"drain_timeout": "60s"})
    land = threading.Event()
    komodor.respond = lambda _: CREATED if land.wait(PATIENCE_S) else b""
    flying = agent.accept("flies")
    agent.until(lambda: agent.status()["destination"]["inFlight"] or None, agent.status)
    agent.signal(signal.SIGTERM)
    agent.await_log("agent.stopping")
    taken = [agent.accept(f"during the stop {number}") for number in range(20)]
    assert len(komodor.arrivals) == 0, "it still flies"
    land.set()
    assert agent.wait() == 0
    assert not agent.socket.exists()

    agent.start()
    for id in (flying, *taken):
        agent.await_entry(id, state="delivered")
    summaries = [arrival.event["summary"] for arrival in komodor.arrivals]
    assert sorted(summaries) == sorted(set(summaries)), "nothing went out twice"


def test_a_stop_that_waited_long_enough_closes_and_keeps_what_it_took(make_agent, komodor):
    agent = make_agent(delivery={"drain_timeout": "8s"})
    never = threading.Event()
    komodor.respond = lambda _: bytes(never.wait(PATIENCE_S) and 0)
    flying = agent.accept("never lands")
    agent.until(lambda: agent.status()["destination"]["inFlight"] or None, agent.status)
    agent.signal(signal.SIGTERM)
    agent.await_log("agent.stopping")
    taken = agent.accept("during the stop")
    assert agent.wait() == 0
    never.set()
    komodor.respond = lambda _: CREATED
    agent.start()
    agent.await_entry(taken, state="delivered")
    agent.await_entry(flying, state="delivered")
    marked = {a.event["summary"] for a in komodor.arrivals if "possibleDuplicate" in a.details}
    assert marked == {"never lands"}


def test_a_refused_reload_is_told_to_who_asked_and_changes_nothing(agent):
    good = agent.config.read_text()
    agent.config.write_text(good + '[log]\nlevel = "loud"\n')
    done = outboxd("reload", "-c", str(agent.config))
    assert (done.returncode, done.stdout) == (78, b"")
    assert b'[log] level = "loud"' in done.stderr
    assert "outboxd_config_reload_refused 1.0" in agent.metrics()
    agent.accept("goes on")

    agent.config.write_text(good + '[log]\nlevel = "warning"\n[http]\nlisten = "127.0.0.1:0"\n')
    done = outboxd("reload", "-c", str(agent.config))
    assert done.returncode == 0, done
    assert b"[http] listen" in done.stdout, "what wants a restart is named"
    assert "outboxd_config_reload_refused 0.0" in agent.metrics()


def test_a_reload_that_is_refused_late_has_changed_nothing_either(agent):
    good = agent.config.read_text()
    more = '[log]\nlevel = "error"\n[webhooks.new]\nevent_type = "kind"\nsummary = "text"\n'
    missing = '[komodor]\nca_file = "/nonexistent/authorities.pem"'
    agent.config.write_text(good.replace("[komodor]", missing) + more)
    done = outboxd("reload", "-c", str(agent.config))
    assert done.returncode == 78
    assert b"ca_file" in done.stderr
    payload = b'{"kind": "build", "text": "done"}'
    assert "no webhook" in agent.request("POST", "/v1/webhooks/new", payload)[1]["error"]
    agent.signal(signal.SIGTERM)
    agent.await_log("agent.stopping")  # of level info
    assert agent.wait() == 0


# Who looks after the key file has read it, and gets no turn until it is told.
HELD_UP_WITH_THE_KEY = """
import os, threading, time
import outboxd.agent.run as run
read = run.read_api_key
def held_up(config):
    key = read(config)
    if threading.current_thread() is not threading.main_thread():
        open("{looks}", "a").write("look\\n")
        while not os.path.exists("{go_on}"):
            time.sleep(0.01)
    return key
run.read_api_key = held_up
"""


def test_a_reload_that_comes_while_the_key_file_is_looked_at_has_the_last_word(
    make_agent, komodor, tmp_path
):
    looks, go_on = tmp_path / "looks", tmp_path / "go-on"
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(
        HELD_UP_WITH_THE_KEY.format(looks=looks, go_on=go_on)
    )
    key = tmp_path / "a-key"
    key.write_text("before")
    agent = make_agent(
        environ={**NO_KEY, "PYTHONPATH": str(tmp_path / "patch")},
        komodor={"api_key_file": str(key)},
    )
    agent.until(lambda: looks.exists() or None, agent.log_text)
    (tmp_path / "another-key").write_text("since")
    agent.config.write_text(agent.config.read_text().replace("a-key", "another-key"))
    assert outboxd("reload", "-c", str(agent.config)).returncode == 0
    go_on.touch()
    agent.until(lambda: looks.read_text().count("look") > 1 or None, agent.log_text)
    agent.await_entry(agent.accept("after the reload"), state="delivered")
    assert komodor.arrivals[-1].headers["x-api-key"] == "since"
    assert "key.changed" not in agent.await_log("config.reloaded")


def test_a_key_file_that_a_reload_names_is_watched(make_agent, komodor, tmp_path):
    agent = make_agent(start=False, environ=NO_KEY)
    lines = [x for x in agent.config.read_text().splitlines() if "api_key_file" not in x]
    agent.config.write_text("\n".join(lines))
    agent.start()
    key_file = tmp_path / "another-key"
    key_file.write_text("first-key")
    lines.insert(lines.index("[komodor]") + 1, f'api_key_file = "{key_file}"')
    agent.config.write_text("\n".join(lines))
    assert outboxd("reload", "-c", str(agent.config)).returncode == 0
    key_file.write_text("second-key")
    agent.await_log("key.changed")
    agent.await_entry(agent.accept("with the new one"), state="delivered")
    assert komodor.arrivals[-1].headers["x-api-key"] == "second-key"


HUNG_UP_AT_ITS_START = """
import os, signal, sys
from outboxd.agent import run
from outboxd.cli.main import main
opened = run.open_configured
def hung_up_meanwhile(config, clock):
    os.kill(os.getpid(), signal.SIGHUP)
    return opened(config, clock)
run.open_configured = hung_up_meanwhile
sys.exit(main(["run", "-c", sys.argv[1]]))
"""


def test_a_reload_that_is_asked_for_during_the_start_is_done_after_it(make_agent):
    agent = make_agent(start=False)
    with agent.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", HUNG_UP_AT_ITS_START, str(agent.config)],
            stdout=log,
            stderr=log,
            env=ENVIRON,
        )
    try:
        agent.await_log("config.reloaded")
    finally:
        process.terminate()
    assert process.wait(PATIENCE_S) == 0


def test_a_reload_without_an_agent_is_69(make_agent):
    agent = make_agent(start=False)
    assert outboxd("reload", "-c", str(agent.config)).returncode == 69
    # Whose socket's name cannot be read any more is told of the file, not of another's socket.
    agent.config.write_text("[intake\n")
    done = outboxd("reload", "-c", str(agent.config))
    assert done.returncode == 78
    assert b"it is not TOML" in done.stderr


class Listener:
    """In systemd's place: hears what the agent tells."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(PATIENCE_S)

    def until_status(self, text: str) -> None:
        """Returns once a status with this text came."""
        while True:
            for line in self.socket.recv(4096).decode().splitlines():
                if line.startswith("STATUS=") and text in line:
                    return


@pytest.fixture
def listener(tmp_path):
    listener = Listener(str(tmp_path / "manager"))
    yield listener
    listener.socket.close()


def test_the_status_text_follows_what_happens_and_not_a_tick(make_agent, listener, tmp_path):
    agent = make_agent(start=False, environ={"NOTIFY_SOCKET": str(tmp_path / "manager")})
    agent.start(ready=False)
    listener.until_status("0 events pending")
    agent.request("POST", "/v1/hold", b"{}")
    listener.until_status("held by")
    agent.accept("waits")
    # Nothing ticks here: only the watchdog does, where there is one.
    listener.until_status("1 events pending")
    agent.request("POST", "/v1/release", b"{}")
    listener.until_status("0 events pending, destination ok")


def test_refusals_for_lack_of_room_leave_lines_in_the_log(make_agent):
    agent = make_agent(outbox={"disk_free_min": "900TiB"})
    for number in range(40):
        assert agent.post({"eventType": "t", "summary": f"{number}"})[0] == 507
    agent.await_log("event.refused")
    assert agent.stop() == 0
    lines = [line for line in agent.log_text().splitlines() if "event.refused" in line]
    assert any("the disk is short" in line for line in lines)
    assert 1 <= len(lines) < 40, "throttled"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in (b"  \n", b"two words\n", b"one\ntwo\n", b"\xff\n")
        ),
    ],
)
def test_a_key_file_without_a_key_stops_no_agent_and_is_taken_up_when_mended(
    make_agent, komodor, tmp_path, content
):
    key = tmp_path / "key"
    key.write_bytes(content)
    agent = make_agent(environ=NO_KEY, komodor={"api_key_file": str(key)})
    log = agent.await_log("key.missing")
    assert "key.unusable" in log
    assert "two words" not in log
    key.write_text("good-key\n")
    agent.await_log("key.changed")
    agent.await_entry(agent.accept("with the new key"), state="delivered")
    assert komodor.arrivals[-1].headers["x-api-key"] == "good-key"

    key.write_bytes(content)  # while it runs the one in memory stays in use
    assert outboxd("reload", "-c", str(agent.config)).returncode == 0
    agent.await_entry(agent.accept("with the old key"), state="delivered")
    assert komodor.arrivals[-1].headers["x-api-key"] == "good-key"
