"""A batch of faults costs little, is told, and is over when its client has gone."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from outboxd.intake import intake as intake_module
from outboxd.intake.turns import Turns


async def test_the_first_faults_are_told_in_full_and_good_lines_are_taken_all_the_same(
    intake, line
):
    async with intake(spool=False) as parts:
        lines = [*(["{nonsense"] * 150), line("good")]
        _, _, body = await parts.post("\n".join(lines).encode(), "/v1/events/batch")
        results = body["results"]
        assert len(results) == 151
        assert all("line 1 column" in result["error"] for result in results[:100])
        assert {result["error"] for result in results[100:150]} == {
            "not an event: it is no strict JSON object"
        }
        assert all({"error", "field", "hint"} <= set(result) for result in results[:150])
        assert results[150]["status"] == "accepted"


async def test_behind_too_many_faults_nothing_is_looked_at_and_each_line_says_so(
    intake, line, monkeypatch
):
    monkeypatch.setattr(intake_module, "FAULTS_MAX", 1000)
    async with intake(spool=False) as parts:
        lines = [line("first"), *(["1"] * 3000), line("last")]
        _, _, body = await parts.post("\n".join(lines).encode(), "/v1/events/batch")
        results = body["results"]
        assert len(results) == 3002
        assert results[0]["status"] == "accepted"
        assert all(result["retry"] is True for result in results[1001:])
        assert await parts.summaries() == ["first"]


@pytest.mark.parametrize("lines", [1, 40])
@pytest.mark.usefixtures("own_garbage")
async def test_long_faults_do_not_keep_the_loop(intake, lines):
    # A line of this kind takes some 100 ms to explain.
    bad = b'{"eventType": "a", "summary": "b", "details": {"x": [' + b"1," * 100_000 + b"}}\n"
    async with intake(spool=False) as parts:
        longest_s = 0.0
        done = asyncio.Event()

        async def watch():
            nonlocal longest_s
            while not done.is_set():
                before_s = time.thread_time()  # not what else this machine does
                await asyncio.sleep(0)
                longest_s = max(longest_s, time.thread_time() - before_s)

        watching = asyncio.create_task(watch())
        path = "/mgmt/v1/events" if lines == 1 else "/v1/events/batch"
        _, _, body = await parts.post(bad * lines, path)
        done.set()
        await watching
        told = [body] if lines == 1 else body["results"]
        assert len(told) == lines
        assert all("invalid character at line 1 column 20005" in one["error"] for one in told)
        # In turns with the loop, and no turn is long.
        assert longest_s < 0.08


async def test_nobody_reads_on_for_a_client_that_left(intake, line):
    async with intake(spool=False) as parts:
        taken = asyncio.Event()
        real = parts.door.take_lines
        portions = 0

        async def counted(*arguments):
            nonlocal portions
            portions += 1
            taken.set()
            await asyncio.sleep(0.001)
            return await real(*arguments)

        parts.door.take_lines = counted
        data = (line("x" * 100) + "\n").encode() * 50_000
        _, writer = await asyncio.open_unix_connection(str(parts.socket))
        head = b"POST /v1/events/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(data) + data)
        await taken.wait()
        writer.transport.abort()
        await asyncio.sleep(1.0)
        assert portions < 25


async def test_what_curl_made_of_a_file_is_refused_with_what_to_use_instead(
    intake, line, need, tmp_path
):
    curl = need("curl")
    (tmp_path / "two.jsonl").write_text(line("one") + "\n" + line("two") + "\n")
    async with intake(spool=False) as parts:

        async def post(*options):
            process = await asyncio.create_subprocess_exec(
                *(curl, "-sS", "--unix-socket", str(parts.socket), *options),
                "http://localhost/v1/events/batch",
                stdout=asyncio.subprocess.PIPE,
            )
            return json.loads((await process.communicate())[0])

        told = await post("-d", f"@{tmp_path}/two.jsonl")
        assert "--data-binary" in told["hint"]
        assert await parts.entries() == []
        told = await post("--data-binary", f"@{tmp_path}/two.jsonl")
        assert [result["status"] for result in told["results"]] == ["accepted"] * 2
        # One event by -d is an event.
        (tmp_path / "one.json").write_text(line("three"))
        told = await post("-d", f"@{tmp_path}/one.json")
        assert told["results"][0]["status"] == "accepted"


async def test_each_holder_has_one_turn_at_a_time_and_nothing_stays_behind():
    turns = Turns()
    order = []

    async def work(holder, name):
        async with turns.of(holder):
            order.append(name)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append(name)

    await asyncio.gather(work("a", 1), work("a", 2), work("b", 3))
    assert [name for name in order if name != 3] == [1, 1, 2, 2]
    assert order.index(3) < order.index(2)
    assert turns._locks == {}
