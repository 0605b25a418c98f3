"""The table of what an answer means: every status, every fault, odd bodies."""

from __future__ import annotations

import pytest

from outboxd.delivery.outcome import Answer, Fault, decide, is_html_page
from outboxd.outbox.model import Outcome

NOW_MS = 1_750_000_000_000
CAP_S = 3600.0
JSON = {"content-type": "application/json"}


def expected(status: int) -> Outcome:
    """The table of the design, once more and in other words."""
    if status in range(200, 300):
        return Outcome.DELIVERED
    if status == 429:
        return Outcome.THROTTLED
    if status in (401, 402, 403, 404, 405, 407, 421) or status in range(300, 400):
        return Outcome.HOLD
    if status in range(400, 500) and status not in (408, 425):
        return Outcome.REJECTED
    return Outcome.UNAVAILABLE


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_means_what_the_table_says(status):
    verdict = decide(Answer(status, JSON, b'{"message": "so it is"}'), NOW_MS, CAP_S)
    assert verdict.outcome is expected(status)
    assert verdict.status == status
    # An interim status is no answer; every other plain one says that the
    # request was read, and so leaves no doubt.
    assert verdict.may_have_arrived is (status < 200)
    assert verdict.retry_after_s is None
    if verdict.outcome is Outcome.DELIVERED:
        assert verdict.error is None
        assert verdict.hint is None
    else:
        assert verdict.error.startswith(str(status))
        assert "so it is" in verdict.error
        assert verdict.hint


@pytest.mark.parametrize("status", range(100, 600))
def test_retry_after_changes_only_429_and_503(status):
    answer = Answer(status, {**JSON, "retry-after": "7"}, b"{}")
    verdict = decide(answer, NOW_MS, CAP_S)
    if status in (429, 503):
        assert (verdict.outcome, verdict.retry_after_s) == (Outcome.THROTTLED, 7.0)
    else:
        assert (verdict.outcome, verdict.retry_after_s) == (expected(status), None)


@pytest.mark.parametrize("useless", ["", "soon", "-5", "0", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_retry_after_of_no_use_is_none(useless):
    throttled = decide(Answer(429, {"retry-after": useless}), NOW_MS, CAP_S)
    assert (throttled.outcome, throttled.retry_after_s) == (Outcome.THROTTLED, None)
    unavailable = decide(Answer(503, {"retry-after": useless}), NOW_MS, CAP_S)
    assert unavailable.outcome is Outcome.UNAVAILABLE


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_a_status_that_does_not_exist_is_no_answer_to_trust(status):
    verdict = decide(Answer(status, JSON), NOW_MS, CAP_S)
    assert verdict.outcome is Outcome.UNAVAILABLE


BEFORE = {
    Fault.DNS: Outcome.UNAVAILABLE,
    Fault.CONNECT: Outcome.UNAVAILABLE,
    Fault.CONNECT_TIMEOUT: Outcome.UNAVAILABLE,
    Fault.CERTIFICATE: Outcome.HOLD,
    Fault.CLIENT_CERTIFICATE: Outcome.HOLD,
    Fault.TLS: Outcome.UNAVAILABLE,
    Fault.PROXY: Outcome.UNAVAILABLE,
    Fault.PROXY_AUTH: Outcome.HOLD,
}


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("sent", [True, False])
def test_every_fault_means_what_the_table_says_and_may_have_arrived_if_it_was_sent(fault, sent):
    answer = Answer(fault=fault, fault_text="as the system says", sent=sent)
    verdict = decide(answer, NOW_MS, CAP_S)
    assert verdict.outcome is BEFORE.get(fault, Outcome.UNAVAILABLE)
    assert verdict.status is None
    assert verdict.may_have_arrived is sent
    assert "as the system says" in verdict.error
    assert verdict.hint


@pytest.mark.parametrize(
    ("headers", "body", "page"),
    [
        (JSON, b'{"id": "a"}', False),
        (JSON, b"", False),
        ({}, b"", False),
        ({}, b"Created", False),
        ({}, b"\x00\xff\xfe\x80", False),
        ({}, b"<ok/>", False),
        ({"content-type": "text/html"}, b"", False),
        ({"content-type": "text/html"}, b"  \r\n ", False),
        ({"content-type": "text/html; charset=utf-8"}, b'{"id": "a"}', False),
        ({"content-type": "text/html"}, b"<p>Sign in</p>", True),
        ({"content-type": "Text/HTML;charset=utf-8"}, b"OK", False),
        ({"content-type": "text/html"}, b"\x1f\x8b\x08\x00", False),
        ({"content-type": "text/html"}, b"accepted <b>1</b>", False),
        ({}, b"<!doctype HTML PUBLIC '-//W3C//DTD HTML 4.01//EN'>", True),
        ({}, b"\n<body onload=go()>", True),
        ({}, b"<h1", True),
        ({"content-type": "application/xhtml+xml"}, b"<?xml version='1.0'?>", True),
        ({}, b"<!DOCTYPE html><html><body>Sign in</body></html>", True),
        ({"content-type": "text/plain"}, b"\xef\xbb\xbf \n<HTML><head>", True),
        (JSON, b"<html>", True),
        ({}, b"<!-- portal --><html>", True),
        ({}, b"<?xml version='1.0'?>\n<html xmlns='http://www.w3.org/1999/xhtml'>", True),
        ({}, b"<script>location='/login'</script>", True),
    ],
)
def test_a_page_is_known_by_its_start_whatever_its_type(headers, body, page):
    answer = Answer(200, headers, body)
    assert is_html_page(body) is page
    verdict = decide(answer, NOW_MS, CAP_S)
    assert verdict.outcome is (Outcome.UNAVAILABLE if page else Outcome.DELIVERED)
    assert verdict.may_have_arrived is False
    if page:
        assert "portal" in verdict.hint


def test_the_error_is_one_short_printable_line():
    body = b"line one\r\n\x1b[31mred\x00" + b"x" * 2000 + b"\xff"
    error = decide(Answer(400, {}, body), NOW_MS, CAP_S).error
    assert error.startswith("400 Bad Request: line one \\x1b[31mred\\x00xxx")
    assert error.isprintable()
    assert len(error) < 240


def test_a_redirect_names_its_target():
    verdict = decide(Answer(302, {"location": "https://portal.example/"}), NOW_MS, CAP_S)
    assert verdict.error == "302 Found: redirected to https://portal.example/"
    assert "never followed" in verdict.hint


@pytest.mark.parametrize("status", [s for s in range(400, 500) if s not in (408, 425, 429)])
def test_an_error_with_a_page_is_not_komodors_and_holds(status):
    page = b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head>"
    meaning = decide(Answer(status, {"content-type": "text/html"}, page), NOW_MS, CAP_S)
    assert meaning.outcome is Outcome.HOLD
    assert meaning.hint


def test_what_never_left_says_nothing_of_the_event():
    for fault in Fault:
        for sent in (True, False):
            meaning = decide(Answer(fault=fault, sent=sent), NOW_MS, CAP_S)
            assert meaning.concerns_event is (sent or fault is Fault.INTERNAL)
