"""The routes over real HTTP: what is served, to whom, and with which headers."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import pytest
from support.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def agent_site(agent_site_of, tmp_path_factory):
    """One for all: nothing here changes it."""
    site = agent_site_of(str(tmp_path_factory.mktemp("outbox") / "outbox.db"))
    yield site
    site.close()


def get(site, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(site.url).netloc, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, answer.read()
    finally:
        connection.close()


def get_json(site, path: str):
    status, _, body = get(site, path)
    assert status == 200, body
    return json.loads(body)


@pytest.mark.parametrize(
    "path", ["/", "/static/app.js", "/static/styles.css", "/favicon.ico", "/v1/facets"]
)
def test_every_answer_has_a_policy_that_runs_nothing_foreign(agent_site, path: str) -> None:
    status, headers, _ = get(agent_site, path)
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_the_page_loads_nothing_from_elsewhere(agent_site) -> None:
    _, _, page = get(agent_site, "/")
    assert b"//" not in page.replace(b"<!doctype", b"")
    assert b'data-kind="agent"' in page
    assert b"style=" not in page
    assert b"<script>" not in page


def test_a_file_that_is_known_already_is_not_sent_again(agent_site) -> None:
    _, headers, _ = get(agent_site, "/static/app.js")
    status, _, body = get(agent_site, "/static/app.js", **{"If-None-Match": headers["etag"]})
    assert (status, body) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/static/../page.py", "/static/%2e%2e/page.py", "/static/", "/static/index.html", "/x"]
)
def test_nothing_but_the_pages_own_files_can_be_named(agent_site, path: str) -> None:
    assert get(agent_site, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/v1/facets", "/v1/stream", "/v1/events"])
def test_nothing_can_be_changed(agent_site, path: str, method: str) -> None:
    assert get(agent_site, path, method)[0] == 405


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8080",
        "localhost",
        "localhost:1",
        "[::1]:80",
        "LOCALHOST",
        "10.1.2.3:80",
    ],
)
def test_addresses_and_localhost_are_served(agent_site, host: str) -> None:
    assert get(agent_site, "/v1/facets", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", ""],
)
@pytest.mark.parametrize("site", ["agent_site", "sandbox_site"])
def test_a_foreign_name_for_this_host_is_refused(request, site: str, host: str) -> None:
    status, _, body = get(request.getfixturevalue(site), "/v1/facets", Host=host)
    assert status == 421
    assert json.loads(body)["field"] == "Host"


def test_a_filter_that_is_unknown_is_refused(agent_site) -> None:
    for path in ("/v1/facets", "/v1/histogram", "/v1/events"):
        status, _, body = get(agent_site, f"{path}?colour=red")
        assert status == 400
        assert json.loads(body)["field"] == "colour"


def test_an_event_that_is_unknown_is_404(agent_site) -> None:
    status, _, body = get(agent_site, "/v1/events/nothing")
    assert status == 404
    assert json.loads(body)["hint"]


def test_the_sandbox_has_an_inventory_and_no_activity(sandbox_site) -> None:
    inventory = get_json(sandbox_site, "/v1/inventory")["inventory"]
    assert inventory["total"] == 20
    assert [cluster["name"] for cluster in inventory["clusters"]] == ["A", "B"]
    assert get_json(sandbox_site, "/v1/activity") == {"activity": None}
    assert b'data-kind="sandbox"' in get(sandbox_site, "/")[2]


def test_the_sandbox_counts_what_it_received_and_forgets_on_request(sandbox_site) -> None:
    event = {"eventType": "deploy", "summary": "one", "scope": {"clusters": ["A"]}}
    sandbox_site.receive(event, event, {**event, "eventType": "cron", "severity": "error"})
    facets = get_json(sandbox_site, "/v1/facets?type=cron")
    assert facets["matched"] == 1
    assert facets["facets"]["type"]["values"] == [
        {"value": "deploy", "count": 2},
        {"value": "cron", "count": 1},
    ]
    assert get_json(sandbox_site, "/v1/facets?q=ONE")["matched"] == 3
    assert sum(get_json(sandbox_site, "/v1/histogram")["counts"]["error"]) == 1
    get(sandbox_site, "/sandbox/reset", "POST")
    assert get_json(sandbox_site, "/v1/facets")["matched"] == 0
    sandbox_site.receive(event)
    assert get_json(sandbox_site, "/v1/facets")["matched"] == 1


def test_the_last_hour_has_a_column_for_each_figure(agent_site) -> None:
    activity = get_json(agent_site, "/v1/activity")["activity"]
    assert activity["pending"] == [0, 0]
    assert activity["state"] == ["ok", "ok"]
    assert len(activity["at"]) == len(activity["rate"]) == 2
