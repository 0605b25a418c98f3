"""A signature may stand in for a token."""

from __future__ import annotations

import pytest

from outboxd.gateway.signature import is_signed

# GitHub's own example: docs.github.com, "Validating webhook deliveries".
SECRET, BODY = b"It's a Secret to Everybody", b"Hello, World!"
GOOD = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


@pytest.mark.parametrize("value", [f"sha256={GOOD}", GOOD, GOOD.upper(), f" {GOOD} "])
def test_githubs_own_example_is_signed(value):
    assert is_signed(BODY, value, SECRET)


@pytest.mark.parametrize("value", ["", "sha256=", GOOD[:-1], GOOD[:-1] + "8", f"sha1={GOOD}", "é"])
def test_anything_else_is_not(value):
    assert not is_signed(BODY, value, SECRET)
    assert not is_signed(BODY + b" ", GOOD, SECRET)


def test_an_empty_secret_signs_nothing():
    import hashlib
    import hmac

    assert not is_signed(BODY, hmac.new(b"", BODY, hashlib.sha256).hexdigest(), b"")
