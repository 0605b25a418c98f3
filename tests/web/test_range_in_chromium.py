"""The time range that one types, in the browser that reads it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

NOW = "2026-11-27T04:05:06.789Z"
READ = """async ([texts, now]) => {
  const { read } = await import('/static/range.js');
  const told = (at) => (Number.isNaN(at) ? null : new Date(at).toISOString());
  const both = (text) => [false, true].map((isUtc) => told(read(text, isUtc, Date.parse(now))));
  return texts.map(both);
}"""
# What is typed: what it means in Berlin, and in UTC.
FORMS: dict[str, tuple[str, str]] = {
    "2026-07-01 12:00": ("2026-07-01T10:00:00.000Z", "2026-07-01T12:00:00.000Z"),
    "2026-07-01T12:00:15.25": ("2026-07-01T10:00:15.250Z", "2026-07-01T12:00:15.250Z"),
    "2026-01-15": ("2026-01-14T23:00:00.000Z", "2026-01-15T00:00:00.000Z"),
    "2026-07-01 12:00z": ("2026-07-01T12:00:00.000Z",) * 2,
    "2026-07-01T12:00:00+0130": ("2026-07-01T10:30:00.000Z",) * 2,
    "2026-07-01 12:00 -02:00": ("2026-07-01T14:00:00.000Z",) * 2,
    "3:04": ("2026-11-27T02:04:00.000Z", "2026-11-27T03:04:00.000Z"),
    "03:04:05": ("2026-11-27T02:04:05.000Z", "2026-11-27T03:04:05.000Z"),
    "2h": ("2026-11-27T02:05:06.789Z",) * 2,
    "-90m": ("2026-11-27T02:35:06.789Z",) * 2,
    "7d": ("2026-11-20T04:05:06.789Z",) * 2,
}
NO_TIMES = ("2026-02-30", "2026-13-01", "2026-07-01 24:00", "2026-07-01 12:60", "25:00", "12:61",
            "2026-7-1", "noon", "h", "-", "1795754651", "999999d", "2026-07-01 1")  # fmt: skip


def in_berlin(site: Any, new_context: Any, path: str = "/") -> Page:
    page: Page = new_context(timezone_id="Europe/Berlin", locale="en-GB").new_page()
    page.goto(site.url + path)
    return page


def test_times_are_read_as_people_write_them(agent_site, new_context) -> None:
    page = in_berlin(agent_site, new_context)
    found = page.evaluate(READ, [[*FORMS, *NO_TIMES], NOW])
    assert dict(zip(FORMS, map(tuple, found), strict=False)) == FORMS
    assert found[len(FORMS) :] == [[None, None]] * len(NO_TIMES)


@pytest.mark.long
def test_another_zone_leaves_what_is_typed_and_a_moment_that_nobody_changed(
    agent_site, new_context
) -> None:
    # The hour that comes twice in Berlin: its second time.
    bounds = "since=2026-10-25T01%3A30%3A00.500Z&until=2026-10-25T04%3A00%3A00.000Z"
    page = in_berlin(agent_site, new_context, f"/?{bounds}")
    page.get_by_role("button", name="From … to").click()
    since, until = page.get_by_label("From", exact=True), page.get_by_label("To", exact=True)
    expect(since).to_have_value("2026-10-25 02:30:00")
    until.fill("2026-10-25 06:00")
    page.get_by_label("Time zone").select_option("utc")
    expect(since).to_have_value("2026-10-25 01:30:00")
    expect(until).to_have_value("2026-10-25 06:00")
    page.get_by_label("Time zone").select_option("")
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url(re.compile(r"since=2026-10-25T01%3A30%3A00.500Z&until=2026-10-25T05%3A00"))
    since.press("Escape")
    expect(since).to_be_hidden()
    expect(page.get_by_role("button", name="From … to")).to_be_focused()
