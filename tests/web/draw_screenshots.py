"""Draws the README's pictures, to look at after each change of the page:
`PYTHONPATH=tests python -m web.draw_screenshots`.

An afternoon at a gateway, and a sandbox, as the tests serve them. The events are drawn
with a fixed seed, so that two drawings differ in what the page does and in the time.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from web.conftest import (
    CHROMIUM_ARGUMENTS,
    AgentSite,
    SandboxSite,
    dead,
    delivered,
    incoming,
)

from outboxd.outbox.model import Incoming
from outboxd.status import (
    Callers,
    GatewayStatus,
    ProducerSeen,
    RefusedEvents,
    StrangerSeen,
    WrongClock,
)
from outboxd.web.activity import KEPT_S, Sample

SCREENSHOTS = Path(__file__).parent / "screenshots"
MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS
EVENTS = 150
WAITING = 4
KINDS = (
    ("Deployment", "information", "{service} 4.2.{number} is out"),
    ("Queue is long", "warning", "orders-{number} has 1,204 messages"),
    ("Cron job failed", "error", "reindex of {service} ended with exit code 1"),
    ("Nightly backup", "information", "backup of {service} took 4m 12s"),
    ("Certificate renewed", "information", "{service}.example.com is valid until March"),
)
PRODUCERS = ("token:web-hosts", "token:ci-runners", "uid:0", "token:db-1")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=CHROMIUM_ARGUMENTS
        ) as browser,
    ):
        site = AgentSite(f"{directory}/outbox.db")
        sandbox = SandboxSite()
        try:
            stock(site)
            draw_gateway(browser, site)
            draw_phone(browser, site)
            draw_print(browser, site)
            draw_sandbox(browser, sandbox)
        finally:
            site.close()
            sandbox.close()


def draw_gateway(browser: Browser, site: AgentSite) -> None:
    page = opened(browser, f"{site.url}/#act={site.sessions.issue('root')}", (1600, 960), "light")
    page.locator("#producers summary").click()
    page.locator("#producers tbody tr").first.wait_for()
    draw(page, "agent.png")


def draw_phone(browser: Browser, site: AgentSite) -> None:
    draw(opened(browser, site.url, (390, 844), "dark"), "phone.png")


def draw_print(browser: Browser, site: AgentSite) -> None:
    page = opened(browser, f"{site.url}/?state=dead", (794, 1123), "light")
    page.locator(".row").first.click()
    page.locator(".drawer .commands").wait_for()
    page.emulate_media(media="print")
    draw(page, "print.png")


def draw_sandbox(browser: Browser, sandbox: SandboxSite) -> None:
    for body in (
        {"eventType": "deploy", "summary": "everything"},
        {"eventType": "deploy", "summary": "cart 4.2 is out", "scope": {"servicesNames": ["2"]}},
        {"eventType": "cron", "summary": "backup failed: exit status 2", "severity": "error",
         "scope": {"clusters": ["A"], "namespaces": ["D"]}},
        {"eventType": "queue", "summary": "orders is long", "severity": "warning",
         "scope": {"clusters": ["B"]}, "details": {"messages": "1204"}},
    ):  # fmt: skip
        sandbox.receive(body)
        time.sleep(0.3)
    page = opened(browser, sandbox.url, (1600, 960), "dark")
    page.locator(".row").first.click()
    page.locator(".drawer .sent").wait_for()
    draw(page, "sandbox.png")


def opened(browser: Browser, url: str, size: tuple[int, int], scheme: str) -> Page:
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, timezone_id="UTC",
        locale="en-GB",
    )  # fmt: skip
    page.goto(url)
    page.locator(".row").first.wait_for()
    return page


def draw(page: Page, name: str) -> None:
    page.wait_for_timeout(1500)  # what slides in has come to rest
    page.screenshot(path=SCREENSHOTS / name)
    page.close()


def stock(site: AgentSite) -> None:
    """Ten hours of events of several producers, with an outage in the last one."""
    now = int(time.time() * 1000)
    site.accept(*events(now))
    settled = range(1, EVENTS - WAITING + 1)
    site.settle(
        *(
            dead(seq, now, "details.pipeline: expected a string, got a number")
            if seq in (60, 61, 63)
            else delivered(seq, now)
            for seq in settled
        )
    )
    site.gateway = GatewayStatus(
        "https://0.0.0.0:8443", 112, 2000, 50, 3, now + 80 * DAY_MS, (), callers(now)
    )
    waiting, total = 0.0, 0.0
    for age_s in range(int(KEPT_S), 0, -5):
        is_out = 1800 <= age_s < 2700
        waiting = waiting + 1.2 if is_out else max(0.0, waiting - 4.0)
        total += 0.0 if is_out else 1.2 + (4.0 if waiting else 0.0)
        state = "backingOff" if is_out else "ok"
        sample = Sample(now - age_s * 1000, round(waiting), round(total), state)
        site.activity._samples.append(sample)
    site.activity._samples.rotate(-1)  # its own first one is the newest
    site.activity._delivered_total = lambda: round(total)
    site.activity._samples.pop()


def events(now: int) -> list[Incoming]:
    chance = random.Random(4)
    found = []
    for number in range(EVENTS):
        event_type, severity, summary = KINDS[chance.choices(range(5), (40, 25, 10, 15, 10))[0]]
        service = chance.choice(("cart", "checkout", "search", "billing"))
        scope = {"clusters": [chance.choice(("prod-eu", "prod-us"))], "namespaces": ["shop"],
                 "servicesNames": [service]}  # fmt: skip
        at = now - (EVENTS - number) * 4 * MINUTE_MS
        found.append(
            incoming(
                event_type,
                summary.format(service=service, number=number),
                severity,
                scope=scope,
                details={"host": f"web-{number % 9}", "commit": f"{number * 7919:07x}"},
                received_at=at,
                occurred_at=at - 900,
                producer=chance.choice(PRODUCERS),
            )
        )
    return found


def callers(now: int) -> Callers:
    not_allowed = RefusedEvents(
        "not_allowed", 4, now - 5 * MINUTE_MS, "this token is not allowed to name 'dev' in clusters"
    )
    rate = RefusedEvents("rate", 37, now - 3 * MINUTE_MS, "more events than its rate allows")
    clock = WrongClock("web-7", 120 * MINUTE_MS, now)
    return Callers(
        (
            ProducerSeen("web-hosts", 412, now, (not_allowed,), (clock,)),
            ProducerSeen("ci-runners", 230, now, (rate,), ()),
            ProducerSeen("db-1", 31, now, (), ()),
        ),
        0,
        (StrangerSeen("10.1.9.14", "an unknown or revoked token", 3, now - 20 * MINUTE_MS),),
        3,
    )


if __name__ == "__main__":
    main()
