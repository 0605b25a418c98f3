"""What the operator of a host is told of its gateway, on real agents."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from support.outside import Agent, answer, outboxd


def run(agent, *words):
    """A command beside this agent: its exit code, and what it prints as (stdout, stderr)."""
    done = outboxd(*words, "-c", str(agent.config), timeout_s=90.0)
    return SimpleNamespace(
        returncode=done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode()
    )


@pytest.fixture
def make_host(tmp_path, gateway, token):
    """An agent that hands on to the gateway."""
    made = []

    def make(**sections):
        directory = tmp_path / "host"
        directory.mkdir()
        agent = Agent(
            directory,
            f"https://localhost:{gateway.port}/mgmt/v1/events",
            extra={"komodor": {"ca_file": str(tmp_path / "ca.pem")}, **sections},
            environ={"KOMODOR_API_KEY": token},
        )
        made.append(agent)
        agent.start()
        return agent

    yield make
    for agent in made:
        if agent.pid is not None:
            agent.kill()


def test_the_status_of_a_host_says_that_its_destination_is_a_gateway(make_host, gateway, komodor):
    host = make_host()
    untold = host.status()["destination"]
    assert (untold["gateway"], untold["gatewayTold"]) == (None, None)
    host.await_entry(host.accept("one"), state="delivered")
    told = host.status()["destination"]
    assert told["gateway"] is True
    assert told["gatewayTold"] == {
        "dedupSeconds": 604_800,
        "eventTypeMax": 60,
        "eventBytesMax": 256 * 1024,
    }
    assert "a gateway, which sends on" in run(host, "status").stdout
    komodor.wait_for(1)
    gateway.agent.await_entry(gateway.entries()[0]["id"], state="delivered")
    assert gateway.agent.status()["destination"]["gateway"] is False


def test_the_body_that_is_shown_is_the_one_that_was_sent(make_host, gateway, komodor):
    host = make_host(delivery={"stamp": "always"})
    id = host.accept("one", occurredAt="2026-01-01T00:00:00Z")
    host.await_entry(id, state="delivered")
    entry = json.loads(run(host, "events", "show", id, "--json").stdout)
    assert entry["destinationIsGateway"] is True
    assert "details" not in entry["sentBody"]
    assert entry["sentBody"]["hop"]["attempts"] == 1
    assert entry["sentBody"]["occurredAt"] == "2026-01-01T00:00:00.000Z"
    assert "to the gateway, which sends it on" in run(host, "events", "show", id).stdout
    there = gateway.entries()[0]["id"]
    shown = run(gateway.agent, "events", "show", there).stdout
    assert f"from {entry['sentBody']['hop']['host']}" in shown
    assert "1 attempt" in shown


def test_wait_says_that_the_gateway_has_it_and_through_waits_for_the_gateway(
    make_host, gateway, komodor
):
    komodor.respond = lambda arrival: answer(503)
    host = make_host()
    id = host.accept("one")
    had = run(host, "wait", id)
    assert (had.returncode, had.stdout) == (0, "")
    assert "the gateway has" in had.stderr
    pending = run(host, "wait", id, "--through", "--timeout", "1s")
    assert pending.returncode == 69
    assert "still pending there" in pending.stderr
    komodor.respond = lambda arrival: answer(201)
    through = run(host, "wait", id, "--through", "--timeout", "60s")
    assert (through.returncode, through.stderr) == (0, "")
    assert len(gateway.entries()) == 1


def test_an_agent_that_was_started_afresh_asks_first_whether_it_is_a_gateway(
    make_host, gateway, komodor
):
    host = make_host()
    id = host.accept("one")
    host.await_entry(id, state="delivered")
    host.stop()
    host.start()
    assert host.status()["destination"]["gateway"] is None
    through = run(host, "wait", id, "--through", "--timeout", "60s")
    assert (through.returncode, through.stderr) == (0, "")
    assert host.status()["destination"]["gateway"] is True
    assert len(gateway.entries()) == 1


def test_through_tells_a_dead_letter_of_the_gateway(make_host, gateway, komodor):
    komodor.respond = lambda arrival: answer(
        400 if arrival.event["summary"] == "bad" else 201, '{"message": "no"}'
    )
    host = make_host()
    id = host.accept("bad")
    host.accept("good")
    dead = run(host, "wait", id, "--through", "--timeout", "60s")
    assert dead.returncode == 1
    assert "dead letter of the gateway" in dead.stderr


def test_what_a_gateway_no_longer_knows_makes_no_second_event(make_host, make_gateway, gateway):
    """Whoever asks sends no event, so that none can arise."""
    host = make_host()
    id = host.accept("one")
    host.await_entry(id, state="delivered")
    there = gateway.entries()[0]["id"]
    gateway.agent.await_entry(there, state="delivered")
    gateway.agent.kill()
    for file in gateway.agent.outbox.parent.glob("outbox.db*"):
        file.unlink()
    gateway.agent.start()
    unknown = run(host, "wait", id, "--through", "--timeout", "60s")
    assert unknown.returncode == 69
    assert "does not know" in unknown.stderr
    assert gateway.entries() == []


def test_one_tokens_key_tells_nothing_of_anothers_event(make_gateway, komodor):
    gateway = make_gateway({"web": {}, "other": {}})
    key = {"Idempotency-Key": "k"}
    event = {"eventType": "deploy", "summary": "s", "scope": {"clusters": ["c"]}}
    assert gateway.post(event, gateway.secrets["web"], headers=key).status == 201
    asked = key | {"Outboxd-Hop": "asked"}
    own = gateway.post({}, gateway.secrets["web"], headers=asked)
    others = gateway.post(event, gateway.secrets["other"], headers=asked)
    assert own.headers["Outboxd-State"] in ("pending", "delivered")
    assert (others.status, others.headers["Outboxd-State"]) == (200, "unknown")
    keyless = gateway.post(event, gateway.secrets["other"], headers={"Outboxd-Hop": "asked"})
    assert (keyless.status, keyless.headers["Outboxd-State"]) == (200, "unknown")
    assert len(gateway.entries()) == 1
