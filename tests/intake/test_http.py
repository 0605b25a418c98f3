"""The contract of the intake over the Unix socket, on a real socket."""

from __future__ import annotations

import asyncio
import json
import subprocess
import zlib

import pytest
from support.waiting import PATIENCE_S

HEAD = b"POST /mgmt/v1/events HTTP/1.1\r\nHost: localhost\r\n"


async def test_an_event_is_answered_201_after_it_is_in_the_outbox(intake, event):
    async with intake(spool=False) as parts:
        status, headers, body = await parts.post(event())
        assert status == 201
        assert headers["content-type"] == "application/json"
        assert body == {"id": body["id"], "status": "accepted", "warnings": []}
        (entry,) = await parts.entries()
        assert entry.id == body["id"]
        assert entry.source == "socket"
        assert json.loads(entry.body)["scope"] == {"clusters": ["prod"]}


async def test_curl_with_the_documentations_own_call_works(intake, event, need):
    curl = need("curl")
    async with intake(spool=False) as parts:
        command = [curl, "-sS", "--unix-socket", str(parts.socket), "-w", "\n%{http_code}"]
        for extra in (
            ["-H", "Content-Type: application/json"],
            [],  # application/x-www-form-urlencoded
            ["-H", "Transfer-Encoding: chunked"],
            ["-H", "Expect: 100-continue"],
            ["--http1.0"],
        ):
            process = await asyncio.create_subprocess_exec(
                *command,
                *extra,
                "--data-binary",
                json.dumps(event()),
                "http://localhost/mgmt/v1/events",
                stdout=subprocess.PIPE,
            )
            output, _ = await process.communicate()
            assert output.endswith(b"\n201"), (extra, output)


async def test_without_any_scope_the_receipt_warns(intake, event):
    async with intake(spool=False) as parts:
        _, _, body = await parts.post({"eventType": "a", "summary": "b"})
        assert any("every service" in warning for warning in body["warnings"])
        _, _, body = await parts.post(event(scope={"serviceNames": ["x"]}))
        assert any("servicesNames" in warning for warning in body["warnings"])


async def test_a_default_scope_is_filled_in_and_silences_the_warning(intake):
    from outboxd.event.komodor import Defaults

    async with intake(spool=False, defaults=Defaults(["home"], [], [], {"host": "h1"})) as parts:
        _, _, body = await parts.post({"eventType": "a", "summary": "b"})
        assert body["warnings"] == []
        (entry,) = await parts.entries()
        sent = json.loads(entry.body)
        assert sent["scope"] == {"clusters": ["home"]}
        assert sent["details"] == {"host": "h1"}


async def test_a_known_dedup_key_is_answered_200_with_the_first_id_and_state(intake, event):
    async with intake(spool=False) as parts:
        _, _, first = await parts.post(event(dedupKey="k"))
        status, _, again = await parts.post(event("another", dedupKey="k"))
        assert status == 200
        assert again["status"] == "duplicate"
        assert again["id"] == first["id"]
        assert again["state"] == "pending"
        status, _, by_header = await parts.post(event(), Idempotency_Key="k")
        assert (status, by_header["id"]) == (200, first["id"])
        assert await parts.summaries() == ["backup done"]


@pytest.mark.parametrize(
    ("headers", "fields", "field"),
    [
        ({"Idempotency_Key": ""}, {}, "Idempotency-Key"),
        ({"Idempotency_Key": "x" * 257}, {}, "Idempotency-Key"),
        ({"Idempotency_Key": "a"}, {"dedupKey": "b"}, "$.dedupKey"),
        ({}, {"dedupKey": ""}, "$.dedupKey"),
    ],
)
async def test_a_wrong_dedup_key_is_refused(intake, event, headers, fields, field):
    async with intake(spool=False) as parts:
        status, _, body = await parts.post(event(**fields), **headers)
        assert (status, body["field"]) == (400, field)
        assert body["error"]
        assert await parts.entries() == []


async def test_the_same_key_in_header_and_body_is_fine(intake, event):
    async with intake(spool=False) as parts:
        status, _, _ = await parts.post(event(dedupKey="k"), Idempotency_Key="k")
        assert status == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"not json", None),
        (b"[]", "$"),
        (b'{"eventType": "a"}', "$.summary"),
        (b'{"eventType": "a", "summary": "b", "sevrity": "error"}', "$.sevrity"),
        (b'{"eventType": "a", "summary": "b", "scope": {"clusters": [1]}}', "$.scope.clusters[0]"),
        (b'{"eventType": "' + b"x" * 61 + b'", "summary": "b"}', "$.eventType"),
    ],
)
async def test_what_is_no_event_is_refused_400_and_a_good_one_after_it_taken(
    intake, event, body, field
):
    async with intake(spool=False) as parts:
        status, _, told = await parts.post(body)
        assert status == 400
        assert set(told) >= {"error", "field", "hint"}
        if field != "$":
            assert told["field"] == field
        assert (await parts.post(event()))[0] == 201
        assert len(await parts.entries()) == 1


async def test_too_large_is_413_with_and_without_a_declared_length(intake, event):
    async with intake(spool=False, event_bytes_max=1000) as parts:
        large = json.dumps(event("x" * 1000)).encode()
        status, _, body = await parts.post(large)
        assert status == 413
        assert set(body) >= {"error", "field", "hint"}
        chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024
        answer = await parts.raw(chunked + b"\r\n" + b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413")
        # Declared, and never sent: refused without waiting for it.
        answer = await parts.raw(HEAD + b"Content-Length: 99999999\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413")
        assert await parts.entries() == []


async def test_an_event_of_exactly_the_limit_is_taken(intake, event):
    data = json.dumps(event("x" * 500)).encode()
    async with intake(spool=False, event_bytes_max=len(data)) as parts:
        assert (await parts.post(data))[0] == 201
        assert (await parts.post(data + b" "))[0] == 413


async def test_a_chunked_body_in_many_pieces_is_one_event(intake, line):
    async with intake(spool=False) as parts:
        data = line().encode()
        pieces = b"".join(b"1\r\n" + data[i : i + 1] + b"\r\n" for i in range(len(data)))
        head = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await parts.raw(head + pieces + b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 201")


async def test_pipelined_requests_are_answered_in_order(intake, line):
    async with intake(spool=False) as parts:
        requests = b""
        for number in range(100):
            data = line(str(number)).encode()
            requests += HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data
        # The writing side is closed after them; every receipt still arrives.
        answer = await parts.raw(requests, half_close=True)
        assert answer.count(b"HTTP/1.1 201") == 100
        assert await parts.summaries() == [str(number) for number in range(100)]
        ids = [entry.id.encode() for entry in await parts.entries()]
        assert [answer.index(id) for id in ids] == sorted(answer.index(id) for id in ids)


async def test_expect_100_continue_is_answered_before_the_body(intake, line):
    async with intake(spool=False) as parts:
        reader, writer = await asyncio.open_unix_connection(str(parts.socket))
        data = line().encode()
        writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(data))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(data)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201")
        writer.close()


async def test_a_body_that_is_refused_by_its_length_is_not_continued(intake):
    async with intake(spool=False) as parts:
        head = HEAD + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
        assert (await parts.raw(head)).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data",
    [
        b"POST /mgmt/v1/events HTT",
        HEAD,
        HEAD + b"Content-Length: 10\r\n\r\n",
        HEAD + b"Content-Length: 10\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
async def test_a_request_that_stalls_is_ended(intake, data):
    async with intake(spool=False, stall_s=0.1) as parts:
        answer = await parts.raw(data)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
        assert await parts.entries() == []


async def test_a_body_that_drips_is_ended_too(intake):
    async with intake(spool=False, stall_s=0.2) as parts:
        reader, writer = await asyncio.open_unix_connection(str(parts.socket))
        writer.write(HEAD + b"Content-Length: 100000\r\n\r\n")

        async def drip():
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408")
        dripping.cancel()
        writer.close()


async def test_what_is_not_http_is_refused_in_json(intake, event):
    async with intake(spool=False) as parts:
        answer = await parts.raw(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split()[1] == b"400"
        assert set(json.loads(body)) >= {"error", "field", "hint"}
        assert (await parts.post(event()))[0] == 201


async def test_unknown_paths_and_methods_are_told_with_what_is_possible(intake):
    async with intake(spool=False) as parts:
        status, _, body = await parts.request("POST", "/mgmt/v1/event", b"{}")
        assert status == 404
        assert "/mgmt/v1/events" in body["hint"]
        status, headers, body = await parts.request("GET", "/mgmt/v1/events")
        assert (status, headers["allow"]) == (405, "POST")
        assert set(body) >= {"error", "field", "hint"}


async def test_the_full_outbox_refuses_503_and_accepts_again_at_nine_tenths(intake, event):
    async with intake(spool=False, events_max=10) as parts:
        ids = [(await parts.post(event()))[2]["id"] for _ in range(10)]
        status, headers, body = await parts.post(event())
        assert status == 503
        assert 1 <= int(headers["retry-after"]) <= 300
        assert "full" in body["error"]
        assert len(await parts.entries()) == 10
        await parts.drop(ids[0])
        assert (await parts.post(event()))[0] == 201
        assert (await parts.post(event()))[0] == 503


async def test_many_producers_at_once_never_pass_the_limit(intake, event):
    async with intake(spool=False, events_max=10) as parts:
        answers = await asyncio.gather(*(parts.post(event()) for _ in range(40)))
        statuses = [status for status, _, _ in answers]
        assert statuses.count(201) == 10
        assert statuses.count(503) == 30
        assert len(await parts.entries()) == 10


async def test_a_short_disk_refuses_507_until_there_is_room(intake, event):
    from outboxd.clock import FakeClock

    clock = FakeClock()
    async with intake(spool=False, free_bytes=1000, clock=clock) as parts:
        status, headers, body = await parts.post(event())
        assert status == 507
        assert "retry-after" in headers
        assert set(body) >= {"error", "field", "hint"}
        parts.free["bytes"] = 1 << 40
        clock.advance(1)
        assert (await parts.post(event()))[0] == 201


async def test_a_batch_takes_the_good_lines_and_tells_of_the_bad(intake, line):
    async with intake(spool=False, event_bytes_max=2000) as parts:
        lines = [
            line("one"),
            "nonsense",
            line("two", dedupKey="k"),
            line("x" * 3000),
            "",
            line("three", dedupKey="k"),
            line("four"),
        ]
        status, _, body = await parts.post("\n".join(lines).encode(), "/v1/events/batch")
        assert status == 200
        results = body["results"]
        statuses = [result.get("status", "error") for result in results]
        assert statuses == [
            *("accepted", "error", "accepted", "error", "error", "duplicate", "accepted")
        ]
        assert all({"error", "field", "hint"} <= set(results[i]) for i in (1, 3, 4))
        assert results[5]["id"] == results[2]["id"]
        assert await parts.summaries() == ["one", "two", "four"]
        assert {entry.source for entry in await parts.entries()} == {"batch"}


async def test_a_batch_with_foreign_line_ends_and_a_last_newline_has_a_result_a_line(intake, line):
    async with intake(spool=False) as parts:
        data = (line("one") + "\r\n" + line("two") + "\r\n").encode()
        _, _, body = await parts.post(data, "/v1/events/batch")
        assert [result["status"] for result in body["results"]] == ["accepted"] * 2
        _, _, body = await parts.post(b"", "/v1/events/batch")
        assert body == {"results": []}


async def test_a_batch_that_finds_the_outbox_full_in_the_middle_says_so(intake, line):
    async with intake(spool=False, events_max=700) as parts:
        data = "\n".join(line(str(number)) for number in range(1000)).encode()
        status, _, body = await parts.post(data, "/v1/events/batch")
        assert status == 200
        results = body["results"]
        assert [result.get("status") for result in results[:700]] == ["accepted"] * 700
        assert all(result["retry"] is True for result in results[700:])
        assert len(results) == 1000
        assert parts.outbox.counts.pending == 700
        assert (await parts.post(data, "/v1/events/batch"))[0] == 503


async def test_a_batch_over_64_mib_is_refused_unread(intake):
    async with intake(spool=False) as parts:
        head = b"POST /v1/events/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 67108865\r\n\r\n"
        assert (await parts.raw(head)).startswith(b"HTTP/1.1 413")


async def test_a_batch_without_a_length_is_cut_at_64_mib_and_the_rest_told(intake):
    async with intake(spool=False) as parts:
        reader, writer = await asyncio.open_unix_connection(str(parts.socket))
        writer.write(b"POST /v1/events/batch HTTP/1.1\r\nHost: x\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        block = b" " * ((1 << 20) - 1) + b"\n"
        for _ in range(65):
            writer.write(b"100000\r\n" + block + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            body = json.loads(await reader.read())
        assert head.startswith(b"HTTP/1.1 200")
        assert len(body["results"]) == 65
        assert body["results"][-1]["retry"] is True
        writer.close()


async def test_an_idempotency_key_for_a_batch_is_refused(intake, line):
    async with intake(spool=False) as parts:
        status, _, body = await parts.post(line().encode(), "/v1/events/batch", Idempotency_Key="k")
        assert (status, body["field"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "nonsense", "gzip, br"])
async def test_a_coded_body_is_refused_with_what_is_taken(intake, line, coding):
    async with intake(spool=False) as parts:
        data = zlib.compress(line().encode())
        for body in (data, b"\x00\xff", line().encode()):
            status, headers, told = await parts.post(body, Content_Encoding=coding)
            assert (status, told["field"]) == (400, "Content-Encoding")
            assert "without" in told["hint"]
            assert headers["accept-encoding"] == "identity"
        assert await parts.entries() == []
        assert (await parts.post(line().encode(), Content_Encoding="identity"))[0] == 201


async def test_no_answer_is_given_after_a_failed_sync(intake, event):
    from outboxd.errors import SyncFailed

    async with intake(spool=False) as parts:

        def fail(items, *marks):
            future = asyncio.get_running_loop().create_future()
            future.set_exception(SyncFailed("the disk failed"))
            return future

        parts.outbox.accept = fail
        with pytest.raises((ConnectionError, IndexError)):
            await parts.post(event())


async def test_a_ttl_of_the_event_goes_before_that_of_the_configuration(intake, event):
    async with intake(spool=False, ttl_s=60.0) as parts:
        await parts.post(event())
        await parts.post(event(ttlSeconds=5))
        entries = await parts.entries()
        assert [e.expires_at - e.received_at for e in entries] == [60_000, 5_000]
