"""Making, taking over and removing listening sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import pytest

from outboxd.errors import ConfigError
from outboxd.serve.server import HttpServer
from outboxd.serve.sockets import adopt, bind_tcp, bind_unix, remove
from outboxd.serve.table import RouteTable


def test_the_mode_is_as_asked_whatever_the_umask(tmp_path):
    for umask, mode in ((0o777, 0o666), (0, 0o600), (0o077, 0o660)):
        before = os.umask(umask)
        try:
            bound = bind_unix(str(tmp_path / "s"), mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == mode
        bound.socket.close()
        remove(bound)
        assert not (tmp_path / "s").exists()


def test_the_socket_belongs_to_nobody_until_its_mode_is_right(tmp_path, monkeypatch):
    seen = []
    real = os.chmod

    def look(path, mode, **more):
        seen.append(stat.S_IMODE(os.stat(path).st_mode))
        real(path, mode, **more)

    monkeypatch.setattr(os, "chmod", look)
    bound = bind_unix(str(tmp_path / "s"), 0o666)
    bound.socket.close()
    assert seen == [0]


def test_a_missing_directory_is_made(tmp_path):
    bound = bind_unix(str(tmp_path / "a" / "b" / "s"), 0o600)
    bound.socket.close()
    assert (tmp_path / "a" / "b").is_dir()


def test_a_stale_socket_is_taken_over_and_a_live_one_is_not(tmp_path):
    path = str(tmp_path / "s")
    first = bind_unix(path, 0o600)
    with pytest.raises(ConfigError, match="another process answers"):
        bind_unix(path, 0o600)
    assert os.path.exists(path)
    first.socket.close()  # as a killed agent leaves it
    second = bind_unix(path, 0o600)
    remove(first)  # it is not the first one's any more
    assert os.path.exists(path)
    second.socket.close()
    remove(second)
    assert not os.path.exists(path)


def test_something_else_in_its_place_is_left_alone(tmp_path):
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"):
        bind_unix(str(path), 0o600)
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_told_with_its_length(tmp_path):
    path = str(tmp_path / ("x" * 108))
    with pytest.raises(ConfigError, match="bytes") as caught:
        bind_unix(path, 0o600)
    assert "107" in (caught.value.hint or "")


def test_an_unknown_group_is_told(tmp_path):
    with pytest.raises(ConfigError, match="socket_group"):
        bind_unix(str(tmp_path / "s"), 0o660, "no-such-group-here")


def test_the_group_is_set(tmp_path):
    bound = bind_unix(str(tmp_path / "s"), 0o660, str(os.getegid()))
    assert os.stat(tmp_path / "s").st_gid == os.getegid()
    bound.socket.close()


def test_a_passed_socket_is_served_and_its_path_stays(tmp_path):
    path = str(tmp_path / "s")
    made = bind_unix(path, 0o600)

    async def main():
        bound = adopt(os.dup(made.socket.fileno()))
        server = HttpServer(RouteTable([]))
        await server.start(bound.socket)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 404")
        writer.close()
        await server.stop()
        remove(bound)

    asyncio.run(main())
    assert os.path.exists(path)
    made.socket.close()


@pytest.mark.parametrize("listen", ["8098", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", ":80"])
def test_a_wrong_address_is_told(listen):
    with pytest.raises(ConfigError, match="listen"):
        bind_tcp(listen)


def test_an_address_in_use_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match="in use"):
            bind_tcp(f"127.0.0.1:{taken.getsockname()[1]}")
