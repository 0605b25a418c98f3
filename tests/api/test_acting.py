"""The right to act from the page: given to operators, used by one browser, kept from all others."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.waiting import PATIENCE_S

from outboxd.api import sessions
from outboxd.outbox.model import Attempt, Settlement


async def ask(agent, method, target, body=b"", **headers):
    """A request to the page's port; status, headers, told."""
    reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
    host = headers.pop("Host", f"127.0.0.1:{agent.port}")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), json.loads(content) if content else None


async def let_in(agent):
    """The headers of a browser that may act."""
    link = (await agent.request("POST", "/v1/page-link", b"{}"))[1]["url"]
    origin, _, token = link.partition("/#act=")
    body = json.dumps({"token": token}).encode()
    status, head, told = await ask(agent, "POST", "/v1/session", body, Origin=origin)
    assert status == 200
    assert "HttpOnly; SameSite=Strict" in head
    cookie = head.partition("Set-Cookie: ")[2].partition(";")[0]
    if not cookie:
        cookie = head.lower().partition("set-cookie: ")[2].partition(";")[0]
    return {"Origin": origin, "Cookie": cookie, "X_Outboxd_Key": told["key"]}, token


async def dead_letter(agent):
    id = await agent.accept()
    seq = (await agent.outbox.get(id)).seq
    attempt = Attempt(agent.clock.wall_ms(), 12, "rejected", 422, "no such field")
    await agent.outbox.exchange([Settlement(seq, "dead", attempt, dead_reason="rejected")], [])
    return id


async def test_a_browser_with_the_link_acts_and_the_log_says_for_whom(agent, capfd):
    async with agent(tcp=True) as running:
        browser, token = await let_in(running)
        id = await dead_letter(running)
        status, _, told = await ask(running, "GET", "/v1/session", **browser)
        assert (status, told["mayAct"]) == (200, True)
        status, _, entry = await ask(running, "POST", f"/v1/events/{id}/retry", b"", **browser)
        assert (status, entry["state"]) == (200, "pending")
        status, _, told = await ask(
            running, "POST", "/v1/dead-letters/retry?reason=rejected", b"{}", **browser
        )
        assert (status, told) == (200, {"changed": 0})
        logged = "".join(capfd.readouterr())  # wherever an earlier test has sent the log
        assert "on the page" in logged
        for secret in (token, browser["Cookie"].partition("=")[2], browser["X_Outboxd_Key"]):
            assert secret not in logged
        status, _, _ = await ask(running, "POST", "/v1/session/end", b"{}", **browser)
        assert status == 200
        assert (await ask(running, "POST", "/v1/hold", b"{}", **browser))[0] == 403


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": None}, 403),
        ({"Cookie": None}, 403),
        ({"Cookie": "outboxd_page=guess"}, 403),
        ({"X_Outboxd_Key": None}, 403),
        ({"X_Outboxd_Key": "guess"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({}, 200),
    ],
    ids=str,
)
async def test_nobody_else_can_use_the_right(agent, change, expected):
    async with agent(tcp=True) as running:
        browser, _ = await let_in(running)
        headers = {name: value for name, value in {**browser, **change}.items() if value}
        status, _, _ = await ask(running, "POST", "/v1/hold", b"{}", **headers)
        assert status == expected
        assert running.destination.state == ("held" if expected == 200 else "ok")


async def test_a_link_is_good_once_and_for_an_hour(agent):
    async with agent(tcp=True) as running:
        browser, token = await let_in(running)
        body = json.dumps({"token": token}).encode()
        status, _, told = await ask(running, "POST", "/v1/session", body, Origin=browser["Origin"])
        assert (status, told["field"]) == (403, "token")
        running.clock.advance(sessions.LASTS_S)
        assert (await ask(running, "POST", "/v1/hold", b"{}", **browser))[0] == 403


async def test_only_operators_get_a_link_and_only_over_the_socket(agent, monkeypatch):
    async with agent(tcp=True) as running:
        assert (await ask(running, "POST", "/v1/page-link", b"{}"))[0] == 404
        monkeypatch.setattr("os.geteuid", lambda: 4242)
        monkeypatch.setattr("outboxd.serve.peer.Peer.user_id", 1234, raising=False)
        status, _ = await running.request("POST", "/v1/page-link", b"{}")
        assert status == 403
