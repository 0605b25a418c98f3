"""The transport against real servers on loopback: good, bad and broken."""

from __future__ import annotations

import asyncio
import datetime
import select
import socket
import ssl
import threading

import pytest
from support.waiting import PATIENCE_S

from outboxd import __version__
from outboxd.delivery import dialing
from outboxd.delivery.outcome import Fault, decide
from outboxd.delivery.transport import Transport, validate_url
from outboxd.errors import ConfigError
from outboxd.outbox.model import Outcome

pytestmark = pytest.mark.usefixtures("each_loop")


# Of requests that are to end by it: for all that comes before, on a busy machine too.
ENDS_S = 4.0


def answer_of(loopback, script, **settings):
    async def main():
        async with loopback.Server(script) as server:
            answer = await loopback.send_once(loopback.Komodor(server.url(), **settings))
            return answer, server

    return asyncio.run(main())


def test_a_good_answer_comes_back_with_status_headers_and_body(loopback):
    answer, server = answer_of(loopback, loopback.good)
    assert (answer.status, answer.fault, answer.sent) == (201, None, True)
    assert answer.headers["content-type"] == "application/json"
    assert answer.body_start == b'{"id":"k1"}'
    assert answer.complete
    head = server.requests[0].partition(b"\r\n\r\n")[0].decode().lower()
    assert head.startswith("post /mgmt/v1/events http/1.1")
    for line in (
        "x-api-key: secret",
        "content-type: application/json",
        f"user-agent: outboxd/{__version__}",
        "idempotency-key: 0190-id",
        "content-length: 2",
    ):
        assert line in head.split("\r\n")
    assert server.requests[0].endswith(b"\r\n\r\n{}")


async def test_connections_are_kept_and_a_new_key_is_used_at_once(loopback):
    async with loopback.Server(loopback.good) as server:
        transport = Transport(loopback.Komodor(server.url()), "old")
        for _ in range(3):
            assert (await transport.send("a", b"{}")).status == 201
        transport.set_key("new")
        await transport.send("b", b"{}")
        await transport.close()
        assert server.connections == 1
        assert [b"x-api-key: new" in r for r in server.requests] == [False] * 3 + [True]


async def test_without_a_key_no_header_is_sent(loopback):
    async with loopback.Server(loopback.good) as server:
        await loopback.send_once(loopback.Komodor(server.url()), key=None)
        assert b"x-api-key" not in server.requests[0].lower()


def test_validate_asks_beside_the_endpoint(loopback):
    async def main():
        async with loopback.Server(loopback.good) as server:
            transport = Transport(loopback.Komodor(server.url()), "secret")
            assert (await transport.validate()).status == 201
            await transport.close()
            assert server.requests[0].startswith(b"GET /mgmt/v1/apikey/validate HTTP/1.1")

    asyncio.run(main())
    assert (
        validate_url("https://api.komodor.com/mgmt/v1/events/")
        == "https://api.komodor.com/mgmt/v1/apikey/validate"
    )


async def test_redirects_and_cookies_are_not_followed(loopback):
    def script(writer, _number, _request):
        writer.write(
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\n"
            b"Set-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
        )

    async with loopback.Server(script) as server:
        transport = Transport(loopback.Komodor(server.url()), "secret")
        answer = await transport.send("a", b"{}")
        await transport.send("b", b"{}")
        await transport.close()
        assert answer.status == 307
        assert answer.headers["location"] == "/elsewhere"
        assert len(server.requests) == 2
        assert b"cookie" not in server.requests[1].lower()


def test_an_echoed_key_does_not_come_back_with_the_answer(loopback):
    def script(writer, _number, request):
        writer.write(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(request) + request)

    answer, _ = answer_of(loopback, script)
    assert b"secret" not in answer.body_start
    assert b"[api key]" in answer.body_start


# -- nothing was sent ---------------------------------------------------------------


def test_a_closed_port_is_no_connection_and_nothing_was_sent(loopback):
    url = f"http://127.0.0.1:{loopback.closed_port()}/mgmt/v1/events"
    answer = asyncio.run(loopback.send_once(loopback.Komodor(url)))
    assert (answer.fault, answer.sent) == (Fault.CONNECT, False)
    assert "127.0.0.1" in answer.fault_text


def filled(listener):
    """Connections that fill its backlog, so that the next SYN is dropped."""
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    assert select.select([listener], [], [], PATIENCE_S)[0]  # one waits there, and that is all
    return fillers


def test_a_listener_that_accepts_nobody_ends_with_the_connect_timeout(loopback):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = filled(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mgmt/v1/events"
        answer = asyncio.run(loopback.send_once(loopback.Komodor(url, connect_timeout_s=0.2)))
        for filler in fillers:
            filler.close()
    assert (answer.fault, answer.sent) == (Fault.CONNECT_TIMEOUT, False)


def test_a_server_silent_in_the_tls_handshake_ends_with_the_connect_timeout(loopback):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/mgmt/v1/events"
        answer = asyncio.run(loopback.send_once(loopback.Komodor(url, connect_timeout_s=0.2)))
    assert (answer.fault, answer.sent) == (Fault.CONNECT_TIMEOUT, False)


def test_a_name_that_does_not_resolve_is_dns(loopback, monkeypatch):
    def no_such_name(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(dialing.socket, "getaddrinfo", no_such_name)
    answer = asyncio.run(loopback.send_once(loopback.Komodor("http://komodor.invalid/v1/events")))
    assert (answer.fault, answer.sent) == (Fault.DNS, False)
    assert answer.fault_text == "komodor.invalid: Name or service not known"


def test_a_lookup_that_hangs_ends_with_the_connect_timeout_and_does_not_hold_the_exit(
    loopback, monkeypatch
):
    release = threading.Event()

    def hangs(*_args, **_kwargs):
        release.wait(PATIENCE_S)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(dialing.socket, "getaddrinfo", hangs)
    settings = loopback.Komodor("http://komodor.invalid/v1/events", connect_timeout_s=0.1)

    async def main():
        transport = Transport(settings, "secret")
        answers = [await transport.send("a", b"{}") for _ in range(6)]
        await transport.close()
        return answers

    answers = asyncio.run(main())
    release.set()
    assert answers[0].fault is Fault.CONNECT_TIMEOUT
    # No more threads than a few: the later ones are told so at once.
    assert answers[-1].fault in (Fault.CONNECT, Fault.DNS)
    assert not any(answer.sent for answer in answers)


def test_plain_http_where_tls_is_expected_is_a_tls_fault(loopback):
    def script(writer, _number, _request):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        return True

    async def main():
        async with loopback.Server(script, reads_first=False) as server:
            return await loopback.send_once(loopback.Komodor(server.url("https")))

    answer = asyncio.run(main())
    assert (answer.fault, answer.sent) == (Fault.TLS, False)


# -- certificates ---------------------------------------------------------------------


def over_tls(loopback, context, host=None, **settings):
    async def main():
        async with loopback.Server(loopback.good, context) as server:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            komodor = loopback.Komodor(server.url("https", host), **settings)
            return await loopback.send_once(komodor)

    return asyncio.run(main())


def test_an_authority_of_our_own_is_trusted(loopback, authority):
    ca_file = str(authority.folder / "ca.pem")
    assert over_tls(loopback, authority.server_context(), ca_file=ca_file).status == 201


def test_an_unknown_authority_does_not_verify(loopback, authority):
    answer = over_tls(loopback, authority.server_context())
    assert (answer.fault, answer.sent) == (Fault.CERTIFICATE, False)
    assert decide(answer, 0, 60).outcome is Outcome.HOLD


def test_another_hosts_certificate_does_not_verify(loopback, authority):
    context = authority.server_context("other.example")
    answer = over_tls(loopback, context, ca_file=str(authority.folder / "ca.pem"))
    assert (answer.fault, answer.sent) == (Fault.CERTIFICATE, False)
    assert "127.0.0.1" in answer.fault_text


def test_an_expired_certificate_does_not_verify(loopback, authority):
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    context = authority.server_context(
        "127.0.0.1", not_before=long_ago, not_after=long_ago + datetime.timedelta(days=1)
    )
    answer = over_tls(loopback, context, ca_file=str(authority.folder / "ca.pem"))
    assert (answer.fault, answer.sent) == (Fault.CERTIFICATE, False)
    assert "expired" in answer.fault_text


def serve_one_in_a_thread(listener, context, answer):
    """A server that ends a failed handshake in order, as real ones do: asyncio's
    resets the connection, and then the alert may not arrive."""
    raw, _ = listener.accept()
    with context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False) as tls:
        try:
            tls.do_handshake()
            tls.recv(65536)
            tls.sendall(answer)
        except ssl.SSLError:
            tls.shutdown(socket.SHUT_WR)
            while tls.recv(65536):
                pass


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", [True, False])
def test_a_client_certificate_is_shown_and_its_absence_told(loopback, authority, version, shown):
    context = authority.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    authority.configure_trust(context)
    folder = authority.folder
    files = {"ca_file": str(folder / "ca.pem")}
    if shown:
        files |= {
            "client_cert": str(folder / "client.pem"),
            "client_key": str(folder / "client.key"),
        }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (listener, context, loopback.GOOD)
        thread = threading.Thread(target=serve_one_in_a_thread, args=arguments)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/mgmt/v1/events"
        answer = asyncio.run(loopback.send_once(loopback.Komodor(url, **files)))
        thread.join(PATIENCE_S)
    if shown:
        assert answer.status == 201
    else:
        assert answer.sent is False
        expected = {ssl.TLSVersion.TLSv1_2: Fault.TLS}
        assert answer.fault is expected.get(version, Fault.CLIENT_CERTIFICATE)


def test_a_ca_file_that_is_mended_is_used_after_the_next_fault(loopback, authority, tmp_path):
    import trustme

    ca_file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca_file)

    async def main():
        async with loopback.Server(loopback.good, authority.server_context()) as server:
            transport = Transport(
                loopback.Komodor(server.url("https"), ca_file=str(ca_file)), "secret"
            )
            first = await transport.send("a", b"{}")
            ca_file.write_text("half a file")
            second = await transport.send("a", b"{}")
            authority.cert_pem.write_to_path(ca_file)
            third = await transport.send("a", b"{}")
            fourth = await transport.send("a", b"{}")
            await transport.close()
            return [first.fault, second.fault, third.fault, fourth.status]

    assert asyncio.run(main()) == [Fault.CERTIFICATE] * 3 + [201]


def test_files_that_are_no_certificates_stop_the_start_with_the_setting_named(loopback, tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    with pytest.raises(ConfigError, match="ca_file"):
        Transport(loopback.Komodor("https://127.0.0.1/events", ca_file=str(bad)), None)
    with pytest.raises(ConfigError, match="client_cert"):
        Transport(loopback.Komodor("https://127.0.0.1/events", client_cert=str(bad)), None)


# -- the request may have arrived --------------------------------------------------------


def closes(writer, _number, _request):
    return True


def half_a_head(writer, _number, _request):
    writer.write(b"HTTP/1.1 201 Cre")
    return True


def garbage(writer, _number, _request):
    writer.write(b"\x00\x01 this is no HTTP\r\n\r\n")
    return True


def resets(writer, _number, _request):
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return True


async def silent(writer, _number, _request):
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (closes, Fault.LOST),
        (half_a_head, Fault.LOST),
        (resets, Fault.LOST),
        (garbage, Fault.GARBAGE),
        (silent, Fault.TIMEOUT),
    ],
)
def test_what_ends_after_the_request_left_may_have_arrived(loopback, script, fault):
    request_timeout_s = ENDS_S if script is silent else PATIENCE_S
    answer, server = answer_of(loopback, script, request_timeout_s=request_timeout_s)
    assert (answer.fault, answer.status, answer.sent) == (fault, None, True)
    assert len(server.requests) == 1  # and was not sent again behind our back
    assert decide(answer, 0, 60).may_have_arrived


def test_a_server_that_closes_without_reading_may_have_read_after_all(loopback):
    def serve(listener):
        connection, _ = listener.accept()
        connection.recv(10)  # some of it has left for certain
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mgmt/v1/events"
        answer = asyncio.run(loopback.send_once(loopback.Komodor(url), b"x" * 300_000))
        thread.join(PATIENCE_S)
    assert (answer.fault, answer.sent) == (Fault.LOST, True)


async def test_a_kept_connection_that_the_server_drops_is_not_silently_sent_again(loopback):
    def script(writer, number, _request):
        if number == 2:
            return True
        writer.write(loopback.GOOD)
        return False

    async with loopback.Server(script) as server:
        transport = Transport(loopback.Komodor(server.url()), "secret")
        answers = [await transport.send(str(n), b"{}") for n in range(3)]
        await transport.close()
        assert [a.status for a in answers] == [201, None, 201]
        assert (answers[1].fault, answers[1].sent) == (Fault.LOST, True)
        assert len(server.requests) == 3


# -- the status is known -------------------------------------------------------------------


async def drips_a_head(writer, _number, _request):
    writer.write(b"HTTP/1.1 201 Created\r\n")
    while True:
        writer.write(b"X-More: a\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drips_a_body(writer, _number, _request):
    writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 10000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def never_sends_its_body(writer, _number, _request):
    writer.write(b"HTTP/1.1 201 OK\r\nContent-Type: text/html\r\nContent-Length: 9999\r\n\r\n")
    await asyncio.Event().wait()


def half_a_body(writer, _number, _request):
    writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 10000\r\n\r\n" + b"x" * 3000)
    return True


def test_what_does_not_end_cannot_take_the_status_back(loopback):
    async def answer_of(script):
        async with loopback.Server(script) as server:
            settings = loopback.Komodor(server.url(), request_timeout_s=ENDS_S)
            return await loopback.send_once(settings)

    async def main():  # side by side, since three of them take all of the time
        scripts = (drips_a_head, drips_a_body, never_sends_its_body, half_a_body)
        return await asyncio.gather(*map(answer_of, scripts))

    for answer in asyncio.run(main()):
        assert (answer.status, answer.fault, answer.complete) == (201, None, False)
        assert len(answer.body_start) <= 2048
        verdict = decide(answer, 0, 60)
        assert (verdict.outcome, verdict.may_have_arrived) == (Outcome.DELIVERED, False)


def test_an_endless_answer_is_read_no_further_than_its_limit(loopback):
    written = 0

    async def script(writer, _number, _request):
        nonlocal written
        writer.write(b"HTTP/1.1 201 Created\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            written += 65536
            await writer.drain()

    answer, _ = answer_of(loopback, script)
    assert (answer.status, answer.complete) == (201, False)
    # But for its end, where the beginning of the key might stand.
    assert len(answer.body_start) == 2048 - len("secret")
    assert written < 16 * 2**20


async def test_one_hung_request_stalls_no_other_and_cancelling_it_leaves_the_pool_whole(loopback):
    arrived = asyncio.Event()

    async def script(writer, number, _request):
        if number == 1:
            arrived.set()
            await asyncio.Event().wait()
        writer.write(loopback.GOOD)

    async with loopback.Server(script) as server:
        transport = Transport(loopback.Komodor(server.url()), "secret")
        hung = asyncio.create_task(transport.send("1", b"{}"))
        await arrived.wait()
        assert (await transport.send("2", b"{}")).status == 201
        hung.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hung
        assert (await transport.send("3", b"{}")).status == 201
        await transport.close()


async def test_after_a_fault_the_name_is_resolved_afresh(loopback, monkeypatch):
    real, asked = socket.getaddrinfo, []

    def counted(host, *rest, **more):
        asked.append(host)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(dialing.socket, "getaddrinfo", counted)

    def script(writer, number, _request):
        if number == 3:
            return True
        writer.write(loopback.GOOD)
        return False

    async with loopback.Server(script) as server:
        settings = loopback.Komodor(server.url(host="komodor.test"))
        transport = Transport(settings, "secret")
        for n in range(3):
            await transport.send(str(n), b"{}")
        assert len(asked) == 1
        assert (await transport.send("3", b"{}")).status == 201
        assert len(asked) == 2
        transport.refresh()
        await transport.send("4", b"{}")
        assert len(asked) == 3
        assert server.connections == 3
        await transport.close()


def test_ipv6_works(loopback):
    async def main():
        try:
            server = await loopback.Server(loopback.good, host="::1").__aenter__()
        except OSError:
            pytest.skip("this host has no IPv6 loopback")
        answer = await loopback.send_once(loopback.Komodor(server.url()))
        await server.__aexit__()
        return answer

    assert asyncio.run(main()).status == 201


# -- several addresses ----------------------------------------------------------------------


def leads_to(monkeypatch, *addresses):
    """Every name has these addresses, in this order."""

    def looked_up(_host, _port, *_rest, **_more):
        families = {2: socket.AF_INET, 4: socket.AF_INET6}
        return [
            (families[len(at)], socket.SOCK_STREAM, socket.IPPROTO_TCP, "", at) for at in addresses
        ]

    monkeypatch.setattr(dialing.socket, "getaddrinfo", looked_up)


def test_an_address_that_refuses_is_followed_by_the_next(loopback, monkeypatch):
    async def main():
        async with loopback.Server(loopback.good) as server:
            closed = ("127.0.0.1", loopback.closed_port())
            six = ("::1", closed[1], 0, 0)
            leads_to(monkeypatch, closed, six, closed, ("127.0.0.1", server.port))
            return await loopback.send_once(loopback.Komodor("http://komodor.test/events"))

    assert asyncio.run(main()).status == 201


def test_an_address_that_is_silent_does_not_hold_up_the_others(loopback, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        fillers = filled(silent)

        async def main():
            async with loopback.Server(loopback.good) as server:
                leads_to(monkeypatch, silent.getsockname(), ("127.0.0.1", server.port))
                settings = loopback.Komodor("http://komodor.test/events", connect_timeout_s=30)
                settings.request_timeout_s = 30
                return await loopback.send_once(settings)

        answer = asyncio.run(main())
        for filler in fillers:
            filler.close()
    assert answer.status == 201


def test_of_addresses_that_all_refuse_the_first_is_told(loopback, monkeypatch):
    leads_to(monkeypatch, *(("127.0.0.1", loopback.closed_port()) for _ in range(3)))
    answer = asyncio.run(loopback.send_once(loopback.Komodor("http://komodor.test/events")))
    assert (answer.fault, answer.fault_text) == (
        Fault.CONNECT,
        "komodor.test: Connection refused",
    )
