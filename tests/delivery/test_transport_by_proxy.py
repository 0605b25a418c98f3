"""The transport through proxies: which one, what it learns, and what it may break."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket

import pytest

from outboxd.delivery.outcome import Fault, decide
from outboxd.delivery.transport import Transport
from outboxd.errors import ConfigError
from outboxd.outbox.model import Outcome

pytestmark = pytest.mark.usefixtures("each_loop")


def through_proxy(loopback, authority, proxy, proxy_url, **settings):
    async def main():
        async with loopback.Server(loopback.good, authority.server_context()) as server, proxy:
            komodor = loopback.Komodor(
                server.url("https"),
                proxy=proxy_url.format(port=proxy.port) if proxy_url else "",
                ca_file=str(authority.folder / "ca.pem"),
                **settings,
            )
            return await loopback.send_once(komodor)

    return asyncio.run(main())


def test_the_proxy_of_the_settings_is_used(loopback, authority):
    proxy = loopback.ConnectProxy()
    answer = through_proxy(loopback, authority, proxy, "http://127.0.0.1:{port}")
    assert answer.status == 201
    assert proxy.connects[0].startswith(b"CONNECT 127.0.0.1:")
    assert b"secret" not in proxy.connects[0]


def test_the_proxys_credentials_are_sent_to_it(loopback, authority):
    proxy = loopback.ConnectProxy(base64.b64encode(b"me:p@ss").decode())
    answer = through_proxy(loopback, authority, proxy, "http://me:p%40ss@127.0.0.1:{port}")
    assert answer.status == 201


async def test_a_proxy_for_plain_http_gets_the_credentials_and_keeps_its_connection(loopback):
    async with loopback.Server(loopback.good) as proxy:
        komodor = loopback.Komodor(
            "http://127.0.0.1:9/mgmt/v1/events", proxy=f"http://me:pass@127.0.0.1:{proxy.port}"
        )
        transport = Transport(komodor, "secret")
        for number in range(3):
            assert (await transport.send(str(number), b"{}")).status == 201
        await transport.close()
        assert proxy.connections == 1
        head = proxy.requests[0].lower()
        assert head.startswith(b"post http://127.0.0.1:9/mgmt/v1/events ")
        assert b"proxy-authorization: basic " in head
        assert b"\r\nauthorization:" not in head


def test_a_proxy_that_wants_credentials_is_a_hold_and_nothing_was_sent(loopback, authority):
    proxy = loopback.ConnectProxy("bm90OnVz")
    answer = through_proxy(loopback, authority, proxy, "http://me:wrong@127.0.0.1:{port}")
    assert (answer.fault, answer.sent) == (Fault.PROXY_AUTH, False)
    assert "wrong" not in answer.fault_text
    assert decide(answer, 0, 60).outcome is Outcome.HOLD


def test_a_proxy_that_will_not_or_cannot_connect_is_unavailable(loopback, authority):
    refuses = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
    proxy = loopback.ConnectProxy(refuses=refuses)
    answer = through_proxy(loopback, authority, proxy, "http://127.0.0.1:{port}")
    assert (answer.fault, answer.sent) == (Fault.PROXY, False)
    closed = f"http://127.0.0.1:{loopback.closed_port()}"
    answer = through_proxy(loopback, authority, loopback.ConnectProxy(), closed)
    assert (answer.fault, answer.sent) == (Fault.PROXY, False)


@pytest.fixture
def komodor_test(monkeypatch):
    """A name that is not loopback's and leads there, as far as we look it up."""
    real = socket.getaddrinfo

    def looked_up(host, *rest, **more):
        return real("127.0.0.1" if host == "komodor.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    return "komodor.test"


@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({"https_proxy": "http://{at}"}, True),
        ({"HTTPS_PROXY": "{at}"}, True),
        ({"ALL_PROXY": "http://{at}", "http_proxy": "http://[bad"}, True),
        ({"https_proxy": "http://{at}", "no_proxy": "other.test, .test"}, False),
        ({"https_proxy": "http://{at}", "NO_PROXY": "komodor.test:{port}"}, False),
        ({"https_proxy": "http://{at}", "NO_PROXY": "komodor.test:1"}, True),
        ({"http_proxy": "http://{at}"}, False),
    ],
)
def test_the_environments_proxy_is_used_unless_it_excepts_the_host(
    loopback, authority, monkeypatch, komodor_test, variables, used
):
    async def main():
        async with (
            loopback.Server(loopback.good, authority.server_context(komodor_test)) as server,
            loopback.ConnectProxy() as proxy,
        ):
            for name, value in variables.items():
                filled = value.format(at=f"127.0.0.1:{proxy.port}", port=server.port)
                monkeypatch.setenv(name, filled)
            settings = loopback.Komodor(
                server.url("https", komodor_test), ca_file=str(authority.folder / "ca.pem")
            )
            assert (await loopback.send_once(settings)).status == 201
            return len(proxy.connects)

    assert asyncio.run(main()) == used


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
async def test_loopback_never_goes_through_a_proxy_of_the_environment(loopback, monkeypatch, name):
    async with (
        loopback.Server(loopback.good) as server,
        loopback.Server(loopback.good) as proxy,
    ):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for host in (None, "localhost", "komodor.localhost"):
            settings = loopback.Komodor(server.url(host=host))
            with contextlib.suppress(ConfigError):
                await loopback.send_once(settings)
        assert proxy.requests == []
        assert len(server.requests) >= 2


@pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_key_in_clear_text_goes_to_no_proxy_that_the_configuration_does_not_name(
    loopback, monkeypatch, name, scheme
):
    monkeypatch.setenv(name, f"{scheme}://127.0.0.1:9")
    with pytest.raises(ConfigError, match="clear text") as raised:
        Transport(loopback.Komodor("http://gateway.test:8098/events"), "secret")
    assert "NO_PROXY=gateway.test" in raised.value.hint


# -- SOCKS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_of_the_environment_is_spoken_to_in_socks(
    loopback, authority, monkeypatch, komodor_test, scheme
):
    async def main():
        async with (
            loopback.Server(loopback.good, authority.server_context(komodor_test)) as server,
            loopback.SocksProxy() as proxy,
        ):
            monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:{proxy.port}")
            settings = loopback.Komodor(
                server.url("https", komodor_test), ca_file=str(authority.folder / "ca.pem")
            )
            transport = Transport(settings, "secret")
            for number in range(3):
                assert (await transport.send(str(number), b"{}")).status == 201
            await transport.close()
            return proxy.names, server.requests

    names, requests = asyncio.run(main())
    assert names == [b"komodor.test"]  # the proxy looks names up
    assert all(b"x-api-key: secret" in request.lower() for request in requests)


@pytest.mark.parametrize(("password", "expected"), [("p@ss", 201), ("wrong", Fault.PROXY_AUTH)])
def test_a_socks_proxys_credentials(loopback, authority, password, expected):
    proxy = loopback.SocksProxy(("me", "p@ss"))
    url = f"socks5://me:{password.replace('@', '%40')}@127.0.0.1:{{port}}"
    answer = through_proxy(loopback, authority, proxy, url)
    assert (answer.fault or answer.status) == expected
    assert password not in answer.fault_text


def test_a_socks_proxy_that_wants_credentials_is_a_hold(loopback, authority):
    proxy = loopback.SocksProxy(("me", "pass"))
    answer = through_proxy(loopback, authority, proxy, "socks5://127.0.0.1:{port}")
    assert (answer.fault, answer.sent) == (Fault.PROXY_AUTH, False)


def test_a_socks_proxy_that_cannot_connect_is_unavailable(loopback, authority):
    answer = through_proxy(
        loopback, authority, loopback.SocksProxy(reply=4), "socks5://127.0.0.1:{port}"
    )
    assert (answer.fault, answer.sent) == (Fault.PROXY, False)
    closed = f"socks5://127.0.0.1:{loopback.closed_port()}"
    answer = through_proxy(loopback, authority, loopback.SocksProxy(), closed)
    assert (answer.fault, answer.sent) == (Fault.PROXY, False)


def test_a_proxy_that_speaks_no_socks_ends_within_the_connect_timeout(loopback, authority):
    async def main():
        async with loopback.Server(loopback.good) as proxy:
            settings = loopback.Komodor(
                "https://127.0.0.1:9/events",
                proxy=f"socks5://127.0.0.1:{proxy.port}",
                connect_timeout_s=0.3,
            )
            answer = await loopback.send_once(settings)
            assert proxy.requests == []
            return answer

    answer = asyncio.run(main())
    assert (answer.fault, answer.sent) == (Fault.CONNECT_TIMEOUT, False)


# -- behind a proxy ------------------------------------------------------------------------------


def test_a_proxy_that_answers_503_on_one_of_its_connections_only_is_left_for_another(loopback):
    bad: list[object] = []

    def script(writer, _number, _request):
        if not bad:
            bad.append(writer)
        if writer is bad[0]:
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(loopback.GOOD)

    async def main():
        async with loopback.Server(script) as proxy:
            settings = loopback.Komodor(
                "http://127.0.0.1:9/events", proxy=f"http://127.0.0.1:{proxy.port}"
            )
            transport = Transport(settings, "secret")
            answers = [await transport.send(str(n), b"{}") for n in range(3)]
            await transport.close()
            return [answer.status for answer in answers]

    assert asyncio.run(main()) == [503, 201, 201]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", Fault.LOST),
        (b"HTTP/1.1 201 Cre", Fault.LOST),
        (b"\x00 this is no HTTP\r\n\r\n", Fault.GARBAGE),
    ],
)
def test_what_ends_behind_a_proxy_after_the_request_left_may_have_arrived(
    loopback, authority, raw, fault
):
    def script(writer, _number, _request):
        writer.write(raw)
        return True

    async def main():
        async with (
            loopback.Server(script, authority.server_context()) as server,
            loopback.ConnectProxy() as proxy,
        ):
            settings = loopback.Komodor(
                server.url("https"),
                proxy=f"http://127.0.0.1:{proxy.port}",
                ca_file=str(authority.folder / "ca.pem"),
            )
            return await loopback.send_once(settings)

    answer = asyncio.run(main())
    assert (answer.fault, answer.sent) == (fault, True)


def test_behind_a_proxy_certificates_are_verified_and_cookies_are_not_kept(loopback, authority):
    answer = through_proxy(loopback, authority, loopback.ConnectProxy(), "http://127.0.0.1:{port}")
    assert answer.status == 201

    def script(writer, _number, _request):
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n")

    async def main():
        async with (
            loopback.Server(script, authority.server_context()) as server,
            loopback.ConnectProxy() as proxy,
        ):
            url, at = server.url("https"), f"http://127.0.0.1:{proxy.port}"
            strange = await loopback.send_once(loopback.Komodor(url, proxy=at))
            ca_file = str(authority.folder / "ca.pem")
            transport = Transport(loopback.Komodor(url, proxy=at, ca_file=ca_file), "secret")
            for number in range(2):
                await transport.send(str(number), b"{}")
            await transport.close()
            return strange, server.requests

    strange, requests = asyncio.run(main())
    assert (strange.fault, strange.sent) == (Fault.CERTIFICATE, False)
    assert len(requests) == 2
    assert not any(b"cookie" in request.lower() for request in requests)


@pytest.mark.parametrize(
    "proxy",
    ["ftp://x", "http://[bad", "socks4://x:1", "http://", "http://x:port", "http://me:pass@"],
)
def test_a_proxy_that_cannot_be_used_stops_the_start(loopback, monkeypatch, proxy):
    with pytest.raises(ConfigError, match="proxy") as raised:
        Transport(loopback.Komodor("https://komodor.test/events", proxy=proxy), None)
    assert "socks5://" in raised.value.hint
    assert "pass" not in raised.value.message
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigError, match=r"\$https_proxy"):
        Transport(loopback.Komodor("https://komodor.test/events"), None)
