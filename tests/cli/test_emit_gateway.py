"""`emit` and `exec` that hand in to a gateway: over TLS, with a token, else into the spool."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme
from support.waiting import PATIENCE_S

from outboxd.errors import Unavailable
from outboxd.producer.build import build
from outboxd.producer.gateway import GatewayClient

ID = "0192f0c1-0000-7000-8000-000000000001"
TOKEN = "t0ken-of-the-runner"


class Gateway:
    """Answers each request by the next of `answers`, the last one again and again."""

    def __init__(self, authority) -> None:
        self.answers = [(201, {"id": ID, "status": "accepted", "warnings": []}, {})]
        self.requests = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                gateway.requests.append((self.path, self.headers["x-api-key"], json.loads(body)))
                answers = gateway.answers
                status, answer, headers = answers.pop(0) if len(answers) > 1 else answers[0]
                if status == 0:
                    return  # the answer is lost
                data = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(data), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("localhost").configure_cert(context)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'http' if authority is None else 'https'}://localhost:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def gateway(authority, place, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    started = Gateway(authority)
    place.environment |= {
        "OUTBOXD_GATEWAY": started.url,
        "OUTBOXD_TOKEN": TOKEN,
        "OUTBOXD_GATEWAY_CA": str(tmp_path / "ca.pem"),
    }
    yield started
    started.close()


def test_an_event_goes_to_the_gateway_with_the_token_and_its_id_is_printed(place, gateway):
    done = place.run("emit", "deploy", "v2", "--cluster", "c")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ID}\n", "")
    ((path, token, event),) = gateway.requests
    assert (path, token) == ("/mgmt/v1/events", TOKEN)
    assert event["summary"] == "v2"
    assert event["dedupKey"]
    assert place.spooled() == []


def test_options_name_it_too_and_the_token_stands_in_a_file(place, gateway, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    for name in ("OUTBOXD_GATEWAY", "OUTBOXD_TOKEN", "OUTBOXD_GATEWAY_CA"):
        del place.environment[name]
    options = ("--gateway", f"{gateway.url}/", "--token-file", str(tmp_path / "token"))
    options += ("--gateway-ca", str(tmp_path / "ca.pem"))
    assert place.run("emit", "t", "s", *options).stdout == f"{ID}\n"
    assert place.run("exec", *options, "--", "false").returncode == 1
    place.environment["SSL_CERT_FILE"] = str(tmp_path / "ca.pem")
    assert place.run("emit", "t", "s", *options[:4]).stdout == f"{ID}\n"
    assert [token for _, token, _ in gateway.requests] == [TOKEN] * 3


def test_the_installed_program_reaches_it_as_well(place, gateway, tmp_path):
    build(tmp_path / "outboxd", sys.prefix)
    done = subprocess.run(
        [tmp_path / "outboxd", "emit", "t", "s"],
        env=place.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{ID}\n"), done.stderr


@pytest.mark.parametrize("first", [(0, {}, {}), (503, {"error": "full"}, {"Retry-After": 1})])
def test_a_second_try_carries_the_same_dedup_key(place, gateway, first):
    gateway.answers.insert(0, first)
    assert place.run("emit", "t", "s").stdout == f"{ID}\n"
    first, second = gateway.requests
    assert first == second


@pytest.mark.parametrize(
    "answer",
    [
        (503, {"error": "the outbox is full"}, {"Retry-After": 300}),
        (401, {"error": "no valid token"}, {}),
        (302, {}, {"Location": "http://127.0.0.1:1/"}),
        (200, {"odd": True}, {}),
    ],
)
def test_what_the_gateway_does_not_take_goes_into_the_spool(place, gateway, answer):
    gateway.answers = [answer]
    done = place.run("emit", "t", "s")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"the gateway answered {answer[0]}" in done.stderr
    assert place.spooled()[0]["dedupKey"] == gateway.requests[0][2]["dedupKey"]
    assert len(gateway.requests) == 1
    assert TOKEN not in done.stderr


def test_what_it_refuses_for_good_is_65(place, gateway):
    gateway.answers = [(422, {"error": "cluster c is not this token's", "field": None}, {})]
    done = place.run("emit", "t", "s", "--cluster", "c")
    assert (done.returncode, place.spooled()) == (65, [])
    assert "is not this token's" in done.stderr


def test_a_gateway_whose_certificate_does_not_verify_gets_no_token(place, gateway):
    del place.environment["OUTBOXD_GATEWAY_CA"]
    done = place.run("emit", "t", "s")
    assert done.returncode == 0
    assert "certificate" in done.stderr.lower()
    assert gateway.requests == []
    assert len(place.spooled()) == 1


def test_a_gateway_that_is_gone_leaves_it_in_the_spool(place, gateway):
    place.environment["OUTBOXD_GATEWAY"] = "https://127.0.0.1:1"
    done = place.run("emit", "t", "s")
    assert done.returncode == 0
    assert "cannot be reached" in done.stderr
    assert len(place.spooled()) == 1
    assert place.run("exec", "--", "sh", "-c", "exit 3").returncode == 3
    assert len(place.spooled()) == 2


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("gateway:8443", TOKEN),
        ("http://gateway.example:8443", TOKEN),
        ("http://127.gateway.example:8443", TOKEN),
        ("https://u:p@host", TOKEN),
        ("https://host:port", TOKEN),
        ("https://localhost", ""),
        ("https://localhost", "two words"),
    ],
)
def test_a_gateway_that_cannot_be_meant_is_64_for_emit_and_no_matter_for_a_job(place, url, token):
    place.environment |= {"OUTBOXD_GATEWAY": url, "OUTBOXD_TOKEN": token}
    assert place.run("emit", "t", "s").returncode == 64
    done = place.run("exec", "--", "sh", "-c", "exit 3")
    assert (done.returncode, len(place.spooled())) == (3, 1)
    assert "going on without the gateway" in done.stderr
    assert token == "" or token not in done.stderr


@pytest.mark.parametrize("in_a_file", [True, False])
def test_what_is_no_token_is_told_as_that(place, gateway, tmp_path, in_a_file):
    (tmp_path / "token").write_text("# the token\noutboxd_abc\n")
    place.environment["OUTBOXD_TOKEN"] = "no tok\u00e9n"
    more = ("--token-file", tmp_path / "token") if in_a_file else ()
    done = place.run("emit", "t", "s", *more)
    assert done.returncode == 64
    assert f"what stands in {more[1] if more else '$OUTBOXD_TOKEN'} is no token" in done.stderr


def test_an_authority_that_cannot_be_read_is_named(place, gateway):
    place.environment["OUTBOXD_GATEWAY_CA"] = "/nowhere/ca.pem"
    done = place.run("emit", "t", "s")
    assert "authority /nowhere/ca.pem cannot be used: No such file" in done.stderr
    assert len(place.spooled()) == 1


def test_all_tries_together_have_their_time(monkeypatch):
    """A gateway that takes connections and says nothing: no try that could not end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        client = GatewayClient(f"http://127.0.0.1:{silent.getsockname()[1]}", TOKEN)
        monkeypatch.setattr("outboxd.producer.gateway.TIMEOUT_S", 0.2)
        tries = {}
        for altogether_s in (0.3, 60.0):
            monkeypatch.setattr("outboxd.producer.gateway.ALTOGETHER_S", altogether_s)
            with pytest.raises(Unavailable):
                client.post("/mgmt/v1/events", b"{}")
            tries[altogether_s] = 0
            with suppress(BlockingIOError):
                while True:
                    silent.accept()[0].close()
                    tries[altogether_s] += 1
    assert tries == {0.3: 1, 60.0: 3}


def test_plain_http_to_this_machine_is_allowed(place):
    gateway = Gateway(None)
    place.environment |= {"OUTBOXD_GATEWAY": gateway.url, "OUTBOXD_TOKEN": TOKEN}
    assert place.run("emit", "t", "s").stdout == f"{ID}\n"
    gateway.close()
