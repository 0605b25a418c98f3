"""The installed agent and `check`: proxies of the environment, and certificates that change."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trustme
from support.agent import ENVIRON, AgentProcess
from support.waiting import PATIENCE_S

EVENT = b'{"eventType": "deploy", "summary": "out"}'


class Background:
    """Async context managers that serve from a thread of their own."""

    def __init__(self, *servers):
        self._servers = servers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self):
        self._thread.start()
        for server in self._servers:
            self._run(server.__aenter__())
        return self._servers

    def __exit__(self, *_):
        for server in self._servers:
            self._run(server.__aexit__())
        self._run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def _run(self, work):
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)


def agent_for(directory: Path, url: str, environ: dict[str, str], **komodor) -> AgentProcess:
    extra = {"komodor": komodor, "delivery": {"hold_probe": "1h", "backoff_initial": "20ms"}}
    return AgentProcess(directory, url, extra=extra, environ=environ)


def until(agent: AgentProcess, state: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while agent.status()["destination"]["state"] != state:
        assert time.monotonic() < deadline_s, agent.log_text()[-3000:]
        time.sleep(0.05)


def checked(agent: AgentProcess, environ: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "outboxd", "check", "-c", str(agent.config)],
        env={**ENVIRON, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("https_proxy", "http://[bad"),
        ("https_proxy", "http://me:p4ss@proxy.test:port"),
        ("ALL_PROXY", "socks4://proxy.test:1080"),
        ("ALL_PROXY", "ftp://proxy.test"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_at_the_start_and_by_check(tmp_path, name, value):
    agent = agent_for(tmp_path, "https://komodor.test/mgmt/v1/events", {name: value})
    agent.start(ready=False)
    assert agent.wait() == 78
    code, out = checked(agent, {name: value})
    assert code == 78
    for told in (agent.log_text(), out):
        assert f"${name}" in told
        assert "socks5://" in told
        assert "p4ss" not in told
        assert "Traceback" not in told


def test_a_key_in_clear_text_is_kept_from_the_environments_proxy(tmp_path):
    environ = {"http_proxy": "http://127.0.0.1:9"}
    url = "http://gateway.test:8098/mgmt/v1/events"
    agent = agent_for(tmp_path, url, environ, allow_plain_http=True)
    agent.start(ready=False)
    assert agent.wait() == 78
    assert "clear text" in agent.log_text()
    code, out = checked(agent, environ)
    assert (code, "NO_PROXY=gateway.test" in out) == (78, True)


def test_events_and_check_go_through_socks(loopback, authority, tmp_path):
    def script(writer, _number, _request):
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")

    name = "komodor.test"  # that only the proxy can look up
    server = loopback.Server(script, authority.server_context(name))
    proxy = loopback.SocksProxy()
    with Background(server, proxy):
        environ = {"ALL_PROXY": f"socks5://127.0.0.1:{proxy.port}"}
        ca_file = str(authority.folder / "ca.pem")
        agent = agent_for(tmp_path, server.url("https", name), environ, ca_file=ca_file)
        agent.start()
        try:
            assert agent.request("POST", "/mgmt/v1/events", EVENT)[0] == 201
            agent.await_empty()
        finally:
            agent.stop()
        code, out = checked(agent, environ)
    assert code == 0, out
    assert "API key" in out
    assert set(proxy.names) == {name.encode()}
    assert EVENT.decode() not in str(server.requests[-1])  # the last was check's
    assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["summary"] == "out"


@pytest.mark.parametrize("told", ["noticed", "SIGHUP"])
def test_the_systems_authorities_replaced_on_disk_end_a_hold(loopback, authority, tmp_path, told):
    store = tmp_path / "ca-certificates.crt"
    trustme.CA().cert_pem.write_to_path(store)
    environ = {"SSL_CERT_FILE": str(store), "SSL_CERT_DIR": str(tmp_path / "none")}
    server = loopback.Server(loopback.good, authority.server_context())
    with Background(server):
        agent = agent_for(tmp_path, server.url("https"), environ)
        agent.start()
        try:
            assert agent.request("POST", "/mgmt/v1/events", EVENT)[0] == 201
            until(agent, "held")
            authority.cert_pem.write_to_path(tmp_path / "new")
            os.replace(tmp_path / "new", store)
            if told == "SIGHUP":
                agent.signal(signal.SIGHUP)
            agent.await_empty()
            assert agent.status()["outbox"]["delivered"] == 1
        finally:
            agent.stop()


def test_a_reload_with_a_broken_certificate_file_is_refused(loopback, authority, tmp_path):
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    server = loopback.Server(loopback.good, authority.server_context())
    with Background(server):
        agent = agent_for(tmp_path, server.url("https"), {}, ca_file=str(ca_file))
        agent.start()
        try:
            ca_file.write_bytes(ca_file.read_bytes()[:99])
            agent.signal(signal.SIGHUP)
            deadline_s = time.monotonic() + PATIENCE_S
            while "config.refused" not in agent.log_text():
                assert time.monotonic() < deadline_s, agent.log_text()[-3000:]
                time.sleep(0.05)
            assert agent.request("POST", "/mgmt/v1/events", EVENT)[0] == 201
            assert agent.await_empty()["outbox"]["delivered"] == 1
        finally:
            agent.stop()
