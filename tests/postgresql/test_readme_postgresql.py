"""What the README says of two gateways on PostgreSQL, followed to the letter.

Put in place of what it says are only the database's address, and what belongs to the
host: its directories, the installer, and systemctl, which here are the test's.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from gateway.test_readme_gateway import Place, block
from support import clusters
from support.receiver import Receiver

README = (Path(__file__).parent.parent.parent / "README.md").read_text()
URL = "postgresql://outboxd@db1,db2/outboxd?sslmode=verify-full"


class GatewayHost(Place):
    """A host that is a gateway, and becomes one of two."""

    def __init__(self, path: Path, endpoint: str, pair: clusters.Pair) -> None:
        super().__init__(path, endpoint)
        there = str(pair.home).replace("/", "%2F")
        self.url = f"postgresql://outboxd@{there}:5432,{there}:5433/outboxd"
        self.database = {"PGHOST": str(pair.home), "PGPORT": "5432", "PGUSER": "postgres"}
        installer = self.path / "bin" / "sh"
        installer.write_text(
            '#!/bin/bash\ntest "$*" = systemd/install.sh && test "$EXTRA" = postgresql\n'
        )
        installer.chmod(0o755)

    def put_in_place(self, text: str) -> str:
        text = text.replace("/var/lib/outboxd/outbox.db", str(self.agent.outbox))
        return super().put_in_place(text.replace(URL, self.url))

    def follow(self, mark: str) -> str:
        """The commands behind a mark, each; systemctl's are the test's."""
        told = ""
        for line in block(mark).strip().splitlines():
            if line == "systemctl stop outboxd.socket outboxd.service":
                assert self.agent.stop() == 0
            elif line == "systemctl start outboxd.socket outboxd.service":
                self.agent.start()
            else:
                told += self.run(line, **self.database)
        return told


def test_two_gateways_in_the_readmes_words(template, tmp_path, need, only_full):
    need("openssl")
    need("createdb", "postgresql-client")
    receiver = Receiver().start()
    hosts: list[GatewayHost] = []
    try:
        with clusters.pair(template, synchronous=True) as pair:
            for name in ("a", "b"):
                directory = tmp_path / name
                directory.mkdir()
                hosts.append(GatewayHost(directory, receiver.endpoint, pair))
            one, two = hosts
            token = one.make_gateway()
            held = one.run(
                "outboxd hold >&2 && outboxd emit waits 'in the first one' --dedup-key k-1"
            )
            two.make_gateway()
            (two.etc / "tokens").write_text((one.etc / "tokens").read_text())
            one.follow("postgresql-database")
            two.agent.stop()
            for host in hosts:
                host.follow("postgresql-gateway")
                settings = tomllib.loads(host.agent.config.read_text())
                assert settings["outbox"]["url"] == host.url
                assert "path" not in settings["outbox"]
                assert "spool" not in settings["intake"]
            told = one.follow("postgresql-move")
            assert "moved 1 entries (1 pending" in told
            two.agent.start()
            assert two.run("outboxd emit waits again --dedup-key k-1") == held, (
                "the key is known there"
            )
            for host in hosts:
                receipt = json.loads(host.run(block("gateway-curl"), TOKEN=token))
                assert receipt["status"] == "accepted"
            assert not receiver.arrivals, "the hold went along"
            two.run("outboxd release")
            two.run(f"outboxd wait {held.strip()} --timeout 90s")
            one.agent.kill()
            id = two.run("outboxd emit after 'the first one died'").strip()
            two.run(f"outboxd wait {id} --timeout 90s")
            assert receiver.arrivals["the first one died"] == [False]
    finally:
        for host in hosts:
            if host.agent.pid is not None:
                host.agent.kill()
        receiver.stop()


def test_the_readmes_table_names_what_the_campaigns_prove():
    section = README.split("\n## Two gateways on PostgreSQL\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| (\w[^|]*) \|", section, re.MULTILINE)
    # Each by a campaign beside this test; that of accounts is in tests/agent.
    assert len(named) == 11, "ten lines and their head"
