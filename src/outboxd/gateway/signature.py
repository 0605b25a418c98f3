"""A webhook's signature: proof that its sender knows a secret, where it can send no token.

Pure. The scheme is the one that GitHub (`X-Hub-Signature-256: sha256=…`),
LaunchDarkly (`X-LD-Signature`) and Grafana (`X-Grafana-Alerting-Signature`) share:
HMAC-SHA256 over the body as it was sent, in hexadecimal digits (RFC 2104).
"""

from __future__ import annotations

import hashlib
import hmac

_PREFIX = "sha256="


def is_signed(body: bytes, signature: str, secret: bytes) -> bool:
    """Whether the header's value is the body's signature. Takes the same time for every
    wrong one; an empty secret signs nothing."""
    given = signature.strip().lower().removeprefix(_PREFIX)
    expected = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode()) and bool(secret)
