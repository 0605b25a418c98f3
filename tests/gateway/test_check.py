"""`check` on a host behind a gateway, and on the gateway itself, with real agents."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from support.outside import Agent, answer, outboxd

from outboxd.errors import ConfigError
from outboxd.gateway.tokens import revoke
from outboxd.serve.tls import TlsFiles, shown_certificate


def check(agent, *words):
    """The exit code, and the findings by their level and name."""
    done = outboxd("check", "--json", "-c", str(agent.config), *words, timeout_s=90.0)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    found = {}
    for line in lines:
        found.setdefault((line["level"], line["name"]), []).append(line["told"])
    return done.returncode, found


@pytest.fixture
def make_host(tmp_path):
    made = []

    def make(gateway, **sections):
        directory = tmp_path / "host"
        directory.mkdir()
        agent = Agent(
            directory,
            f"https://localhost:{gateway.port}/mgmt/v1/events",
            extra={"komodor": {"ca_file": str(tmp_path / "ca.pem")}, **sections},
            environ={"KOMODOR_API_KEY": gateway.secrets["web"]},
        )
        made.append(agent)
        agent.start()
        return agent

    yield make
    for agent in made:
        if agent.pid is not None:
            agent.kill()


def test_a_host_is_told_that_its_endpoint_is_a_gateway_and_that_its_token_is_good(
    make_host, gateway
):
    code, found = check(make_host(gateway))
    assert code == 0, found
    (told,) = found["ok", "gateway"]
    assert "the endpoint is a gateway" in told
    assert "7d" in told
    assert found["ok", "API key"] == ["the gateway knows this token"]
    assert ("ok", "clock") in found


def test_a_host_is_told_that_its_token_was_revoked(make_host, gateway):
    host = make_host(gateway)
    revoke(str(gateway.tokens), "web")
    gateway.agent.await_log("gateway.tokens_renewed")
    code, found = check(host)
    assert code == 77
    assert "does not know this token" in found["fail", "API key"][0]


def test_a_host_is_told_where_its_gateway_allows_less_than_itself(make_host, make_gateway):
    gateway = make_gateway(
        dedup={"key_window": "1h"},
        intake={"event_bytes_max": "64KiB"},
        komodor={"event_type_max": 30},
    )
    code, found = check(make_host(gateway))
    assert code == 0
    window, types, sizes = found["note", "gateway"]
    assert "1h 0m only" in window
    assert "event_type_max is 30, this host's 60" in types
    assert "event_bytes_max is 65,536" in sizes


def test_a_gateway_tells_of_its_certificate_and_its_tokens(make_gateway, komodor):
    komodor.respond = lambda arrival: answer(200, '{"valid": true}')
    gateway = make_gateway({"web": {}, "other": {}})
    code, found = check(gateway.agent)
    assert code == 0, found
    assert "for localhost, 127.0.0.1" in found["ok", "gateway's TLS"][0]
    assert "has 2 tokens of 2 names" in found["ok", "tokens"][0]
    assert str(gateway.port) in found["ok", "gateway"][0]
    gateway.agent.stop()
    code, found = check(gateway.agent)
    assert ("ok", "tokens") in found


def test_a_tokens_file_that_cannot_be_used_is_a_fault(make_gateway, komodor):
    komodor.respond = lambda arrival: answer(200, '{"valid": true}')
    gateway = make_gateway()
    gateway.tokens.write_text("web no-digest\n")
    assert "line 1" in check(gateway.agent)[1]["fail", "tokens"][0]
    gateway.tokens.write_text("")
    assert "has 0 tokens" in check(gateway.agent)[1]["note", "tokens"][0]
    gateway.tokens.unlink()
    code, found = check(gateway.agent)
    assert code == 78
    assert str(gateway.tokens) in str(
        [told for (level, _), told in found.items() if level == "fail"]
    )


def test_a_listener_without_tls_is_warned_of(make_gateway, komodor):
    komodor.respond = lambda arrival: answer(200, '{"valid": true}')
    plain = {"tls_cert": "", "tls_key": "", "allow_plain_listen": True}
    gateway = make_gateway(intake=plain)
    assert "clear text" in check(gateway.agent)[1]["note", "gateway"][0]


def test_a_certificate_that_no_client_would_take_is_told(tmp_path, authority):
    now = datetime.now(UTC)
    for name, until in (("good", now + timedelta(days=3)), ("old", now - timedelta(days=1))):
        issued = authority.issue_cert(
            "gateway.example", not_before=now - timedelta(days=9), not_after=until
        )
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")

    def shown(name):
        path = str(tmp_path / f"{name}.pem")
        return shown_certificate(TlsFiles(path, str(tmp_path / f"{name}.key")).context, path)

    assert shown("good")["subjectAltName"] == (("DNS", "gateway.example"),)
    with pytest.raises(ConfigError, match="expired"):
        shown("old")
