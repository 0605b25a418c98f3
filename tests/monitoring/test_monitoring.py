"""Alert rules and dashboard: what they say, and that they name what there is."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from outboxd.monitoring import NAMES, read
from outboxd.observe.metrics import Metrics
from outboxd.status import Deliverer

HERE = Path(__file__).parent
METRIC = re.compile(r"\boutboxd_[a-z_]+\b")


def metrics() -> Metrics:
    """Those of a gateway that shares its outbox, which has all there are."""
    found = Metrics()
    found.watch(deliverer=lambda: Deliverer("db/outboxd", "a", True, 9.0, 0.0, 0.001, None, 0.1))
    return found


def series_names() -> set[str]:
    """Every name that a query may use."""
    return {sample.name for family in metrics().families() for sample in family.samples}


def family_names() -> set[str]:
    """Every metric, a histogram once."""
    return {family.name for family in metrics().families()}


def named_in(text: str) -> set[str]:
    return set(METRIC.findall(text))


def expressions() -> list[str]:
    dashboard = json.loads(read("dashboard"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_promtool_finds_the_rules_in_order(need, tmp_path):
    promtool = need("promtool", "prometheus")
    path = tmp_path / "rules.yml"
    path.write_text(read("rules"))
    result = subprocess.run(
        [promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("cases", ["rules_test.yml", "damage_test.yml"])
def test_the_alerts_fire_when_they_should_and_only_then(need, tmp_path, cases):
    promtool = need("promtool", "prometheus")
    (tmp_path / "rules.yml").write_text(read("rules"))
    shutil.copy(HERE / cases, tmp_path)
    result = subprocess.run(
        [promtool, "test", "rules", cases],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_tried():
    alerts = set(re.findall(r"alert: (\w+)", read("rules")))
    assert alerts
    cases = "".join(path.read_text() for path in HERE.glob("*_test.yml"))
    assert alerts <= set(re.findall(r"Outboxd\w+", cases))


def test_the_rules_name_no_metric_that_there_is_not():
    named = named_in(read("rules"))
    assert named
    assert named <= series_names()


def test_the_dashboard_names_no_metric_that_there_is_not():
    named = named_in(" ".join(expressions()))
    assert named
    assert named <= series_names()


def test_every_metric_is_on_the_dashboard():
    named = named_in(" ".join(expressions()))
    missing = {
        family
        for family in family_names()
        if not any(name == family or name.startswith(f"{family}_") for name in named)
    }
    assert missing == set()


def test_promtool_can_read_every_query_of_the_dashboard(need, tmp_path):
    promtool = need("promtool", "prometheus")
    rules = [
        {
            "record": f"panel:number{number}",
            "expr": expression.replace("$__rate_interval", "5m")
            .replace("$instance", ".*")
            .replace("$job", ".*"),
        }
        for number, expression in enumerate(expressions())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    result = subprocess.run(
        [promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = json.loads(read("dashboard"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", NAMES)
def test_the_command_prints_the_file_as_it_is(name):
    result = subprocess.run(
        [sys.executable, "-m", "outboxd", "monitoring", name],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == read(name)


def test_every_alert_leads_to_a_section_that_says_what_to_do():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    anchors = {title.lower() for title in re.findall(r"^#### (\w+)$", readme, re.M)}
    alerts = re.findall(r"alert: (\w+)", read("rules"))
    urls = re.findall(r'runbook_url: "README.md#(\w+)"', read("rules"))
    assert urls == [alert.lower() for alert in alerts]
    assert set(urls) == anchors


def test_the_runbooks_stand_where_the_reader_keeps_them():
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "outboxd",
            "monitoring",
            "rules",
            "--readme",
            "https://wiki/outboxd",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert 'runbook_url: "https://wiki/outboxd#outboxddown"' in result.stdout
    assert "README.md#" not in result.stdout


def test_the_dashboard_chooses_job_and_host_and_links_to_the_page():
    dashboard = json.loads(read("dashboard"))
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert {"job", "instance", "page"} <= set(names)
    assert all(link["url"].startswith("${page}/") for link in dashboard["links"])
    for expression in expressions():
        assert expression.count("{") == expression.count('job=~"$job",instance=~"$instance"')
    (state,) = [p for p in dashboard["panels"] if p["title"].startswith("Destination")]
    assert state["targets"][0]["instant"] is True
    assert "{{instance}}" in state["targets"][0]["legendFormat"]


AGENT_METRICS = (
    'outboxd_build_info{version="1"} 1\n'
    'outboxd_destination_state{state="ok"} %d\noutboxd_destination_state{state="held"} %d\n'
    "outboxd_destination_held %d\n"
)


def test_a_real_prometheus_tells_two_agents_apart_by_scrape_and_by_textfile(need, tmp_path):
    """Two agents scraped, and the same two through node_exporter's text files."""
    prometheus = need("prometheus", "prometheus")
    handler = type("Metrics", (http.server.BaseHTTPRequestHandler,), {
        "do_GET": lambda self: serve_metrics(self), "log_message": lambda *_: None,
    })  # fmt: skip
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    for number, server in enumerate(servers):
        server.is_held = number  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
    targets = [f"127.0.0.1:{server.server_address[1]}" for server in servers]
    (tmp_path / "rules.yml").write_text(read("rules"))
    jobs = [{"job_name": name, "static_configs": [{"targets": targets}]}
            for name in ("outboxd", "node")]  # fmt: skip
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
              "rule_files": ["rules.yml"], "scrape_configs": jobs}  # fmt: skip
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [prometheus, f"--config.file={tmp_path}/prometheus.yml",
         f"--storage.tsdb.path={tmp_path}/d", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        dashboard = json.loads(read("dashboard"))
        (panel,) = [p for p in dashboard["panels"] if p["title"].startswith("Destination,")]
        query = panel["targets"][0]["expr"].replace("$instance", ".*")
        for job in ("outboxd", "node"):
            found = until_four(port, query.replace("$job", job))
            states = {one["metric"]["instance"]: one["metric"]["state"] for one in found}
            assert states == {targets[0]: "ok", targets[1]: "held"}
        alerts = ask(port, "/api/v1/rules")["data"]["groups"][0]["rules"]
        assert all(rule["health"] in ("ok", "unknown") for rule in alerts)
        assert all(rule["annotations"]["runbook_url"] for rule in alerts)
    finally:
        process.terminate()
        process.wait(30)
        for server in servers:
            server.shutdown()
            server.server_close()


def serve_metrics(request) -> None:
    held = request.server.is_held
    body = (AGENT_METRICS % (1 - held, held, held)).encode()
    request.send_response(200)
    request.send_header("Content-Type", "text/plain; version=0.0.4")
    request.end_headers()
    request.wfile.write(body)


def ask(port: int, path: str):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.loads(answer.read())


def until_four(port: int, query: str):
    """The result of a query, once both agents are in it."""
    ends_at = time.monotonic() + 60
    while time.monotonic() < ends_at:
        try:
            path = f"/api/v1/query?query={urllib.parse.quote(query)}"
            found = ask(port, path)["data"]["result"]
            if len(found) == 2:
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"no answer to {query}")
