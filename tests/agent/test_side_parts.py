"""What is not the main job never stops it: it is told, counted and tried again."""

from __future__ import annotations

import http.client
import os
import socket

import pytest
from support.ports import free_port
from support.waiting import PATIENCE_S

FAILURES = 'outboxd_part_failures_total{part="%s"}'


def failures(agent, part: str) -> float:
    name = FAILURES % part
    lines = [line for line in agent.metrics().splitlines() if line.startswith(name)]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


def test_a_taken_port_stops_nothing_and_is_taken_over_when_it_is_free(make_agent, full):
    if not full:
        pytest.skip("waits for the next time that it is tried: --full")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = free_port()  # which nobody else takes when it is let go
        other.bind(("127.0.0.1", port))
        other.listen()
        agent = make_agent(http={"listen": f"127.0.0.1:{port}"})
        agent.accept("taken all the same")
        assert "socket.lost" in agent.log_text()
        assert failures(agent, "page") >= 1
        # Told once, however often it is tried.
        assert "address" in agent.log_text()
        assert agent.log_text().count("socket.lost") == 1
    agent.await_log("listener.opened")
    page = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    page.request("GET", "/healthz")
    assert page.getresponse().status == 200
    page.close()
    assert agent.stop() == 0


def test_a_text_file_that_cannot_be_written_stops_nothing(make_agent, tmp_path, full):
    if not full:
        pytest.skip("waits for the next time that it is written: --full")
    directory = tmp_path / "collector"
    agent = make_agent(metrics={"textfile": str(directory / "outboxd.prom")})
    agent.await_log("upkeep.failed")
    agent.accept("taken all the same")
    assert failures(agent, "textfile") >= 1
    directory.mkdir()
    agent.await_log("upkeep.recovered")
    assert (directory / "outboxd.prom").exists()


@pytest.mark.parametrize("how", ["removed", "replaced by a file", "replaced by a socket"])
def test_a_socket_whose_path_has_gone_is_bound_anew(agent, how):
    held = agent.connection()
    held.connect()
    # What replaces it does so in one step: the agent would bind a path that it finds free.
    in_its_place = agent.directory / "other"
    if how == "removed":
        os.unlink(agent.socket)
    elif how == "replaced by a file":
        in_its_place.write_text("")
        os.rename(in_its_place, agent.socket)
        agent.await_log("socket.lost")
        os.unlink(agent.socket)
    else:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(in_its_place))  # and nobody answers there
        os.rename(in_its_place, agent.socket)
    agent.await_log("socket.rebound")
    agent.accept("at the new door")
    assert failures(agent, "socket") >= (how == "replaced by a file")
    held.request("GET", "/readyz")
    assert held.getresponse().status == 200, "connections that were open stay"
    held.close()
    assert agent.stop() == 0
    assert not agent.socket.exists()
