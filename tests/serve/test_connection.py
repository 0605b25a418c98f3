"""One connection on a real socket: order, time, bounds, and who has gone."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme
from support.waiting import PATIENCE_S, until

from outboxd.budgets import ListenerLimits
from outboxd.serve import peer
from outboxd.serve.connection import FREE_BYTES
from outboxd.serve.tls import TlsFiles

GET = b"GET /show/%d HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /show/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_every_answer_says_what_it_is_and_when(serve, run):
    async def main():
        async with serve() as site:
            for data in (LAST, b"GET /nothing HTTP/1.0\r\n\r\n", b"nonsense\r\n\r\n"):
                head = (await site.raw(data)).partition(b"\r\n\r\n")[0].lower()
                for name in (b"date: ", b"content-length: ", b"x-content-type-options: nosniff"):
                    assert b"\r\n" + name in head
                assert b"cross-origin-resource-policy: same-origin" in head
                assert b"server:" not in head

    run(main)


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        (b"HEAD /show/a HTTP/1.1", b"200", b""),
        (b"OPTIONS /show/a HTTP/1.1", b"204", b""),
        (b"OPTIONS * HTTP/1.1", b"204", b""),
        (b"GET http://localhost/show/a?q=1 HTTP/1.1", b"200", b"GET a [('q', '1')]"),
        (b"GET /show/%61%20b HTTP/1.1", b"200", b"GET a b []"),
        (b"GET /%73how/a HTTP/1.1", b"200", b"GET a []"),
        (b"GET /show/a%2Fb HTTP/1.1", b"200", b"GET a/b []"),
        (b"GET /show/../show/a HTTP/1.1", b"404", None),
        (b"PUT /show/a HTTP/1.1", b"405", None),
        (b"CONNECT x:1 HTTP/1.1", b"404", None),
        (b"GET /show/a HTTP/2.0", b"505", None),
    ],
)
def test_odd_targets_and_methods_have_their_answer(serve, run, line, status, said):
    async def main():
        async with serve() as site:
            answer = await site.raw(line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.split()[1] == status
            assert said is None or body == said
            if status in (b"405", b"204"):
                assert b"\r\nAllow: " in head

    run(main)


def test_pipelined_requests_wait_in_the_kernel_and_are_answered_in_order(serve, run):
    async def main():
        async with serve() as site:
            reader, writer = await site.open()
            writer.write(b"".join(GET % number for number in range(20_000)) + LAST)
            async with asyncio.timeout(PATIENCE_S):
                answer = await reader.read()
            writer.close()
            places = [answer.index(b"GET %d []" % number) for number in range(0, 20_000, 500)]
            assert places == sorted(places)
            assert answer.count(b"HTTP/1.1 200") == 20_001

    run(main)


def test_who_reads_no_answers_is_ended_and_held_little_meanwhile(serve, run):
    async def main():
        async with serve(stall_s=0.4) as site:
            reader, writer = await site.open()
            reader._transport.pause_reading()
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            await until(lambda: "answer_unread" in site.seen.limits)
            await until(lambda: site.server.connection_count == 0)
            writer.close()
            assert site.server.limits.bytes.used == 0

    run(main)


def test_an_endless_answer_is_ended_when_nobody_reads_it(serve, run):
    async def main():
        async with serve(stall_s=0.4) as site:
            reader, writer = await site.open()
            reader._transport.pause_reading()
            writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: "answer_unread" in site.seen.limits)
            await until(lambda: site.server.connection_count == 0)
            writer.close()

    run(main)


@pytest.mark.parametrize("tcp", [False, True])
def test_reading_stops_when_its_client_has_gone(serve, run, tcp):
    async def main():
        async with serve(tcp=tcp) as site:
            _, writer = await site.open()
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            await site.seen.waiting.wait()
            if tcp:  # a close alone looks like a half-closed side there
                peer.reset(writer.transport)
            writer.transport.abort()
            await until(lambda: site.seen.cancelled == 1)
            await until(lambda: site.server.connection_count == 0)

    run(main)


def test_a_body_over_its_peers_budget_is_refused_and_given_back(serve, run):
    async def main():
        limits = ListenerLimits(10, 10, bytes=200_000, bytes_per_peer=100_000)
        async with serve(limits=limits) as site:
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"
            answer = await site.raw(head + b"z" * 300_000)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"\r\nRetry-After: 1\r\n" in answer
            await until(lambda: limits.bytes.used == 0)
            assert "bytes" in site.seen.limits
            assert (await site.raw(LAST)).startswith(b"HTTP/1.1 200")

    run(main)


def test_over_the_limit_a_connection_is_told_and_idle_ones_give_way(serve, run, monkeypatch):
    async def main():
        async with serve(limits=ListenerLimits(4, 2)) as site:
            first = await site.open()
            second = await site.open()
            await until(lambda: site.server.connection_count == 2)
            monkeypatch.setattr("outboxd.serve.connected._SETTLED_S", PATIENCE_S)
            assert (await site.raw(b"")).startswith(b"HTTP/1.1 503")
            monkeypatch.setattr("outboxd.serve.connected._SETTLED_S", 0.0)
            assert (await site.raw(LAST)).startswith(b"HTTP/1.1 200")
            async with asyncio.timeout(PATIENCE_S):
                assert await first[0].read() == b""  # the one that was idle longest
            second[1].write(LAST)
            assert (await second[0].read()).startswith(b"HTTP/1.1 200")
            for _, writer in (first, second):
                writer.close()

    run(main)


def test_an_idle_connection_is_closed_after_its_time(serve, run):
    async def main():
        async with serve(keepalive_s=0.2, stall_s=1.0) as site:
            assert await site.raw(b"") == b""

    run(main)


@pytest.fixture
def certificates(tmp_path):
    """Writes a new certificate and key; a client's context that trusts all of them."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def write(common_name):
        issued = authority.issue_cert("127.0.0.1", common_name=common_name)
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
        issued.private_key_pem.write_to_path(str(tmp_path / "key"))
        return TlsFiles(str(tmp_path / "cert"), str(tmp_path / "key"))

    return write, context


def test_tls_serves_the_certificate_that_is_in_force(serve, run, certificates, tmp_path):
    write, context = certificates

    async def served(site):
        _, writer = await site.open()
        certificate = writer.get_extra_info("peercert")
        writer.write(LAST)
        writer.close()
        return dict(pair[0] for pair in certificate["subject"])["commonName"]

    async def main():
        files = write("first")
        async with serve(tcp=True, tls=files, client_tls=context) as site:
            assert (await site.raw(LAST)).startswith(b"HTTP/1.1 200")
            assert await served(site) == "first"
            assert files.renew() is False
            (tmp_path / "cert").write_text("half a cert")
            with pytest.raises(Exception, match="cannot be used"):
                files.renew()
            assert await served(site) == "first"
            write("second")
            assert files.renew() is True
            assert await served(site) == "second"
            body = b"b" * 500_000
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 500000"
            assert (await site.raw(head + b"\r\n\r\n" + body)).endswith(body)

    run(main)


def test_a_handshake_that_stalls_is_ended_and_counts_meanwhile(serve, run, certificates):
    write, context = certificates

    async def main():
        async with serve(tcp=True, tls=write("x"), client_tls=context, stall_s=PATIENCE_S) as site:

            async def begin():
                _, writer = await asyncio.open_connection("127.0.0.1", site.port)
                writer.write(b"\x16\x03\x01")
                return writer

            stalled = await begin()
            await until(lambda: site.server.connection_count == 1)
            site.server.stall_s = 0.2
            ended = await begin()
            await until(lambda: "handshake" in site.seen.limits)
            assert site.server.connection_count == 1, "the first one, which has longer"
            site.server.stall_s = PATIENCE_S
            for writer in (stalled, ended):
                writer.close()
            await until(lambda: site.server.connection_count == 0)
            assert (await site.raw(LAST)).startswith(b"HTTP/1.1 200")

    run(main)


def test_a_body_of_which_a_piece_was_not_held_is_never_taken_for_whole(serve, run):
    async def main():
        # Room for a small piece, and not for the large one before it.
        limits = ListenerLimits(
            connections=4, connections_per_peer=4, bytes=4096, bytes_per_peer=4096
        )
        async with serve(limits=limits) as site:
            size = 64 * 1024 + 10_000
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
            answer = await site.raw([head, b"a" * size])
            assert site.seen.bodies == []
            assert answer.startswith(b"HTTP/1.1 503 ")
            await until(lambda: site.server.connection_count == 0)
            assert limits.bytes.used == 0

    run(main)


def test_a_receipt_goes_out_though_its_peers_budget_is_used_up(serve, run):
    async def main():
        limits = ListenerLimits(
            connections=4, connections_per_peer=4, bytes=1024, bytes_per_peer=1024
        )
        async with serve(limits=limits) as site:
            reader, writer = await site.open()
            head = b"POST /show-size HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            size = FREE_BYTES + 1024
            for _ in range(2):
                writer.write(head % size + b"a" * size)
                async with asyncio.timeout(PATIENCE_S):
                    answer = await reader.readuntil(b"bytes")
                assert answer.startswith(b"HTTP/1.1 201 "), "what was taken is not refused"
            writer.close()
            await until(lambda: site.server.connection_count == 0)
            assert limits.bytes.used == 0

    run(main)


def test_a_large_answer_over_the_budget_is_refused_and_nothing_is_given_back_twice(serve, run):
    async def main():
        limits = ListenerLimits(
            connections=4, connections_per_peer=4, bytes=1024, bytes_per_peer=1024
        )
        async with serve(limits=limits) as site:
            size = FREE_BYTES + 1024
            head = b"GET /large HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
            answer = await site.raw(head + b"a" * size)
            assert answer.startswith(b"HTTP/1.1 503 ")
            await until(lambda: site.server.connection_count == 0)
            assert limits.bytes.used == 0

    run(main)
