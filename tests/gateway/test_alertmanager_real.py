"""Debian's Prometheus and Alertmanager before a real gateway.

Each alert is one event when it fires and one when it is resolved. The intervals are
short, but on a loaded machine nothing fires anew for a scrape or a resend that was late.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.ports import free_address
from support.waiting import PATIENCE_S

RULES = """
groups:
- name: g
  interval: 200ms
  rules:
  - alert: ServiceDown
    expr: last_over_time(down[1m]) == 1
    labels: {severity: critical}
    annotations: {summary: "{{ $labels.service }} is down"}
"""
PROMETHEUS = """
global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}
rule_files: [rules.yml]
scrape_configs:
- job_name: services
  static_configs: [{targets: ["TARGET"]}]
alerting:
  alertmanagers: [{static_configs: [{targets: [ALERTMANAGERS]}]}]
"""
ALERTMANAGER = """
route:
  receiver: komodor
  group_by: [alertname]
  group_wait: 100ms
  group_interval: 400ms
  repeat_interval: 1s
receivers:
- name: komodor
  webhook_configs:
  - url: https://localhost:PORT/v1/alertmanager?cluster=prod
    http_config: {authorization: {credentials_file: token}, tls_config: {ca_file: CA}}
"""


class Services:
    """What Prometheus scrapes: services that are down, or not."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.alertmanagers: list[str] = []  # who is told, by their addresses
        services = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lines = [
                    f'down{{service="{name}",namespace="shop"}} {int(name in services.down)}\n'
                    for name in ("billing", "cart")
                ]
                with suppress(OSError):  # it did not wait
                    self.send_response(200)
                    self.send_header("Content-Type", "text/plain; version=0.0.4")
                    self.end_headers()
                    self.wfile.write("".join(lines).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def start_process(tmp_path):
    """Start a program in a directory of its own; ended with the test."""
    running = []

    def start(name, *words):
        directory = tmp_path / name
        log = (directory / "log").open("wb")
        process = subprocess.Popen(words, cwd=directory, stdout=log, stderr=log)
        running.append((process, log))
        return process

    yield start
    for process, _ in running:
        process.kill()  # they would wait for their flushes
    for process, log in running:
        process.wait(PATIENCE_S)
        log.close()


@pytest.fixture
def monitoring(tmp_path, gateway, token, need, start_process):
    """Start Prometheus and so many Alertmanagers before the gateway."""
    need("prometheus")
    need("prometheus-alertmanager")
    services = Services()

    def start(alertmanager_count):
        addresses = [free_address() for _ in range(alertmanager_count)]
        clusters = [free_address() for _ in addresses]
        services.alertmanagers = addresses
        for number, (address, cluster) in enumerate(zip(addresses, clusters, strict=True)):
            directory = tmp_path / f"alertmanager{number}"
            directory.mkdir()
            config = ALERTMANAGER.replace("PORT", str(gateway.port))
            config = config.replace("CA", str(tmp_path / "ca.pem"))
            (directory / "config.yml").write_text(config)
            (directory / "token").write_text(token)
            # One alone forms no cluster; the twins of a pair here do not wait for each
            # other, so that each of them sends whatever the other has not told it yet.
            pair = ["--cluster.listen-address="]
            if alertmanager_count > 1:
                pair = [
                    *(f"--cluster.listen-address={cluster}", "--cluster.peer-timeout=0s"),
                    *("--cluster.gossip-interval=20ms", f"--cluster.peer={clusters[1 - number]}"),
                ]
            start_process(
                *(directory.name, "prometheus-alertmanager", "--config.file=config.yml"),
                *("--storage.path=data", f"--web.listen-address={address}", *pair),
            )
        directory = tmp_path / "prometheus"
        directory.mkdir()
        (directory / "rules.yml").write_text(RULES)
        config = PROMETHEUS.replace("TARGET", services.address)
        (directory / "prometheus.yml").write_text(
            config.replace("ALERTMANAGERS", ", ".join(f'"{address}"' for address in addresses))
        )
        start_process(
            *("prometheus", "prometheus", "--config.file=prometheus.yml"),
            *("--storage.tsdb.path=data", f"--web.listen-address={free_address()}"),
            "--rules.alert.resend-delay=5s",
        )
        return services

    yield start
    services.stop()


def duplicate_count(gateway):
    """Alerts that came again, as the gateway counts them."""
    found = re.findall(
        r"^outboxd_events_duplicate_total(?:\{.*\})? (\S+)", gateway.agent.metrics(), re.MULTILINE
    )
    return sum(map(float, found))


def await_duplicates(gateway, count):
    """Until so many more came: the senders did send again."""
    wanted = duplicate_count(gateway) + count
    ends_s = time.monotonic() + PATIENCE_S
    while duplicate_count(gateway) < wanted:
        assert time.monotonic() < ends_s, f"{duplicate_count(gateway)} of {wanted} resends"
        time.sleep(0.05)


def sent_count(alertmanager):
    """Requests that this Alertmanager has made to webhooks."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{alertmanager}/metrics", timeout=PATIENCE_S) as answer:
        metrics = answer.read().decode()
    found = re.search(
        r'^alertmanager_notification_requests_total\{integration="webhook"\} (\S+)',
        metrics,
        re.MULTILINE,
    )
    return float(found[1])


def told(komodor):
    """How often each was told: summary, status, severity."""
    return Counter(
        (a.event["summary"], a.details["status"], a.event["severity"]) for a in komodor.arrivals
    )


@pytest.mark.long
@pytest.mark.parametrize("alertmanager_count", [1, 2], ids=["alone", "pair"])
def test_an_alert_that_fires_grows_repeats_and_resolves_is_told_once_each(
    monitoring, gateway, komodor, alertmanager_count
):
    services = monitoring(alertmanager_count)
    once = Counter[tuple[str, str, str]]()

    def now_also(*fact):
        once[fact] += 1
        ends_s = time.monotonic() + PATIENCE_S
        while not told(komodor) >= once:
            assert time.monotonic() < ends_s, f"{fact} is not told: {told(komodor)}"
            time.sleep(0.05)

    services.down.add("billing")
    now_also("billing is down", "firing", "error")
    await_duplicates(gateway, 1)  # repeat_interval
    services.down.add("cart")
    now_also("cart is down", "firing", "error")
    await_duplicates(gateway, 3)  # a grown group, again and again
    services.down.remove("billing")
    now_also("billing is down", "resolved", "information")
    await_duplicates(gateway, 2)
    services.down.remove("cart")
    now_also("cart is down", "resolved", "information")
    services.down.add("billing")  # a new firing is a new event
    now_also("billing is down", "firing", "error")
    await_duplicates(gateway, 2)
    assert told(komodor) == once
    for address in services.alertmanagers:
        assert sent_count(address) > 0, "each of them sends"
    event = komodor.arrivals[0].event
    assert event["eventType"] == "ServiceDown"
    assert event["scope"] == {
        "clusters": ["prod"],
        "namespaces": ["shop"],
        "servicesNames": ["billing"],
    }


@pytest.mark.long
def test_a_gateway_that_is_away_gets_the_alert_when_it_is_back(
    monitoring, gateway, komodor, tmp_path
):
    services = monitoring(1)
    gateway.agent.kill()
    services.down.add("billing")
    log = tmp_path / "alertmanager0" / "log"
    ends_s = time.monotonic() + PATIENCE_S
    while "Notify attempt failed" not in log.read_text():
        assert time.monotonic() < ends_s, log.read_text()
        time.sleep(0.05)
    gateway.agent.start()
    arrival = komodor.wait_for_summary("billing is down")[0]
    assert arrival.details["status"] == "firing"


TEMPLATED = """
route: {receiver: komodor, group_by: [alertname], group_wait: 50ms, group_interval: 200ms,
        repeat_interval: 400ms}
receivers:
- name: komodor
  webhook_configs:
  - url: https://localhost:PORT/mgmt/v1/events
    max_alerts: 1
    http_config:
      http_headers: {x-api-key: {secrets: ["TOKEN"]}}
      tls_config: {ca_file: "CA"}
    payload:
      eventType: '{{ (index .Alerts 0).Labels.alertname }}'
      summary: '{{ (index .Alerts 0).Annotations.summary }}'
      severity: '{{ if eq (index .Alerts 0).Status "resolved" }}information{{ else }}error{{ end }}'
      scope:
        clusters: ['{{ (index .Alerts 0).Labels.cluster }}']
        namespaces: ['{{ (index .Alerts 0).Labels.namespace }}']
      details:
        status: '{{ (index .Alerts 0).Status }}'
        alertname: '{{ (index .Alerts 0).Labels.alertname }}'
        fingerprint: '{{ (index .Alerts 0).Fingerprint }}'
        startsAt: '{{ (index .Alerts 0).StartsAt }}'
"""


@pytest.fixture
def templating_alertmanager():
    """The path of an Alertmanager of 0.32 or newer: Debian 12 has an older one."""
    named = os.environ.get("OUTBOXD_ALERTMANAGER", "prometheus-alertmanager")
    path = shutil.which(named)
    told = "" if path is None else subprocess.run([path, "--version"], capture_output=True).stdout
    found = re.search(rb"version (\d+)\.(\d+)", told or b"")
    if path is None or found is None or tuple(map(int, found.groups())) < (0, 32):
        pytest.skip(f"{named} is not 0.32 or newer; $OUTBOXD_ALERTMANAGER may name one that is")
    return path


def test_a_template_of_a_newer_alertmanager_tells_each_alert_once(
    templating_alertmanager, gateway, token, komodor, tmp_path, start_process
):
    """Its own texts are YAML: a label that is missing, a cluster that is a number."""
    (tmp_path / "alertmanager").mkdir()
    config = TEMPLATED.replace("PORT", str(gateway.port)).replace("TOKEN", token)
    config = config.replace("CA", str(tmp_path / "ca.pem"))
    (tmp_path / "alertmanager" / "config.yml").write_text(config)
    address = free_address()
    start_process(
        *("alertmanager", templating_alertmanager, "--config.file=config.yml"),
        *("--storage.path=data", f"--web.listen-address={address}", "--cluster.listen-address="),
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def tell(**more):
        alert = {
            "labels": {"alertname": "DiskFull", "cluster": "42"},
            "annotations": {"summary": "disk: 95 %"},
            "startsAt": "2026-11-21T10:00:00.123Z",
            **more,
        }
        headers = {"Content-Type": "application/json"}
        url, body = f"http://{address}/api/v2/alerts", json.dumps([alert]).encode()
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return opener.open(
                    urllib.request.Request(url, body, headers), timeout=PATIENCE_S
                ).close()
            except OSError:  # it is not there yet
                assert time.monotonic() < ends_s
                time.sleep(0.05)

    tell()
    komodor.wait_for(1)
    await_duplicates(gateway, 2)  # repeat_interval
    tell(endsAt="2026-11-21T10:05:00Z")
    komodor.wait_for(2)
    assert told(komodor) == {
        ("disk: 95 %", "firing", "error"): 1,
        ("disk: 95 %", "resolved", "information"): 1,
    }
    assert [arrival.event["scope"] for arrival in komodor.arrivals] == [{"clusters": ["42"]}] * 2


# What Komodor's own template for Alertmanager (0.32 and newer) makes of an alert that
# has none of the labels that it looks for.
TEMPLATE = {
    "eventType": "Watchdog",
    "summary": "the pipeline works",
    "severity": "information",
    "scope": {"clusters": [""], "namespaces": [""], "servicesNames": [""]},
    "details": {"status": "firing", "runbook": "", "alertname": "Watchdog"},
}


def test_komodors_own_template_works_with_the_gateways_host_and_token(
    make_gateway, komodor, need, tmp_path
):
    curl = need("curl")
    gateway = make_gateway({"any": {}, "prod": {"clusters": ["prod"]}})
    for number, (name, clusters) in enumerate({"any": [], "prod": ["prod"]}.items(), 1):
        done = subprocess.run(
            [
                *(curl, "--silent", "--show-error", "--fail", "--cacert", tmp_path / "ca.pem"),
                *("-H", f"x-api-key: {gateway.secrets[name]}"),
                *("-H", "Content-Type: application/json", "--data-binary", "@-"),
                f"https://localhost:{gateway.port}/mgmt/v1/events",
            ],
            input=json.dumps(TEMPLATE).encode(),
            capture_output=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == "accepted"
        event = komodor.wait_for(number)[-1].event
        assert event["eventType"] == "Watchdog"
        assert event["details"] == TEMPLATE["details"]
        assert event.get("scope", {}) == ({"clusters": clusters} if clusters else {})
