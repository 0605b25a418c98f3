"""Authorities, certificate and key file are read anew when they change on disk."""

from __future__ import annotations

import asyncio
import os

import pytest
import trustme

from outboxd.delivery.outcome import Fault
from outboxd.delivery.tls import Tls, WatchedTls
from outboxd.delivery.transport import Transport
from outboxd.errors import ConfigError
from outboxd.files import file_version

pytestmark = pytest.mark.usefixtures("each_loop")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """The system's authorities, as far as OpenSSL is told; the file."""
    (tmp_path / "system").mkdir()
    path = tmp_path / "system" / "ca-certificates.crt"
    trustme.CA().cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "system"))
    return path


def replace(path, blob):
    """As update-ca-certificates and certbot do."""
    new = path.with_name(path.name + ".new")
    blob.write_to_path(new)
    os.replace(new, path)


def test_the_systems_authorities_replaced_on_disk_end_the_fault(loopback, authority, system):
    async def main():
        async with loopback.Server(loopback.good, authority.server_context()) as server:
            transport = Transport(loopback.Komodor(server.url("https")), "secret")
            first = await transport.send("a", b"{}")
            assert not transport.reread_files()
            replace(system, authority.cert_pem)
            assert transport.reread_files()
            second = await transport.send("a", b"{}")
            await transport.close()
            return first.fault, second.status

    assert asyncio.run(main()) == (Fault.CERTIFICATE, 201)


def test_authorities_taken_over_after_a_fault_are_told_to_who_looks_next(
    loopback, authority, system
):
    # Whoever looks ends the hold that the fault began.
    def script(writer, _number, _request):
        writer.write(loopback.GOOD)

    async def main():
        async with loopback.Server(script, authority.server_context()) as server:
            transport = Transport(loopback.Komodor(server.url("https")), "secret")
            replace(system, authority.cert_pem)
            fault = (await transport.send("a", b"{}")).fault  # and it looks afresh
            told = [transport.reread_files(), transport.reread_files()]
            await transport.close()
            return fault, told

    assert asyncio.run(main()) == (Fault.CERTIFICATE, [True, False])


def test_an_authority_added_to_the_systems_folder_is_seen(system):
    before = file_version(str(system.parent))
    watched = WatchedTls(Tls())
    while file_version(str(system.parent)) == before:  # the file system's clock ticks coarsely
        system.with_name("0a1b2c3d.0").unlink(missing_ok=True)
        trustme.CA().cert_pem.write_to_path(system.with_name("0a1b2c3d.0"))
    assert watched.reread()
    assert not watched.reread()


def test_a_renewed_client_certificate_is_shown_without_a_fault_before(
    loopback, authority, tmp_path
):
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    shown: list[str] = []

    def renew(name):
        issued = authority.issue_cert(name)
        replace(key, issued.private_key_pem)
        replace(cert, issued.cert_chain_pems[0])

    def script(writer, _number, _request):
        shown.append(writer.get_extra_info("peercert")["subjectAltName"][0][1])
        writer.write(loopback.GOOD)

    async def main():
        context = authority.server_context()
        context.verify_mode = 2
        authority.configure_trust(context)
        async with loopback.Server(script, context) as server:
            renew("one.test")
            settings = loopback.Komodor(
                server.url("https"),
                ca_file=str(authority.folder / "ca.pem"),
                client_cert=str(cert),
                client_key=str(key),
            )
            transport = Transport(settings, "secret")
            assert (await transport.send("1", b"{}")).status == 201
            replace(key, authority.issue_cert("no.test").private_key_pem)
            for _ in range(2):  # it has not become right by having been told
                with pytest.raises(ConfigError, match="client_cert"):
                    transport.reread_files()  # the key is there, its certificate not yet
            assert (await transport.send("2", b"{}")).status == 201
            renew("two.test")
            assert transport.reread_files()
            assert (await transport.send("3", b"{}")).status == 201
            await transport.close()

    asyncio.run(main())
    assert shown == ["one.test", "one.test", "two.test"]


def test_told_to_read_them_anew_it_does_and_refuses_what_is_broken(authority, tmp_path):
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    watched = WatchedTls(Tls(str(ca_file)))
    before = watched.context
    assert watched.reread(whether_changed_or_not=True)
    assert watched.context is not before
    working = watched.context
    ca_file.write_bytes(ca_file.read_bytes()[:100])
    for _ in range(2):
        with pytest.raises(ConfigError, match="ca_file"):
            watched.reread(whether_changed_or_not=True)
        assert watched.context is working


async def test_an_endpoint_without_tls_reads_no_authorities(loopback, monkeypatch):
    def read(self):
        raise AssertionError("nobody needs them")

    monkeypatch.setattr(Tls, "context", read)
    transport = Transport(loopback.Komodor("http://127.0.0.1:9/events"), None)
    assert not transport.reread_files()
    await transport.close()
