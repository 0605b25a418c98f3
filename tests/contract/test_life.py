"""What outlives a stop, a kill and a reload; what ends a hold; who may run at all."""

from __future__ import annotations

import json
import signal
import threading

import pytest
from support.outside import CREATED, LOST, answer, outboxd
from support.waiting import PATIENCE_S


def test_a_hold_by_the_operator_outlives_kill_and_restart(agent, komodor):
    agent.request("POST", "/v1/hold", b'{"reason": "maintenance at Komodor"}')
    id = agent.accept("held back")
    agent.kill()
    agent.start()
    destination = agent.status()["destination"]
    assert destination["state"] == "held"
    assert "maintenance at Komodor" in destination["reason"]
    assert destination["nextProbeAt"] is None
    assert komodor.arrivals == []

    agent.request("POST", "/v1/release", b"{}")
    agent.await_entry(id, state="delivered")
    agent.kill()
    agent.start()
    assert agent.status()["destination"]["state"] == "untried"


def test_a_held_entry_stays_held_over_a_restart_and_others_pass_it(agent, komodor):
    agent.request("POST", "/v1/hold", b"{}")
    id = agent.accept("held")
    assert agent.request("POST", "/v1/hold", json.dumps({"id": id}).encode())[1]["held"] is True
    agent.request("POST", "/v1/release", b"{}")
    agent.kill()
    agent.start()
    agent.await_entry(agent.accept("passes"), state="delivered")
    entry = agent.entry(id)
    assert (entry["state"], entry["held"]) == ("pending", True)
    assert agent.status()["outbox"]["held"] == 1

    status, entry = agent.request("POST", "/v1/release", json.dumps({"id": id}).encode())
    assert (status, entry["held"]) == (200, False)
    agent.await_entry(id, state="delivered")


def test_a_hold_by_an_answer_is_looked_at_afresh_on_start_with_one_probe(make_agent, komodor):
    # The second opinion comes after `backoff_initial`: not while this test looks.
    agent = make_agent(delivery={"backoff_initial": "1h", "backoff_max": "1h"})
    komodor.respond = lambda _: answer(401)
    for number in range(5):
        agent.accept(f"event {number}")
    agent.await_state("held")
    agent.stop()
    before = len(komodor.arrivals)
    agent.start()
    agent.await_state("held")
    assert len(komodor.arrivals) == before + 1

    agent.stop()
    komodor.respond = lambda _: CREATED
    agent.start()
    agent.await_empty()


def test_the_key_files_change_ends_a_hold_by_itself(make_agent, komodor, tmp_path):
    key = tmp_path / "key"
    key.write_text("old-key-1\n")
    agent = make_agent(
        start=False, komodor={"api_key_file": str(key)}, environ={"KOMODOR_API_KEY": ""}
    )
    komodor.respond = lambda a: CREATED if a.headers["x-api-key"] == "new-key-2" else answer(401)
    agent.start()
    ids = [agent.accept(f"event {number}") for number in range(3)]
    agent.await_state("held")
    key.write_text("new-key-2\n")
    for id in ids:
        agent.await_entry(id, state="delivered")

    assert komodor.arrivals[0].headers["x-api-key"] == "old-key-1"
    log = agent.log_text()
    assert "old-key-1" not in log
    assert "new-key-2" not in log


def test_what_was_in_flight_at_a_kill_is_a_possible_duplicate(make_agent, komodor):
    agent = make_agent()
    over = threading.Event()
    komodor.respond = lambda _: over.wait(PATIENCE_S) and LOST
    id = agent.accept("in flight")
    other = agent.accept("behind it")
    agent.until(lambda: agent.status()["destination"]["inFlight"] or None, agent.status)
    agent.kill()
    komodor.respond = lambda _: CREATED
    over.set()
    agent.start()
    agent.await_entry(id, state="delivered")
    agent.await_entry(other, state="delivered")
    marked = {a.event["summary"]: a.details for a in komodor.arrivals if a.details}

    assert marked["in flight"]["possibleDuplicate"] is True
    # Only one permit at first: the other had not been sent.
    assert "behind it" not in marked


def test_sigterm_lets_what_flies_land_and_settles_it(agent, komodor):
    land = threading.Event()
    komodor.respond = lambda _: CREATED if land.wait(PATIENCE_S) else LOST
    id = agent.accept("flies")
    agent.until(lambda: agent.status()["destination"]["inFlight"] or None, agent.status)
    agent.signal(signal.SIGTERM)
    agent.await_log("agent.stopping")
    land.set()
    assert agent.wait() == 0
    assert not agent.socket.exists()
    shown = outboxd("events", "show", id, "--json", "-c", str(agent.config))

    assert json.loads(shown.stdout)["state"] == "delivered"
    assert len(komodor.arrivals) == 1


def test_what_has_not_landed_after_drain_timeout_is_in_doubt_and_kept(make_agent, komodor):
    agent = make_agent(delivery={"drain_timeout": "100ms"})
    over = threading.Event()
    komodor.respond = lambda _: CREATED if over.wait(PATIENCE_S) else LOST
    id = agent.accept("slow")
    agent.until(lambda: agent.status()["destination"]["inFlight"] or None, agent.status)
    assert agent.stop() == 0
    komodor.respond = lambda _: CREATED
    over.set()
    agent.start()
    agent.await_entry(id, state="delivered")

    # The stand-in may note the first, which it kept waiting, after the second.
    marked = [arrival.details.get("possibleDuplicate") for arrival in komodor.arrivals]
    assert True in marked


def test_a_second_agent_exits_75_names_the_first_and_leaves_socket_and_spool_alone(agent):
    (agent.spool / "tmp" / "half-written").write_text("{")
    second = outboxd("run", "-c", str(agent.config))

    assert second.returncode == 75
    assert str(agent.pid).encode() in second.stderr
    assert second.stdout == b""
    assert (agent.spool / "tmp" / "half-written").exists()
    assert agent.status()["intake"]["accepting"] is True


def test_another_agent_may_share_neither_spool_nor_socket(agent, tmp_path):
    own = {"spool": tmp_path / "other" / "spool", "socket": tmp_path / "other" / "s"}
    for shared in own:
        taken = {**own, shared: getattr(agent, shared)}
        other = tmp_path / f"{shared}.toml"
        other.write_text(
            "[intake]\n"
            + "".join(f'{name} = "{path}"\n' for name, path in taken.items())
            + f'[outbox]\npath = "{tmp_path}/other/outbox.db"\n'
        )
        second = outboxd("run", "-c", str(other))
        assert second.returncode == 78, second.stderr
        assert f"[intake] {shared}".encode() in second.stderr
    assert agent.request("GET", "/readyz")[0] == 200
    agent.accept()


def test_a_reload_takes_over_a_good_file_and_refuses_a_bad_one(agent, komodor):
    text = agent.config.read_text()
    agent.config.write_text(text + '[defaults]\nclusters = ["from-the-reload"]\n')
    agent.signal(signal.SIGHUP)
    agent.await_log("config.reloaded")
    agent.post({"eventType": "t", "summary": "after a good one"})
    (arrival,) = komodor.wait_for_summary("after a good one")
    assert arrival.event["scope"] == {"clusters": ["from-the-reload"]}

    agent.config.write_text(text + '[delivery]\nstamps = "never"\n')
    agent.signal(signal.SIGHUP)
    agent.await_log("config.refused")
    agent.post({"eventType": "t", "summary": "after a bad one"})
    (arrival,) = komodor.wait_for_summary("after a bad one")
    assert arrival.event["scope"] == {"clusters": ["from-the-reload"]}
    assert "outboxd_config_reload_refused 1.0" in agent.metrics()


def test_a_reload_changes_the_endpoint_without_a_lost_or_doubled_event(agent, komodor):
    agent.request("POST", "/v1/hold", b"{}")
    id = agent.accept("waits for its way")
    text = agent.config.read_text().replace("/mgmt/v1/events", "/eu/v1/events")
    agent.config.write_text(text)
    agent.signal(signal.SIGHUP)
    agent.await_log("config.reloaded")
    assert agent.status()["destination"]["endpoint"].endswith("/eu/v1/events")
    agent.request("POST", "/v1/release", b"{}")
    agent.await_entry(id, state="delivered")

    assert [arrival.path for arrival in komodor.arrivals] == ["/eu/v1/events"]


def test_fifo_delivers_in_order_with_one_request_at_a_time(make_agent, komodor):
    agent = make_agent(delivery={"order": "fifo"})
    flaky = [answer(500), answer(503), LOST]
    komodor.respond = lambda _: flaky.pop() if flaky and len(komodor.arrivals) % 3 == 1 else CREATED
    lines = [
        json.dumps({"eventType": "t", "summary": f"{number:03}", "scope": {"clusters": ["c"]}})
        for number in range(40)
    ]
    agent.request("POST", "/v1/events/batch", "\n".join(lines).encode())
    agent.await_empty()
    seen = [arrival.event["summary"] for arrival in komodor.arrivals]

    assert list(dict.fromkeys(seen)) == sorted(set(seen))
    assert seen == sorted(seen)
    assert len(set(seen)) == 40


@pytest.mark.parametrize("state", ["delivered", "dead"])
def test_hold_and_release_are_for_what_is_pending(agent, komodor, state):
    komodor.respond = lambda _: CREATED if state == "delivered" else answer(400)
    id = agent.accept()
    agent.await_entry(id, state=state)
    for verb in ("hold", "release"):
        status, refusal = agent.request("POST", f"/v1/{verb}", json.dumps({"id": id}).encode())
        assert status == 409
        assert state in refusal["error"]
        assert set(refusal) >= {"error", "field", "hint"}


def test_a_duplicate_of_a_dead_letters_key_names_it_and_its_state(agent, komodor):
    komodor.respond = lambda _: answer(422)
    id = agent.accept("refused", dedupKey="once")
    agent.await_entry(id, state="dead")
    status, receipt = agent.post({"eventType": "test", "summary": "again", "dedupKey": "once"})

    assert status == 200
    assert (receipt["id"], receipt["status"], receipt["state"]) == (id, "duplicate", "dead")

    komodor.respond = lambda _: CREATED
    assert agent.request("POST", f"/v1/events/{id}/retry")[0] == 200
    agent.await_entry(id, state="delivered")
