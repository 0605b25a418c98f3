"""The reading routes, by the letter of their contract."""

from __future__ import annotations

import asyncio
import json
import os
from urllib.parse import quote

import pytest

from outboxd.api import peer
from outboxd.outbox.model import Attempt, Settlement

ENTRY_KEYS = [
    "id",
    "state",
    "held",
    "eventType",
    "summary",
    "severity",
    "scope",
    "details",
    "occurredAt",
    "receivedAt",
    "dueAt",
    "deliveredAt",
    "source",
    "dedupKey",
    "repeats",
    "attemptCount",
    "lastOutcome",
    "lastStatus",
    "lastError",
    "deadReason",
]


async def test_events_are_listed_newest_first_in_pages(agent):
    async with agent() as running:
        for number in range(25):
            await running.accept(str(number))
        seen = []
        query = "?limit=10"
        while True:
            page = await running.get(f"/v1/events{query}")
            seen += [event["summary"] for event in page["events"]]
            if page["next"] is None:
                break
            query = f"?limit=10&cursor={quote(page['next'])}"
        assert seen == [str(number) for number in reversed(range(25))]


async def test_an_entry_has_every_key_of_the_contract(agent):
    async with agent() as running:
        id = await running.accept(
            "s", details={"n": 123456789012345678901234567890}, scope={"clusters": ["c"]}
        )
        entry = await running.get(f"/v1/events/{id}")
        assert set(ENTRY_KEYS) <= set(entry)
        assert entry["id"] == id
        assert entry["state"] == "pending"
        assert entry["held"] is False
        assert entry["receivedAt"].endswith("Z")
        assert entry["details"] == {"n": 123456789012345678901234567890}
        assert entry["scope"] == {"clusters": ["c"]}
        assert entry["attempts"] == []
        assert entry["sentBody"]["summary"] == "s"
        (listed,) = (await running.get("/v1/events"))["events"]
        assert set(ENTRY_KEYS) <= set(listed)


async def test_an_entry_shows_its_attempts(agent):
    async with agent() as running:
        id = await running.accept()
        seq = (await running.outbox.get(id)).seq
        attempt = Attempt(running.clock.wall_ms(), 12, "rejected", 422, "no such field")
        dead = Settlement(seq, "dead", attempt, dead_reason="rejected")
        await running.outbox.exchange([dead], [])
        entry = await running.get(f"/v1/events/{id}")
        assert entry["state"] == "dead"
        assert entry["deadReason"] == "rejected"
        assert entry["attemptCount"] == 1
        (shown,) = entry["attempts"]
        assert set(shown) == {"at", "durationMs", "outcome", "status", "error"}
        assert (shown["durationMs"], shown["status"]) == (12, 422)


async def test_each_filter_narrows_the_list(agent):
    async with agent() as running:
        await running.accept("a", severity="error", scope={"clusters": ["c1"]})
        await running.accept("b", severity="warning", scope={"namespaces": ["n1"]})
        since = (await running.get("/v1/events?q=b"))["events"][0]["receivedAt"]
        await running.accept("c & d", scope={"servicesNames": ["s1"], "clusters": ["c2"]})
        assert await running.summaries("?severity=error") == ["a"]
        assert await running.summaries("?severity=error&severity=WARNING") == ["b", "a"]
        assert await running.summaries("?cluster=c1&cluster=c2") == ["c & d", "a"]
        assert await running.summaries("?namespace=n1") == ["b"]
        assert await running.summaries("?service=s1&cluster=c2") == ["c & d"]
        assert await running.summaries("?q=" + quote("c & D")) == ["c & d"]
        assert await running.summaries("?type=backup&state=pending&state=dead") == [
            *("c & d", "b", "a")
        ]
        assert await running.summaries("?state=delivered") == []
        assert await running.summaries(f"?since={since}") == ["c & d", "b"]
        assert await running.summaries(f"?until={since}") == ["a"]
        assert await running.summaries("?held=false&limit=1") == ["c & d"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=1&limit=2", "limit"),
        ("state=gone", "state"),
        ("severity=grave", "severity"),
        ("since=yesterday", "since"),
        ("until=2026-11-21", "until"),
        ("cursor=nonsense", "cursor"),
        ("held=perhaps", "held"),
        ("clusters=a", "clusters"),
        ("type=" + "x" * 1001, "type"),
        ("q=%ff", None),
    ],
)
async def test_a_wrong_filter_is_refused_by_name(agent, query, field):
    async with agent() as running:
        status, told = await running.request("GET", f"/v1/events?{query}")
        if field is None:
            assert status in (200, 400)
            return
        assert status == 400
        assert told["field"] == field
        assert told["error"]
        assert told["hint"]


async def test_an_unknown_id_is_404_with_all_three_fields(agent):
    async with agent() as running:
        for target in ("/v1/events/none", "/v1/events/%00", "/v1/events/" + "x" * 500):
            status, told = await running.request("GET", target)
            assert status == 404
            assert set(told) >= {"error", "field", "hint"}


async def test_the_status_has_every_key_of_the_contract(agent):
    async with agent() as running:
        await running.accept()
        status = await running.get("/v1/status")
        assert status["version"] == "1.2.3"
        assert set(status["destination"]) >= {
            *("endpoint", "state", "reason", "since", "nextProbeAt", "permits", "inFlight")
        }
        assert set(status["outbox"]) >= {
            *("pending", "delivered", "dead", "held", "oldestPendingAt", "bytes"),
            *("salvaged", "lostToDamage"),
        }
        assert status["outbox"]["pending"] == 1
        assert status["outbox"]["oldestPendingAt"].endswith("Z")
        assert status["intake"] == {"accepting": True, "reason": None}
        assert status["disk"] == {"freeBytes": 123456789}


async def test_health_and_readiness(agent):
    async with agent() as running:
        assert (await running.request("GET", "/healthz"))[0] == 200
        assert (await running.request("HEAD", "/readyz")) == (200, None)
        running.unhealthy, running.is_ready = "the writer is stuck", False
        for target in ("/healthz", "/readyz"):
            status, told = await running.request("GET", target)
            assert status == 503
            assert set(told) >= {"error", "field", "hint"}


async def test_metrics_are_there(agent):
    async with agent() as running:
        status, text = await running.request("GET", "/metrics")
        assert status == 200
        assert "outboxd_events_accepted_total" in text


async def test_the_tcp_listener_reads_and_changes_nothing(agent):
    async with agent(tcp=True) as running:
        id = await running.accept()
        port = running.port
        assert (await running.request("GET", f"/v1/events/{id}", port=port))[0] == 200
        for target in ("/v1/hold", f"/v1/events/{id}/drop", "/mgmt/v1/events"):
            status, _ = await running.request("POST", target, b"{}", port=port)
            assert status in (403, 404, 405)
        assert (await running.outbox.get(id)).state == "pending"


async def test_the_tcp_listener_serves_no_foreign_host_name(agent):
    async with agent(tcp=True) as running:
        for host, expected in (
            ("localhost:80", 200),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("", 421),
        ):
            status, _ = await running.request("GET", "/v1/status", host=host, port=running.port)
            assert status == expected, host


async def test_numbers_keep_their_text_on_the_way_out(agent):
    async with agent() as running:
        await running.accept(details={"a": 10**400})
        reader, writer = await asyncio.open_unix_connection(str(running.socket))
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert str(10**400).encode() in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["events"]


async def test_a_member_sees_its_own_events_and_an_operator_all(agent, monkeypatch):
    async with agent() as running:
        mine = f"uid:{os.geteuid()}"
        own, other = await running.accept("own", by=mine), await running.accept("o", by="uid:1")
        assert len((await running.get("/v1/events"))["events"]) == 2, "an operator's are all"
        monkeypatch.setattr(peer, "is_operator", lambda _: False)
        listed = (await running.get("/v1/events"))["events"]
        assert [(event["id"], event["producer"]) for event in listed] == [(own, mine)]
        assert (await running.get("/v1/events?producer=uid:1"))["events"] == []
        others = (await running.get(f"/v1/events?notProducer={mine}"))["events"]
        assert others == []
        assert (await running.get(f"/v1/events/{own}"))["summary"] == "own"
        status, hidden = await running.request("GET", f"/v1/events/{other}")
        unknown_id = "0" * 36
        _, unknown = await running.request("GET", f"/v1/events/{unknown_id}")
        assert status == 404
        assert hidden["error"].replace(other, unknown_id) == unknown["error"]
        assert hidden["hint"] == unknown["hint"]
        running.reads_others = True
        assert len((await running.get("/v1/events"))["events"]) == 2
        assert (await running.get(f"/v1/events/{other}"))["summary"] == "o"
