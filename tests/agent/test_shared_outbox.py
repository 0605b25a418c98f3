"""Two gateways on one PostgreSQL: real agents and a real server; any of them may die."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.agent import ENVIRON, GONE, AgentProcess
from support.postgresql import Bouncer, Server, needed_binaries
from support.receiver import OK, Receiver
from support.server_home import server_home
from support.waiting import PATIENCE_S, wait_until

LEASE_S = 2.0
# Where nobody is to lose it, however long a busy machine lets the deliverer wait.
STEADY = {"lease": f"{3 * PATIENCE_S:g}s"}
# What a gateway takes for the database's clock may be so much behind it.
CLOCKS_DIFFER_S = 1.0
OUTAGE_ENDED = "delayed up to"  # in the summary of the agent's own event


@pytest.fixture
def at_length(full: bool) -> None:
    """What takes seconds each; one of them is the short form."""
    if not full:
        pytest.skip("a killed deliverer is the short form of it: --full")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_home() as directory:
        one = Server(directory, needed_binaries())
        one.start()
        yield one
        one.stop("immediate")


@pytest.fixture
def komodor() -> Iterator[Receiver]:
    receiver = Receiver().start()
    yield receiver
    receiver.stop()


@pytest.fixture
def make_gateway(
    server: Server, komodor: Receiver, tmp_path: Path
) -> Iterator[Callable[[str], AgentProcess]]:
    url = server.fresh_url()
    made: list[AgentProcess] = []

    def make(name: str, environ: dict[str, str] | None = None, **sections: Any) -> AgentProcess:
        directory = tmp_path / name
        directory.mkdir()
        extra: dict[str, dict[str, object]] = {
            "outbox": {"path": None, "disk_free_min": None, "url": url, "durability": "local"},
            "intake": {"spool": None},
            "delivery": {"lease": f"{LEASE_S:g}s"},
        }
        for section, keys in sections.items():
            extra.setdefault(section, {}).update(keys)
        gateway = AgentProcess(directory, komodor.endpoint, extra=extra, environ=environ)
        gateway.start()
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        if gateway.pid is not None:
            gateway.signal(signal.SIGCONT)
            gateway.kill()


@pytest.fixture
def pair(make_gateway: Callable[[str], AgentProcess]) -> tuple[AgentProcess, AgentProcess]:
    """The one that delivers, and another."""
    first = make_gateway("a")
    wait_until(lambda: delivers(first))
    return first, make_gateway("b")


@pytest.fixture
def steady_pair(make_gateway: Callable[..., AgentProcess]) -> tuple[AgentProcess, AgentProcess]:
    """The same, and the one goes on delivering as long as it runs."""
    first = make_gateway("a", delivery=STEADY)
    wait_until(lambda: delivers(first))
    return first, make_gateway("b", delivery=STEADY)


def delivers(gateway: AgentProcess) -> bool:
    return bool(gateway.status()["deliverer"]["here"])


def body(name: str) -> bytes:
    event = {"eventType": "t", "summary": name, "severity": "information", "dedupKey": name}
    return json.dumps(event).encode()


def give(gateway: AgentProcess, name: str) -> int:
    """The status of the answer; 0 for none."""
    try:
        return gateway.request("POST", "/mgmt/v1/events", body(name))[0]
    except GONE:
        return 0


def hand_in(gateway: AgentProcess, name: str) -> int:
    """As a producer does: again until there is a receipt, since a database that is slow to
    answer has some refused. Gives the receipt's status."""
    told: list[int] = []
    wait_until(lambda: told.append(give(gateway, name)) or told[-1] in (200, 201))
    return told[-1]


def unmarked_duplicates(komodor: Receiver) -> list[str]:
    return [name for name, marks in komodor.arrivals.items() if not all(marks[1:])]


@pytest.mark.usefixtures("at_length")
def test_every_gateway_takes_events_and_one_delivers_each_once(steady_pair, komodor):
    pair = steady_pair
    given = [f"{gateway.directory.name}{n}" for n in range(40) for gateway in pair]
    by_name = {gateway.directory.name: gateway for gateway in pair}
    for name in given:
        hand_in(by_name[name[0]], name)
    assert hand_in(pair[0], "b0") == hand_in(pair[1], "a0") == 200
    wait_until(lambda: len(komodor.order) == len(given))
    wait_until(lambda: all(gateway.status()["outbox"]["delivered"] == 80 for gateway in pair))
    assert sorted(komodor.order) == sorted(given)
    assert [delivers(gateway) for gateway in pair] == [True, False]


def test_when_the_deliverer_is_killed_the_other_delivers_and_nothing_is_lost(pair, komodor):
    first, other = pair
    receipts: set[str] = set()
    for n in range(30):
        name = f"before {n}"
        if give(pair[n % 2], name) == 201:
            receipts.add(name)
    first.kill()
    for n in range(10):
        hand_in(other, f"after {n}")
        receipts.add(f"after {n}")
    wait_until(lambda: receipts <= set(komodor.order))
    wait_until(lambda: delivers(other))
    assert not unmarked_duplicates(komodor)


@pytest.mark.usefixtures("at_length")
def test_a_gateway_that_stops_lets_another_deliver_at_once(steady_pair, komodor):
    first, other = steady_pair
    assert first.stop() == 0
    hand_in(other, "after")
    wait_until(lambda: "after" in komodor.order)


@pytest.mark.usefixtures("at_length")
def test_a_stopped_deliverer_that_goes_on_later_sends_nothing_more(make_gateway, komodor):
    lease = {"lease": "10s"}  # which the other keeps, though a busy machine lets it wait
    first = make_gateway("a", delivery=lease)
    wait_until(lambda: delivers(first))
    other = make_gateway("b", delivery=lease)
    first.signal(signal.SIGSTOP)
    given = [f"while it stands {n}" for n in range(20)]
    for name in given:
        hand_in(other, name)
    wait_until(lambda: set(given) <= set(komodor.order))
    first.signal(signal.SIGCONT)
    wait_until(lambda: not delivers(first))
    more = [f"later {n}" for n in range(20)]
    for name in more:
        hand_in(first, name)
    wait_until(lambda: set(more) <= set(komodor.order))
    assert delivers(other)
    assert not unmarked_duplicates(komodor)
    assert "lease.lost" in first.log_text()


@pytest.mark.usefixtures("at_length")
def test_an_outage_is_told_of_once_and_from_its_begin_on_though_its_first_witness_died(
    make_gateway, komodor
):
    refused = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    bodies: list[bytes] = []
    komodor.behave = lambda body: bodies.append(body) or refused
    quick = {"late_after": "1s", "backoff_initial": "20ms", "backoff_max": "200ms"}
    first = make_gateway("a", delivery=quick)
    wait_until(lambda: delivers(first))
    other = make_gateway("b", delivery=quick)
    hand_in(first, "waits")
    wait_until(lambda: other.status()["destination"]["state"] == "backingOff")
    seen_at = time.time()
    first.kill()
    wait_until(lambda: delivers(other))
    asked = len(bodies)
    wait_until(lambda: len(bodies) > asked)
    recovered_at = time.time()
    komodor.behave = lambda body: bodies.append(body) or OK
    wait_until(lambda: any(OUTAGE_ENDED in name for name in komodor.order))
    wait_until(lambda: other.status()["outbox"]["pending"] == 0)
    (told,) = [each for each in map(json.loads, bodies) if OUTAGE_ENDED in each["summary"]]
    began, ended = (
        datetime.fromisoformat(told["details"][name]).timestamp()
        for name in ("outageBegan", "outageEnded")
    )
    assert began <= seen_at
    assert ended >= recovered_at - CLOCKS_DIFFER_S
    assert other.stop() == 0
    again = make_gateway("c", delivery=quick)
    hand_in(again, "another")
    wait_until(lambda: "another" in komodor.order)
    assert sum(OUTAGE_ENDED in name for name in komodor.order) == 1


@pytest.mark.usefixtures("at_length")
def test_an_operators_hold_is_everybodys(steady_pair, komodor):
    first, other = steady_pair
    assert other.request("POST", "/v1/hold", b'{"reason": "maintenance"}')[0] == 200
    wait_until(lambda: first.status()["destination"]["state"] == "held")
    hand_in(first, "held back")
    hand_in(other, "held back, too")
    assert other.request("POST", "/v1/release", b"{}")[0] == 200
    wait_until(lambda: len(komodor.order) == 2)


@pytest.mark.usefixtures("at_length")
def test_every_gateway_tells_how_the_destination_stands_to_who_delivers(steady_pair, komodor):
    first, other = steady_pair
    refused = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    komodor.behave = lambda body: refused
    hand_in(other, "waits")
    wait_until(lambda: first.status()["destination"]["state"] == "held")
    wait_until(lambda: other.status()["destination"]["state"] == "held")
    assert "401" in other.status()["destination"]["reason"]
    komodor.behave = lambda body: OK
    status, answer = other.request("POST", "/v1/release", b"{}")
    assert status == 200, answer
    wait_until(lambda: other.status()["outbox"]["pending"] == 0)
    assert delivers(first)


@pytest.mark.usefixtures("at_length")
def test_while_the_database_is_away_events_are_refused_and_then_taken_again(
    server, make_gateway, komodor
):
    gateway = make_gateway("a")
    hand_in(gateway, "before")
    wait_until(lambda: "before" in komodor.order)
    server.stop("immediate")
    try:
        status, answer = gateway.request("POST", "/mgmt/v1/events", body("meanwhile"))
        assert status in (503, 0), answer
        wait_until(lambda: not gateway.status()["intake"]["accepting"])
        assert give(gateway, "meanwhile") == 503
    finally:
        server.start()
    hand_in(gateway, "afterwards")
    wait_until(lambda: "afterwards" in komodor.order)
    assert gateway.status()["deliverer"]["trouble"] is None


@pytest.mark.usefixtures("at_length")
def test_a_commit_that_waits_for_a_standby_is_left_alone_and_nobody_waits_for_it(
    server, pair, komodor
):
    def standby(name: str) -> None:
        server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        server.execute("SELECT pg_reload_conf()")

    first, other = pair
    standby("nobody")
    try:
        wait_until(lambda: server.shown("synchronous_standby_names") == "nobody")
        assert give(first, "waits") == 0, "no answer: nobody knows what becomes of it"
        assert {give(gateway, "refused") for gateway in pair} == {503}
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        with psycopg.connect(server.url(), autocommit=True) as connection:
            ((count,),) = connection.execute(waiting)
        assert count <= 2 * len(pair), "no connection is left for another that waits, too"
        assert other.stop() == 0
    finally:
        standby("")
    hand_in(first, "afterwards")
    assert hand_in(first, "waits") == 200, "it was made all the same"
    wait_until(lambda: {"waits", "afterwards"} <= set(komodor.order))
    assert not unmarked_duplicates(komodor)


@pytest.mark.usefixtures("at_length")
def test_behind_a_pooler_of_transactions_all_is_the_same(
    server, make_gateway, komodor, need, tmp_path
):
    need("pgbouncer")
    database = server.fresh_database()
    with tempfile.TemporaryDirectory(prefix="outboxd-pgb-") as directory:
        bouncer = Bouncer(Path(directory), server, "transaction")
        try:
            bouncer.await_ready(database)
            url = {"url": bouncer.url(database)}
            pair = [make_gateway("a", outbox=url), make_gateway("b", outbox=url)]
            given = [f"{n}" for n in range(40)]
            for n, name in enumerate(given):
                hand_in(pair[n % 2], name)
            wait_until(lambda: set(given) <= set(komodor.order))
            wait_until(lambda: any(map(delivers, pair)))
            first, other = pair if delivers(pair[0]) else pair[::-1]
            first.kill()
            hand_in(other, "after")
            wait_until(lambda: "after" in komodor.order)
            assert not unmarked_duplicates(komodor)
            assert other.stop() == 0
        finally:
            bouncer.stop()


def test_a_second_agent_on_the_same_socket_is_refused(make_gateway):
    gateway = make_gateway("a")
    second = AgentProcess.__new__(AgentProcess)
    second.__dict__.update(gateway.__dict__, pid=None, _popen=None)
    second.start(ready=False)
    assert second.wait() == 75
    assert f"process {gateway.pid}" in gateway.log_text()
    assert gateway.answers()


def run(gateway: AgentProcess, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outboxd", *words, "-c", str(gateway.config)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=ENVIRON, check=False
    )


@pytest.mark.usefixtures("at_length")
def test_commands_work_with_an_agent_and_by_the_database_without_one(steady_pair, komodor):
    first, other = steady_pair
    hand_in(other, "a name")
    wait_until(lambda: "a name" in komodor.order)
    assert "Delivered by: this gateway" in run(first, "status").stdout
    assert "Delivered by: the gateway on" in run(other, "status").stdout
    assert "PostgreSQL " in run(other, "check").stdout
    first.stop()
    assert "a name" in run(first, "events").stdout
    assert "what the outbox's database says" in run(first, "status").stdout
    assert run(first, "hold", "--reason", "by hand").returncode == 0
    wait_until(lambda: other.status()["destination"]["state"] == "held")
    told = run(first, "backup", str(first.directory / "copy"))
    assert told.returncode == 69
    assert "pg_dump" in told.stderr


def test_gateways_of_two_accounts_on_one_database_take_hold_and_deliver_their_own(
    make_gateway, komodor, full
):
    """A hold and an outage of one leave the other alone, and so does its end."""
    others = Receiver().start()
    try:
        own = make_gateway("a", delivery=STEADY)
        there = {
            "komodor": {"account": "other", "endpoint": others.endpoint},
            "delivery": {"late_after": "1h"},  # its outage is no event of its own
        }
        other = make_gateway("b", **there)

        def others_once() -> list[str]:
            return list(dict.fromkeys(others.order))  # its lease is short, and may be lost

        same_key = ["one", "two"]
        for count, name in enumerate(same_key, 1):
            for gateway in (own, other):
                hand_in(gateway, name)
            wait_until(lambda count=count: komodor.order == others_once() == same_key[:count])
        wait_until(lambda: delivers(own) and delivers(other))
        wait_until(lambda: [g.status()["outbox"]["delivered"] for g in (own, other)] == [2, 2])
        # One is held by its operator, and then its Komodor refuses and is away.
        assert other.request("POST", "/v1/hold", b'{"reason": "maintenance"}')[0] == 200
        for gateway in (own, other):
            hand_in(gateway, "held")
        wait_until(lambda: komodor.order[-1] == "held")
        assert own.status()["destination"]["state"] == "ok"
        others.behave = lambda body: b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n"
        assert other.request("POST", "/v1/release", b"{}")[0] == 200
        wait_until(lambda: other.status()["destination"]["state"] == "backingOff")
        for gateway in (own, other):
            hand_in(gateway, "away")
        wait_until(lambda: komodor.order[-1] == "away")
        assert own.status()["destination"]["state"] == "ok"
        assert other.status()["outbox"]["pending"] == 2
        if full:
            check_what_is_told(own, other)
        # With its own gateway gone nobody delivers for it; another of it does.
        other.kill()
        hand_in(own, "after")
        wait_until(lambda: komodor.order[-1] == "after")
        others.behave = lambda body: OK
        make_gateway("c", **there)
        wait_until(lambda: set(others.order) == {"one", "two", "held", "away"})
        assert komodor.order == ["one", "two", "held", "away", "after"]
        assert not unmarked_duplicates(others)
    finally:
        others.stop()


@pytest.mark.usefixtures("at_length")
def test_two_keys_under_one_accounts_name_are_told(make_gateway):
    """What it takes would go to the other account; the key itself is nowhere."""
    first = make_gateway("a", delivery=STEADY)
    wait_until(lambda: delivers(first))
    same = make_gateway("b", delivery=STEADY)
    differs = make_gateway("c", {"KOMODOR_API_KEY": "another-key"}, delivery=STEADY)
    wait_until(lambda: "gateway.differs" in differs.log_text())
    assert "API key is not the deliverer's" in differs.log_text()
    assert "another-key" not in differs.log_text()
    assert "gateway.differs" not in same.log_text() + first.log_text()


def check_what_is_told(own: AgentProcess, other: AgentProcess) -> None:
    """Each account's name by status, check and metrics."""
    assert "for the account other" in run(other, "status").stdout
    assert "default: 0 pending, delivered by" in run(other, "check").stdout
    assert "other: 2 pending, delivered by" in run(own, "check").stdout
    assert 'account="other"' in other.request("GET", "/metrics")[1].decode()
    assert "held" not in run(own, "events", "--pending").stdout


def test_a_database_that_cannot_keep_the_promise_stops_the_start(make_gateway):
    gateway = make_gateway("a")
    gateway.stop()
    text = gateway.config.read_text().replace('"local"', '"replicated"')
    gateway.config.write_text(text)
    done = run(gateway, "run")
    assert done.returncode == 78
    assert "no synchronous standby" in done.stderr
