"""Twenty real agents behind one gateway, killed and cut off under load: every receipt counts.

Producers hand in on the hosts. Meanwhile the gateway and the hosts get SIGKILL and
are started again, Komodor is away, answers of it are lost, and (in the full form, as
root) hosts' cables are pulled. Then each host lives in a network namespace of its own
from which nothing but the gateway can be reached. In the end each event that got a
receipt on its host has arrived; what arrived twice says so.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trustme
from support.agent import GONE, AgentProcess, Zygote
from support.namespaces import Namespaces, can_make_namespaces
from support.receiver import OK, Receiver

from outboxd.gateway.tokens import ProducerLimits, append_token, new_token

HOST_COUNT = 20
BATCH = 10
IN_FLIGHT_MAX = 64 + 16  # [delivery] concurrency_max, and those that hang
LOST_ANSWER_EVERY = 100
DRAIN_S = 240.0
AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Komodor:
    """Takes events, is away, or loses an answer."""

    def __init__(self, listening: socket.socket) -> None:
        self.is_away = False
        self.lost_answers = 0
        self.receiver = Receiver(self._behave, listening).start()
        self._count = 0

    def _behave(self, body: bytes) -> bytes | None:
        if self.is_away:
            return AWAY
        self._count += 1
        if self._count % LOST_ANSWER_EVERY == 0:
            self.lost_answers += 1
            return None
        return OK


class Fleet:
    """A gateway and its hosts, as processes."""

    def __init__(
        self,
        base: Path,
        komodor: Komodor,
        host_count: int,
        zygotes: tuple[Zygote, Zygote] | None,  # of the gateway and of the hosts
        namespaces: Namespaces | None,
    ) -> None:
        address = "127.0.0.1" if namespaces is None else namespaces.gateway_address
        authority = trustme.CA()
        authority.cert_pem.write_to_path(base / "ca.pem")
        certificate = authority.issue_cert(address)
        certificate.private_key_and_cert_chain_pem.write_to_path(base / "gateway.pem")
        intake: dict[str, object] = {
            "listen": f"{address}:{_free_port() if namespaces is None else 8443}",
            "tls_cert": str(base / "gateway.pem"),
            "tls_key": str(base / "gateway.pem"),
            "tokens_file": str(base / "tokens"),
        }
        if namespaces is None:
            intake["connections_per_peer"] = 2000  # they all come from one address
        self.gateway = self._agent(
            base / "gateway",
            komodor.receiver.endpoint,
            {"intake": intake},
            zygotes[0] if zygotes else None,
            namespaces.gateway if namespaces else None,
        )
        self.hosts = []
        for number in range(host_count):
            secret, token = new_token(f"host-{number}", ProducerLimits())
            append_token(str(base / "tokens"), token)
            key = base / f"key-{number}"
            key.write_text(secret)
            settings = {"ca_file": str(base / "ca.pem"), "api_key_file": str(key)}
            host = self._agent(
                base / f"host-{number}",
                f"https://{intake['listen']}/mgmt/v1/events",
                {"komodor": settings},
                zygotes[1] if zygotes else None,
                namespaces.hosts[number] if namespaces else None,
            )
            self.hosts.append(host)

    def _agent(self, directory, endpoint, extra, zygote, namespace) -> AgentProcess:
        directory.mkdir()
        prefix = () if namespace is None else ("ip", "netns", "exec", namespace)
        # The key of the environment would go before the file's.
        environ = {"KOMODOR_API_KEY": ""} if "api_key_file" in extra.get("komodor", {}) else None
        return AgentProcess(
            directory, endpoint, extra=extra, zygote=zygote, prefix=prefix, environ=environ
        )

    def start(self) -> None:
        for agent in (self.gateway, *self.hosts):
            agent.start()

    def drain(self) -> None:
        """Until every event is where it must go; then stop."""
        for agent in (*self.hosts, self.gateway):
            status = agent.await_empty(DRAIN_S)
            assert status["outbox"]["dead"] == 0, status

    def kill(self) -> None:
        for agent in (self.gateway, *self.hosts):
            if agent.pid is not None:
                agent.kill()


class Producers:
    """Threads that hand in batches on the hosts and keep the receipts."""

    def __init__(self, hosts: list[AgentProcess], wanted: int, threads: int = 4) -> None:
        self.receipts: list[str] = []
        self.errors: list[str] = []
        self._wanted = wanted
        self._threads = [
            threading.Thread(target=self._work, args=(number, hosts[number::threads]), daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def await_receipts(self, count: int) -> None:
        ends_s = time.monotonic() + DRAIN_S
        while len(self.receipts) < count and not self.errors:
            assert time.monotonic() < ends_s, f"{len(self.receipts)} of {count} receipts"
            time.sleep(0.01)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(DRAIN_S)
            assert not thread.is_alive()
        assert self.errors == []

    def _work(self, name: int, hosts: list[AgentProcess]) -> None:
        count = 0
        while len(self.receipts) < self._wanted and not self.errors:
            count += 1
            host = hosts[count % len(hosts)]
            summaries = [f"{name}-{count}-{number}" for number in range(BATCH)]
            lines = [json.dumps({"eventType": "fleet", "summary": each}) for each in summaries]
            try:
                status, told = host.request(
                    "POST", "/v1/events/batch", "\n".join(lines).encode(), timeout_s=60
                )
            except GONE:
                time.sleep(0.01)  # it is being killed; nothing was promised
                continue
            results = [result["status"] for result in told["results"]] if status == 200 else told
            if results != ["accepted"] * BATCH:
                self.errors.append(f"{status} {told}")
            else:
                self.receipts += summaries
            time.sleep(0.01)


def play(fleet: Fleet, komodor: Komodor, producers: Producers, wanted: int, cycles: int,
         random_: random.Random, namespaces: Namespaces | None) -> Counter[str]:  # fmt: skip
    """Kill and cut while the producers work, at points spread over what they hand in."""

    def kill(agent: AgentProcess) -> None:
        agent.kill()
        time.sleep(random_.uniform(0, 0.2))  # so long it is missed
        agent.start()

    done = Counter[str]()
    acts = [
        "kill gateway",
        "away",
        "kill gateway",
        "kill host",
        "back",
        "kill host",
        "pull",
    ] * cycles
    for number, act in enumerate(acts):
        producers.await_receipts(number * wanted // len(acts))
        place = random_.randrange(len(fleet.hosts))
        if act == "pull" and namespaces is None:
            continue
        done[act] += 1
        if act == "kill gateway":
            kill(fleet.gateway)
        elif act == "kill host":
            kill(fleet.hosts[place])
        elif act == "pull":
            assert namespaces is not None
            with namespaces.pulled(place):
                time.sleep(random_.uniform(0.05, 0.5))
        else:
            komodor.is_away = act == "away"
    return done


def check(receipts: list[str], komodor: Komodor, gateway_kills: int) -> dict[str, int]:
    arrivals = komodor.receiver.arrivals
    lost = [summary for summary in receipts if not arrivals.get(summary)]
    assert lost == [], f"{len(lost)} of {len(receipts)} lost: {lost[:5]}"
    twice = {summary: marks for summary, marks in arrivals.items() if len(marks) > 1}
    assert {s: marks for s, marks in twice.items() if not all(marks[1:])} == {}
    extra = sum(len(marks) - 1 for marks in twice.values())
    assert extra <= gateway_kills * IN_FLIGHT_MAX + komodor.lost_answers
    return {"receipts": len(receipts), "duplicates": extra, "lost answers": komodor.lost_answers}


@contextmanager
def fleet_of(base: Path, host_count: int, in_namespaces: bool) -> Iterator[tuple]:
    with ExitStack() as stack:
        namespaces = zygotes = None
        if in_namespaces:
            namespaces = Namespaces(host_count)
            stack.callback(namespaces.close)
            listening = namespaces.run_in(namespaces.gateway, _listen)
        else:
            zygotes = (Zygote(), Zygote(environ={"KOMODOR_API_KEY": ""}))
            for zygote in zygotes:
                stack.callback(zygote.close)
            listening = _listen()
        komodor = Komodor(listening)
        stack.callback(komodor.receiver.stop)
        fleet = Fleet(base, komodor, host_count, zygotes, namespaces)
        stack.callback(fleet.kill)
        fleet.start()
        yield fleet, komodor, namespaces


@pytest.mark.timeout(900)
def test_a_fleet_loses_nothing_whoever_is_killed_and_whatever_is_cut(tmp_path, full):
    wanted, cycles = (20_000, 8) if full else (2_000, 1)
    seed = int(os.environ.get("OUTBOXD_SEED", "0")) or random.randrange(1 << 30)
    print(f"replay with OUTBOXD_SEED={seed}")
    in_namespaces = full and can_make_namespaces()
    with fleet_of(tmp_path, HOST_COUNT, in_namespaces) as (fleet, komodor, namespaces):
        if namespaces is not None:
            assert_cut_off(namespaces, komodor)
        producers = Producers(fleet.hosts, wanted)
        producers.start()
        done = play(fleet, komodor, producers, wanted, cycles, random.Random(seed), namespaces)
        producers.join()
        fleet.drain()
        figures = check(producers.receipts, komodor, done["kill gateway"])
    print(f"{'in namespaces' if in_namespaces else 'on loopback'}, {dict(done)}: {figures}")
    assert figures["receipts"] >= wanted
    assert figures["lost answers"] > 0


def assert_cut_off(namespaces: Namespaces, komodor: Komodor) -> None:
    """A host reaches the gateway, and Komodor by no way."""

    def connects(address: str, port: int) -> bool:
        try:
            socket.create_connection((address, port), 5).close()
        except OSError:
            return False
        return True

    for host in (namespaces.hosts[0], namespaces.hosts[-1]):
        assert namespaces.run_in(host, lambda: connects(namespaces.gateway_address, 8443))
        for address in ("127.0.0.1", namespaces.gateway_address):
            port = komodor.receiver.port
            assert not namespaces.run_in(host, lambda a=address, p=port: connects(a, p))


ANSWERS_FIRST = """
import asyncio, uuid_utils
import outboxd.intake.intake as door
from outboxd.outbox.model import Receipt

async def keep(self, items, mark=None):
    # Deliberately wrong: the receipt goes out, the commit follows.
    async def later():
        await asyncio.sleep(0.2)
        await self._outbox.accept(items, mark)
    asyncio.ensure_future(later())
    return [Receipt(str(uuid_utils.uuid7()), "accepted", "pending") for _ in items]

door.Intake.keep = keep
"""


def test_a_gateway_that_answers_before_it_commits_is_caught(tmp_path, monkeypatch):
    """The negative control: the same check must fail on a broken gateway behind good hosts."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(ANSWERS_FIRST)
    with ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(broken))
            gateways = Zygote()
            stack.callback(gateways.close)
        hosts = Zygote(environ={"KOMODOR_API_KEY": ""})
        stack.callback(hosts.close)
        komodor = Komodor(_listen())
        stack.callback(komodor.receiver.stop)
        fleet = Fleet(tmp_path, komodor, 4, (gateways, hosts), None)
        stack.callback(fleet.kill)
        fleet.start()
        producers = Producers(fleet.hosts, 600)
        producers.start()
        done = play(fleet, komodor, producers, 600, 2, random.Random(1), None)
        producers.join()
        fleet.drain()
        with pytest.raises(AssertionError, match="lost"):
            check(producers.receipts, komodor, done["kill gateway"])


def _listen() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    return listening


def _free_port() -> int:
    with _listen() as free:
        return free.getsockname()[1]
