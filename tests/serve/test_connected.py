"""A full listener takes newcomers, and ends nothing that is at work for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from support.waiting import PATIENCE_S, until

from outboxd.budgets import ListenerLimits
from outboxd.serve import connection
from outboxd.serve.answers import Refusal
from outboxd.serve.connected import Connections

ASK = b"GET /show/1 HTTP/1.1\r\nHost: x\r\n%b\r\n"
KNOWN = ASK % b"Who: me\r\n"


def guard(request):
    request.identity = request.header("who")
    if request.identity is None:
        raise Refusal(401, "nobody knows you")


@pytest.fixture
def full_listener(serve):
    """A TCP listener with room for four peers, and peers, each with an address of its own."""

    @asynccontextmanager
    async def start(**options):
        options = {"guards": (guard,), "has_strangers": True, **options}
        async with serve(tcp=True, limits=ListenerLimits(4, 4), **options) as site:
            opened = []

            def has_come(own_port, refused_before):
                """Whether the server has taken or refused it: the kernel alone connects it."""
                if site.server._joining:
                    return False
                taken = [one._transport for one in site.server.connections]
                ports = [transport.get_extra_info("peername")[1] for transport in taken]
                refused = site.seen.limits.count("connections")
                return refused > refused_before or own_port in ports

            async def peer(number):
                address = (f"127.0.2.{number}", 0)
                refused = site.seen.limits.count("connections")
                both = await asyncio.open_connection("127.0.0.1", site.port, local_addr=address)
                opened.append(both[1])
                own_port = both[1].get_extra_info("sockname")[1]
                await until(lambda: has_come(own_port, refused))
                return both

            yield site, peer
            for writer in opened:
                writer.close()

    return start


async def ask(peer, request=KNOWN):
    """The status; "" where the connection has ended."""
    reader, writer = peer
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError):
        return ""
    return head.split()[1].decode()


def test_whoever_waits_unknown_gives_way_before_a_known_one_that_waits_longer(full_listener, run):
    async def main():
        async with full_listener() as (site, peer):
            known = await peer(1)
            assert await ask(known) == "200"
            strangers = [await peer(number) for number in (2, 3)]
            refused = await peer(4)
            assert await ask(refused, ASK % b"") == "401"
            newcomers = [await peer(number) for number in (5, 6, 7)]
            assert [await ask(each) for each in newcomers] == ["200"] * 3
            assert [await ask(each) for each in strangers] == [""] * 2
            assert await ask(refused) == ""
            assert await ask(known) == "200"
            assert site.seen.limits == ["displaced"] * 3

    run(main)


def test_of_known_ones_whoever_waits_longest_gives_way(full_listener, run):
    async def main():
        async with full_listener() as (_, peer):
            peers = [await peer(number) for number in range(1, 5)]
            for each in (*peers, peers[0]):
                assert await ask(each) == "200"
            assert await ask(await peer(5)) == "200"
            assert [await ask(each) for each in peers] == ["200", "", "200", "200"]

    run(main)


BODY = b"POST /echo HTTP/1.1\r\nHost: x\r\nWho: me\r\nContent-Length: 4\r\n\r\nab"
WAIT = b"GET /wait HTTP/1.1\r\nHost: x\r\nWho: me\r\n\r\n"


def test_a_request_under_way_is_never_ended(full_listener, run, monkeypatch):
    # Whoever keeps a request waiting on a busy machine does not drag for that.
    monkeypatch.setattr(connection, "DRAGGING_S", PATIENCE_S)

    async def main():
        async with full_listener(stall_s=2 * PATIENCE_S) as (site, peer):
            peers = [await peer(number) for number in (1, 1, 1, 2)]
            for each, request in zip(peers, (BODY, BODY, WAIT, KNOWN[:20]), strict=True):
                each[1].write(request)
            connections = list(site.server.connections)
            await until(lambda: sum(one.current is not None for one in connections) == 3)
            peers[3][1].write(KNOWN[20:30])
            # That one's head is still coming, but nobody knows whose it is.
            assert await ask(await peer(3)) == "200"
            assert await ask(peers[3], KNOWN[30:]) == ""
            # Now one that has nothing in hand; then none.
            last = await peer(4)
            last[1].write(WAIT)
            await until(
                lambda: sum(one.current is not None for one in site.server.connections) == 4
            )
            refused = await peer(5)
            assert b" 503 " in await refused[0].read()
            for each in peers[:2]:
                assert await ask(each, b"cd") == "201"
            assert site.seen.limits == ["displaced", "displaced", "connections"]

    run(main)


def test_whoever_drags_gives_way_where_all_are_at_work(full_listener, run):
    async def main():
        async with full_listener(stall_s=PATIENCE_S) as (site, peer):
            peers = [await peer(number) for number in (1, 1, 1, 2)]
            for each in peers:
                each[1].write(BODY)
            await until(lambda: all(one.is_dragging for one in site.server.connections))
            assert await ask(await peer(3)) == "200"
            assert [await ask(each, b"cd") for each in peers] == ["", "201", "201", "201"]

    run(main)


def test_where_nobody_is_asked_who_it_is_one_of_the_largest_gives_way_first(full_listener, run):
    async def main():
        async with full_listener(guards=(), has_strangers=False) as (_, peer):
            first, *greedy = [await peer(number) for number in (1, 2, 2, 2)]
            assert await ask(await peer(3)) == "200"
            assert await ask(first) == "200"
            assert [await ask(each) for each in greedy] == ["", "200", "200"]
            # Equals: the one that has waited longest.
            assert [await ask(await peer(number)) for number in (4, 5)] == ["200"] * 2

    run(main)


def test_without_the_rule_equals_keep_a_newcomer_out(full_listener, run, monkeypatch):
    """The control: only whoever has two more than a newcomer gives way to it."""

    def former(self, newcomer):
        largest = self._holders.get(self._limits.connections.displaced_by(newcomer))
        return None if largest is None else largest.waiting.longest()

    monkeypatch.setattr(Connections, "giving_way_to", former)

    async def main():
        async with full_listener() as (site, peer):
            for number in range(1, 5):
                await peer(number)
            assert b" 503 " in await (await peer(5))[0].read()
            assert site.seen.limits == ["connections"]

    run(main)
