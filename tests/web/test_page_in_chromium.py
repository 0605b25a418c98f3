"""The page in a real Chromium, used as a person would use it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from outboxd.outbox.model import EntryChange

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


def shown_count(page: Page) -> int:
    """The number beside the title, once it is complete."""
    expect(page.locator("#matched")).to_have_text(re.compile(r"^[\d,]+$"))
    return int(page.locator("#matched").inner_text().replace(",", ""))


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
    for _ in range(40):
        page.mouse.wheel(0, 3000)
        if page.get_by_text("Run 0 of many", exact=True).count():
            break
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
        expect(rows(page)).to_have_count(min(expected, rows(page).count()))
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
    expect(drawer.get_by_text("Copied")).to_be_visible()
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
    expect(page.locator("#status")).to_contain_text("connection refused")


def test_new_events_do_not_move_what_is_being_read(agent_site, event, settled, open_page) -> None:
    stock(agent_site, event, settled)
    page = open_page(agent_site.url)
    expect(rows(page).first).to_be_visible()
    page.mouse.wheel(0, 1500)
    page.wait_for_function("scrollY > 1000")
    reading = rows(page).filter(has_text="Run 105 of many")
    before = reading.bounding_box()
    agent_site.accept(event("Deployment", "something new"))
    expect(page.get_by_role("button", name="1 new")).to_be_visible()
    assert reading.bounding_box() == before
    page.get_by_role("button", name="1 new").click()
    expect(page.get_by_text("something new")).to_be_visible()


def test_a_range_is_selected_with_the_pointer(stocked, open_page) -> None:
    page = open_page(stocked.url)
    picture = page.get_by_role("application")
    expect(page.locator(".bars rect").first).to_be_attached()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
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
    expect(page.locator(".bars rect").first).to_be_attached()
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
    page.get_by_role("button", name="24h").click()
    expect(page.locator("#matched")).to_have_text("95")
    assert page.url.endswith("?last=24h")
    page.get_by_role("button", name="Last night").click()
    expect(page.get_by_role("button", name="Last night")).to_have_attribute("aria-pressed", "true")
    night = page.evaluate(
        "import('/static/view.js').then(({ bounds, read }) => bounds(read('?last=night')))"
    )
    (expected,) = stocked.query(
        "SELECT count(*) FROM entries WHERE received_at >= ? AND received_at < ?", *night
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


def test_what_an_event_says_is_text_and_nothing_else(agent_site, event, open_page) -> None:
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
    agent_site.accept(event(HOSTILE, HOSTILE, "error", scope=scope, details=details))
    page = open_page(agent_site.url)
    expect(rows(page).locator("b")).to_have_text(HOSTILE)
    expect(page.locator('#filters [data-group="cluster"] .value')).to_have_text(HOSTILE)
    rows(page).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_role("heading", level=2)).to_have_text(HOSTILE)
    expect(drawer.locator(".sent")).to_be_visible()
    expect(drawer.locator(".details")).to_contain_text("__proto__: x")
    page.locator('#filters [data-group="cluster"] input').check()
    expect(page.locator("#matched")).to_have_text("1")
    assert page.title() == "Events · outboxd"
    assert page.locator("img, #grid script, #drawer script, #filters script").count() == 0


def test_the_policy_stops_a_script_that_got_in_all_the_same(agent_site, chromium) -> None:
    context = chromium.new_context()
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
    context.close()


def test_nothing_moves_while_the_page_comes_in(stocked, open_page) -> None:
    page = open_page("about:blank")
    page.add_init_script(
        "window.shifts = 0; new PerformanceObserver((list) => { for (const e of list.getEntries())"
        " if (!e.hadRecentInput) window.shifts += e.value; })"
        ".observe({ type: 'layout-shift', buffered: true });"
    )
    page.goto(stocked.url)
    expect(rows(page).first).to_be_visible()
    assert shown_count(page) == 120
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


@pytest.mark.timeout(900)
def test_very_many_events_stay_easy_to_look_at(agent_site, event, open_page, full: bool) -> None:
    entries = 1_000_000 if full else 50_000
    fill(agent_site, event, entries)
    page = open_page(agent_site.url)
    expect(rows(page).first).to_be_visible()
    expect(page.locator("#matched")).to_have_text(f"{entries:,}", timeout=120_000)
    box = page.locator('input[value="error"]')
    (expected,) = agent_site.query("SELECT count(*) FROM entries WHERE severity = 'error'")[0]
    box.check()
    expect(page.locator("#matched")).to_have_text(f"{expected:,}")
    expect(rows(page).first).to_contain_text("3 of")
    for _ in range(30):
        page.mouse.wheel(0, 4000)
    page.wait_for_function("scrollY > 4000")
    expect(rows(page).first).to_be_visible()
    assert rows(page).count() < 60
    agent_site.accept(event("Deployment", "while it is looked at", "error"))
    expect(page.locator("#matched")).to_have_text(f"{expected + 1:,}")


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
