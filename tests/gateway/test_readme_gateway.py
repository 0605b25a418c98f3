"""What the README says of gateways and webhooks, followed to the letter.

The commands are read from it and run by a shell. Put in their place are only what
belongs to the host: its directories, its name and port, its user, and systemctl,
which here restarts the agent of the test.
"""

from __future__ import annotations

import getpass
import json
import re
import ssl
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from http.client import HTTPSConnection
from pathlib import Path

import jmespath.functions
import pytest
from support.agent import ENVIRON
from support.outside import Agent, outboxd
from support.ports import free_port
from support.waiting import PATIENCE_S

from outboxd.gateway.webhooks import _Functions

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()

# The documented payload of Jenkins' notification plugin.
JENKINS = {
    "name": "billing",
    "url": "job/billing/",
    "build": {
        "full_url": "https://ci.example/job/billing/18/",
        "number": 18,
        "phase": "COMPLETED",
        "status": "FAILURE",
        "url": "job/billing/18/",
        "scm": {"url": "https://git.example/billing.git", "branch": "origin/main"},
    },
}


def block(mark: str) -> str:
    """The README's code block behind a mark."""
    found = re.findall(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1, mark
    return found[0]


class Place:
    """A directory that stands for the host that the README speaks of."""

    def __init__(self, path: Path, endpoint: str) -> None:
        self.path = path
        self.etc = path / "etc"
        self.etc.mkdir()
        self.port = free_port()
        self.agent = Agent(path, endpoint)
        self.agent.config = self.etc / "config.toml"
        example = (ROOT / "config.example.toml").read_text()
        for written, here in (
            ("https://api.komodor.com/mgmt/v1/events", endpoint),
            ("/run/outboxd/outboxd.sock", str(self.agent.socket)),
            ("/var/spool/outboxd", str(self.agent.spool)),
            ("/var/lib/outboxd/outbox.db", str(self.agent.outbox)),
        ):
            assert f'"{written}"' in example
            example = example.replace(f'"{written}"', f'"{here}"')
        self.agent.config.write_text(example)
        self._commands()

    def _commands(self) -> None:
        """`outboxd` is this one, and `systemctl restart outboxd` tells the test to do it."""
        bin = self.path / "bin"
        bin.mkdir()
        for name, script in (
            ("outboxd", f'exec {sys.executable} -m outboxd "$@"'),
            ("systemctl", f'test "$*" = "restart outboxd" && touch {self.path}/restart'),
        ):
            (bin / name).write_text(f"#!/bin/sh\n{script}\n")
            (bin / name).chmod(0o755)

    def put_in_place(self, text: str) -> str:
        return (
            text.replace("/etc/outboxd", str(self.etc))
            .replace("/etc/prometheus", str(self.etc))
            .replace("gateway.example", "localhost")
            .replace("0.0.0.0:", "127.0.0.1:")
            .replace("8443", str(self.port))
            .replace("chown outboxd", f"chown {getpass.getuser()}")
        )

    def run(self, commands: str, **environ: str) -> str:
        """The commands' stdout; each must succeed."""
        path = f"{self.path}/bin:{ENVIRON['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.put_in_place(commands)],
            capture_output=True,
            text=True,
            cwd=self.path,
            env={**ENVIRON, "PATH": path, "OUTBOXD_CONFIG": str(self.agent.config), **environ},
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make_gateway(self) -> str:
        """By the README's five commands; the token that they print."""
        commands = block("gateway")
        assert len(commands.strip().splitlines()) == 5
        token = self.run(commands).strip()
        (self.path / "restart").unlink()
        self.agent.start()
        return token

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.etc / "gateway.crt"))


@pytest.fixture
def place(tmp_path, komodor, need):
    need("openssl")
    place = Place(tmp_path, komodor.url)
    yield place
    if place.agent.pid is not None:
        place.agent.kill()


def test_a_gateway_in_five_commands_and_a_host_and_curl(place, komodor, tmp_path, need):
    need("curl")
    token = place.make_gateway()

    receipt = json.loads(place.run(block("gateway-curl"), TOKEN=token))
    assert receipt["status"] == "accepted"
    arrival = komodor.wait_for_summary("billing 4.2 is out")[0]
    assert arrival.event["scope"] == {"clusters": ["prod"]}, "what the token is limited to"

    directory = tmp_path / "host"
    directory.mkdir()
    settings = tomllib.loads(place.put_in_place(block("gateway-host")))["komodor"]
    host = Agent(
        directory,
        settings["endpoint"],
        extra={"komodor": settings},
        environ={"KOMODOR_API_KEY": token},
    )
    host.start()
    try:
        id = host.accept("from a host without a way out", scope={"clusters": ["prod"]})
        host.await_entry(id, state="delivered")
    finally:
        host.kill()
    komodor.wait_for_summary("from a host without a way out")


def post(place, path, body, token, **more):
    """Status and headers of one request to the gateway."""
    connection = HTTPSConnection(
        "localhost", place.port, timeout=PATIENCE_S, context=place.context()
    )
    try:
        headers = {} if token is None else {"x-api-key": token}
        connection.request("POST", path, json.dumps(body), headers | more)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers
    finally:
        connection.close()


def test_what_a_token_does_not_allow_is_answered_as_the_table_says(place):
    place.make_gateway()
    file = f"--tokens-file {place.etc}/tokens"
    scoped = place.run(f"outboxd token new scoped --require-scope {file}").strip()
    paced = place.run(f"outboxd token new paced --rate 0.01 {file}").strip()
    elsewhere = place.run(f"outboxd token new dev --namespace dev {file}").strip()
    event = {"eventType": "t", "summary": "s"}

    def answered(token, **more):
        return post(place, "/mgmt/v1/events", {**event, **more}, token)

    assert answered(scoped)[0] == 422
    assert answered(scoped, scope={"clusters": ["a"]})[0] == 201
    assert answered(elsewhere, scope={"namespaces": ["prod"]})[0] == 422
    answers = [answered(paced) for _ in range(5)]
    status, headers = next(each for each in answers if each[0] != 201)
    assert (status, int(headers["Retry-After"]) >= 1) == (429, True)
    assert answered(None)[0] == answered("nobody's")[0] == 401
    place.run(f"outboxd token revoke scoped {file}")
    ends_s = time.monotonic() + PATIENCE_S
    while answered(scoped, scope={"clusters": ["a"]})[0] != 401:
        assert time.monotonic() < ends_s, "a revoked token is still good"
        time.sleep(0.1)


def test_alertmanager_in_three_lines(place, komodor, need, tmp_path):
    alertmanager = need("prometheus-alertmanager")
    lines = block("alertmanager")
    assert len(lines.strip().splitlines()) == 3
    token = place.make_gateway()
    (place.etc / "outboxd-token").write_text(token)
    (tmp_path / "alertmanager.yml").write_text(
        "route: {receiver: komodor, group_wait: 0s}\nreceivers:\n- name: komodor\n"
        + "".join(f"  {line}\n" for line in place.put_in_place(lines).splitlines())
    )
    address = f"127.0.0.1:{free_port()}"
    command = (
        *(alertmanager, f"--config.file={tmp_path}/alertmanager.yml"),
        *(f"--storage.path={tmp_path}/am", f"--web.listen-address={address}"),
        "--cluster.listen-address=",
    )
    with (tmp_path / "am.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        alert = {"labels": {"alertname": "DiskFull"}, "annotations": {"summary": "db-1 is full"}}
        fire(f"http://{address}/api/v2/alerts", [alert])
        arrival = komodor.wait_for_summary("db-1 is full")[0]
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    assert arrival.event["eventType"] == "DiskFull"
    assert arrival.event["scope"] == {"clusters": ["prod"]}


def fire(url, alerts):
    """Hand alerts to Alertmanager, as soon as it listens."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(alerts).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            opener.open(request, timeout=PATIENCE_S).close()
            return
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > ends_s:
                raise
            time.sleep(0.05)


def test_a_webhook_of_ones_own_is_tried_and_then_taken(place, komodor):
    with place.agent.config.open("a") as config:
        config.write("\n" + block("webhook"))
    (place.path / "build.json").write_text(json.dumps(JENKINS))
    shown = json.loads(place.run(block("webhook-try")))
    token = place.make_gateway()
    assert post(place, "/v1/webhooks/jenkins", JENKINS, token)[0] == 200
    arrival = komodor.wait_for_summary("billing #18 failure")[0]
    assert arrival.event == {
        "eventType": "jenkins completed",
        "summary": "billing #18 failure",
        "severity": "error",
        "scope": {"clusters": ["prod"], "servicesNames": ["billing"]},
        "details": {"url": "https://ci.example/job/billing/18/", "branch": "main"},
    }
    assert shown == arrival.event | {"scope": {"servicesNames": ["billing"]}}
    assert post(place, "/v1/webhooks/jenkins", {"build": {}}, token)[0] == 422


def test_the_readme_names_every_function_that_a_mapping_may_call():
    own = set(_Functions.FUNCTION_TABLE) - set(jmespath.functions.Functions.FUNCTION_TABLE)
    section = README.split("\n## Webhooks\n")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)\([^`]*\)`", section)) == own


def test_the_example_configurations_webhooks_are_good_ones(tmp_path):
    example = (ROOT / "config.example.toml").read_text()
    text = example[example.index("# [webhooks.") :]
    (tmp_path / "secret").write_text("a secret of sixteen bytes and more")
    lines = [line.removeprefix("# ") for line in text.splitlines() if re.match(r"# [\[\w]+", line)]
    kept = [line for line in lines if line.startswith("[") or " = " in line]
    config = "\n".join(kept).replace("/etc/outboxd/github-secret", str(tmp_path / "secret"))
    (tmp_path / "config.toml").write_text(config)
    payload = json.dumps(JENKINS).encode()
    config_path = str(tmp_path / "config.toml")
    done = outboxd("webhook", "try", "jenkins", "-", "-c", config_path, stdin=payload)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"] == "billing 18 failure"
