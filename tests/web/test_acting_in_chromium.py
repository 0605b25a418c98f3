"""Acting on all that a view leaves: what the buttons and the copied command mean, and when."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect

from outboxd.outbox.model import EntryChange

WORDS = (
    "plain",
    '/run/a dir\'s "odd"/$HOME/`id`/\\n.sock',
    "=ls",
    "~root",
    "!!",
    "*",
    "",
    "invoice\u202efdp.exe's",
    "two\nlines\tand a tab",
    "\x1b[31mred\x07\\",
    "\u2066iso\u2069 \U000e0001",
    "漢字 \U0001f469\u200d\U0001f467",
)


def open_to_act(site: Any, open_page: Any, path: str = "/", **options: Any) -> Page:
    token = site.sessions.issue("alice (uid 0, pid 1)")
    page: Page = open_page(f"{site.url}{path}#act={token}", **options)
    expect(page.locator("#acting")).to_have_text("May act")
    return page


def add_dead(
    site: Any, event: Any, settled: Any, count: int = 1, received_at: int | None = None
) -> None:
    events = (event("Rollout", f"refused {n}", received_at=received_at) for n in range(count))
    receipts = site.accept(*events)
    ids = [receipt.id for receipt in receipts]
    seqs = [site.query("SELECT seq FROM entries WHERE id = ?", id)[0][0] for id in ids]
    site.settle(*(settled.dead(seq, int(time.time() * 1000)) for seq in seqs))


def dead_letters(site: Any) -> int:
    return int(site.query("SELECT count(*) FROM entries WHERE state = 'dead'")[0][0])


@pytest.mark.long
def test_a_question_is_left_with_escape_and_nothing_is_done(
    agent_site, event, settled, open_page
) -> None:
    add_dead(agent_site, event, settled)
    page = open_to_act(agent_site, open_page)
    page.get_by_role("button", name="Retry all dead letters shown").click()
    question = page.locator("dialog.question")
    expect(question).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    assert dead_letters(agent_site) == 1


def test_no_button_can_be_pressed_while_the_agent_does_not_answer(
    agent_site, event, settled, open_page
) -> None:
    add_dead(agent_site, event, settled)
    page = open_to_act(agent_site, open_page, faults_of=("Failed to load",))
    page.locator(".row").click()
    expect(page.locator(".drawer .sent")).to_be_visible()
    buttons = page.locator("#act .button, .drawer .actions .button")
    expect(buttons.and_(page.locator(":enabled"))).to_have_count(6)
    agent_site.leave()
    expect(page.locator("#acting")).to_have_text("Cannot act now")
    expect(buttons.and_(page.locator(":disabled"))).to_have_count(6)
    expect(buttons.first).to_have_attribute("title", "The agent does not answer")


@pytest.mark.long
@pytest.mark.parametrize("path", ["?state=pending", "?notState=dead", "?held=true"])
def test_where_a_view_has_no_dead_letters_nothing_is_offered_for_all_of_them(
    agent_site, event, settled, open_page, path: str
) -> None:
    add_dead(agent_site, event, settled)
    page = open_to_act(agent_site, open_page, f"/{path}")
    expect(page.locator("#act")).to_contain_text("No dead letter is in this view")
    expect(page.get_by_role("button", name="Retry all dead letters shown")).to_have_count(0)
    expect(page.locator("#act code")).to_have_count(0)
    page.get_by_role("button", name="Clear all").click()
    expect(page.get_by_role("button", name="Retry all dead letters shown")).to_be_visible()


@pytest.mark.long
def test_that_a_view_has_none_just_now_is_said_to_the_eye(agent_site, event, open_page) -> None:
    agent_site.accept(event())
    page = open_to_act(agent_site, open_page)
    page.get_by_role("button", name="Drop them").click()
    question = page.locator("dialog.question")
    expect(question).to_contain_text("No dead letter is among these events")
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)


@pytest.mark.long
def test_what_died_while_the_question_stood_is_not_meant_by_its_number(
    agent_site, event, settled, open_page
) -> None:
    add_dead(agent_site, event, settled, 3)
    page = open_to_act(agent_site, open_page, "/?reason=rejected")
    page.get_by_role("button", name="Drop them").click()
    expect(page.locator("dialog.question")).to_contain_text("Remove 3 dead letters")
    add_dead(agent_site, event, settled, 2)
    page.get_by_label("The number of events").fill("3")
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("dialog.question")).to_have_count(0)
    expect(page.locator("#status")).to_contain_text("2 dead letters")
    assert dead_letters(agent_site) == 2


@pytest.mark.long
def test_what_came_in_by_a_clock_that_was_set_back_since_is_retried_too(
    agent_site, event, settled, open_page
) -> None:
    an_hour_on = int(time.time() * 1000) + 3_600_000
    add_dead(agent_site, event, settled, 2, received_at=an_hour_on)
    page = open_to_act(agent_site, open_page)
    page.get_by_role("button", name="Retry all dead letters shown").click()
    expect(page.locator("dialog.question")).to_contain_text("Send 2 dead letters")
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("dialog.question")).to_have_count(0)
    expect(page.locator("#status")).to_contain_text("0 dead letters")
    assert dead_letters(agent_site) == 0


def since_of(text: str) -> str:
    found = re.search(r"--since (\S+)", text)
    assert found, text
    return found[1]


@pytest.mark.long
def test_the_last_hour_of_command_and_export_is_the_one_before_they_are_used(
    agent_site, event, settled, open_page
) -> None:
    add_dead(agent_site, event, settled)
    page = open_page(f"{agent_site.url}/?last=1h", permissions=["clipboard-read"])
    expect(page.locator("#matched")).to_have_text("1")
    page.locator("#live").click()  # nothing paints any more
    expect(page.locator("#live")).to_have_text("Paused")
    page.locator("#act code").evaluate("(code) => { globalThis.before = code.textContent; }")
    before = since_of(page.evaluate("globalThis.before"))
    copy = page.locator("#act .copy")
    copy.evaluate("(button) => { globalThis.button = button; }")
    copy.click()
    # The button says so for a moment, which a busy machine may miss.
    expect(page.locator("#announcer")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert since_of(copied) > before
    assert page.evaluate("globalThis.button.isConnected"), "it was pressed, and replaced"
    link = page.get_by_role("link", name="Export")
    with page.expect_download() as download:
        link.click()
    (exported,) = parse_qs(urlsplit(download.value.url).query)["since"]
    assert exported > since_of(copied)


def test_a_word_of_a_command_is_shown_and_copied_as_the_shells_take_it(
    agent_site, open_page, need
) -> None:
    need("zsh")
    page = open_page(agent_site.url)
    quoted, shown = page.evaluate(
        """async (words) => {
          const { quoted } = await import('/static/shell.js');
          const { shown } = await import('/static/dom.js');
          const all = words.map(quoted);
          return [all, all.map(shown)];
        }""",
        list(WORDS),
    )
    assert quoted == shown, "what is selected by hand is another command"
    for shell in ("bash", "zsh"):
        command = [shutil.which(shell) or shell, "-c", "printf '%s\\0' " + " ".join(quoted)]
        environ = {"LC_ALL": "C.UTF-8", "HOME": "/nowhere"}
        told = subprocess.run(command, capture_output=True, env=environ, check=True).stdout
        assert told.decode().split("\0")[:-1] == list(WORDS), json.dumps(quoted)


@pytest.mark.long
@pytest.mark.parametrize("width", [360, 420])
def test_a_row_on_a_phone_says_which_of_its_times_is_which(
    agent_site, event, settled, open_page, width: int
) -> None:
    now = int(time.time() * 1000)
    days_ago = now - 3 * 24 * 3_600_000
    scope = {"servicesNames": ["a-rather-long-name-of-a-service-of-a-team"]}
    agent_site.accept(event("T" * 60, "late", scope=scope, occurred_at=days_ago))
    agent_site.settle(settled.delivered(1, now))
    page = open_page(agent_site.url, (width, 800))
    occurred, ended = page.locator(".row .c-occurred"), page.locator(".row .c-ended .word")
    words = "(cell) => getComputedStyle(cell, '::before').content"
    assert occurred.evaluate(words) == '"occurred "'
    assert ended.evaluate(words) == '"delivered "'
    for cell in (occurred, ended):
        assert cell.evaluate("(cell) => cell.scrollWidth <= cell.clientWidth"), "it is cut"


@pytest.mark.long
def test_the_focus_in_the_drawer_stays_on_what_it_was_on_as_one_steps(
    agent_site, event, open_page
) -> None:
    agent_site.accept(*(event("Rollout", f"number {number}") for number in range(3)))
    page = open_to_act(agent_site, open_page)
    page.locator(".row").first.click()
    drawer = page.locator(".drawer")
    for name in ("Close", "Try now"):
        drawer.get_by_role("button", name=name).focus()
        for key, shown in (("j", "number 1"), ("k", "number 2")):
            page.keyboard.press(key)
            expect(drawer.locator(".summary")).to_have_text(shown)
            expect(drawer.locator(".commands")).to_be_visible()
            expect(drawer.get_by_role("button", name=name)).to_be_focused()


@pytest.mark.long
@pytest.mark.parametrize("width", [360, 420, 901, 1000])
def test_what_the_head_counts_is_whole_while_much_is_wrong(
    agent_site, event, settled, open_page, width: int
) -> None:
    agent_site.accept(*(event() for _ in range(2)))
    ((id,),) = agent_site.query("SELECT id FROM entries WHERE seq = 1")

    async def hold() -> None:
        await agent_site.outbox.change(lambda engine: engine.change(EntryChange.HOLD, id))

    agent_site.call(hold())
    add_dead(agent_site, event, settled)
    agent_site.destination.now = agent_site.destination.now._replace(
        state="backingOff", reason="connection refused"
    )
    page = open_to_act(agent_site, open_page, size=(width, 800))
    counted = page.locator("#status > *")
    expect(counted).to_have_text(["Komodor is unavailable", "2 waiting", "1 held", "1 dead letter"])
    for box in (part.bounding_box() for part in [*counted.all(), page.locator("#live")]):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
