"""Alert rules and dashboard: what they say, and that they name what there is."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from support.ports import free_port
from support.waiting import PATIENCE_S

from outboxd.clock import Clock
from outboxd.monitoring import NAMES, read
from outboxd.observe.metrics import Metrics
from outboxd.observe.textfile import write_textfile
from outboxd.status import Deliverer, DestinationStatus

HERE = Path(__file__).parent
METRIC = re.compile(r"\boutboxd_[a-z_]+\b")


def metrics() -> Metrics:
    """Those of a gateway that shares its outbox, which has all there are."""
    found = Metrics()
    shared = Deliverer("db/outboxd", "default", "a", True, 9.0, 0.0, 0.001, None, 0.1)
    found.watch(deliverer=lambda: shared)
    found.watch(certificate_ends_at=lambda: Clock().wall_ms() + 86_400_000)
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
        timeout=PATIENCE_S,
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
        timeout=PATIENCE_S,
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


@pytest.fixture
def start():
    """Starts a program that listens on a free port, given with its flag; gives the port."""
    running = []

    def started(*words: str, flag: str) -> int:
        port = free_port()
        command = [*words, f"{flag}=127.0.0.1:{port}"]
        running.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        return port

    yield started
    for process in running:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def two_agents():
    """The metrics of two agents, of which the second is held, and where each is scraped."""
    agents, servers = [], []
    for state in ("ok", "held"):
        standing = DestinationStatus("https://komodor.test", state, None, 0, None, 8, 0)
        metrics = Metrics("1.2.3", Clock())
        metrics.watch(destination=lambda standing=standing: standing)
        handler = type("Scraped", (http.server.BaseHTTPRequestHandler,), {
            "do_GET": lambda self, metrics=metrics: serve(self, metrics),
            "log_message": lambda *_: None,
        })  # fmt: skip
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        agents.append((metrics, f"127.0.0.1:{server.server_address[1]}"))
        servers.append(server)
    yield agents
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.long
def test_a_real_prometheus_tells_two_agents_apart_by_scrape_and_by_textfile(
    need, start, two_agents, tmp_path
):
    """By scrape two targets, by node_exporter one, which reads both text files of a host."""
    prometheus = need("prometheus")
    exporter = need("prometheus-node-exporter")
    (tmp_path / "texts").mkdir()
    for name, (metrics, _) in zip(("web", "batch"), two_agents, strict=True):
        path = tmp_path / "texts" / f"{name}.prom"
        write_textfile(str(path), metrics, f"/var/lib/{name}/outbox.db", time.time())
    directory = f"--collector.textfile.directory={tmp_path}/texts"
    node_port = start(exporter, directory, flag="--web.listen-address")
    targets = {"outboxd": [target for _, target in two_agents], "node": [f"127.0.0.1:{node_port}"]}
    (tmp_path / "rules.yml").write_text(read("rules"))
    jobs = [{"job_name": name, "static_configs": [{"targets": own}]}
            for name, own in targets.items()]  # fmt: skip
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
              "rule_files": ["rules.yml"], "scrape_configs": jobs}  # fmt: skip
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    port = start(
        prometheus,
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/d",
        flag="--web.listen-address",
    )
    dashboard = json.loads(read("dashboard"))
    (panel,) = [p for p in dashboard["panels"] if p["title"].startswith("Destination,")]
    query = panel["targets"][0]["expr"].replace("$instance", ".*")
    scraped = until_both(port, query.replace("$job", "outboxd"))
    states = {one["metric"]["instance"]: one["metric"]["state"] for one in scraped}
    assert states == dict(zip(targets["outboxd"], ("ok", "held"), strict=True))
    read_of = until_both(port, query.replace("$job", "node"))
    assert {one["metric"]["agent"]: one["metric"]["state"] for one in read_of} == {
        "web": "ok",
        "batch": "held",
    }
    alerts = ask(port, "/api/v1/rules")["data"]["groups"][0]["rules"]
    assert all(rule["health"] in ("ok", "unknown") for rule in alerts)
    assert all(rule["annotations"]["runbook_url"] for rule in alerts)
    text = metrics_of(node_port)
    assert "node_textfile_scrape_error 0" in text
    assert text.count("\noutboxd_build_info{") == 2
    assert "node_cpu_seconds_total" in text, "its own are there beside them"


def test_without_their_labels_node_exporter_shows_one_of_two_agents(
    need, start, two_agents, tmp_path
):
    """The control: what `agent` and `outbox` are for."""
    exporter = need("prometheus-node-exporter")
    for number, (metrics, _) in enumerate(two_agents):
        path = tmp_path / "web.prom"
        write_textfile(str(path), metrics, "/var/lib/web/outbox.db", time.time())
        shutil.copy(path, tmp_path / f"copy-{number}.prom")
    path.unlink()
    directory = f"--collector.textfile.directory={tmp_path}"
    text = metrics_of(start(exporter, directory, flag="--web.listen-address"))
    assert text.count("\noutboxd_build_info{") == 1


def serve(request, metrics: Metrics) -> None:
    request.send_response(200)
    request.send_header("Content-Type", metrics.content_type)
    request.end_headers()
    request.wfile.write(metrics.render())


def metrics_of(port: int) -> str:
    """What the exporter on a port tells, also where it refuses to."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    ends_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as refused:
            return refused.read().decode()
        except OSError:
            assert time.monotonic() < ends_at, "nothing listens"
            time.sleep(0.05)


def ask(port: int, path: str):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
        return json.loads(answer.read())


def until_both(port: int, query: str):
    """The result of a query, once both agents are in it."""
    ends_at = time.monotonic() + PATIENCE_S
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
