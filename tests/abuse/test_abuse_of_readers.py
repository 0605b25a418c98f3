"""No text that came from outside drives or deceives whoever reads it: terminal, log, file, page.

An attacker has his say in each field of an event, in a spool file's name and
lines, and in what the endpoint answers. All commands and all files that people
read are then looked through for anything that is not simply shown.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fake_agent import FakeAgent
from playwright.sync_api import sync_playwright
from support.agent import ENVIRON
from support.neighbour import House
from support.outside import Komodor, answer
from support.ports import free_address
from support.waiting import PATIENCE_S

# Title, clear screen (C0 and C1), bell, backspace, delete, hyperlink, device control;
# what turns a text around or hides in it; what ends a line.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x9b2J\x9d0;owned\x9c\x90q\x08\x7f\x1b]8;;http://evil\x1b\\"
    "\u202egnp.exe\u2066\u2069\u200b\u200f\ufeff\u2028\u2029\x85\r"
)
FORGED = f"k{HOSTILE}\nState:     delivered"
# What turns a text around or hides in it, and C1: what a page must not have raw.
HIDDEN = re.compile("[\\u202a-\\u202e\\u2066-\\u2069\\u200b\\u200f\\ufeff\\x80-\\x9f]")
# What may stand in a terminal raw: nothing but line breaks.
RAW = re.compile(r"[^\S\n ]|[^\x20-\x7e\n]")

LOGGED: dict[str, dict[str, object]] = {
    "log": {"level": "debug", "format": "json"},
    "webhooks.mine": {"event_type": "'x'", "summary": "a", "details": "{a: a}"},
}

# The rule off, for the agent and for the commands.
RAW_TEXT = """
import outboxd.text as text
text.harmless = lambda text, *, lines=False: text
text.harmless_json = lambda text: text
"""
RAW_PAGE = """
import outboxd.web.page as page
load = page._load
def raw():
    files = load()
    dom = files["dom.js"]
    rule = b"const DECEIVING = "
    assert rule in dom.content
    none = dom.content.replace(rule, rule + b"/never/gu || ")
    files["dom.js"] = dom._replace(content=none)
    return files
page._load = raw
"""

# Many commands in one process, as each of them is slow to start.
READER = """
import contextlib, io, json, sys
from outboxd.cli.main import main
told = {}
for words in json.loads(sys.stdin.read()):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(words)
        except SystemExit as exit:
            code = exit.code
    told[" ".join(words)] = [code, out.getvalue()]
json.dump(told, sys.stdout)
"""


def hostile_answer(arrival: object) -> bytes:
    """A 422 that quotes hostile text: the event becomes a dead letter."""
    return answer(422, json.dumps({"message": HOSTILE}, ensure_ascii=False))


@contextmanager
def read_house(make_house, patch: str = "", **sections) -> Iterator[House]:
    """A house in which Alice has had her say, everywhere."""
    komodor = Komodor()
    komodor.respond = hostile_answer
    try:
        with make_house(komodor.url, patch, **sections) as house:
            say(house)
            yield house
    finally:
        komodor.stop()


def event(key: str) -> dict[str, object]:
    short = HOSTILE[:30]
    names = [HOSTILE[:60], FORGED[:60]]
    return {
        "eventType": short,
        "summary": HOSTILE + "\n" + HOSTILE,
        "scope": dict.fromkeys(("clusters", "namespaces", "servicesNames"), names),
        "details": {HOSTILE: HOSTILE, "forged": FORGED, "deep": [{HOSTILE: [FORGED]}]},
        "dedupKey": f"{FORGED} {key}",
    }


def say(house: House) -> None:
    receipt = house.alice.hand_in("", event("dead"))
    house.agent.await_entry(receipt["id"], state="dead")
    assert (
        house.agent.request("POST", "/v1/hold", json.dumps({"reason": HOSTILE}).encode())[0] == 200
    )
    house.alice.hand_in("", event("pending"))
    house.alice.hand_in("", {**event("wrong"), HOSTILE: HOSTILE})
    new = house.agent.spool / "new"
    for number, content in enumerate((HOSTILE, '{"eventType": 3}\n{"' + HOSTILE + '": 1}\n')):
        path = house.agent.spool / "tmp" / f"t{number}"
        path.write_text(content)
        path.rename(new / f"{number}{HOSTILE}\n".replace("/", "_"))
    house.agent.await_taken()


def commands(house: House) -> list[list[str]]:
    ids = [e["id"] for e in house.agent.request("GET", "/v1/events")[1]["events"]]  # type: ignore[index]
    config = ["-c", str(house.agent.config)]
    payload = str(house.agent.directory / "payload.json")
    Path(payload).write_text(json.dumps({"a": HOSTILE}))
    dead = next(id for id in ids if house.agent.entry(id)["state"] == "dead")
    found = [
        *(["events"], ["events", "--json"], ["status"], ["status", "--json"]),
        *(["dead-letters", "list"], ["dead-letters", "list", "--json"]),
        *(["dead-letters", "export"], ["status", "--check"], ["webhook", "try", "mine", payload]),
        *(["dead-letters", "show", dead], ["wait", dead]),
        *(["events", "--cluster", HOSTILE], ["events", "--not", HOSTILE], ["wait", HOSTILE]),
        *(["events", "show", HOSTILE], ["hold", HOSTILE], ["events", "--cursor", HOSTILE]),
        *(["events", "show", id, *more] for id in ids for more in ((), ("--json",))),
        *(["wait", id, "--timeout", "0s"] for id in ids),
    ]  # fmt: skip
    return [[*words, *config] for words in found]


def raw_texts(house: House, more: tuple[list[str], ...] = ()) -> list[str]:
    """Each place where something of it is not simply shown; `more` commands beside the usual."""
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps([*commands(house), *more]),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        env={**ENVIRON, **house.environ},
    )
    texts = {name: told for name, (_, told) in json.loads(done.stdout).items()}
    assert sum("owned" in told for told in texts.values()) > 8
    texts["the log"] = house.agent.log_text()
    rejected = list((house.agent.spool / "rejected").rglob("*.error"))
    assert len(rejected) == 2
    texts |= {path.name: path.read_text() for path in rejected}
    found = [
        f"{name}: {sorted(set(map(ascii, RAW.findall(told))))}"
        for name, told in texts.items()
        if RAW.search(told.replace("…", "").replace("▁", ""))
    ]
    for name, told in texts.items():
        if "show" in name and "--json" not in name and told.count("\nState:") > 1:
            found.append(f"{name}: a line that is forged")
    return found


def test_nothing_of_it_reaches_a_terminal_or_a_file(make_house):
    with read_house(make_house, **LOGGED) as house:
        assert raw_texts(house) == []


def test_nothing_of_it_reaches_a_log_that_is_for_people(only_full, make_house):
    with read_house(make_house, log={"level": "debug", "format": "console"}) as house:
        config = ["-c", str(house.agent.config)]
        assert raw_texts(house, (["check", *config], ["check", "--json", *config])) == []


def test_without_the_rule_it_is_seen(only_full, make_house):
    with read_house(make_house, RAW_TEXT, **LOGGED) as house:
        assert len(raw_texts(house)) > 10


def emitted(patch: str, tmp_path) -> str:
    """What `emit` prints of a receipt from a gateway or an agent that is hostile."""
    agent = FakeAgent(tmp_path / "s")
    agent.status = 201
    agent.answer = {"id": HOSTILE, "status": HOSTILE, "warnings": [HOSTILE]}
    try:
        (tmp_path / "sitecustomize.py").write_text(patch)
        done = subprocess.run(
            [sys.executable, "-m", "outboxd", "emit", "t", "s", "--socket", str(tmp_path / "s")],
            capture_output=True,
            text=True,
            check=True,
            env={**ENVIRON, "PYTHONPATH": str(tmp_path)},
        )
    finally:
        agent.close()
    assert "owned" in done.stdout
    assert "owned" in done.stderr
    return done.stdout + done.stderr


def test_a_hostile_receipt_is_only_shown(tmp_path):
    assert RAW.findall(emitted("", tmp_path)) == []


def test_without_the_rule_a_receipt_is_seen(only_full, tmp_path):
    assert RAW.findall(emitted(RAW_TEXT, tmp_path)) != []


def on_the_page(make_house, patch: str = "") -> str:
    """What a browser shows of the list and of an entry."""
    address = free_address()
    with read_house(make_house, patch, http={"listen": address}), sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox"],
            timeout=PATIENCE_S * 1000,
        )
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_S * 1000)
        page.goto(f"http://{address}")
        page.locator("[role=option], [role=row], .row").filter(has_text="owned").first.click()
        page.get_by_role("dialog").locator(".details").wait_for()
        shown = str(page.evaluate("document.body.innerText"))
        browser.close()
    assert "owned" in shown
    return shown


def test_the_page_only_shows_it(only_full, need, make_house):
    need("chromium")
    assert HIDDEN.findall(on_the_page(make_house)) == []


def test_without_the_rule_the_page_is_seen(only_full, need, make_house):
    need("chromium")
    assert HIDDEN.findall(on_the_page(make_house, RAW_PAGE)) != []
