"""Real agents behind one gateway, killed and cut off under load: every receipt counts.

Producers hand in on the hosts. Meanwhile the gateway and the hosts get SIGKILL and
are started again, Komodor is away and answers of it are lost. In the full form there
are twenty hosts; each of them, the gateway and Komodor stand in a network namespace of
their own: a host reaches the gateway and nothing else, Komodor is reached by the gateway
alone, and both ways are cut in the middle of their work. In the end each event that got
a receipt on its host has arrived; what arrived twice says so.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import trustme
from support.agent import GONE, AgentProcess, Zygote
from support.ports import free_port
from support.receiver import OK, Receiver
from support.waiting import PATIENCE_S
from support.wires import Wires, needed_wires

from outboxd.gateway.tokens import ProducerLimits, append_token, new_token

HOST_COUNT, SHORT_HOST_COUNT = 20, 8
BATCH = 10
IN_FLIGHT_MAX = 64 + 16  # [delivery] concurrency_max, and those that hang
LOST_ANSWER_EVERY = 100
DRAIN_S = 240.0
GATEWAY, KOMODOR = "gateway", "komodor"
# A way that is cut for longer than a request may take loses its answer.
PATIENCE = {"connect_timeout": "1s", "request_timeout": "2s"}
SHORT_CUT_S, LONG_CUT_S = (0.05, 0.5), (2.1, 2.5)
AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Komodor:
    """Takes events, is away, or loses an answer."""

    def __init__(self, listening: socket.socket) -> None:
        self.is_away = False
        self.lost_answers = 0
        self.address: tuple[str, int] = listening.getsockname()
        self.endpoint = f"http://{self.address[0]}:{self.address[1]}/mgmt/v1/events"
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
        zygotes: tuple[Zygote, Zygote],  # of the gateway and of the hosts
        wires: Wires | None,
    ) -> None:
        self._wires = wires
        address = "127.0.0.1" if wires is None else wires.addresses[GATEWAY]
        authority = trustme.CA()
        authority.cert_pem.write_to_path(base / "ca.pem")
        certificate = authority.issue_cert(address)
        certificate.private_key_and_cert_chain_pem.write_to_path(base / "gateway.pem")
        self.listen = f"{address}:{free_port() if wires is None else 8443}"
        intake = {
            "listen": self.listen,
            "tls_cert": str(base / "gateway.pem"),
            "tls_key": str(base / "gateway.pem"),
            "tokens_file": str(base / "tokens"),
            "connections_per_peer": 2000,  # on loopback they all come from one address
        }
        self.gateway = self._agent(
            base, GATEWAY, komodor.endpoint, {"allow_plain_http": True}, zygotes[0], intake
        )
        self.hosts = []
        for name in host_names(host_count):
            secret, token = new_token(name, ProducerLimits())
            append_token(str(base / "tokens"), token)
            key = base / f"key-{name}"
            key.write_text(secret)
            settings = {"ca_file": str(base / "ca.pem"), "api_key_file": str(key)}
            endpoint = f"https://{self.listen}/mgmt/v1/events"
            self.hosts.append(self._agent(base, name, endpoint, settings, zygotes[1]))

    def _agent(self, base, name, endpoint, komodor, zygote, intake=None) -> AgentProcess:
        directory = base / name
        directory.mkdir()
        extra = {
            "komodor": {**PATIENCE, **komodor},
            "intake": intake or {},
            # On a slow machine each host would tell of one, and two in the same words.
            "delivery": {"report_outage": False},
        }
        namespace = None if self._wires is None else self._wires.namespaces[name]
        return AgentProcess(directory, endpoint, extra=extra, zygote=zygote, namespace=namespace)

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
         random_: random.Random, wires: Wires | None = None) -> Counter[str]:  # fmt: skip
    """Kill and cut while the producers work, at points spread over what they hand in."""

    def kill(agent: AgentProcess) -> None:
        agent.kill()
        time.sleep(random_.uniform(0, 0.2))  # so long it is missed
        agent.start()

    done = Counter[str]()
    acts = (ACTS if wires is None else ACTS_WITH_CUTS) * cycles
    for number, act in enumerate(acts):
        producers.await_receipts(number * wanted // len(acts))
        place = random_.randrange(len(fleet.hosts))
        done[act] += 1
        if act == "kill gateway":
            kill(fleet.gateway)
        elif act == "kill host":
            kill(fleet.hosts[place])
        elif act in ("away", "back"):
            komodor.is_away = act == "away"
        else:
            assert wires is not None
            way = (KOMODOR if "Komodor" in act else f"host-{place}", GATEWAY)
            with wires.cut(*way):
                if "kill" in act:
                    kill(fleet.gateway)
                time.sleep(random_.uniform(*(LONG_CUT_S if done[act] % 8 == 1 else SHORT_CUT_S)))
    return done


ACTS = ("kill gateway", "away", "kill gateway", "kill host", "back", "kill host")
ACTS_WITH_CUTS = (
    *("kill gateway", "cut a host off", "away", "kill gateway", "cut a host off", "kill host"),
    *("back", "cut Komodor off", "kill host", "cut Komodor off and kill gateway"),
)


def check(
    receipts: list[str], komodor: Komodor, done: Counter[str], in_order: bool
) -> dict[str, int]:
    """`in_order`: that what was sent first arrived first. Where a wire is cut it need not: the
    system sends on for a process that was killed, and brings its request when the wire is
    whole again, after that of the next process. Then one of the arrivals may be unmarked."""
    arrivals = komodor.receiver.arrivals
    lost = [summary for summary in receipts if not arrivals.get(summary)]
    assert lost == [], f"{len(lost)} of {len(receipts)} lost: {lost[:5]}"
    twice = {summary: marks for summary, marks in arrivals.items() if len(marks) > 1}
    unmarked = {s: marks for s, marks in twice.items() if marks.count(False) > 1}
    if in_order:
        unmarked |= {s: marks for s, marks in twice.items() if not all(marks[1:])}
    assert unmarked == {}
    extra = sum(len(marks) - 1 for marks in twice.values())
    ends = sum(count for act, count in done.items() if "gateway" in act or "Komodor" in act)
    assert extra <= ends * IN_FLIGHT_MAX + komodor.lost_answers
    return {"receipts": len(receipts), "duplicates": extra, "lost answers": komodor.lost_answers}


def host_names(count: int) -> list[str]:
    return [f"host-{number}" for number in range(count)]


@contextmanager
def fleet_of(base: Path, host_count: int, wires: Wires | None) -> Iterator[tuple[Fleet, Komodor]]:
    with ExitStack() as stack:
        # The key of the environment would go before the file's.
        zygotes = (Zygote(), Zygote(environ={"KOMODOR_API_KEY": ""}))
        for zygote in zygotes:
            stack.callback(zygote.close)
        listening = (
            _listen()
            if wires is None
            else wires.run_in(KOMODOR, lambda: _listen(wires.addresses[KOMODOR]))
        )
        komodor = Komodor(listening)
        stack.callback(komodor.receiver.stop)
        fleet = Fleet(base, komodor, host_count, zygotes, wires)
        stack.callback(fleet.kill)
        fleet.start()
        yield fleet, komodor


@contextmanager
def wired(host_count: int) -> Iterator[Wires]:
    """Each host reaches the gateway, and the gateway Komodor; there are no other ways."""
    hosts = host_names(host_count)
    ways = [(GATEWAY, name) for name in (KOMODOR, *hosts)]
    with closing(needed_wires([GATEWAY, KOMODOR, *hosts], ways)) as wires:
        yield wires


def test_a_fleet_loses_nothing_whoever_is_killed(tmp_path, seed):
    with fleet_of(tmp_path, SHORT_HOST_COUNT, None) as (fleet, komodor):
        hand_in_and_count(fleet, komodor, wanted=1_000, cycles=1, seed=seed)


@pytest.mark.timeout(900)
def test_a_fleet_without_a_way_out_loses_nothing_whoever_is_killed_and_cut_off(
    tmp_path, full, seed
):
    if not full:
        pytest.skip("20,000 events through 22 namespaces: --full")
    with wired(HOST_COUNT) as wires, fleet_of(tmp_path, HOST_COUNT, wires) as (fleet, komodor):
        assert_cut_off(wires, fleet, komodor)
        hand_in_and_count(fleet, komodor, wanted=20_000, cycles=6, seed=seed, wires=wires)


def hand_in_and_count(
    fleet: Fleet,
    komodor: Komodor,
    wanted: int,
    cycles: int,
    seed: int,
    wires: Wires | None = None,
) -> None:
    producers = Producers(fleet.hosts, wanted)
    producers.start()
    done = play(fleet, komodor, producers, wanted, cycles, random.Random(seed), wires)
    producers.join()
    fleet.drain()
    figures = check(producers.receipts, komodor, done, in_order=wires is None)
    print(f"{dict(done)}: {figures}")
    assert figures["receipts"] >= wanted
    assert figures["lost answers"] > 0


def assert_cut_off(wires: Wires, fleet: Fleet, komodor: Komodor) -> None:
    """Every host reaches the gateway, and Komodor by no way; the gateway does, so that
    it is there to be reached."""

    def connects(name: str, address: tuple[str, int], within_s: float) -> bool:
        def connect() -> bool:
            try:
                socket.create_connection(address, within_s).close()
            except OSError:
                return False
            return True

        return bool(wires.run_in(name, connect))

    gateway, hosts = (wires.addresses[GATEWAY], 8443), host_names(len(fleet.hosts))
    assert connects(GATEWAY, komodor.address, PATIENCE_S)
    with ThreadPoolExecutor(len(hosts)) as threads:
        tried = {
            "the gateway": threads.map(lambda name: connects(name, gateway, PATIENCE_S), hosts),
            "Komodor": threads.map(lambda name: connects(name, komodor.address, 1.0), hosts),
        }
        reached = {what: set(each) for what, each in tried.items()}
    assert reached == {"the gateway": {True}, "Komodor": {False}}


def test_hosts_that_could_reach_komodor_would_be_noticed(tmp_path, full):
    """The control: a network in which everybody reaches everybody."""
    if not full:
        pytest.skip("agents in namespaces: --full")
    with closing(needed_wires([GATEWAY, KOMODOR, *host_names(2)])) as wires:
        with fleet_of(tmp_path, 2, wires) as (fleet, komodor):
            with pytest.raises(AssertionError, match="Komodor"):
                assert_cut_off(wires, fleet, komodor)


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


@pytest.mark.long
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
        done = play(fleet, komodor, producers, 600, 2, random.Random(1))
        producers.join()
        fleet.drain()
        with pytest.raises(AssertionError, match="lost"):
            check(producers.receipts, komodor, done, in_order=True)


def _listen(address: str = "127.0.0.1") -> socket.socket:
    listening = socket.socket()
    listening.bind((address, 0))
    return listening
