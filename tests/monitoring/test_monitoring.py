"""Alert rules and dashboard: what they say, and that they name what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from outboxd.monitoring import NAMES, read
from outboxd.observe.metrics import Metrics

HERE = Path(__file__).parent
METRIC = re.compile(r"\boutboxd_[a-z_]+\b")


def series_names() -> set[str]:
    """Every name that a query may use."""
    return {sample.name for family in Metrics().families() for sample in family.samples}


def family_names() -> set[str]:
    """Every metric, a histogram once."""
    return {family.name for family in Metrics().families()}


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
            "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".*"),
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
