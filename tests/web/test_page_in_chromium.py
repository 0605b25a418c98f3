"""The page in a real Chromium, used as a person would use it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import APIResponse, Locator, Page, Route, expect
from support.waiting import PATIENCE_S

from outboxd.outbox.model import EntryChange
from outboxd.web import outbox_index

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


@pytest.fixture(scope="module")
def stocked(agent_site_of, tmp_path_factory, event, settled) -> Iterator[Any]:
    """An outbox with 30 hours of varied events, for tests that only look at it."""
    site = agent_site_of(str(tmp_path_factory.mktemp("outbox") / "outbox.db"))
    stock(site, event, settled)
    yield site
    site.close()


def stock(agent_site, event, settled) -> None:
    """Keep 120 events, a quarter of an hour apart: most delivered, some dead, some waiting."""
    now = int(time.time() * 1000)
    items = []
    for index in range(120):
        scope: dict[str, list[str]] = {}
        if index % 4:
            scope["clusters"] = [("prod", "staging")[index % 2]]
        if index % 3 == 0:
            scope["namespaces"] = ["shop"]
        if index % 5 == 0:
            scope["servicesNames"] = ["cart"] if index % 10 else ["cart", "checkout"]
        at = now - (120 - index) * 15 * MINUTE_MS
        items.append(
            event(
                ("Nightly backup", "Deployment", "Cron job failed")[index % 3],
                f"Run {index} of many",
                ("information", "information", "warning", "error")[index % 4],
                scope=scope,
                details={"run": index, "host": "web-1"},
                received_at=at,
                occurred_at=at - 2000,
            )
        )
    agent_site.accept(*items)
    agent_site.settle(
        *(settled.delivered(seq, now) for seq in range(1, 101)),
        *(settled.dead(seq, now) for seq in range(101, 104)),
    )


def rows(page: Page):
    return page.get_by_role("row").filter(has=page.get_by_role("gridcell"))


def until(page: Page, expression: str, argument: Any = None) -> None:
    """Until it is true on the page. (The driver's own wait evaluates a text there, which the
    page's policy forbids as soon as it is not true at once.)"""
    ends_s = time.monotonic() + PATIENCE_S
    while not page.evaluate(expression, argument):
        assert time.monotonic() < ends_s, expression
        page.wait_for_timeout(20)


def shown_count(page: Page) -> int:
    """The number beside the title, once it is complete (a later count may not be, at first)."""
    ends_s = time.monotonic() + PATIENCE_S
    while not re.fullmatch(r"[\d,]+", told := page.locator("#matched").inner_text()):
        assert time.monotonic() < ends_s, told
        page.wait_for_timeout(20)
    return int(told.replace(",", ""))


def is_counted(page: Page, events: int) -> None:
    """So many are counted, and stand in the histogram: it stands as it stays."""
    expect(page.locator("#matched")).to_have_text(str(events))
    expect(page.locator(".histogram .readout")).to_have_text(re.compile("[^…]$"))


def test_the_list_shows_each_event_as_komodor_would(stocked, open_page) -> None:
    page = open_page(stocked.url)
    row = rows(page).filter(has_text="Run 119 of many")
    expect(row).to_contain_text("Cron job failed")
    expect(row).to_contain_text("Waiting")
    expect(row).to_contain_text("run: 119")
    expect(row.locator(".severity-icon")).to_have_attribute("data-severity", "error")
    expect(rows(page).filter(has_text="Run 110 of many")).to_contain_text("Cross-service event")
    expect(rows(page).filter(has_text="Run 115 of many")).to_contain_text("cart")
    numbers = [
        int(text) for text in re.findall(r"Run (\d+) of", page.locator("#rows").inner_text())
    ]
    assert sorted(numbers, reverse=True)[:10] == list(range(119, 109, -1))
    expect(page.locator("#status")).to_contain_text("17 waiting")
    expect(page.locator("#status")).to_contain_text("3 dead letters")


def test_scrolling_brings_older_events_and_keeps_few_rows(stocked, open_page) -> None:
    page = open_page(stocked.url)
    expect(rows(page).first).to_be_visible()
    ends_s = time.monotonic() + PATIENCE_S
    while not page.get_by_text("Run 0 of many", exact=True).count():
        assert time.monotonic() < ends_s, "the oldest does not come"
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(50)
    expect(page.get_by_text("Run 0 of many", exact=True)).to_be_visible()
    assert rows(page).count() < 60
    expect(page.get_by_text("That is all.")).to_be_visible()


FILTERS = [
    ("type", "Deployment", "event_type = 'Deployment'"),
    ("severity", "error", "severity = 'error'"),
    ("severity", "warning", "severity = 'warning'"),
    ("state", "pending", "state = 'pending'"),
    ("state", "delivered", "state = 'delivered'"),
    ("state", "dead", "state = 'dead'"),
    ("cluster", "prod", "scope LIKE '%\"prod\"%'"),
    ("namespace", "shop", "scope LIKE '%\"shop\"%'"),
    ("service", "checkout", "scope LIKE '%\"checkout\"%'"),
]


def test_each_filter_and_its_count_agree_with_the_database(stocked, open_page) -> None:
    page = open_page(stocked.url)
    for name, value, condition in FILTERS:
        (expected,) = stocked.query(f"SELECT count(*) FROM entries WHERE {condition}")[0]
        box = page.locator(f'input[name="{name}"][value="{value}"]')
        expect(page.locator("li", has=box).locator(".count")).to_have_text(str(expected))
        box.check()
        expect(page.locator("#matched")).to_have_text(str(expected))
        assert f"{name}={value}" in page.url
        if expected <= 10:  # so many are in sight whatever stands above them
            expect(rows(page)).to_have_count(expected)
        else:
            expect(rows(page).nth(9)).to_be_attached()
        box.uncheck()
        expect(page.locator("#matched")).to_have_text("120")
    assert "?" not in page.url


def test_the_counts_of_the_others_follow_a_choice(stocked, open_page) -> None:
    page = open_page(f"{stocked.url}/?state=dead&severity=error")
    for name, value, other in (
        ("severity", "error", "state = 'dead'"),
        ("state", "dead", "severity = 'error'"),
    ):
        expect(page.locator(f'input[name="{name}"][value="{value}"]')).to_be_checked()
        for own in (
            ("information", "warning", "error") if name == "severity" else ("pending", "dead")
        ):
            (expected,) = stocked.query(
                f"SELECT count(*) FROM entries WHERE {other} AND {name} = '{own}'"
            )[0]
            item = page.locator("li", has=page.locator(f'input[value="{own}"]'))
            expect(item.locator(".count")).to_have_text(str(expected))


def test_a_held_event_is_marked_and_can_be_filtered(agent_site, event, settled, open_page) -> None:
    stock(agent_site, event, settled)
    (id,) = agent_site.query("SELECT id FROM entries WHERE seq = 115")[0]

    async def hold() -> None:
        await agent_site.outbox.change(lambda engine: engine.change(EntryChange.HOLD, id))

    agent_site.call(hold())
    page = open_page(agent_site.url)
    page.get_by_role("checkbox", name="Held by the operator").check()
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("Held")
    rows(page).click()
    expect(page.get_by_role("dialog")).to_contain_text(f"outboxd release {id}")


def test_the_link_of_a_row_keeps_what_is_filtered_since(stocked, open_page) -> None:
    page = open_page(stocked.url)
    expect(rows(page).first).to_be_visible()
    page.locator('input[name="state"][value="pending"]').check()
    expect(page.locator("#matched")).to_have_text("17")
    row = rows(page).filter(has_text="Run 119 of many")
    expect(row.locator("a")).to_have_attribute("href", re.compile("state=pending.*event="))


def test_a_search_narrows_the_list_as_one_types(stocked, open_page) -> None:
    page = open_page(stocked.url)
    page.get_by_role("searchbox").fill("run 11")
    expect(page.locator("#matched")).to_have_text("11")
    expect(rows(page)).to_have_count(11)
    assert "q=run+11" in page.url
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.get_by_text("No events match.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#matched")).to_have_text("120")


def test_the_drawer_tells_the_whole_way_of_an_event(stocked, open_page) -> None:
    page = open_page(f"{stocked.url}/?state=dead")
    rows(page).filter(has_text="Run 102 of many").click()
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_role("heading", level=2)).to_have_text("Nightly backup")
    expect(drawer.locator(".badge")).to_have_text("WARNING")
    expect(drawer.locator(".ago")).to_have_text("4h ago")
    expect(drawer.locator(".summary")).to_have_text("Run 102 of many")
    expect(drawer.locator(".where")).to_contain_text("prod")
    expect(drawer.locator(".where")).to_contain_text("CLUSTER")
    expect(drawer.locator(".details .line").first).to_have_text("run: 102")
    way = drawer.locator(".way li")
    expect(way).to_contain_text(
        ["Occurred", "Received", "Committed", "Attempt 1: rejected", "Dead letter"]
    )
    expect(way.nth(3)).to_contain_text("status 400 · 31ms · summary must be shorter")
    ((body, id),) = stocked.query(
        "SELECT body, id FROM bodies JOIN entries USING (seq) WHERE seq = 103"
    )
    expect(drawer.locator(".sent pre")).to_have_text(body)
    expect(drawer.locator(".commands")).to_contain_text(f"outboxd dead-letters retry {id}")
    expect(drawer.locator(".commands")).to_contain_text(f"outboxd dead-letters drop {id}")


def test_what_is_copied_is_the_exact_body(agent_site, event, open_page) -> None:
    item = event(summary="numbers")
    details = b'{"n": 12345678901234567890.10, "o": {"a": 1e400}}'
    body = b'{"eventType": "x", "summary": "numbers", "details": %s}' % details
    agent_site.accept(item._replace(body=body))
    page = open_page(agent_site.url, permissions=["clipboard-read", "clipboard-write"])
    rows(page).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.locator(".line").first).to_have_text("n: 12345678901234567890.10")
    expect(drawer.locator(".line").nth(1)).to_have_text('o: {"a": 1e400}')
    drawer.get_by_label("Copy the body").click()
    # The button says so for a moment, which a busy machine may miss.
    expect(page.locator("#announcer")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == body.decode()


def test_new_events_and_outcomes_appear_by_themselves(
    agent_site, event, settled, open_page
) -> None:
    page = open_page(agent_site.url)
    expect(page.get_by_text("No events match.")).to_be_visible()
    expect(page.locator("#live")).to_have_text("Live")
    agent_site.accept(event("Deployment", "the first"))
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("Waiting")
    rows(page).click()
    agent_site.settle(settled.delivered(1, int(time.time() * 1000)))
    expect(rows(page)).not_to_contain_text("Waiting")
    expect(page.get_by_role("dialog").locator(".way")).to_contain_text("Delivered")
    agent_site.destination.now = agent_site.destination.now._replace(
        state="backingOff", reason="connection refused"
    )
    expect(page.locator("#status")).to_contain_text("Komodor is unavailable")
    expect(page.locator("#findings")).to_contain_text(
        "the destination is unavailable: connection refused"
    )


def fetched(look: Route) -> APIResponse:
    return look.fetch(timeout=PATIENCE_S * 1000)


def test_what_comes_while_the_first_rows_are_on_their_way_is_shown_after_them(
    agent_site, event, open_page
) -> None:
    agent_site.accept(event("Deployment", "the first"))
    page = open_page("about:blank")
    looks: list[tuple[Route, APIResponse]] = []
    page.route("**/v1/events?*", lambda look: looks.append((look, fetched(look))), times=1)
    page.goto(agent_site.url)
    expect(page.locator("#status")).to_contain_text("1 waiting")
    while not looks:
        page.wait_for_timeout(20)
    agent_site.accept(event("Deployment", "the second"))
    expect(page.locator("#status")).to_contain_text("2 waiting")
    ((look, rows_of_before),) = looks
    look.fulfill(response=rows_of_before)
    expect(rows(page)).to_have_count(2)


@pytest.mark.long
def test_counts_that_came_late_are_not_taken_for_newer_than_they_are(
    agent_site, event, open_page, monkeypatch
) -> None:
    """The agent answers for a while with what it saw last."""
    monkeypatch.setattr(outbox_index, "REFRESH_MIN_S", 1.4)
    agent_site.accept(event("Deployment", "the first"))
    page = open_page("about:blank")
    asked: list[Route] = []

    def hold_the_first(route: Route) -> None:
        # No `times`: the first to go on would end them, and the driver let go of the second.
        if len(asked) < 2:
            asked.append(route)
        else:
            route.continue_()

    page.route(re.compile("/v1/(facets|histogram)"), hold_the_first)
    page.goto(agent_site.url)
    expect(page.locator("#status")).to_contain_text("1 waiting")
    while len(asked) < 2:
        page.wait_for_timeout(20)
    page.wait_for_timeout(1200)
    for route in asked:
        route.continue_()
    expect(page.locator("#matched")).to_have_text("1")
    agent_site.accept(event("Deployment", "the second"))
    expect(page.locator("#matched")).to_have_text("2")


def stands(element: Locator, before: dict[str, float]) -> bool:
    """Whether it is where it was. The page scrolls by what comes above it, which a browser
    does by whole pixels: nobody sees a part of one."""
    now = element.bounding_box()
    return all(abs(now[name] - before[name]) < 1 for name in before)


def test_new_events_do_not_move_what_is_being_read(agent_site, event, settled, open_page) -> None:
    stock(agent_site, event, settled)
    page = open_page(agent_site.url)
    is_told(page, 2)
    expect(rows(page).first).to_be_visible()
    page.mouse.wheel(0, 1500)
    until(page, "() => scrollY > 1000 && globalThis.was === (globalThis.was = scrollY)")
    reading = rows(page).filter(has_text="Run 105 of many")
    before = reading.bounding_box()
    agent_site.accept(event("Deployment", "something new"))
    expect(page.get_by_role("button", name="1 new")).to_be_visible()
    assert stands(reading, before)
    page.get_by_role("button", name="1 new").click()
    expect(page.get_by_text("something new")).to_be_visible()


def test_a_range_is_selected_with_the_pointer(stocked, open_page) -> None:
    page = open_page(stocked.url)
    picture = page.get_by_role("application")
    is_told(page, 2)
    is_counted(page, 120)
    box = picture.bounding_box()
    picture.hover(position={"x": box["width"] * 0.5, "y": 40})
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40, steps=4)
    expect(page.locator(".histogram .readout")).to_have_text(re.compile(r": \d+ events"))
    told = page.locator(".histogram .readout").inner_text()
    page.mouse.up()
    page.wait_for_url(re.compile("since=.*until="))
    expected = re.search(r": (\d+) events", told)
    expect(page.locator("#matched")).to_have_text(expected[1])
    (counted,) = stocked.query(
        "SELECT count(*) FROM entries WHERE received_at >= ? AND received_at < ?",
        *page.evaluate(
            "['since', 'until'].map((n) => Date.parse(new URLSearchParams(location.search).get(n)))"
        ),
    )[0]
    assert counted == int(expected[1])
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("#matched")).to_have_text("120")


def test_a_range_is_selected_with_the_keys(stocked, open_page) -> None:
    page = open_page(stocked.url)
    is_counted(page, 120)
    page.get_by_role("application").focus()
    for key in ("End", "ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    expect(page.locator(".selection rect")).to_be_attached()
    page.keyboard.press("Escape")
    expect(page.locator(".selection rect")).not_to_be_attached()
    for key in ("End", "Shift+ArrowLeft", "Shift+ArrowLeft", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url(re.compile("since=.*until="))
    expect(page.locator("#matched")).not_to_have_text("120")
    assert 1 <= shown_count(page) < 30


def test_the_ranges_of_time_are_buttons(stocked, open_page) -> None:
    page = open_page(stocked.url)
    with page.expect_request(re.compile("/v1/facets[?].*since=")) as counting:
        page.get_by_role("button", name="24h").click()
    (since,) = parse_qs(urlsplit(counting.value.url).query)["since"]
    begins = datetime.fromisoformat(since)
    a_day_ago = datetime.now(UTC) - timedelta(hours=24)
    assert timedelta(0) <= a_day_ago - begins < timedelta(minutes=5)
    (expected,) = stocked.query(
        "SELECT count(*) FROM entries WHERE received_at >= ?", int(begins.timestamp() * 1000)
    )[0]
    expect(page.locator("#matched")).to_have_text(str(expected))
    assert page.url.endswith("?last=24h")
    # The 24 hours, which may be counted once more meanwhile, have no end.
    with page.expect_request(re.compile("/v1/facets[?].*until=")) as counting:
        page.get_by_role("button", name="Last night").click()
    expect(page.get_by_role("button", name="Last night")).to_have_attribute("aria-pressed", "true")
    asked = parse_qs(urlsplit(counting.value.url).query)
    night = [datetime.fromisoformat(asked[name][0]) for name in ("since", "until")]
    assert (night[0].hour, night[0].minute) == (18, 0)
    assert timedelta(0) < night[1] - night[0] <= timedelta(hours=14)
    (expected,) = stocked.query(
        "SELECT count(*) FROM entries WHERE received_at >= ? AND received_at < ?",
        *(int(bound.timestamp() * 1000) for bound in night),
    )[0]
    expect(page.locator("#matched")).to_have_text(str(expected))


def test_back_and_forward_walk_through_the_views(stocked, open_page) -> None:
    page = open_page(stocked.url)
    page.locator('input[value="dead"]').check()
    expect(rows(page)).to_have_count(3)
    rows(page).first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#matched")).to_have_text("3")
    page.go_back()
    expect(page.locator("#matched")).to_have_text("120")
    expect(page.locator('input[value="dead"]')).not_to_be_checked()
    page.go_forward()
    page.go_forward()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_a_view_with_its_open_event_can_be_shared(stocked, open_page) -> None:
    page = open_page(f"{stocked.url}/?state=dead")
    rows(page).first.click()
    expect(page.get_by_role("dialog").locator(".sent")).to_be_visible()
    other = open_page(page.url)
    expect(other.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text(
        page.get_by_role("dialog").get_by_role("heading", level=2).inner_text()
    )
    other.keyboard.press("Escape")
    expect(other.get_by_role("dialog")).to_be_hidden()
    expect(other.locator("#matched")).to_have_text("3")


def test_everything_can_be_done_with_the_keys_alone(stocked, open_page) -> None:
    page = open_page(stocked.url)
    expect(rows(page).first).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("run 11")
    expect(page.locator("#matched")).to_have_text("11")
    expect(rows(page)).to_have_count(11)
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    selected = page.locator('[aria-selected="true"]')
    expect(selected).to_contain_text("Run 117 of many")
    expect(page.get_by_role("grid")).to_have_attribute(
        "aria-activedescendant", selected.get_attribute("id")
    )
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Run 117 of many")
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("grid")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(selected).to_contain_text("Run 118 of many")
    page.keyboard.press("End")
    expect(selected).to_contain_text("Run 11 of many")
    expect(selected).to_be_in_viewport()


def test_the_filters_can_be_reached_and_set_with_the_keys(stocked, open_page) -> None:
    page = open_page(stocked.url)
    box = page.locator('input[value="dead"]')
    expect(page.locator("li", has=box).locator(".count")).to_have_text("3")
    for _ in range(40):
        page.keyboard.press("Tab")
        if box.evaluate("(own) => own === document.activeElement"):
            break
    page.keyboard.press("Space")
    expect(rows(page)).to_have_count(3)
    expect(box).to_be_focused()


def test_it_is_usable_at_a_width_of_360(stocked, open_page) -> None:
    page = open_page(stocked.url, size=(360, 740))
    expect(rows(page).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator("#filters")).to_be_hidden()
    page.get_by_role("button", name="Filters").click()
    page.locator('input[value="dead"]').check()
    expect(page.get_by_role("button", name="Filters (1)")).to_be_visible()
    page.get_by_role("button", name="Filters (1)").click()
    rows(page).first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert (box["x"], box["width"]) == (0, 360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_what_an_event_says_is_text_and_nothing_else(agent_site, event, settled, open_page) -> None:
    scope = {
        "clusters": [HOSTILE],
        "namespaces": ['"><b>x'],
        "servicesNames": ["javascript:alert(1)"],
    }
    details = {
        HOSTILE: HOSTILE,
        "nested": {"html": HOSTILE},
        "__proto__": "x",
        "url": "javascript:1",
    }
    whose = {"producer": f"token:{HOSTILE}", "dedup_key": HOSTILE}
    hop = json.dumps({"ageMs": 1, "attempts": 1, "host": HOSTILE})
    item = event(HOSTILE, HOSTILE, "error", scope=scope, details=details)
    agent_site.accept(item._replace(hop=hop, **whose))
    agent_site.settle(settled.dead(1, int(time.time() * 1000), HOSTILE))
    agent_site.destination.now = agent_site.destination.now._replace(
        state="held", reason=HOSTILE, endpoint=f"https://komodor.test/{HOSTILE}"
    )
    page = open_page(agent_site.url)
    expect(page.locator("#findings")).to_contain_text(f"the destination is held: {HOSTILE}")
    expect(page.locator('#filters [data-group="producer"] .value')).to_have_text(HOSTILE)
    expect(rows(page).locator("b")).to_have_text(HOSTILE)
    expect(page.locator('#filters [data-group="cluster"] .value')).to_have_text(HOSTILE)
    rows(page).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_role("heading", level=2)).to_have_text(HOSTILE)
    expect(drawer.locator(".sent")).to_be_visible()
    expect(drawer.locator(".details")).to_contain_text("__proto__: x")
    expect(drawer.locator(".way")).to_contain_text(f"Handed in on {HOSTILE}")
    expect(drawer.locator(".way")).to_contain_text(f"status 400 · 31ms · {HOSTILE}")
    page.locator('#filters [data-group="cluster"] input').check()
    expect(page.locator("#matched")).to_have_text("1")
    assert page.title() == "⛔ 1 dead · web-1.example · outboxd"
    scripts = page.locator("img, body script")
    assert scripts.count() == 0


def test_the_policy_stops_a_script_that_got_in_all_the_same(agent_site, new_context) -> None:
    context = new_context()
    page = context.new_page()
    page.goto(agent_site.url)
    refused = page.evaluate(
        """() => {
          const script = document.createElement('script');
          try { script.textContent = 'document.title = "owned"'; } catch { return true; }
          document.body.append(script);
          return document.title !== 'owned';
        }"""
    )
    assert refused
    assert page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; } catch { return true; } }"
    )


def test_nothing_moves_while_the_page_comes_in(stocked, open_page) -> None:
    page = open_page("about:blank")
    page.add_init_script(
        "window.shifts = 0; new PerformanceObserver((list) => { for (const e of list.getEntries())"
        " if (!e.hadRecentInput) window.shifts += e.value; })"
        ".observe({ type: 'layout-shift', buffered: true });"
    )
    # It waits for its first status so long, and then comes without: here however long it takes.
    page.add_init_script(
        "const later = window.setTimeout; window.setTimeout = (act, ms, ...more) =>"
        " later(act, ms === 400 ? 120_000 : ms, ...more);"
    )
    counts: list[Route] = []  # which come last, as they may
    page.route("**/v1/facets*", lambda route: counts.append(route), times=1)
    page.goto(stocked.url)
    expect(page.locator("#status")).to_contain_text("waiting")
    while not counts:
        page.wait_for_timeout(20)
    counts[0].continue_()
    expect(rows(page).first).to_be_visible()
    expect(page.locator("#matched")).to_have_text("120")
    expect(page.locator("#live")).to_have_text("Live")
    stated = page.evaluate("new Promise((done) => setTimeout(() => done(window.shifts), 300))")
    # A tenth is what browsers' makers call good; here nearly nothing may move.
    assert stated < 0.02


def test_the_strip_shades_an_outage(agent_site, open_page) -> None:
    clock = agent_site.activity._clock
    start = clock.wall_ms()
    for minutes, state in ((50, "ok"), (40, "backingOff"), (20, "ok")):
        agent_site.destination.now = agent_site.destination.now._replace(state=state)
        sample = agent_site.activity._now()._replace(at=start - minutes * MINUTE_MS)
        agent_site.activity._samples.append(sample)
    agent_site.activity._samples.popleft()
    page = open_page(agent_site.url)
    expect(page.locator(".strip .outage").first).to_be_attached()
    expect(page.locator(".of-outage b")).to_have_text("20m")
    expect(page.get_by_role("img", name=re.compile("outage 20m"))).to_be_visible()


def test_thousands_in_a_bucket_and_how_far_a_search_has_come_are_told_whole(
    agent_site, event, open_page
) -> None:
    agent_site.accept(*[event(received_at=int(time.time() * 1000))] * 1_234)
    page = open_page(agent_site.url)
    label = page.locator("#histogram .grid text").filter(has_text="1,234")
    assert label.evaluate("(text) => text.getBBox().x") >= 0

    facets = f"{agent_site.url}/v1/facets"
    told = page.request.get(facets, timeout=PATIENCE_S * 1000).json()
    told |= {"complete": False, "expected": 1_000, "searched": 140}
    page.route("**/v1/facets*", lambda route: route.fulfill(json=told))
    page.locator("#q").fill("nothing like it")
    expect(page.locator("#searching")).to_contain_text("Searching… 14 %")
    expect(page.locator("#filters > .progress")).to_have_text("Counting… 14 %")
    page.unroute_all(behavior="wait")


def test_the_strip_says_as_many_wait_as_the_head_and_how_long_it_has_looked(
    agent_site, event, open_page
) -> None:
    page = open_page(agent_site.url)
    expect(page.locator(".of-outage")).to_contain_text(re.compile(r"outage, last \d+ min$"))
    agent_site.accept(event(), event())
    expect(page.locator("#status")).to_contain_text("2 waiting")
    expect(page.locator(".of-backlog b")).to_have_text("2")


def test_the_sandbox_marks_the_services_that_an_event_reaches(sandbox_site, open_page) -> None:
    plain: dict[str, Any] = {"eventType": "deploy", "summary": "one"}
    sandbox_site.receive(
        plain,
        {**plain, "scope": {"namespaces": ["C"], "servicesNames": ["5"]}},
        {**plain, "scope": {"clusters": ["A"], "namespaces": ["D"], "servicesNames": ["2"]}},
    )
    page = open_page(sandbox_site.url)
    expect(rows(page)).to_have_count(3)
    inventory = page.get_by_role("region", name="Inventory")
    marked = inventory.locator(".marked")
    for index, (service, count) in enumerate(
        [("2", 1), ("Cross-service event", 2), ("Cross-service event", 20)]
    ):
        row = page.locator(f'[aria-rowindex="{index + 2}"]')
        expect(row.locator(".c-service .word")).to_have_text(service)
        page.get_by_role("grid").focus()
        page.keyboard.press("ArrowDown")
        expect(marked).to_have_count(count)
    page.keyboard.press("Enter")
    drawer = page.get_by_role("dialog")
    expect(drawer).to_contain_text("Correlated to 20 services")
    expect(drawer.locator(".marked")).to_have_count(20)
    expect(drawer.locator(".where")).to_contain_text("Every service")
    sandbox_site.sandbox.change_faults({"outage": True})
    expect(page.locator("#status")).to_contain_text("Outage")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.long
def test_words_stand_out_from_their_ground(stocked, open_page, scheme: str) -> None:
    page = open_page(f"{stocked.url}/?state=dead", scheme=scheme)
    rows(page).first.click()
    expect(page.get_by_role("dialog").locator(".commands")).to_be_visible()
    too_faint = page.evaluate(CONTRAST)
    assert json.loads(too_faint) == []


# Texts whose contrast to the nearest opaque ground is below WCAG's AA (4.5 : 1).
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (color) => {
    const [r, g, b] = parse(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const groundOf = (element) => {
    for (let own = element; own; own = own.parentElement) {
      const color = getComputedStyle(own).backgroundColor;
      if ((parse(color)[3] ?? 1) !== 0) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const seen = element.checkVisibility() && !element.closest('svg, .unseen, .skip, [disabled]');
    if (!own || !seen) continue;
    const a = light(getComputedStyle(element).color);
    const b = light(groundOf(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([element.className, element.textContent.slice(0, 30), ratio]);
  }
  return JSON.stringify(found);
}"""


COUNTED_MS = 900_000  # a million entries, on a machine that does much else


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_very_many_events_stay_easy_to_look_at(agent_site, event, open_page) -> None:
    entries = 1_000_000
    fill(agent_site, event, entries)
    page = open_page(agent_site.url)
    expect(rows(page).first).to_be_visible()
    expect(page.locator("#matched")).to_have_text(f"{entries:,}", timeout=COUNTED_MS)
    box = page.locator('input[value="error"]')
    (expected,) = agent_site.query("SELECT count(*) FROM entries WHERE severity = 'error'")[0]
    box.check()
    expect(page.locator("#matched")).to_have_text(f"{expected:,}", timeout=COUNTED_MS)
    expect(rows(page).first).to_contain_text("3 of")
    ends_s = time.monotonic() + PATIENCE_S
    while page.evaluate("scrollY") <= 4000:  # as far as there are rows, which come as one scrolls
        assert time.monotonic() < ends_s, "no more rows come"
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(50)
    expect(rows(page).first).to_be_visible()
    assert rows(page).count() < 60
    agent_site.accept(event("Deployment", "while it is looked at", "error"))
    expect(page.locator("#matched")).to_have_text(f"{expected + 1:,}", timeout=COUNTED_MS)


def fill(site, event, entries: int) -> None:
    """Very many events, most of them delivered, over a week."""
    now = int(time.time() * 1000)
    step = 7 * 24 * HOUR_MS // entries
    for start in range(0, entries, 5000):
        items = [
            event(
                ("Nightly backup", "Deployment", "Cron job")[index % 3],
                f"{index % 10} of ten",
                "error" if index % 10 == 3 else "information",
                scope={"clusters": [("prod", "staging")[index % 2]]},
                received_at=now - (entries - index) * step,
            )
            for index in range(start, min(start + 5000, entries))
        ]
        site.accept(*items)


# --- what is true ------------------------------------------------------------------


def test_everything_that_is_wrong_stands_at_the_top_with_what_to_do(
    agent_site, event, settled, open_page
) -> None:
    agent_site.accept(event(received_at=int(time.time() * 1000) - 16 * MINUTE_MS), event())
    agent_site.settle(settled.dead(2, int(time.time() * 1000)))
    agent_site.admission._free_bytes = lambda: 0
    agent_site.admission._sample(time.monotonic())
    agent_site.told(socket_path="/tmp/of this agent")
    page = open_page(agent_site.url)
    findings = page.locator("#findings li")
    expect(findings).to_have_count(3)
    expect(findings.nth(0)).to_have_attribute("data-level", "critical")
    expect(findings.nth(0)).to_contain_text("no events are taken")
    expect(findings.nth(1)).to_contain_text(
        re.compile("the oldest entry has waited (1[6-9]|2[0-9])m")
    )
    expect(findings.nth(2)).to_contain_text("1 dead letter, the last one")
    expect(findings.nth(2)).to_contain_text("outboxd dead-letters retry --all")
    expect(findings.nth(2).locator("code")).to_have_text(
        [
            "outboxd dead-letters --socket '/tmp/of this agent'",
            "outboxd dead-letters retry --all --socket '/tmp/of this agent'",
        ]
    )
    expect(page.locator(".bulk-command code")).to_have_text(
        "outboxd dead-letters retry --all --socket '/tmp/of this agent'"
    )
    expect(page.locator(".chip")).not_to_contain_text("Delivering")
    expect(page.locator("#host")).to_have_text("web-1.example")
    expect(page).to_have_title(re.compile("1 dead · web-1.example"))


def test_a_waiting_event_says_why_it_waits_and_until_when(agent_site, event, open_page) -> None:
    agent_site.accept(event())
    until = int(time.time() * 1000) + 20 * MINUTE_MS
    agent_site.destination.now = agent_site.destination.now._replace(
        state="backingOff", reason="connection refused", next_probe_at=until
    )
    page = open_page(agent_site.url)
    expect(rows(page)).to_contain_text(re.compile("next try in (1[0-9]|20)m"))
    rows(page).click()
    expect(page.get_by_role("dialog").locator(".way")).to_contain_text(
        re.compile(
            r"the destination is unavailable: connection refused; "
            r"next try at .*, in (1[0-9]|20)m"
        )
    )


def test_when_the_agent_is_gone_nothing_looks_fine(agent_site, event, new_context) -> None:
    agent_site.accept(event("Deployment", "before"), event("Backup", "too"))
    context = new_context()
    page = context.new_page()
    page.goto(agent_site.url)
    expect(rows(page)).to_have_count(2)
    expect(page.locator('input[name="type"][value="Backup"]')).to_be_attached()
    agent_site.leave()
    expect(page.locator("#stale")).to_contain_text("No answer from the agent since")
    expect(page.locator("#live")).to_have_text("No answer")
    expect(page.locator("body")).to_have_class(re.compile("stale"))
    expect(page).to_have_title(re.compile("^no answer"))
    page.locator('input[name="type"][value="Backup"]').check(force=True)
    expect(rows(page)).to_have_count(0)
    expect(page.locator("#note")).to_contain_text("cannot be shown: no answer from 127.0.0.1:")


def test_an_agent_that_stands_still_looks_so_within_seconds(
    agent_site, event, new_context, full: bool
) -> None:
    """It takes every question, and answers none."""
    if not full:
        pytest.skip("it is among the full figures: --full")
    agent_site.accept(event("Deployment", "before"))
    context = new_context()
    page = context.new_page()
    page.goto(agent_site.url)
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#live")).to_have_text("Live")
    goes_on = threading.Event()
    agent_site._loop.call_soon_threadsafe(goes_on.wait)
    try:
        expect(page.locator("#stale")).to_be_visible()
        expect(page).to_have_title(re.compile("^no answer"))
        expect(page.locator("#live")).to_have_text("No answer")
    finally:
        goes_on.set()
    expect(page.locator("#stale")).to_be_hidden()


@pytest.mark.long
def test_the_agents_clock_counts_where_the_browsers_is_an_hour_off(
    agent_site, event, new_context
) -> None:
    now = time.time()
    agent_site.accept(event("Deployment", "just now"))
    agent_site.destination.now = agent_site.destination.now._replace(
        state="backingOff", reason="refused", next_probe_at=int((now + 1200) * 1000)
    )
    context = new_context()
    page = context.new_page()
    page.clock.set_system_time(time.time() + 3600)
    page.goto(f"{agent_site.url}/?last=15m")
    expect(rows(page)).to_contain_text(re.compile("next try in (1[0-9]|20)m"))
    expect(page.locator("#matched")).to_have_text("1")
    expect(page.locator("#findings")).to_contain_text(re.compile("clock is (1h|59m) ahead of"))
    rows(page).click()
    expect(page.get_by_role("dialog").locator(".ago")).to_have_text(
        re.compile("^(just now|[0-9]+s ago|[1-9]m ago)$")
    )


@pytest.mark.long
def test_a_page_says_that_another_version_runs_by_now(agent_site, event, open_page) -> None:
    page = open_page(agent_site.url)
    expect(page.locator("#live")).to_have_text("Live")
    agent_site.told(version="1.3.0")
    agent_site.accept(event())
    note = page.locator("#findings li")
    expect(note).to_contain_text("outboxd 1.3.0 runs here now")
    expect(page).to_have_title(re.compile("^1 waiting"))
    note.get_by_role("link", name="Load it anew").click()
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("#findings li")).to_have_count(0)


# --- what keeps still --------------------------------------------------------------


def is_told(page: Page, findings: int) -> None:
    """So much is told above the list: the page stands as it stays."""
    expect(page.locator("#findings li")).to_have_count(findings)


def feed(page: Page, site: Any, event: Any, count: int, act: Any, at_once: int = 1) -> None:
    """Events come in while somebody acts, so many before each act."""
    for number in range(count):
        site.accept(*(event("Deployment", f"arrival {number}") for _ in range(at_once)))
        act(number)
        page.wait_for_timeout(150)


@pytest.mark.parametrize(
    "at_once", [*(pytest.param(each, marks=pytest.mark.long) for each in (1, 4)), 15]
)
def test_what_the_pointer_is_on_stays_there_under_live_traffic(
    agent_site, event, settled, open_page, at_once: int
) -> None:
    """At 5, 20 and 100 events a second."""
    stock(agent_site, event, settled)
    page = open_page(agent_site.url)
    target = rows(page).filter(has_text="Run 115 of many")
    is_told(page, 2)
    expect(target).to_be_visible()
    box = target.bounding_box()
    x, y = box["x"] + 300, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 5)
    feed(page, agent_site, event, 10, lambda n: page.mouse.move(x + n, y), at_once)
    assert stands(target, box)
    many = "50 or more new" if at_once > 4 else f"{10 * at_once} new"
    fresh = page.get_by_role("button", name=many)
    expect(fresh).to_be_visible()
    page.mouse.click(x, y)
    expect(page.get_by_role("dialog").locator(".summary")).to_have_text("Run 115 of many")
    page.keyboard.press("Escape")
    fresh.press("Enter")  # with the pointer still there: else they come by themselves
    expect(page.get_by_text("arrival 9").first).to_be_visible()


@pytest.mark.long
def test_what_is_told_above_the_list_moves_no_row_that_is_pointed_at(
    agent_site, event, settled, open_page
) -> None:
    stock(agent_site, event, settled)
    fine = agent_site.destination.now
    away = fine._replace(state="backingOff", reason="connection refused")
    page = open_page(agent_site.url)
    target = rows(page).filter(has_text="Run 118 of many")
    is_told(page, 2)
    expect(target).to_be_visible()
    box = target.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + box["height"] / 2)
    agent_site.destination.now = away
    is_told(page, 3)
    assert stands(target, box)
    page.mouse.move(5, 5)
    page.evaluate("scrollTo(0, 0)")
    box = target.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + box["height"] / 2)
    # There is nothing to scroll by: what was told stays until the pointer has gone.
    agent_site.destination.now = fine
    expect(page.locator(".chip")).not_to_contain_text("unavailable")
    # It looks again each half second whether it may tell, so it has since looked once.
    page.evaluate("new Promise((done) => setTimeout(done, 600))")
    assert stands(target, box)
    expect(page.locator("#findings li")).to_have_count(3)
    page.mouse.move(5, 5)
    expect(page.locator("#findings li")).to_have_count(2)


@pytest.mark.long
def test_the_focus_and_a_selection_in_the_head_survive_what_happens(
    agent_site, event, settled, open_page
) -> None:
    now = int(time.time() * 1000)
    agent_site.accept(*(event("Deployment", f"number {n}") for n in range(5)))
    agent_site.settle(settled.dead(1, now))
    page = open_page(agent_site.url)
    waiting = page.locator("#status a").filter(has_text="waiting")
    waiting.focus()
    feed(page, agent_site, event, 5, lambda _: None)
    expect(waiting).to_have_text("9 waiting")
    expect(waiting).to_be_focused()
    link = page.get_by_role("link", name="Show them")
    link.focus()
    agent_site.settle(settled.dead(2, now))
    message = page.locator("#findings b").filter(has_text="dead letter")
    expect(message).to_contain_text("2 dead letters")
    expect(link).to_be_focused()
    message.select_text()
    agent_site.settle(settled.dead(3, now))
    expect(page.locator("#status")).to_contain_text("3 dead letters")
    assert page.evaluate("String(getSelection())").startswith("2 dead letters")
    page.evaluate("getSelection().removeAllRanges()")
    expect(message).to_contain_text("3 dead letters")


@pytest.mark.long
def test_no_filter_moves_while_it_is_pointed_at_or_has_the_focus(
    agent_site, event, open_page
) -> None:
    agent_site.accept(*(event("First", "1") for _ in range(3)), event("Second", "2"))
    page = open_page(agent_site.url)
    names = page.locator('[data-group="type"] .value')
    expect(names).to_have_text(["First", "Second"])
    second = page.locator('input[name="type"][value="Second"]')
    box = second.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    agent_site.accept(*(event("Second", "2") for _ in range(9)), event("Third", "3"))
    expect(names).to_have_text(["First", "Second", "Third"])
    assert stands(second, box)
    page.mouse.click(box["x"] + 5, box["y"] + 5)
    expect(rows(page)).to_have_count(10)
    expect(names).to_have_text(["First", "Second", "Third"])
    second.focus()
    page.mouse.move(900, 20)
    agent_site.accept(event("First", "again"))
    expect(page.locator('[data-group="type"] .count').first).to_have_text("4")
    expect(second).to_be_focused()
    expect(names).to_have_text(["First", "Second", "Third"])
    page.locator("#live").focus()
    expect(names).to_have_text(["Second", "First", "Third"])


@pytest.mark.long
def test_the_focus_and_a_selection_in_the_list_let_new_rows_wait(
    agent_site, event, open_page
) -> None:
    agent_site.accept(event("Deployment", "the first"), event("Deployment", "the second"))
    page = open_page(agent_site.url)
    expect(rows(page)).to_have_count(2)
    page.keyboard.press("j")
    agent_site.accept(event("Deployment", "the third"))
    expect(page.get_by_role("button", name="1 new")).to_be_visible()
    expect(rows(page)).to_have_count(2)
    page.locator("#live").focus()
    agent_site.accept(event("Deployment", "the fourth"))
    expect(rows(page)).to_have_count(4)
    rows(page).filter(has_text="the first").locator(".text").select_text()
    agent_site.accept(event("Deployment", "the fifth"))
    expect(page.get_by_role("button", name="1 new")).to_be_visible()
    assert page.evaluate("String(getSelection())") == "the first"
    expect(rows(page)).to_have_count(4)


def test_rows_that_come_move_nothing_that_was_pointed_at_since_they_were_asked_for(
    agent_site, event, open_page
) -> None:
    agent_site.accept(event("Deployment", "the first"))
    page = open_page(agent_site.url)
    expect(rows(page)).to_have_count(1)
    looks: list[Route] = []
    page.route("**/v1/events?*", lambda look: looks.append(look))
    agent_site.accept(event("Deployment", "the second"))
    while not looks:
        page.wait_for_timeout(20)
    rows(page).hover()
    for look in looks:
        look.continue_()
    page.unroute("**/v1/events?*")
    expect(page.get_by_role("button", name="1 new")).to_be_visible()
    expect(rows(page)).to_have_count(1)


@pytest.mark.long
def test_no_filter_moves_while_a_button_of_the_pointer_is_down(
    agent_site, event, open_page
) -> None:
    """The page might become shorter, and what is pressed move away before the click."""
    agent_site.accept(*(event("First", "1") for _ in range(2)), event("Second", "2"))
    page = open_page(agent_site.url)
    names = page.locator('[data-group="type"] .value')
    expect(names).to_have_text(["First", "Second"])
    page.locator("h1").hover()
    page.mouse.down()
    agent_site.accept(*(event("Second", "2") for _ in range(9)))
    expect(page.locator('[data-group="type"] .count')).to_have_text(["2", "10"])
    page.mouse.up()
    expect(names).to_have_text(["Second", "First"])


@pytest.mark.long
def test_the_drawer_never_goes_back_to_the_event_before(agent_site, event, open_page) -> None:
    agent_site.accept(event("Deployment", "the first"), event("Deployment", "the second"))
    page = open_page(agent_site.url)
    rows(page).filter(has_text="the second").click()
    drawer = page.get_by_role("dialog")
    expect(drawer.locator(".sent")).to_be_visible()
    page.route("**/v1/events/*", lambda _: None)  # the next one's answer does not come
    page.keyboard.press("j")
    expect(drawer.locator(".summary")).to_have_text("the first")
    agent_site.call(agent_site.destination.hold("a pause", "alice"))
    expect(page.locator("#status")).to_contain_text("Held")
    expect(drawer.locator(".summary")).to_have_text("the first")
    page.unroute("**/v1/events/*")


def test_a_pause_keeps_everything_as_it_is(agent_site, event, open_page) -> None:
    agent_site.accept(event("Deployment", "the first"))
    page = open_page(agent_site.url)
    expect(rows(page)).to_have_count(1)
    page.locator("#live").click()
    expect(page.get_by_role("button", name="Paused")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    agent_site.accept(event("Deployment", "the second"))
    # Another page has heard of it, and shows it.
    expect(rows(open_page(agent_site.url))).to_have_count(2)
    assert not any(re.search("/v1/(stream|events)", url) for url in asked)
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Paused").click()
    expect(rows(page)).to_have_count(2)


def test_what_was_asked_before_a_pause_changes_nothing_after_it(
    agent_site, event, open_page
) -> None:
    agent_site.accept(event("Deployment", "the first"))
    page = open_page(agent_site.url)
    expect(rows(page)).to_have_count(1)
    page.locator("#live").click()
    expect(page.locator("#live")).to_have_text("Paused")
    # Nothing is asked now: from here on each look at the rows is held back.
    looks: list[Route] = []
    page.route("**/v1/events?*", lambda look: looks.append(look))
    agent_site.accept(event("Deployment", "the second"))
    with page.expect_request("**/v1/events?*"):
        page.locator("#live").click()
    page.locator("#live").click()
    expect(page.locator("#live")).to_have_text("Paused")
    assert looks
    for look in looks:
        look.continue_()
        assert look.request.response() is None, "it was given up, so it gets no answer now"
    page.unroute("**/v1/events?*")
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Paused").click()
    expect(rows(page)).to_have_count(2)


def test_a_selected_text_in_the_drawer_survives_what_happens(
    agent_site, event, settled, open_page
) -> None:
    agent_site.accept(event("Deployment", "a summary to be copied"))
    page = open_page(agent_site.url)
    rows(page).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.locator(".sent")).to_be_visible()
    drawer.locator(".summary").select_text()
    agent_site.settle(settled.delivered(1, int(time.time() * 1000)))
    expect(rows(page)).not_to_contain_text("Waiting")
    page.wait_for_timeout(500)
    assert page.evaluate("String(getSelection())") == "a summary to be copied"
    page.evaluate("getSelection().removeAllRanges()")
    expect(drawer.locator(".way")).to_contain_text("Delivered")


def test_a_row_is_a_link(stocked, open_page) -> None:
    page = open_page(f"{stocked.url}/?state=dead")
    expect(rows(page)).to_have_count(3)
    with page.context.expect_page() as opened:
        rows(page).first.click(modifiers=["ControlOrMeta"])
    other = opened.value
    expect(other.get_by_role("dialog").locator(".summary")).to_have_text("Run 102 of many")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_j_and_k_step_through_with_the_drawer_open(stocked, open_page) -> None:
    page = open_page(stocked.url)
    expect(rows(page).first).to_be_visible()
    for key in ("j", "j", "Enter"):
        page.keyboard.press(key)
    summary = page.get_by_role("dialog").locator(".summary")
    expect(summary).to_have_text("Run 118 of many")
    for key, shown in (("j", 117), ("ArrowDown", 116), ("k", 117), ("ArrowUp", 118)):
        page.keyboard.press(key)
        expect(summary).to_have_text(f"Run {shown} of many")


def test_a_link_to_an_event_far_down_shows_it_in_its_list(stocked, open_page) -> None:
    ((id,),) = stocked.query("SELECT id FROM entries WHERE seq = 4")
    page = open_page(f"{stocked.url}/?event={id}")
    expect(page.get_by_role("dialog").locator(".summary")).to_have_text("Run 3 of many")
    expect(page.locator('[aria-selected="true"]')).to_contain_text("Run 3 of many")


@pytest.mark.parametrize(
    "width", [360, *(pytest.param(each, marks=pytest.mark.long) for each in (901, 960, 1080, 1280))]
)
def test_nothing_is_clipped_at_any_width(stocked, open_page, width: int) -> None:
    page = open_page(stocked.url, size=(width, 800))
    is_told(page, 2)
    expect(rows(page).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for box in (page.locator(".list").bounding_box(), rows(page).first.bounding_box()):
        assert box["x"] + box["width"] <= width
    last = rows(page).first.locator(".c-service").bounding_box()
    assert last["x"] + last["width"] <= width
    if width == 360:
        assert rows(page).first.bounding_box()["y"] < 400, "on a phone the list is the first thing"
    else:
        page.mouse.wheel(0, 1500)
        until(page, "scrollY >= 800")
        assert page.locator(".top").bounding_box()["y"] == 0
        assert page.locator(".head").bounding_box()["y"] == 56


IS_WITHIN = "(width) => document.documentElement.scrollWidth <= width"
PLACEHOLDER_ROOM = """(input) => {
  const style = getComputedStyle(input);
  const pen = document.createElement('canvas').getContext('2d');
  pen.font = style.font;
  const room = input.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  return room - pen.measureText(input.placeholder).width;
}"""


def test_a_hosts_long_name_leaves_the_head_one_row_and_what_to_type_is_whole(
    agent_site, event, open_page
) -> None:
    agent_site.told(host="worker-17.batch-of-the-night.eu-central-1.compute.example.internal")
    agent_site.accept(event())
    page = open_page(agent_site.url, size=(1440, 800))
    expect(page.locator("#status")).to_contain_text("1 waiting")
    expect(page.locator("#live")).to_have_text("Live")
    assert page.locator("#q").evaluate(PLACEHOLDER_ROOM) >= 0
    for width in (1440, 950, 390, 360):
        page.set_viewport_size({"width": width, "height": 800})
        until(page, IS_WITHIN, width)
        host, live, status = (
            page.locator(name).bounding_box() for name in (".kind.agent-only", "#live", "#status")
        )
        assert live["x"] + live["width"] <= width
        assert host["width"] > 100
        assert abs(live["y"] + live["height"] / 2 - host["y"] - host["height"] / 2) < 8, width
        is_above = host["y"] + host["height"] <= status["y"]
        assert is_above or host["x"] + host["width"] <= status["x"], "nothing lies on the name"


# --- many at once ------------------------------------------------------------------

HIDE = """() => {
  Object.defineProperty(document, 'hidden', { value: true, configurable: true });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


@pytest.mark.long
def test_hidden_tabs_let_go_so_that_a_seventh_lives(agent_site, event, new_context) -> None:
    agent_site.accept(event("Deployment", "the first"))
    context = new_context()
    asked: list[str] = []
    for _ in range(6):
        page = context.new_page()
        page.goto(agent_site.url)
        expect(rows(page)).to_have_count(1)
        expect(page.locator("#matched")).to_have_text("1")
        expect(page.locator("#live")).to_have_text("Live")
        page.evaluate(HIDE)
        page.on("request", lambda request: asked.append(request.url))
    seventh = context.new_page()
    seventh.goto(agent_site.url)
    expect(rows(seventh)).to_have_count(1)
    expect(seventh.locator("#live")).to_have_text("Live")
    agent_site.accept(event("Deployment", "the second"))
    expect(rows(seventh)).to_have_count(2)
    assert asked == [], "hidden tabs fetch nothing"


def test_of_seven_tabs_in_sight_each_shows_what_comes(agent_site, event, new_context, full) -> None:
    """Windows side by side: a browser has six connections for all of them."""
    if not full:
        pytest.skip("it is among the full figures: --full")
    agent_site.accept(event("Deployment", "the first"))
    context = new_context()
    pages = []
    for _ in range(7):
        page = context.new_page()
        page.goto(agent_site.url)
        expect(rows(page)).to_have_count(1)
        pages.append(page)
    agent_site.accept(event("Deployment", "the second"))
    for page in pages:
        expect(rows(page)).to_have_count(2)
    # Four listen. On a busy machine one may lose its stream, and another take its place, or
    # who asks get no answer in the seconds that it waits.
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        live = [page.locator("#live").inner_text() for page in pages]
        if live.count("Live") == 4 and "Live, every 3 s" in live:
            break
        assert time.monotonic() < ends_s, live
        pages[0].wait_for_timeout(50)
    pages[0].close()
    expect(pages[6].locator("#live")).to_have_text(re.compile("^Live"))


# --- finding -----------------------------------------------------------------------


def test_ids_statuses_errors_and_dedup_keys_are_found(
    agent_site, event, settled, open_page
) -> None:
    stock(agent_site, event, settled)
    agent_site.accept(event("Deployment", "keyed")._replace(dedup_key="nightly-2026"))
    ((id,),) = agent_site.query("SELECT id FROM entries WHERE seq = 102")
    page = open_page(agent_site.url)
    for text, count in ((id, 1), ("400", 3), ("must be shorter", 3), ("nightly-2026", 1),
                        ("run 7 of", 1), ("eventType", 0)):  # fmt: skip
        page.get_by_role("searchbox").fill(text)
        expect(page.locator("#matched")).to_have_text(str(count))
        expect(rows(page)).to_have_count(count)


def test_a_click_on_a_value_filters_by_it_or_leaves_it_out(stocked, open_page) -> None:
    page = open_page(f"{stocked.url}/?state=dead")
    rows(page).first.click()
    page.get_by_role("dialog").get_by_role("button", name="400", exact=True).click()
    expect(page).to_have_url(re.compile("status=400"))
    expect(rows(page)).to_have_count(3)
    rows(page).first.click()
    page.get_by_role("dialog").get_by_role("button", name="Without Nightly backup").click()
    expect(rows(page)).to_have_count(2)
    assert "notType=Nightly+backup" in page.url
    expect(page.locator("#act code")).to_have_text(
        "outboxd dead-letters retry --all --not 'type=Nightly backup' --status 400"
    )
    page.get_by_role("button", name="Take away type Nightly backup").click()
    expect(rows(page)).to_have_count(3)
    deployments = page.locator('.filters li:has(input[value="Deployment"])')
    deployments.hover()
    deployments.get_by_role("button", name="Leave out Deployment").click()
    expect(rows(page)).to_have_count(2)


def test_who_handed_in_is_named_and_a_click_filters_by_it_or_leaves_it_out(
    agent_site, event, open_page
) -> None:
    """By the user's name or the token's, whatever that is."""
    hostile = "token:<img src=x onerror=alert(1)>\u202e"
    agent_site.accept(
        event("Deployment", "by root"),
        event("Deployment", "from the web", producer="token:web-hosts"),
        event("Deployment", "from afar", producer=hostile),
    )
    page = open_page(agent_site.url)
    group = page.get_by_role("group", name=re.compile("^Handed in by"))
    expect(group.locator(".value")).to_have_text(
        ["<img src=x onerror=alert(1)>\\u202e", "web-hosts", "root"]
    )
    rows(page).filter(has_text="from the web").click()
    page.get_by_role("dialog").get_by_role("button", name="web-hosts", exact=True).click()
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#chosen")).to_have_text(re.compile("handed in by = web-hosts"))
    expect(page.locator("#act code")).to_contain_text("--producer token:web-hosts")
    page.get_by_role("button", name="Take away").click()
    rows(page).filter(has_text="by root").click()
    page.get_by_role("dialog").get_by_role("button", name="Without root").click()
    expect(rows(page)).to_have_count(2)
    assert "notProducer=uid%3A0" in page.url


def test_a_range_is_typed_in_local_time_or_in_utc(stocked, new_context) -> None:
    context = new_context(timezone_id="Europe/Berlin", locale="en-GB")
    page = context.new_page()
    page.goto(stocked.url)
    page.get_by_role("button", name="From … to").click()
    expect(page.get_by_label("Time zone")).to_contain_text("Europe/Berlin")
    page.get_by_label("From", exact=True).fill("2026-01-15 12:00")
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url(re.compile("since=2026-01-15T11%3A00"))
    page.get_by_label("Time zone").select_option("utc")
    expect(page.get_by_label("From", exact=True)).to_have_value("2026-01-15 11:00:00")
    page.get_by_label("From", exact=True).fill("2026-02-30 12:00")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="is no time")).to_be_visible()


def test_what_is_filtered_is_exported_as_json_lines(stocked, open_page) -> None:
    page = open_page(f"{stocked.url}/?severity=error")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").click()
    text = Path(download.value.path()).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    (expected,) = stocked.query("SELECT count(*) FROM entries WHERE severity = 'error'")[0]
    assert len(lines) == expected
    assert {line["severity"] for line in lines} == {"error"}


def test_the_axis_stands_on_whole_hours_on_both_sides_of_a_clock_change(
    stocked, new_context
) -> None:
    context = new_context(timezone_id="Europe/Berlin", locale="en-GB")
    page = context.new_page()
    page.goto(stocked.url)
    for day in ("2026-03-29", "2026-10-25"):
        labels = page.evaluate(
            """async (day) => {
              const { ticks } = await import('/static/format.js');
              const start = Date.parse(`${day}T00:00:00Z`) - 12 * 3600e3;
              return ticks(start, start + 36 * 3600e3, 2 * 3600e3)
                .map(([at]) => new Date(at).getHours() * 60 + new Date(at).getMinutes());
            }""",
            day,
        )
        assert len(labels) > 8
        assert all(minutes % 180 == 0 for minutes in labels), (day, labels)


def test_emoji_and_words_that_need_joiners_are_whole(agent_site, event, open_page) -> None:
    family, farsi = (
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\u0645\u06cc\u200c\u0631\u0648\u062f",
    )
    agent_site.accept(event(family, farsi), event("pay\u200dpal", "a\u200cb"))
    page = open_page(agent_site.url)
    expect(rows(page).nth(1)).to_contain_text(family)
    expect(rows(page).nth(1)).to_contain_text(farsi)
    expect(rows(page).nth(0)).to_contain_text("pay\\u200dpal")
    expect(rows(page).nth(0)).to_contain_text("a\\u200cb")


def test_a_text_that_turns_around_is_spelt_out(agent_site, event, open_page) -> None:
    agent_site.accept(
        event("invoice\u202efdp.exe", "a\u200bb\u0085", details={"k\u202e": "v\u2066"})
    )
    page = open_page(agent_site.url)
    expect(rows(page)).to_contain_text("invoice\\u202efdp.exe")
    rows(page).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.locator(".details")).to_contain_text("k\\u202e: v\\u2066")
    hidden = page.evaluate(
        "/[\\u202a-\\u202e\\u2066-\\u2069\\u200b\\u0080-\\u009f]/.test(document.body.innerText)"
    )
    assert hidden is False


# --- acting ------------------------------------------------------------------------


def test_a_stranger_finds_understands_and_replays_the_dead_letters_of_an_afternoon(
    agent_site, event, settled, open_page
) -> None:
    stock(agent_site, event, settled)
    token = agent_site.sessions.issue("alice (uid 0, pid 1)")
    page = open_page(f"{agent_site.url}/#act={token}")
    expect(page.locator("#acting")).to_have_text("May act")
    assert token not in page.url
    page.locator('input[name="reason"][value="rejected"]').check()
    expect(rows(page)).to_have_count(3)
    rows(page).first.click()
    expect(page.get_by_role("dialog")).to_contain_text("summary must be shorter")
    page.get_by_role("dialog").get_by_role("button", name="Retry", exact=True).click()
    page.get_by_role("button", name="Do it").click()
    expect(rows(page)).to_have_count(2)
    page.get_by_role("button", name="Retry all dead letters shown").click()
    expect(page.locator("dialog.question")).to_contain_text("Send 2 dead letters")
    page.get_by_role("button", name="Do it").click()
    expect(page.get_by_text("No events match.")).to_be_visible()
    assert agent_site.query("SELECT count(*) FROM entries WHERE state = 'dead'") == [(0,)]


def test_what_cannot_be_undone_wants_its_number(agent_site, event, settled, open_page) -> None:
    stock(agent_site, event, settled)
    token = agent_site.sessions.issue("alice (uid 0, pid 1)")
    page = open_page(f"{agent_site.url}/?reason=rejected#act={token}")
    page.get_by_role("button", name="Drop them").click()
    go_on = page.get_by_role("button", name="Do it")
    expect(go_on).to_be_disabled()
    page.get_by_label("The number of events").fill("3")
    go_on.click()
    expect(page.get_by_text("No events match.")).to_be_visible()
    assert agent_site.query("SELECT count(*) FROM entries") == [(117,)]


def test_without_the_link_nothing_can_be_done(stocked, open_page) -> None:
    page = open_page(f"{stocked.url}/?state=dead")
    expect(page.locator("#acting")).to_have_text("Read only")
    rows(page).first.click()
    expect(page.get_by_role("dialog").locator(".sent")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^(Retry|Drop|Hold|Try now)"))).to_have_count(
        0
    )


FOREIGN = """async (url) => {
  const ask = (path, options) => fetch(url + path, { credentials: 'include', ...options });
  const json = { 'Content-Type': 'application/json', 'X-Outboxd-Key': 'guess' };
  const frame = document.createElement('iframe');
  frame.name = 'aim';
  document.body.append(frame);
  const form = document.createElement('form');
  const action = `${url}/v1/hold`;
  Object.assign(form, { method: 'POST', action, target: 'aim', enctype: 'text/plain' });
  document.body.append(form);
  const answered = new Promise((resolve) => { frame.onload = resolve; });
  form.submit();
  const tries = await Promise.allSettled([
    ask('/v1/hold', { method: 'POST', mode: 'no-cors', body: '{}' }),
    ask('/v1/hold', { method: 'POST', headers: json, body: '{}' }),
    ask('/v1/events'),
  ]);
  await answered;
  return tries.map((one) => one.status);
}"""


@pytest.mark.long
def test_a_right_that_ended_while_its_question_stood_is_told_and_nothing_is_done(
    agent_site, event, settled, open_page
) -> None:
    stock(agent_site, event, settled)
    token = agent_site.sessions.issue("alice (uid 0, pid 1)")
    page = open_page(f"{agent_site.url}/?reason=rejected#act={token}", faults_of=("403",))
    rows(page).first.click()
    page.locator(".drawer").get_by_role("button", name="Retry", exact=True).click()
    page.context.clear_cookies()
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("dialog.question")).to_contain_text("the right to act has ended")
    page.get_by_role("button", name="Close", exact=True).last.click()
    expect(page.locator("#acting")).to_have_text("Read only")
    expect(page.locator(".drawer .actions")).to_have_count(0)
    assert agent_site.query("SELECT count(*) FROM entries WHERE state = 'dead'") == [(3,)]


def test_of_two_operators_on_one_dead_letter_the_second_is_told(
    agent_site, event, settled, open_page, full: bool
) -> None:
    if not full:
        pytest.skip("it is among the full figures: --full")
    stock(agent_site, event, settled)
    pages = []
    for _ in range(2):
        token = agent_site.sessions.issue("alice (uid 0, pid 1)")
        page = open_page(f"{agent_site.url}/?reason=rejected#act={token}", faults_of=("404",))
        rows(page).first.click()
        page.locator(".drawer").get_by_role("button", name="Drop").click()
        page.get_by_label("The number of events").fill("1")
        pages.append(page)
    pages[0].get_by_role("button", name="Do it").click()
    expect(pages[0].locator(".drawer")).to_be_hidden()
    pages[1].get_by_role("button", name="Do it").click()
    question = pages[1].locator("dialog.question")
    expect(question).to_contain_text("Somebody dropped it")
    question.get_by_role("button", name="Close").click()
    expect(question).to_have_count(0)


def test_another_site_can_neither_act_nor_read_with_the_browsers_right(
    agent_site, new_context
) -> None:
    """Not even one at another port of this host, for which the cookie is its own site's."""
    context = new_context()
    page = context.new_page()
    token = agent_site.sessions.issue("alice (uid 0, pid 1)")
    page.goto(f"{agent_site.url}/#act={token}")
    expect(page.locator("#acting")).to_have_text("May act")
    other = context.new_page()
    elsewhere = "http://127.0.0.1:9/"
    other.route(elsewhere, lambda route: route.fulfill(body="<p>", content_type="text/html"))
    other.goto(elsewhere)
    assert other.evaluate(FOREIGN, agent_site.url) == ["rejected"] * 3
    assert agent_site.destination.now.state == "ok"
    page.get_by_role("button", name="Hold the destination").click()
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("#status")).to_contain_text("Held")


@pytest.mark.parametrize("path", ["/", "/?state=dead", "/?state=dead&q=nothing+like+it"])
@pytest.mark.long
def test_it_prints_its_rows_and_none_of_its_buttons(stocked, open_page, path: str) -> None:
    page = open_page(stocked.url + path)
    is_told(page, 2)
    expect(page.locator("#matched")).to_have_text(re.compile(r"^\d+$"))
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.get_by_role("button").filter(visible=True).count() == 0
    tops = [row.bounding_box()["y"] for row in rows(page).all()]
    assert tops == sorted(tops)


@pytest.mark.long
def test_a_printed_drawer_is_whole(agent_site, event, open_page) -> None:
    agent_site.accept(event("Deployment", "one", details={f"key {n}": "value" for n in range(90)}))
    page = open_page(agent_site.url)
    rows(page).click()
    expect(page.get_by_role("dialog").locator(".commands")).to_be_visible()
    sheets = page.pdf(format="A4").count(b"/Type /Page\n")
    assert sheets >= 3
    page.emulate_media(media="print")
    shadow = page.locator(".drawer").evaluate("(drawer) => getComputedStyle(drawer).boxShadow")
    assert shadow == "none", "a shadow lies over what stands above it on the sheet"
