"""What changes entries, and who may."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from outboxd.outbox.model import Attempt, Settlement

CALL = """
import os, socket, sys
if len(sys.argv) > 4:
    os.setgroups([]); os.setgid(int(sys.argv[4])); os.setuid(int(sys.argv[4]))
caller = socket.socket(socket.AF_UNIX); caller.connect(sys.argv[1])
body = sys.argv[3].encode()
head = f"POST {sys.argv[2]} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n"
head += f"Content-Length: {len(body)}\\r\\n\\r\\n"
caller.sendall(head.encode() + body)
answer = b""
while data := caller.recv(65536):
    answer += data
sys.stdout.buffer.write(answer)
"""


async def kill(running, id):
    seq = (await running.outbox.get(id)).seq
    attempt = Attempt(running.clock.wall_ms(), 1, "rejected", 400, "no")
    settlement = Settlement(seq, "dead", attempt, dead_reason="rejected")
    await running.outbox.exchange([settlement], [])


async def test_a_dead_letter_can_be_retried_and_dropped(agent):
    async with agent() as running:
        id = await running.accept(key="k")
        await kill(running, id)
        status, told = await running.request("POST", f"/v1/events/{id}/retry")
        assert (status, told["state"]) == (200, "pending")
        assert ("wake",) in running.destination.calls
        status, told = await running.request("POST", f"/v1/events/{id}/drop", b"{}")
        assert (status, told["id"]) == (200, id)
        assert (await running.request("GET", f"/v1/events/{id}"))[0] == 404
        assert (await running.request("POST", f"/v1/events/{id}/drop"))[0] == 404
        rendered = running.metrics.render().decode()
        assert 'action="drop"} 1' in rendered
        assert 'action="retry"} 1' in rendered


async def test_one_entry_can_be_held_and_released(agent):
    async with agent() as running:
        id = await running.accept()
        body = json.dumps({"id": id}).encode()
        status, told = await running.request("POST", "/v1/hold", body)
        assert (status, told["held"]) == (200, True)
        assert (await running.get("/v1/events?held=true"))["events"][0]["id"] == id
        status, told = await running.request("POST", "/v1/release", body)
        assert (status, told["held"]) == (200, False)


async def test_the_destination_can_be_held_and_released(agent):
    async with agent() as running:
        for body in (b"", b"{}"):
            status, told = await running.request("POST", "/v1/hold", body)
            assert (status, told["state"]) == (200, "held")
            status, told = await running.request("POST", "/v1/release", body)
            assert (status, told["state"]) == (200, "ok")
            assert told["was"]["state"] == "held"


async def test_what_was_delivered_cannot_be_changed(agent):
    async with agent() as running:
        id = await running.accept()
        seq = (await running.outbox.get(id)).seq
        attempt = Attempt(running.clock.wall_ms(), 1, "delivered", 201, None)
        await running.outbox.exchange([Settlement(seq, "delivered", attempt)], [])
        body = json.dumps({"id": id}).encode()
        for target in (f"/v1/events/{id}/retry", f"/v1/events/{id}/drop", "/v1/hold"):
            status, told = await running.request("POST", target, body)
            assert status == 409
            assert set(told) >= {"error", "field", "hint"}


@pytest.mark.parametrize("body", [b"nonsense", b"[]", b'{"id": 1}', b'{"ID": "x"}', b"x" * 20_000])
async def test_a_wrong_order_is_refused(agent, body):
    async with agent() as running:
        status, told = await running.request("POST", "/v1/hold", body)
        assert status in (400, 413)
        assert set(told) >= {"error", "field", "hint"}
        assert running.destination.calls == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
async def test_another_user_may_not_change_anything(agent, tmp_path):
    async with agent() as running:
        id = await running.accept()
        for parent in (tmp_path, *tmp_path.parents):
            if parent.stat().st_uid == os.geteuid() and parent != parent.parent:
                parent.chmod(parent.stat().st_mode | 0o011)
        for target in ("/v1/hold", "/v1/release", f"/v1/events/{id}/drop"):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CALL, str(running.socket), target, "{}", "65534"),
                stdout=subprocess.PIPE,
            )
            answer, _ = await process.communicate()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 403"), answer
            told = json.loads(body)
            assert "65534" in told["error"]
            assert "root" in told["hint"]
        assert (await running.outbox.get(id)).held is False
