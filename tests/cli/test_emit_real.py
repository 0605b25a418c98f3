"""`emit` and `exec` with the real agent: handed in, spooled while it is away, taken up after."""

from __future__ import annotations

import json
import socket
import time

import pytest
from support.waiting import PATIENCE_S


@pytest.fixture
def run_agent(place):
    """Start the real agent, with an endpoint that nobody answers; stopped at the end."""
    place.config.write_text(
        f'[komodor]\nendpoint = "http://127.0.0.1:1/events"\n'
        f'[intake]\nsocket = "{place.socket}"\nspool = "{place.spool}"\n'
        f'[outbox]\npath = "{place.directory / "outbox.db"}"\n'
    )
    place.environment["KOMODOR_API_KEY"] = "a-key"
    processes = []

    def start():
        with (place.directory / "log").open("ab") as log:
            process = place.start("run", stderr=log)
        processes.append(process)
        for _ in range(9_000):
            # Bound is not yet listening.
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(place.socket)) == 0:
                    return process
            assert process.poll() is None, (place.directory / "log").read_text()
            time.sleep(0.01)
        raise AssertionError("the agent did not open its socket")

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def entries(place):
    shown = place.run("events", "--json", "--limit", "100")
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def test_what_was_spooled_while_the_agent_was_away_is_one_event_each(place, run_agent):
    agent = run_agent()
    first = place.run("emit", "deploy", "at the socket", "--cluster", "c")
    assert first.returncode == 0, first.stderr
    assert place.run("emit", "deploy", "refused", "--severity", "loud").returncode == 65
    agent.terminate()
    assert agent.wait(PATIENCE_S) == 0
    spooled = place.run("emit", "deploy", "in the spool", "--cluster", "c")
    assert (spooled.returncode, spooled.stdout) == (0, "")
    assert place.run("exec", "--cluster", "c", "--", "sh", "-c", "exit 3").returncode == 3
    run_agent()
    for _ in range(4_500):
        if not list((place.spool / "new").iterdir()):
            break
        time.sleep(0.02)
    found = {entry["summary"]: entry for entry in entries(place)}
    assert set(found) >= {"at the socket", "in the spool"}
    assert len(found) == 3
    assert found["at the socket"]["id"] == first.stdout.strip()
    assert found["at the socket"]["source"] == "socket"
    assert found["in the spool"]["source"] == "spool"
