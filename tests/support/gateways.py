"""Gateways that share an outbox, producers that go from one to the other, and the count.

The count is independent of the agent: receipts are what producers were answered, and
arrivals what the endpoint got.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psycopg
from support.agent import GONE, AgentProcess, UnixConnection, Zygote
from support.receiver import Receiver
from support.waiting import PATIENCE_S

IN_FLIGHT_MAX = 16

# What a test changes in a gateway's process; loaded by Python itself at its start. The
# zygote forks, so that what differs between gateways stands in a file beside each
# configuration and is read at its start.
HOOKS = Path(__file__).parent / "gateway_hooks.py"


class Gateway(AgentProcess):
    """One of them, with a name of its own in the database."""

    def __init__(
        self,
        directory: Path,
        name: str,
        endpoint: str,
        url: str,
        zygote: Zygote | None,
        namespace: str | None = None,
        environ: dict[str, str] | None = None,
        **more: object,
    ) -> None:
        directory.mkdir()
        self.name = name
        self.launches = directory / "launches"
        self.stops = directory / "stops"
        self.orders = directory / "orders"
        os.mkfifo(self.orders)
        # Held open, so that neither end ever sees the other one go.
        self._orders = os.open(self.orders, os.O_RDWR | os.O_NONBLOCK)
        extra = {
            "outbox": {"url": url, "path": None, "disk_free_min": None, "durability": "local"},
            "intake": {"spool": None},
            "delivery": {"lease": "1s", "concurrency_max": IN_FLIGHT_MAX},
        }
        hooks = {"name": name, "clock_offset_s": more.pop("clock_offset_s", 0)}
        for section, keys in more.items():
            assert isinstance(keys, dict)
            extra.setdefault(section, {}).update(keys)
        super().__init__(
            directory, endpoint, extra=extra, zygote=zygote, namespace=namespace, environ=environ
        )
        self._hooks: dict[str, object] = hooks
        self.hook()

    def hook(self, **more: object) -> None:
        """For its next start: `stop` (a moment and a place), `fails_at_first` (a verb)."""
        (self.directory / "hooks.json").write_text(json.dumps(self._hooks | more))

    def order(self, text: str) -> None:
        """To its hooks, see there."""
        os.write(self._orders, text.encode() + b"\n")

    def stop_self(self) -> None:
        self.signal(signal.SIGSTOP)
        self.await_stopped()

    def await_stopped(self, timeout_s: float = PATIENCE_S) -> bool:
        ends_s = time.monotonic() + timeout_s
        while time.monotonic() < ends_s:
            if self.is_stopped():
                return True
            time.sleep(0.005)
        return False

    def is_stopped(self) -> bool:
        return self._state() == "T"

    def has_ended(self) -> bool:
        """Whether `wait` would not wait."""
        return self._state() == "Z"

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def launched_since(self, boot_s: float) -> list[str]:
        """Ids of what it launched from then on."""
        if not self.launches.exists():
            return []
        lines = [line.split() for line in self.launches.read_text().splitlines()]
        return [id for at_s, id in lines if float(at_s) >= boot_s]

    def close(self) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
                self.kill()
        os.close(self._orders)


class Fleet:
    """Two gateways, an endpoint each (of one receiver), and four producers."""

    def __init__(
        self,
        directory: Path,
        url: str,
        *,
        sql: str | None = None,
        hooks: str = "",
        receiver: Receiver | None = None,
        host: str = "127.0.0.1",
        namespaces: Sequence[str] = (),
        **more: object,
    ) -> None:
        """`sql`: how the test itself reaches the database. `hooks`: a deliberate fault.
        `receiver` and `host`, where it listens; `namespaces`: in which the gateways are."""
        self.url, self._sql = url, sql or url
        hooked = directory / "hooks"
        hooked.mkdir()
        (hooked / "sitecustomize.py").write_text(HOOKS.read_text() + "\n" + hooks)
        inherited = os.environ.get("PYTHONPATH", "")
        environ = {"PYTHONPATH": f"{hooked}:{inherited}".rstrip(":")}
        self._zygote = None if namespaces else Zygote(environ)
        self.receiver = (receiver or Receiver()).start()
        endpoint = f"http://{host}:{self.receiver.port}/mgmt/v1/events"
        one = more.pop("one", {})
        assert isinstance(one, dict)
        self.gateways = [
            Gateway(
                directory / name,
                name,
                endpoint,
                url,
                self._zygote,
                namespaces[number] if namespaces else None,
                environ,
                **{**more, **({} if number else one)},
            )
            for number, name in enumerate(("one", "two"))
        ]
        self.producers = Producers(self.gateways)

    def start(self) -> Fleet:
        for gateway in self.gateways:
            gateway.start()
        return self

    def sql(self, statement: str, *values: object) -> list[tuple]:
        """Retries while no server takes it: for the tests' own looks."""
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                with psycopg.connect(self._sql, autocommit=True, connect_timeout=3) as connection:
                    cursor = connection.execute(statement, values or None)
                    return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if time.monotonic() > ends_s:
                    raise
                time.sleep(0.02)

    def deliverer(self, other_than: Gateway | None = None) -> Gateway:
        """Who has the lease; waits until somebody has."""
        ends_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_s:
            rows = self.sql(
                "SELECT gateway FROM deliverers WHERE holder IS NOT NULL"
                " AND lease_ends_at > clock_timestamp()"
            )
            found = next((g for g in self.gateways if rows and g.name == rows[0][0]), None)
            if found is not None and found is not other_than:
                return found
            time.sleep(0.02)
        raise AssertionError(f"nobody delivers:\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(f"--- {g.name}\n{g.log_text()[-3000:]}" for g in self.gateways)

    def await_delivered(self, timeout_s: float = PATIENCE_S) -> None:
        """Until nothing is pending any more; for so long none may be delivered meanwhile."""
        fewest: int | None = None
        while True:
            ((pending,),) = self.sql("SELECT count(*) FROM states WHERE state = 'pending'")
            if not pending:
                return
            if fewest is None or pending < fewest:
                fewest, ends_s = pending, time.monotonic() + timeout_s
            assert time.monotonic() < ends_s, f"{pending} still pending\n{self.logs()}"
            time.sleep(0.05)

    def finish(self) -> dict[str, int]:
        """No more events; what there is is delivered; the figures."""
        self.producers.stop()
        self.await_delivered()
        return self.figures()

    def figures(self) -> dict[str, int]:
        arrivals = dict(self.receiver.arrivals)
        receipts = self.producers.receipts
        extra = [marks for marks in arrivals.values() if len(marks) > 1]
        for summary, marks in arrivals.items():
            if marks.count(False) > 1:
                print(self.story(summary))
        return {
            "receipts": len(receipts),
            "lost": sum(not arrivals.get(summary) for summary in receipts),
            "duplicates": sum(len(marks) - 1 for marks in extra),
            "unmarked": sum(marks.count(False) > 1 for marks in extra),
            "leases lost": sum(g.log_text().count('"lease.lost"') for g in self.gateways),
            "uncertain": self.producers.unanswered,
        }

    def story(self, summary: str) -> str:
        """All that is known of an event: of a fault."""
        rows = self.sql(
            "SELECT e.id::text, s.state, s.possible_duplicate, s.attempts::text FROM entries e"
            " JOIN states s USING (seq) WHERE e.body LIKE %s",
            f'%"{summary}"%',
        )
        launches = [
            f"{gateway.name} {line}"
            for gateway in self.gateways
            if gateway.launches.exists()
            for line in gateway.launches.read_text().splitlines()
            if any(row[0] in line for row in rows)
        ]
        return f"{summary} {self.receiver.arrivals[summary]} {rows} {launches}\n{self.logs()}"

    def close(self) -> None:
        self.producers.stop(check=False)
        for gateway in self.gateways:
            gateway.close()
        if self._zygote is not None:
            self._zygote.close()
        self.receiver.stop()


def check(figures: dict[str, int], ended: int) -> None:
    """Nothing lost; what came twice was in flight at one of so many ends of a deliverer, or
    where one was so slow that another took over, and all but one of its arrivals say so."""
    assert figures["lost"] == 0, figures
    assert figures["unmarked"] == 0, figures
    assert figures["duplicates"] <= (ended + figures["leases lost"]) * IN_FLIGHT_MAX, figures


class Producers:
    """Hosts: each hands in an event until it has a receipt, with its key, at whichever
    gateway answers."""

    def __init__(self, gateways: list[Gateway], count: int = 4, pause_s: float = 0.005) -> None:
        self.receipts: list[str] = []
        self.receipted_s: list[float] = []
        self.refusals: dict[int, int] = {}
        self._refused = [0] * count  # each of them, how often
        self.errors: list[str] = []
        self.unanswered = 0
        self._gateways = gateways
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, check: bool = True) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(60)
                assert not (check and thread.is_alive())
        assert not (check and self.errors), self.errors

    def await_more(self, count: int, timeout_s: float = PATIENCE_S) -> None:
        """Until so many more have their receipts."""
        wanted, ends_s = len(self.receipts) + count, time.monotonic() + timeout_s
        while len(self.receipts) < wanted:
            assert time.monotonic() < ends_s, f"no receipts; refused: {self.refusals}"
            time.sleep(0.005)

    def await_refused(self) -> None:
        """Until each of them has been refused once more: then whatever was answered to what
        it had asked before is counted."""
        before, ends_s = list(self._refused), time.monotonic() + PATIENCE_S
        while not all(now > then for now, then in zip(self._refused, before, strict=True)):
            assert time.monotonic() < ends_s, f"not all are refused: {self.refusals}"
            time.sleep(0.005)

    def _work(self, number: int) -> None:
        at, connection, count = number % 2, None, 0
        while not self._stop.is_set():
            count += 1
            summary = f"p{number}-{count}"
            body = json.dumps({"eventType": "fleet", "summary": summary, "dedupKey": summary})
            while not self._stop.is_set():
                try:
                    if connection is None:
                        connection = UnixConnection(str(self._gateways[at].socket), 20)
                    connection.request("POST", "/mgmt/v1/events", body)
                    response = connection.getresponse()
                    told = response.read()
                except GONE:
                    self.unanswered += 1
                    status = 0
                else:
                    status = response.status
                if status in (200, 201):
                    self.receipted_s.append(time.monotonic())  # before: who counts looks there
                    self.receipts.append(summary)
                    break
                if status:
                    self._refused[number] += 1
                    self.refusals[status] = self.refusals.get(status, 0) + 1
                    if status not in (503, 507):
                        self.errors.append(f"{status} {told!r}")
                        connection.close()
                        return
                if connection is not None:
                    connection.close()
                connection, at = None, 1 - at
                self._stop.wait(0.02)
            self._stop.wait(self._pause_s)
        if connection is not None:
            connection.close()
