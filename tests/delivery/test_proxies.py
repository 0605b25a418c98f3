"""What NO_PROXY names: by name, domain, address, network and port."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from outboxd.delivery.proxies import bypassed, proxy_for

HTTPS, TEN = "https://api.komodor.test/events", "https://10.1.2.3/events"
SIX, MAPPED = "https://[2001:db8::5]:8443/events", "https://[::ffff:10.1.2.3]/events"


@pytest.mark.parametrize(
    ("no_proxy", "endpoint", "direct"),
    [
        ("*", HTTPS, True),
        ("api.komodor.test", HTTPS, True),
        ("API.Komodor.TEST.", HTTPS, True),
        ("komodor.test", HTTPS, True),
        (".komodor.test", HTTPS, True),
        ("*.komodor.test", HTTPS, True),
        ("odor.test", HTTPS, False),
        ("other.test,komodor.test", HTTPS, True),
        ("other.test komodor.test", HTTPS, True),
        ("api.komodor.test:443", HTTPS, True),
        ("api.komodor.test:80", HTTPS, False),
        ("api.komodor.test:https", HTTPS, False),
        ("api.komodor.test:80", "http://api.komodor.test/events", True),
        ("api.komodor.test:8443", "https://api.komodor.test:8443/events", True),
        ("10.1.2.3", TEN, True),
        ("10.1.2.3:443", TEN, True),
        ("10.0.0.0/8", TEN, True),
        ("10.0.0.0/8:443", TEN, True),
        ("10.0.0.0/8:80", TEN, False),
        ("10.1.2.0/30", TEN, True),
        ("10.1.3.0/24", TEN, False),
        ("192.168.0.0/16,10.0.0.0/8", TEN, True),
        ("10.0.0.0/8", MAPPED, True),
        ("10.0.0.0/8", HTTPS, False),
        ("10.0.0.0/800", TEN, False),
        ("1.2.3", TEN, False),
        ("2001:db8::5", SIX, True),
        ("2001:DB8:0::5", SIX, True),
        ("[2001:db8::5]", SIX, True),
        ("[2001:db8::5]:8443", SIX, True),
        ("[2001:db8::5]:443", SIX, False),
        ("2001:db8::/32", SIX, True),
        ("2001:db9::/32", SIX, False),
        ("::1", SIX, False),
        ("::1", "https://[::1]/events", True),
        ("", HTTPS, False),
        (",. ,*.,", HTTPS, False),
    ],
)
def test_no_proxy(no_proxy, endpoint, direct):
    assert bypassed(urlsplit(endpoint), no_proxy) is direct


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"https_proxy": "http://lower:1", "HTTPS_PROXY": "http://upper:1"}, "http://lower:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://upper:1"}, None),
        ({"HTTPS_PROXY": "upper:1"}, "http://upper:1"),
        ({"all_proxy": "socks5://all:1"}, "socks5://all:1"),
        ({"all_proxy": "socks5://all:1", "https_proxy": "http://one:1"}, "http://one:1"),
        ({"http_proxy": "http://one:1"}, None),
        ({"https_proxy": "http://one:1", "no_proxy": "komodor.test"}, None),
    ],
)
def test_which_variable_counts(environ, proxy):
    assert proxy_for(HTTPS, "", environ) == proxy
    assert proxy_for(HTTPS, "http://setting:1", environ) == "http://setting:1"
