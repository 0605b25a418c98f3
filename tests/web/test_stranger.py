"""A bad afternoon on a real agent, and a stranger who has nothing but the page and a minute."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from support.outside import CREATED, Agent, Arrival, Komodor, answer, outboxd
from support.ports import free_address

MINUTE_S = 60.0
TYPES = ("Deployment", "Nightly backup", "Cron job", "Certificate", "Feature flag", "Scaling")
WRONG = {"errors": ["details.pipeline: expected a string, got a number"]}


class Afternoon:
    """Several hundred events, of which one tool's are refused, and one import's too; a key
    that was wrong for a while; one producer who is late."""

    def __init__(self, directory: Path) -> None:
        self.komodor = Komodor()
        self.komodor.respond = self._respond
        self.summaries: list[str] = []
        self.taken: list[str] = []  # summaries
        self.key_is_wrong = False
        self.is_mended = False
        listen = free_address()
        self.agent = Agent(directory, self.komodor.url, extra={"http": {"listen": listen}})
        self.agent.start()

    def pass_by(self) -> None:
        self._hand_in(TYPES, 240)
        self._hand_in(("Rollout",), 14, tool="rollout-bot", pipeline=7)
        self._hand_in(("Import",), 3, broken=True)
        self._await(lambda outbox: outbox["dead"] == 17 and outbox["pending"] == 0)
        self.key_is_wrong = True
        self._hand_in(TYPES, 60)
        self.agent.await_state("held")
        self.key_is_wrong = False
        assert self.agent.request("POST", "/v1/release", b"{}")[0] == 200
        late = (datetime.now(UTC) - timedelta(hours=3)).isoformat(timespec="seconds")
        self._hand_in(("Late import",), 5, occurred_at=late)
        self._await(lambda outbox: outbox["pending"] == 0)

    def close(self) -> None:
        self.agent.kill()
        self.komodor.stop()

    def link(self) -> str:
        told = outboxd("page", "--no-open", "-c", str(self.agent.config), timeout_s=60.0)
        return told.stdout.decode().split()[-1]

    def _respond(self, arrival: Arrival) -> bytes:
        details = arrival.details
        if self.key_is_wrong:
            return answer(401, '{"message": "Invalid API key"}')
        if "broken" in details or ("pipeline" in details and not self.is_mended):
            return answer(422, json.dumps(WRONG if "pipeline" in details else {}))
        self.taken.append(arrival.event["summary"])
        return CREATED

    def _hand_in(
        self, types: tuple[str, ...], count: int, occurred_at: str | None = None, **details: Any
    ) -> None:
        events = [
            {
                "eventType": types[number % len(types)],
                "summary": f"{types[number % len(types)]} {len(self.summaries) + number}",
                "scope": {"clusters": ["prod"]},
                "details": details,
                **({"occurredAt": occurred_at} if occurred_at else {}),
            }
            for number in range(count)
        ]
        self.summaries += [event["summary"] for event in events]
        body = "\n".join(map(json.dumps, events)).encode()
        assert self.agent.request("POST", "/v1/events/batch", body)[0] == 200

    def _await(self, is_so: Any) -> None:
        self.agent.until(
            lambda: True if is_so(self.agent.status()["outbox"]) else None, self.agent.status
        )


@pytest.fixture
def afternoon(tmp_path, full: bool) -> Iterator[Afternoon]:
    if not full:
        pytest.skip("it is among the full figures: --full")
    world = Afternoon(tmp_path)
    try:
        world.pass_by()
        yield world
    finally:
        world.close()


@pytest.mark.alone
def test_a_stranger_replays_the_dead_letters_of_a_bad_afternoon_within_a_minute(
    afternoon, open_page
) -> None:
    page: Page = open_page(afternoon.link())
    began_s = time.monotonic()
    # Finds: what is wrong stands at the top, and leads to the events.
    expect(page).to_have_title(re.compile("17 dead"))
    page.get_by_role("link", name="Show them").click()
    expect(page.locator("#matched")).to_have_text("17")
    # Understands: what Komodor said stands in each row; one tool's are wrong in one way.
    rollout = page.locator(".row").filter(has_text="Rollout").first
    expect(rollout.locator(".error")).to_have_text(WRONG["errors"][0])
    rollout.click()
    drawer = page.locator(".drawer")
    expect(drawer.locator(".why-not")).to_contain_text("Rejected, 422")
    expect(drawer.locator(".details")).to_contain_text("tool: rollout-bot")
    # Replays: that tool's and no others, once Komodor takes them again.
    afternoon.is_mended = True
    drawer.get_by_role("button", name="Rollout", exact=True).click()
    page.get_by_role("button", name="Retry all dead letters shown").click()
    expect(page.locator("dialog.question")).to_contain_text("Send 14 dead letters")
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("#status")).to_contain_text("3 dead letters")
    page.get_by_role("button", name="Take away state dead").click()
    delivered = page.locator('.filters li:has(input[value="delivered"]) .count')
    expect(delivered).to_have_text("14")
    assert time.monotonic() - began_s < MINUTE_S
    # All of the afternoon has arrived once, but for what must not be sent again.
    wanted = [each for each in afternoon.summaries if not each.startswith("Import ")]
    taken = [each for each in afternoon.taken if not each.startswith("outboxd: ")]
    assert sorted(taken) == sorted(wanted)
    assert "page.session_begun" in afternoon.agent.log_text()
