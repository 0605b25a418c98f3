"""The histogram's axis stands on whole steps."""

from __future__ import annotations

import pytest

from outboxd.web.axis import axis


@pytest.mark.parametrize(
    "span_ms", [1, 999, 60_000, 3_600_000, 86_400_000 * 9, 86_400_000 * 90_000]
)
@pytest.mark.parametrize("buckets", [20, 90, 400])
def test_an_axis_holds_its_span_in_few_whole_steps(span_ms: int, buckets: int) -> None:
    since = 1_750_000_000_123
    low, high, step_ms = axis(since, since + span_ms, buckets)
    assert low <= since
    assert high >= since + span_ms
    assert (high - low) / step_ms <= buckets
