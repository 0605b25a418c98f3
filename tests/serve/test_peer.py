"""Who answers for what comes from an address."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from outboxd.serve.peer import identify


@pytest.mark.parametrize(
    ("address", "holder"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_host_cannot_be_many_by_the_addresses_of_its_network(address, holder):
    connected = SimpleNamespace(family=None, getpeername=lambda: (address, 1234))
    assert identify(connected) == (None, holder)
