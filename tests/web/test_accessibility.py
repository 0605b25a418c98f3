"""What axe finds on every view of both pages, light and dark: nothing."""

from __future__ import annotations

import time
from importlib import resources
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from outboxd.status import (
    Callers,
    GatewayStatus,
    ProducerSeen,
    RefusedEvents,
    StrangerSeen,
    WrongClock,
)

AXE = (resources.files("axe_core_python") / "axe.min.js").read_text()
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page: Page) -> list[str]:
    """Rule, and the elements that break it."""
    page.evaluate(AXE)
    found = page.evaluate(
        "(tags) => axe.run(document, { runOnly: tags }).then((result) => result.violations)", TAGS
    )
    return [
        f"{one['id']}: {node['html'][:120]} {node.get('failureSummary', '')[:160]}"
        for one in found
        for node in one["nodes"]
    ]


@pytest.fixture
def look(new_context) -> Any:
    """Opens a page that axe may look into."""

    def opened(url: str, scheme: str = "light", size: tuple[int, int] = (1440, 900)) -> Page:
        # axe is no script of the page's own: its policy would stop it.
        context = new_context(
            bypass_csp=True,
            color_scheme=scheme,
            viewport={"width": size[0], "height": size[1]},
            reduced_motion="reduce",
        )
        page: Page = context.new_page()
        page.goto(url)
        return page

    return opened


@pytest.fixture
def troubled(agent_site, event, settled) -> Any:
    """Some events, a dead letter, a held one, and a destination that is away."""
    now = int(time.time() * 1000)
    scope = {"clusters": ["prod"], "namespaces": ["shop"], "servicesNames": ["cart"]}
    agent_site.accept(
        event("Deployment", "one", scope=scope, details={"a": {"b": 1}}, received_at=now - 10**6),
        event("Backup", "two", "warning"),
        event("Cron", "three", "error"),
    )
    agent_site.settle(settled.dead(2, now))
    agent_site.destination.now = agent_site.destination.now._replace(
        state="backingOff", reason="connection refused", next_probe_at=now + 60_000
    )
    refused = (RefusedEvents("rate", 3, now, "more than its rate"),)
    clocks = (WrongClock("web-7", -7_200_000, now),)
    seen = (ProducerSeen("web", 4, now, refused, clocks),)
    callers = Callers(seen, 0, (StrangerSeen("192.0.2.1", "no token", 2, now),), 2)
    agent_site.gateway = GatewayStatus("https://x:1", 1, 2, 1, 1, now + 10**9, (), callers)
    return agent_site


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        ((1440, 900), "light"),
        ((390, 844), "dark"),
        *(
            pytest.param(size, scheme, marks=pytest.mark.long)
            for size, scheme in (
                ((1440, 900), "dark"),
                ((390, 844), "light"),
                ((960, 800), "light"),
                ((960, 800), "dark"),
            )
        ),
    ],
    ids=str,
)
def test_every_view_of_the_agents_page(troubled, look, scheme, size) -> None:
    token = troubled.sessions.issue("alice (uid 0, pid 1)")
    page = look(f"{troubled.url}/#act={token}", scheme, size)
    expect(page.locator(".row")).to_have_count(3)
    expect(page.locator("#findings li").first).to_be_visible()
    found = {"list": violations(page)}
    if size[0] == 1440:
        page.locator("#producers summary").click()
        expect(page.locator("#producers tbody tr")).to_have_count(2)
        found["producers"] = violations(page)
        page.locator("#producers summary").click()
    page.locator(".row").nth(1).click()
    expect(page.get_by_role("dialog").locator(".sent")).to_be_visible()
    found["drawer"] = violations(page)
    page.get_by_role("dialog").get_by_role("button", name="Drop").click()
    found["question"] = violations(page)
    page.get_by_role("button", name="Leave it").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()  # the step back is made
    page.goto(f"{troubled.url}/?notType=Cron&q=nothing+like+it")
    expect(page.get_by_text("No events match.")).to_be_visible()
    found["nothing"] = violations(page)
    if size[0] > 1080:
        page.get_by_role("button", name="From … to").click()
        found["range"] = violations(page)
    assert {view: told for view, told in found.items() if told} == {}


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_every_view_of_the_sandboxs_page(sandbox_site, look, scheme) -> None:
    sandbox_site.receive(
        {"eventType": "deploy", "summary": "one", "scope": {"clusters": ["A"]}},
        {"eventType": "cron", "summary": "two", "severity": "error"},
    )
    page = look(sandbox_site.url, scheme)
    expect(page.locator(".row")).to_have_count(2)
    found = {"list": violations(page)}
    page.locator(".row").first.click()
    expect(page.get_by_role("dialog").locator(".sent")).to_be_visible()
    found["drawer"] = violations(page)
    assert {view: told for view, told in found.items() if told} == {}


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=str)
def test_what_is_stale_can_still_be_read(agent_site, event, settled, look, scheme, size) -> None:
    agent_site.accept(event("Deployment", "one", details={"a": 1}), event("Backup", "two", "error"))
    agent_site.settle(settled.dead(2, int(time.time() * 1000)))
    page = look(agent_site.url, scheme, size)
    page.locator(".row").first.click()
    expect(page.get_by_role("dialog").locator(".sent")).to_be_visible()
    agent_site.leave()
    expect(page.locator(".drawer .stale-here")).to_have_text("No answer: this is how it stood.")
    expect(page.locator("#live")).to_have_text("No answer")
    found = {"drawer": violations(page)}
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    found["list"] = violations(page)
    assert {view: told for view, told in found.items() if told} == {}


def test_what_has_not_come_yet_has_a_name_all_the_same(troubled, look) -> None:
    page = look("about:blank")
    page.route("**/v1/activity", lambda _: None)  # its answer does not come
    page.goto(troubled.url)
    expect(page.locator(".row")).to_have_count(3)
    assert violations(page) == []


def test_axe_would_find_something(troubled, look) -> None:
    page = look(troubled.url)
    expect(page.locator(".row")).to_have_count(3)
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert violations(page)
