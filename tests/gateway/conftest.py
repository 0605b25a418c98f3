"""A gateway before a scripted Komodor, and its authority."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPSConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from support.agent import Zygote
from support.outside import Agent, Komodor
from support.ports import free_port
from support.waiting import PATIENCE_S

from outboxd.gateway.tokens import ProducerLimits, append_token, new_token


@pytest.fixture
def komodor() -> Iterator[Komodor]:
    komodor = Komodor()
    yield komodor
    komodor.stop()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


class Gateway:
    """A real agent that listens on TCP, and a way to speak to it."""

    def __init__(self, agent: Agent, port: int, tokens: Path, context: ssl.SSLContext) -> None:
        self.agent = agent
        self.port = port
        self.tokens = tokens
        self.context = context

    def token(self, name: str, **limits: Any) -> str:
        """A new token, in force once the gateway has looked at the file."""
        secret, token = new_token(name, ProducerLimits(**limits))
        append_token(str(self.tokens), token)
        return secret

    def request(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> SimpleNamespace:
        """One request on a connection of its own."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        sent = dict(headers or {})
        if token is not None:
            sent["x-api-key"] = token
        connection = HTTPSConnection(
            "localhost", self.port, timeout=PATIENCE_S, context=context or self.context
        )
        try:
            connection.connect()
            # What is refused unread may be ended before all of it was sent.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, sent)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        return SimpleNamespace(
            status=response.status,
            headers=response.headers,
            raw=data,
            json=json.loads(data) if data[:1] in (b"{", b"[") else None,
        )

    def post(self, event: dict[str, Any], token: str | None, **more: Any) -> SimpleNamespace:
        return self.request("POST", "/mgmt/v1/events", event, token, **more)

    def entries(self) -> list[dict[str, Any]]:
        return self.agent.request("GET", "/v1/events?limit=500")[1]["events"]  # type: ignore[index]


@pytest.fixture
def make_gateway(
    tmp_path: Path, komodor: Komodor, zygote: Zygote, authority: trustme.CA
) -> Iterator[Callable[..., Gateway]]:
    made: list[Agent] = []

    def make(
        tokens: dict[str, dict[str, Any]] | None = None, patch: str = "", **sections: Any
    ) -> Gateway:
        """`patch`: Python that runs before the agent does, as for a control."""
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        path = tmp_path / "tokens"
        path.touch(mode=0o600)
        secrets = {}
        for name, limits in (tokens or {"web": {}}).items():
            secrets[name], token = new_token(name, ProducerLimits(**limits))
            append_token(str(path), token)
        port = free_port()
        intake = {
            "listen": f"127.0.0.1:{port}",
            "tls_cert": str(tmp_path / "cert.pem"),
            "tls_key": str(tmp_path / "key.pem"),
            "tokens_file": str(path),
            **sections.pop("intake", {}),
        }
        how: dict[str, Any] = {"zygote": zygote}
        if patch:
            (tmp_path / "patch").mkdir()
            (tmp_path / "patch" / "sitecustomize.py").write_text(patch)
            how = {"environ": {"PYTHONPATH": str(tmp_path / "patch")}}
        agent = Agent(tmp_path, komodor.url, extra={"intake": intake, **sections}, **how)
        made.append(agent)
        agent.start()
        context = ssl.create_default_context()
        authority.configure_trust(context)
        gateway = Gateway(agent, port, path, context)
        gateway.secrets = secrets  # type: ignore[attr-defined]
        return gateway

    yield make
    for agent in made:
        if agent.pid is not None:
            agent.kill()


@pytest.fixture
def gateway(make_gateway: Callable[..., Gateway]) -> Gateway:
    return make_gateway()


@pytest.fixture
def token(gateway: Any) -> str:
    return gateway.secrets["web"]
