"""Who hands in, as the page of a gateway shows it, in a real Chromium."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import Page, expect

from outboxd.status import (
    Callers,
    GatewayStatus,
    ProducerSeen,
    RefusedEvents,
    RefusedUsers,
    StrangerSeen,
    UserRefused,
    WrongClock,
)

HOSTILE = '<script>document.title="owned"</script>\u202e'


@pytest.fixture
def gateway_site(agent_site, event):
    """A gateway to which somebody comes too often, with a wrong clock, or not allowed."""
    now = int(time.time() * 1000)
    callers = Callers(
        producers=(
            ProducerSeen("calm", 5, now, (), ()),
            ProducerSeen(
                "web-hosts",
                40,
                now,
                (
                    RefusedEvents("rate", 12, now, "more events than its rate allows"),
                    RefusedEvents("not_allowed", 3, now, f"it may not name '{HOSTILE}'"),
                ),
                (WrongClock(f"web-7{HOSTILE}", 2 * 3_600_000, now),),
            ),
            ProducerSeen(HOSTILE, 1, now, (), ()),
        ),
        producers_left_out=2,
        strangers=(StrangerSeen("192.0.2.7", "an unknown or revoked token", 9, now),),
        unauthenticated=9,
    )
    agent_site.gateway = GatewayStatus(
        "https://0.0.0.0:8443", 7, 2000, 50, 3, now + 90 * 86_400_000, (), callers
    )
    agent_site.accept(
        event("Deployment", "by root"),
        event("Deployment", "from the web", producer="token:web-hosts"),
        event("Deployment", "from the web too", producer="token:web-hosts"),
        event("Deployment", "from afar", producer=f"token:{HOSTILE}"),
    )
    return agent_site


def row_of(page: Page, name: str):
    return page.locator("#producers tbody tr").filter(has=page.get_by_role("rowheader", name=name))


def test_a_gateways_page_says_who_is_throttled_refused_and_why_and_whose_clock_is_wrong(
    gateway_site, open_page
) -> None:
    page = open_page(gateway_site.url)
    expect(page.locator(".kind:visible")).to_have_text(re.compile("^gateway "))
    producers = page.locator("#producers")
    expect(producers.locator("summary")).to_contain_text("web-hosts 2")
    expect(producers.locator("summary")).to_contain_text(
        "12 throttled · 3 refused · 1 wrong clock · 9 without a token"
    )
    producers.locator("summary").click()
    expect(producers).to_contain_text("A gateway on https://0.0.0.0:8443 · 7 of 2,000 connections")
    cells = row_of(page, "web-hosts").get_by_role("cell")
    expect(cells).to_have_text(
        [
            "2",
            "40",
            re.compile("^12more events than its rate allows; last (just now|.* ago)$"),
            re.compile("^3 not allowedit may not name '<script>document.title"),
            re.compile(r"^web-7<script>.*</script>\\u202e is 2h ahead$"),
        ]
    )
    # Who has trouble comes first.
    expect(page.locator("#producers tbody tr").first.get_by_role("rowheader")).to_have_text(
        "web-hosts≠"
    )
    expect(row_of(page, "root").get_by_role("cell")).to_have_text(["1", "–", "–", "–", "–"])
    expect(row_of(page, "calm").get_by_role("cell")).to_have_text(["0", "5", "–", "–", "–"])
    expect(producers).to_contain_text(
        "Without a valid token: 192.0.2.7 (9 requests, an unknown or revoked token"
    )
    expect(producers.locator(".progress")).to_have_text("2 more")
    producers.get_by_role("button", name="web-hosts", exact=True).click()
    expect(page.locator("#matched")).to_have_text("2")
    expect(page.locator("#chosen")).to_contain_text("handed in by = web-hosts")
    assert "owned" not in page.title()


def test_nothing_in_the_table_moves_while_it_is_pointed_at(gateway_site, event, open_page) -> None:
    page = open_page(gateway_site.url)
    page.locator("#producers summary").click()
    second = page.locator("#producers tbody tr").nth(1)
    expect(second).to_contain_text("<script>")
    second.hover()
    gateway_site.accept(*(event("Deployment", "more") for _ in range(9)))
    expect(page.locator("#producers summary")).to_contain_text("root 10")
    expect(second).to_contain_text("<script>")
    page.mouse.move(5, 5)
    expect(second).to_contain_text("root")


def test_a_hosts_page_says_which_user_was_refused_and_why(agent_site, event, open_page) -> None:
    now = int(time.time() * 1000)
    agent_site.accept(event("Deployment", "by root"))
    agent_site.refused = RefusedUsers(
        (
            UserRefused("uid:1", (RefusedEvents("full", 12, now, f"its share is full {HOSTILE}"),)),
            UserRefused("uid:0", (RefusedEvents("no_right", 1, now - 9 * 86_400_000, ""),)),
        ),
        3,
    )
    page = open_page(agent_site.url)
    summary = page.locator("#producers summary")
    expect(summary).to_contain_text("root 1")
    expect(summary).to_contain_text("12 refused")
    summary.click()
    expect(row_of(page, "daemon").get_by_role("cell")).to_have_text(
        ["0", re.compile("^12 no room in the outboxits share is full <script>.*; last ")]
    )
    expect(row_of(page, "root").get_by_role("cell")).to_have_text(
        ["1", re.compile("^1 no right to actlast ")]
    )
    expect(page.locator("#producers .progress")).to_have_text("3 more")
    assert "owned" not in page.title()


def test_what_is_asked_every_moment_does_not_carry_everybody_who_came(gateway_site) -> None:
    status = gateway_site.call(gateway_site.source.status())
    assert status["gateway"]["unauthenticated"] == 9
    assert not {"producers", "strangers"} & status["gateway"].keys()
    assert "refusedUsers" not in status


def test_a_host_behind_a_gateway_says_so_in_its_head_and_in_each_events_way(
    agent_site, event, settled, open_page
) -> None:
    hop = '{"ageMs":65000,"attempts":3,"host":"db-1"}'
    agent_site.accept(event("Deployment", "it went on")._replace(hop=hop))
    agent_site.settle(settled.delivered(1, int(time.time() * 1000)))
    agent_site.destination.now = agent_site.destination.now._replace(is_gateway=True)
    page = open_page(agent_site.url)
    expect(page.locator("#status")).to_contain_text("Delivering to a gateway")
    page.get_by_role("row").filter(has_text="it went on").click()
    way = page.get_by_role("dialog").locator(".way")
    expect(way).to_contain_text("Handed in on db-1")
    expect(way).to_contain_text("3 attempts")
    expect(way).to_contain_text("Delivered to the gateway")
    expect(page.get_by_role("dialog").locator(".commands")).to_contain_text(
        "outboxd wait --through"
    )
